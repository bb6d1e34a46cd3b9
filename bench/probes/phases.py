"""One reading per phase: duration and peaks, each by its instrument, sent as soon as the phase ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.probes import host_memory
from bench.probes.allocator import Allocator
from bench.records.messages import Message, PhaseStarted, ReadingMade
from bench.records.records import Phase, PhaseReading

Send = Callable[[Message], None]


class PhaseReader:
    """Opens and closes phases around parts of the window."""

    def __init__(self, send: Send, allocator: Allocator) -> None:
        """Send readings through ``send``; ask ``allocator`` for the device's peaks."""
        self._send = send
        self._allocator = allocator

    @contextmanager
    def phase(
        self, name: Phase, total_steps: int | None = None, *, keep_heap: bool = False
    ) -> Iterator[None]:
        """Read duration and peaks of what runs inside, also when it fails.

        Freed heap goes back to the kernel first, unless ``keep_heap``: the steady steps should find
        the heap as the warm-up left it.
        """
        self._send(PhaseStarted(phase=name, total_steps=total_steps, at_ns=time.monotonic_ns()))
        self._allocator.start_peak()
        host_start_bytes = host_memory.start_peak(trim=not keep_heap)
        started_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            self._close(name, started_ns, host_start_bytes)

    def _close(self, name: Phase, started_ns: int, host_start_bytes: int | None) -> None:
        peaks = self._allocator.read_peak()
        self._send(
            ReadingMade(
                reading=PhaseReading(
                    name=name,
                    duration_ns=time.perf_counter_ns() - started_ns,
                    host_start_bytes=host_start_bytes,
                    host_peak_bytes=None if host_start_bytes is None else host_memory.read_peak(),
                    cuda_allocated_peak_bytes=peaks.allocated_bytes,
                    cuda_reserved_peak_bytes=peaks.reserved_bytes,
                )
            )
        )
