"""Imported first by the server that workers are forked from: it ends with its parent while it imports.

Later it notices by itself, and workers do by their lifelines. Until then imports take seconds to minutes, in
which nobody would end it. The kernel's signal is tied to the thread that started the server, which waits for
it, and is taken back at the end (``release``), since that thread may end before others do (prctl(2)).

Until then no garbage is looked for: imports make little, and a sixth of their time went into that.
"""

import contextlib
import ctypes
import gc
import os
import signal

from bench.workers import PARENT_VARIABLE

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ask_for(number: int) -> None:
    """Be sent a signal when the thread that started this process ends; 0 for none."""
    with contextlib.suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def release() -> None:
    """Outlive the thread that started this process."""
    ask_for(0)


gc.disable()
ask_for(signal.SIGKILL)
if os.environ.get(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
    os._exit(1)  # it was killed before the signal was asked for
