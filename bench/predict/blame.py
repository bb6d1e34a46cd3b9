"""Whose code failed where a cell could not be traced: a library's, by its name, or ours."""

import sys
from pathlib import PurePath
from traceback import walk_tb
from typing import NamedTuple

_OURS = "bench"
_CARRIES = frozenset({*sys.stdlib_module_names, "torch"})
"""Packages that run others' code: what fails in them is told of whoever called them."""


class Fault(NamedTuple):
    """The library whose code failed, and its line."""

    library: str
    place: str


def library_at_fault(error: Exception) -> Fault | None:
    """Return who failed, wherever it was imported from; None where that is this package, or a script."""
    lines = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
    ]
    name, file, line = next((one for one in reversed(lines) if one[0] not in _CARRIES), (_OURS, "", 0))
    if name in {_OURS, "__main__"}:
        return None
    return Fault(name, f"{'/'.join(PurePath(file).parts[-2:])}, line {line}")
