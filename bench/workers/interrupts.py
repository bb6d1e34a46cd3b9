"""Ctrl-C and SIGTERM: the first ends the sweep where nothing finished is lost, the second ends it at once.

Workers need nothing from here: the kernel ends them when this process is gone, however it went.
"""

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from bench.errors import InterruptedByUserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LEFT = b"bench: interrupted again and left at once; the same command again resumes\n"
_SHOW_CURSOR = b"\x1b[?25h"  # a live table hides it


class _State:
    """Signals are one for a process, so this is too."""

    held = False
    came = False
    raised = False


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM raise ``KeyboardInterrupt`` and the second end the process meanwhile.

    After an interrupt the handlers stay: this process is on its way out. Signals can be caught in the main
    thread only; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.held = _State.came = _State.raised = False
    before = {number: signal.signal(number, _take) for number in _SIGNALS}
    try:
        yield
    finally:
        if not _State.raised:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep an interrupt waiting until the end of the block, but for ``waiting`` inside it."""
    _State.held = True
    try:
        yield
    finally:
        _State.held = False
    _raise_if_came()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let interrupts through meanwhile: nothing is in hand that could be lost."""
    before, _State.held = _State.held, False
    try:
        _raise_if_came()
        yield
    finally:
        _State.held = before


def _take(_number: int, _frame: FrameType | None) -> None:
    _State.came = True
    if _State.raised:
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        os.write(2, _LEFT)
        os._exit(InterruptedByUserError.exit_code)
    if not _State.held:
        _raise_if_came()


def _raise_if_came() -> None:
    if _State.came and not _State.raised:
        _State.raised = True
        # While the interpreter ends all is said, and the exit code shall stand.
        for number in _SIGNALS:
            atexit.register(signal.signal, number, signal.SIG_IGN)
        raise KeyboardInterrupt
