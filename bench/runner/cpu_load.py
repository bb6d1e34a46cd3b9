"""How much of the CPUs others used during the measured steps: Linux's counters, read twice. No thread."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.records.derived_metrics import BUSY_MACHINE
from bench.records.messages import Message, PhaseStarted, ReadingMade
from bench.records.records import Caveat, PhaseReading
from bench.workers.watch import Findings

FOREIGN_SHARE = 0.1
LEAST_S = 1.0  # the counters go by ticks of 10 ms
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # proc_stat(5): user, nice, system, irq, softirq, steal
_PROCESS_FIELDS = slice(11, 15)  # proc_pid_stat(5), after the name: utime, stime, cutime, cstime


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds since some moment: of the clock, of our CPUs by anyone, of any CPU by the worker and by us."""

    clock_s: float
    busy_s: float
    own_s: float


class CpuLoadWatch:
    """Says in a caveat when others used more than a tenth of the CPUs that the worker may run on.

    Nothing is said where a control group gives us a part of the CPUs' time: others may well have the rest.
    """

    def __init__(self, *, cpu_quota: bool, proc: Path = Path("/proc")) -> None:
        """``cpu_quota`` says that a control group limits our time on the CPUs."""
        self._cpus = sorted(os.sched_getaffinity(0))
        self._cpu_quota = cpu_quota
        self._proc = proc
        self._worker_pid = 0
        self._start: CpuTimes | None = None
        self._end: CpuTimes | None = None

    def begin(self, worker_pid: int) -> None:
        """Count the worker's time as ours."""
        self._worker_pid = worker_pid

    def message(self, message: Message) -> None:
        """Read the counters as the measured steps begin and as they end."""
        match message:
            case PhaseStarted(phase="steady"):
                self._start = self._read()
            case ReadingMade(reading=PhaseReading(name="steady")):
                self._end = self._read()

    def finish(self) -> Findings:
        """Return a caveat, or nothing."""
        share = self._foreign_share()
        if share is None or share <= FOREIGN_SHARE:
            return Findings()
        message = (
            f"Other processes used {share * 100:.0f} % of this machine's {len(self._cpus)} CPUs during the "
            "measured steps: the speed may be too low."
        )
        return Findings(caveats=(Caveat(code=BUSY_MACHINE, message=message),))

    def _foreign_share(self) -> float | None:
        start, end = self._start, self._end
        if start is None or end is None or self._cpu_quota or end.clock_s - start.clock_s < LEAST_S:
            return None
        foreign_s = (end.busy_s - start.busy_s) - (end.own_s - start.own_s)
        return foreign_s / ((end.clock_s - start.clock_s) * len(self._cpus))

    def _read(self) -> CpuTimes | None:
        try:
            lines = (self._proc / "stat").read_text(encoding="ascii").splitlines()
            worker = (self._proc / str(self._worker_pid) / "stat").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        ticks = {name: values.split() for name, _, values in (line.partition(" ") for line in lines)}
        busy = sum(int(ticks[f"cpu{cpu}"][field]) for cpu in self._cpus for field in _BUSY_FIELDS)
        own = sum(map(int, worker.rpartition(")")[2].split()[_PROCESS_FIELDS]))
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        return CpuTimes(
            clock_s=time.monotonic(),
            busy_s=busy / ticks_per_s,
            own_s=own / ticks_per_s + sum(os.times()[:2]),
        )
