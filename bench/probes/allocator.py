"""Peaks of torch's own device allocator, per phase; a null probe where the device has no such counters."""

import sys
from typing import NamedTuple, Protocol

import torch


class AllocatorPeaks(NamedTuple):
    """Most bytes since the last ``start_peak``; None where the device keeps no count."""

    allocated_bytes: int | None
    reserved_bytes: int | None


class AllocatorUse(NamedTuple):
    """What torch has allocated and reserved at this moment, and what the device could still give."""

    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int


class Allocator(Protocol):
    """What the window asks of a device: exact peaks, and a moment when all queued work is done."""

    def start_peak(self) -> None:
        """Forget the peaks so far."""

    def read_peak(self) -> AllocatorPeaks:
        """Return the peaks since ``start_peak``."""

    def synchronise(self) -> None:
        """Wait until the device has done everything asked of it."""

    def empty_cache(self) -> None:
        """Give memory that is reserved but not in use back to the device."""

    def use(self) -> AllocatorUse | None:
        """Return what is in use now; None where the device keeps no count."""

    def take(self, size_bytes: int) -> object:
        """Allocate so much, without writing to it, for as long as the returned object lives."""


class CudaAllocator:
    """torch.cuda's counters for one device."""

    def __init__(self, device: torch.device) -> None:
        """Read ``device`` only."""
        self._device = device

    def start_peak(self) -> None:
        """Reset torch's peak counters."""
        self.synchronise()
        torch.cuda.reset_peak_memory_stats(self._device)

    def read_peak(self) -> AllocatorPeaks:
        """Return max_memory_allocated and max_memory_reserved, once the device is idle.

        While an exception is on its way nothing is waited for: the counters are the host's, and a device that
        failed would raise an error of its own in the exception's place.
        """
        if sys.exception() is None:
            self.synchronise()
        return AllocatorPeaks(
            torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)
        )

    def synchronise(self) -> None:
        """Wait for all streams of the device."""
        torch.cuda.synchronize(self._device)

    def empty_cache(self) -> None:
        """Release torch's unused cached blocks."""
        torch.cuda.empty_cache()

    def use(self) -> AllocatorUse | None:
        """Return torch's own counters and what cudaMemGetInfo calls free."""
        return AllocatorUse(
            torch.cuda.memory_allocated(self._device),
            torch.cuda.memory_reserved(self._device),
            torch.cuda.mem_get_info(self._device)[0],
        )

    def take(self, size_bytes: int) -> object:
        """Return an uninitialised tensor: no kernel runs."""
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)


class NullAllocator:
    """The CPU: torch counts nothing there and nothing is queued."""

    def start_peak(self) -> None:
        """Nothing to reset."""

    def read_peak(self) -> AllocatorPeaks:
        """Nothing was counted."""
        return AllocatorPeaks(None, None)

    def synchronise(self) -> None:
        """Nothing is queued."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def use(self) -> AllocatorUse | None:
        """Nothing is counted."""
        return None

    def take(self, size_bytes: int) -> object:
        """Return as many bytes of host memory."""
        return torch.empty(size_bytes, dtype=torch.uint8)


def allocator_of(device: torch.device) -> Allocator:
    """Return the probe that fits the device."""
    return CudaAllocator(device) if device.type == "cuda" else NullAllocator()
