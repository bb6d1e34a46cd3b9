"""The kernel's high-water mark, per phase."""

import mmap

import pytest

from bench.metrics import MIB
from bench.probes import machine

needs_proc = pytest.mark.skipif(
    not machine.can_reset_host_peak(), reason="this kernel does not let a process reset its peak"
)


def _touch(nbytes: int) -> None:
    """Make ``nbytes`` resident and give them back."""
    with mmap.mmap(-1, nbytes) as pages:
        for start in range(0, nbytes, mmap.PAGESIZE):
            pages[start] = 1


@needs_proc
def test_a_short_spike_is_in_the_peak() -> None:
    """Memory that came and went within a phase counts, without sampling."""
    start_bytes = machine.start_host_peak()
    _touch(64 * MIB)
    peak_bytes = machine.read_host_peak()
    assert start_bytes is not None
    assert peak_bytes is not None
    assert 63 * MIB < peak_bytes - start_bytes < 66 * MIB


@needs_proc
def test_the_next_phase_starts_afresh() -> None:
    """A spike of an earlier phase is not in the next phase's peak."""
    machine.start_host_peak()
    _touch(64 * MIB)
    start_bytes = machine.start_host_peak()
    peak_bytes = machine.read_host_peak()
    assert start_bytes is not None
    assert peak_bytes is not None
    assert peak_bytes - start_bytes < 8 * MIB


def test_without_the_counters_there_is_no_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where /proc is restricted the answer is None, never zero."""
    missing = tmp_path_factory.mktemp("proc") / "absent" / "clear_refs"
    monkeypatch.setattr(machine, "_CLEAR_REFS", missing)
    assert machine.start_host_peak() is None
