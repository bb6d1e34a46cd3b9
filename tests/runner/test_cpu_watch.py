"""Others' share of our CPUs during the measured steps, from a made-up /proc."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.records.messages import PhaseStarted, ReadingMade
from bench.records.records import PhaseReading
from bench.runner.cpu_watch import CpuLoadWatch

WORKER = 4_000_001
TICKS = os.sysconf("SC_CLK_TCK")


def write(proc: Path, busy_s: Sequence[float], worker_s: float) -> None:
    """Write what two CPUs and the worker have used so far; half of the worker's time is its children's."""
    lines = [f"cpu{cpu} {round(seconds * TICKS)} 0 0 99 9 0 0 0 0 0" for cpu, seconds in enumerate(busy_s)]
    (proc / str(WORKER)).mkdir(parents=True, exist_ok=True)
    (proc / "stat").write_text("cpu 1 2 3\n" + "\n".join(lines) + "\nintr 5\n")
    half = round(worker_s * TICKS / 2)
    fields = f"{WORKER} (a name) ) R 1 2 2 0 -1 0 0 0 0 0 {half} 0 {half} 0 20 0"
    (proc / str(WORKER) / "stat").write_text(fields)


def caveats(
    proc: Path, monkeypatch: pytest.MonkeyPatch, *, busy_s: float, seconds: float = 10.0, quota: bool = False
) -> list[str]:
    """Return what is said when each CPU was busy so long, and the worker used one of them throughout."""
    clock_s = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock_s))
    monkeypatch.setattr(os, "times", lambda: (1.0, 1.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    watch = CpuLoadWatch(cpu_quota=quota, proc=proc)
    watch.begin(WORKER)
    write(proc, (50, 70), 20)
    watch.message(PhaseStarted(phase="steady"))
    write(proc, (50 + busy_s, 70 + busy_s), 20 + seconds)
    watch.message(ReadingMade(reading=PhaseReading(name="steady", duration_ns=1)))
    return [caveat.message for caveat in watch.finish().caveats]


def test_others_on_our_cpus_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CPUs busy for 8 of 10 s, of which the worker had 10 s: 6 of 20 s were others'."""
    (said,) = caveats(tmp_path, monkeypatch, busy_s=8)
    assert said.startswith("Other processes used 30 % of this machine's 2 CPUs during the measured steps: ")


def test_our_own_time_a_short_run_and_a_quota_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth is tolerated; less than a second, or a part of the CPUs, cannot tell."""
    assert [] == caveats(tmp_path, monkeypatch, busy_s=6)
    assert [] == caveats(tmp_path, monkeypatch, busy_s=0.9, seconds=0.9)
    assert [] == caveats(tmp_path, monkeypatch, busy_s=10, quota=True)


def test_without_counters_nothing_is_said(tmp_path: Path) -> None:
    """A restricted /proc, or a worker that is gone."""
    watch = CpuLoadWatch(cpu_quota=False, proc=tmp_path)
    watch.message(PhaseStarted(phase="steady"))
    watch.message(ReadingMade(reading=PhaseReading(name="steady", duration_ns=1)))
    assert () == watch.finish().caveats


def test_this_machines_own_counters_are_read() -> None:
    """The real files have the form that is expected; this process counts as the worker."""
    watch = CpuLoadWatch(cpu_quota=False)
    watch.begin(os.getpid())
    times = watch._read()
    assert times is not None
    _, busy_s, own_s = times
    assert busy_s > 0
    assert own_s > 0
