"""Python's collector of cycles kept from commands that read thousands of records, show a page and end."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Collect no cycles within, or during a function that is decorated with it.

    The collector would go through all records again and again, for a quarter of the command's time, and find
    nothing to free.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
