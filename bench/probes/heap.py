"""What malloc has given out and not got back: every byte of the heap in use, whoever holds it.

torch's CPU tensors are there, those too that only C++ holds, and so are numpy's arrays. Python's own small
objects (up to 512 bytes, in arenas of their own) and memory that is mapped by hand are not.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bench.metrics import MIB
from bench.probes.machine import AllocatorUse
from bench.records.readings import Held

_MEMBERS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (malloc.h, since 2.33); mallinfo(3) says what its members are."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MEMBERS]


def heap_bytes() -> int | None:
    """Return the bytes in use; None without glibc 2.33, or under another allocator. It takes some 50 µs."""
    read = _reader()
    return None if read is None else read()


def held_now(use: AllocatorUse | None) -> Held:
    """Return what is in use; ``use`` is the device's, if that counts."""
    return Held(heap_bytes(), None if use is None else use.allocated_bytes)


@cache
def _reader() -> Callable[[], int] | None:
    """Return what reads them, once a tensor has shown that it sees torch's memory."""
    mallinfo2: Any = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Mallinfo2

    def read() -> int:
        found = mallinfo2()
        return int(found.uordblks + found.hblkhd)

    before = read()
    block = torch.empty(MIB, dtype=torch.uint8)
    seen = read() - before
    del block
    return read if seen >= MIB else None
