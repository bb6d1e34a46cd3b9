"""One reading per phase: duration and peaks, each by its instrument, sent as soon as the phase ends.

Between phases, a worker on a GPU stands still for moments (marks) so that the parent can compare NVML with
torch: none of it falls into a phase or a timed step, and no block outlives its test.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from bench.metrics import MIB
from bench.probes.heap import heap_bytes
from bench.probes.machine import Allocator, AllocatorUse, read_host_peak, start_host_peak
from bench.records.messages import Mark, PhaseStarted, Reading, ReadingMade, Send
from bench.records.records import Phase, PhaseReading

HOLD_NS = 400_000_000  # several of the parent's samples
BLOCK_BYTES = 256 * MIB
LEAST_BLOCK_BYTES = 16 * MIB
FREE_BLOCKS = 4  # a block is at most so large a part of what is free
GRANULE_BYTES = 2 * MIB  # c10/cuda/CUDACachingAllocator.h rounds segments of more than 10 MiB to 2 MiB


class PhaseReader:
    """Opens and closes phases around parts of the window, and sends what is read."""

    def __init__(self, send: Send, allocator: Allocator) -> None:
        """Send readings through ``send``; ask ``allocator`` for the device's peaks."""
        self.send = send
        self.allocator = allocator

    def report(self, *readings: Reading) -> None:
        for reading in readings:
            self.send(ReadingMade(reading=reading))

    @contextmanager
    def phase(
        self, name: Phase, total_steps: int | None = None, *, keep_heap: bool = False
    ) -> Iterator[None]:
        """Read duration and peaks of what runs inside, also when it fails.

        Freed heap goes back to the kernel first, unless ``keep_heap``: the steady steps should find
        the heap as the warm-up left it.
        """
        self.send(PhaseStarted(phase=name, total_steps=total_steps, at_ns=time.monotonic_ns()))
        self.allocator.start_peak()
        host_start_bytes, heap_start_bytes = start_host_peak(trim=not keep_heap), heap_bytes()
        started_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            peaks = self.allocator.read_peak()
            self.report(
                PhaseReading(
                    name=name,
                    duration_ns=time.perf_counter_ns() - started_ns,
                    host_start_bytes=host_start_bytes,
                    host_peak_bytes=None if host_start_bytes is None else read_host_peak(),
                    cuda_allocated_peak_bytes=peaks.allocated_bytes,
                    cuda_reserved_peak_bytes=peaks.reserved_bytes,
                    heap_start_bytes=heap_start_bytes,
                )
            )


def mark_block(send: Send, allocator: Allocator) -> None:
    """Allocate a known block and free it again, standing still before, meanwhile and afterwards.

    Which of NVML's readings moves along tells what they are worth on this machine. Where hardly any memory
    is free, nothing is allocated and no mark is sent.
    """
    allocator.synchronise()
    allocator.empty_cache()
    use = allocator.use()
    if use is None:
        return
    block_bytes = min(BLOCK_BYTES, use.free_bytes // FREE_BLOCKS) // GRANULE_BYTES * GRANULE_BYTES
    if block_bytes < LEAST_BLOCK_BYTES:
        return
    _hold(send, "idle", use, block_bytes)
    block = allocator.take(block_bytes)
    _hold(send, "block_held", allocator.use(), block_bytes)
    del block
    allocator.empty_cache()
    _hold(send, "block_freed", allocator.use(), block_bytes)


def mark_quiescent(send: Send, allocator: Allocator) -> None:
    """Stand still with nothing queued and say what torch holds; NVML sees the rest of the process too."""
    allocator.synchronise()
    _hold(send, "quiescent", allocator.use())


def _hold(
    send: Send,
    instant: Literal["idle", "block_held", "block_freed", "quiescent"],
    use: AllocatorUse | None,
    block_bytes: int | None = None,
) -> None:
    if use is None:
        return
    held = {"allocated_bytes": use.allocated_bytes, "reserved_bytes": use.reserved_bytes}
    at_ns = time.monotonic_ns()
    send(Mark(instant=instant, at_ns=at_ns, holds_ns=HOLD_NS, block_bytes=block_bytes, **held))
    time.sleep(HOLD_NS / 1e9)
