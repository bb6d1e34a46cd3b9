"""A long list of files read by two processes, each its half. Where that cannot be, one process reads all."""

import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

_FEWEST_TO_SHARE = 500
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_two(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what a function makes of each item, in their order; raises what it raises.

    The second half is worked out by a fork of this process where there are many items and a second core. It
    hands its results over as a pickle, in a pipe that nobody else can write to. Should it fail, for whatever
    reason, this process does that half as well. Beside other threads nothing is forked: the fork could wait
    for a lock of theirs for ever.
    """
    alone = sys.platform == "linux" and threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1
    if not alone or len(items) < _FEWEST_TO_SHARE:
        return list(map(function, items))
    middle = len(items) // 2
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From 3.12 on also of threads that libraries of arithmetic start; no lock of theirs is needed here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _send(function, items[middle:], writer)
    os.close(writer)
    try:
        with open(reader, "rb") as stream:  # noqa: PTH123 - a descriptor has no path
            first = list(map(function, items[:middle]))
            sent = stream.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    second = pickle.loads(sent) if status == 0 else list(map(function, items[middle:]))  # noqa: S301 - our own
    return first + second


def _send(function: Callable[[Item], Result], items: Sequence[Item], writer: int) -> None:
    """Write the results to a pipe and end this process, whatever happens; nothing of its parent's is run."""
    code = 1
    try:
        with open(writer, "wb") as stream:
            pickle.dump(list(map(function, items)), stream, pickle.HIGHEST_PROTOCOL)
        code = 0
    finally:
        os._exit(code)
