"""Peaks of this process's resident memory, phase by phase, from Linux's own counters.

The kernel keeps the high-water mark (VmHWM), so nothing is sampled and no short spike is missed. It
counts pages in per-processor batches (Linux 6.2 and later), so a reading can be off by some 100 KiB.
Elsewhere than on Linux, or where /proc is restricted, readings are None.
"""

import ctypes
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): writing 5 resets VmHWM to the current resident size


def can_reset_peak() -> bool:
    """Say whether the kernel lets this process reset its own high-water mark."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return _STATUS.exists()


def start_peak(*, trim: bool = True) -> int | None:
    """Give freed heap back to the kernel, reset the high-water mark, return resident bytes now.

    Without the trim, memory that an earlier phase freed would be counted again in this one.
    """
    if trim:
        _trim_heap()
    if not can_reset_peak():
        return None
    return _read_bytes("VmRSS")


def read_peak() -> int | None:
    """Return the most resident bytes since ``start_peak``, or ever if that returned None."""
    return _read_bytes("VmHWM")


def _read_bytes(field: str) -> int | None:
    """Return a field of /proc/self/status, which the kernel states in kB (1024 bytes)."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _trim_heap() -> None:
    """Call glibc's malloc_trim where there is a glibc (musl and macOS have none)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
