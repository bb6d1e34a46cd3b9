"""Phases: what is read, and when."""

import time
from typing import Any

import pytest
import torch

from bench.probes.machine import Allocator, AllocatorPeaks, CudaAllocator, allocator_of
from bench.probes.phases import PhaseReader
from bench.records.messages import PhaseStarted, ReadingMade
from bench.records.records import PhaseReading


class CountingAllocator(Allocator):
    """Counts like a device would, from a script."""

    def read_peak(self) -> AllocatorPeaks:
        """Say what the script says."""
        return AllocatorPeaks(allocated_bytes=7, reserved_bytes=9)


def test_a_phase_is_announced_and_read() -> None:
    """The start is told before, the reading after, with the allocator's peaks in it."""
    sent: list[Any] = []
    with PhaseReader(sent.append, CountingAllocator()).phase("warmup", total_steps=3):
        time.sleep(0.01)
    started, made = sent
    assert isinstance(started, PhaseStarted)
    assert ("warmup", 3) == (started.phase, started.total_steps)
    assert started.at_ns is not None
    assert 0 < time.monotonic_ns() - started.at_ns < 10_000_000_000
    assert isinstance(made, ReadingMade)
    assert isinstance(made.reading, PhaseReading)
    assert made.reading.duration_ns >= 10_000_000
    assert (made.reading.cuda_allocated_peak_bytes, made.reading.cuda_reserved_peak_bytes) == (7, 9)


def test_a_failing_phase_is_read_too() -> None:
    """An exception passes through, and the peak up to it is known."""
    sent: list[Any] = []
    with pytest.raises(MemoryError), PhaseReader(sent.append, Allocator()).phase("load"):
        raise MemoryError
    assert [type(message) for message in sent] == [PhaseStarted, ReadingMade]


def test_each_device_has_its_probe() -> None:
    """The CPU has no allocator counters, CUDA has torch's."""
    assert isinstance(allocator_of(torch.device("cpu")), Allocator)
    assert isinstance(allocator_of(torch.device("cuda")), CudaAllocator)


def test_the_cuda_probe_waits_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are reset and read on an idle device, and come from torch's two counters."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 11)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 13)
    probe = CudaAllocator(torch.device("cuda", 0))
    probe.start_peak()
    assert probe.read_peak() == AllocatorPeaks(11, 13)
    assert calls == ["wait", "reset", "wait"]
