"""Watches the CPUs from the parent while a worker runs: others on them make it slower."""

import os
import time
from pathlib import Path

from bench.io import kernel_text
from bench.records.derived_metrics import BUSY_MACHINE
from bench.records.messages import Message, PhaseStarted, ReadingMade
from bench.records.readings import Caveat
from bench.records.records import PhaseReading
from bench.workers.supervise import Findings

FOREIGN_SHARE = 0.1
LEAST_S = 1.0  # the counters go by ticks of 10 ms
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # proc_stat(5): user, nice, system, irq, softirq, steal
_PROCESS_FIELDS = slice(11, 15)  # proc_pid_stat(5), after the name: utime, stime, cutime, cstime
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CpuSeconds = tuple[float, float, float]
"""Seconds since some moment: of the clock, of our CPUs by anyone, of any CPU by the worker and by us."""


class CpuLoadWatch:
    """Says in a caveat when others used more than a tenth of the CPUs that the worker may run on.

    Nothing is said where a control group gives us a part of the CPUs' time: others may well have the rest.
    """

    def __init__(self, *, cpu_quota: bool, proc: Path = Path("/proc")) -> None:
        """``cpu_quota`` says that a control group limits our time on the CPUs."""
        self._cpus = sorted(os.sched_getaffinity(0))
        self._cpu_quota = cpu_quota
        self._proc = proc
        self._worker_pids: tuple[int, ...] = ()
        self._start: _CpuSeconds | None = None
        self._end: _CpuSeconds | None = None

    def begin(self, *worker_pids: int) -> None:
        """Count the workers' time as ours."""
        self._worker_pids = worker_pids

    def message(self, message: Message) -> None:
        """Read the counters as the measured steps begin and as they end."""
        match message:
            case PhaseStarted(phase="steady"):
                self.start()
            case ReadingMade(reading=PhaseReading(name="steady")):
                self.stop()

    def start(self) -> None:
        """Read the counters: from here on others count."""
        self._start = self._read()

    def stop(self) -> None:
        """Read them again: until here."""
        self._end = self._read()

    def finish(self) -> Findings:
        if self._start is None or self._end is None or self._cpu_quota:
            return Findings()
        clock_s, busy_s, own_s = (end - start for start, end in zip(self._start, self._end, strict=True))
        if clock_s < LEAST_S or (share := (busy_s - own_s) / (clock_s * len(self._cpus))) <= FOREIGN_SHARE:
            return Findings()
        message = (
            f"Other processes used {share * 100:.0f} % of this machine's {len(self._cpus)} CPUs during the "
            "measured steps: the speed may be too low."
        )
        return Findings(caveats=(Caveat(code=BUSY_MACHINE, message=message),))

    def _read(self) -> _CpuSeconds | None:
        machine = kernel_text(self._proc / "stat")
        workers = [kernel_text(self._proc / f"{pid}/stat") or "" for pid in self._worker_pids]
        if machine is None or "" in workers:
            return None
        lines = (line.partition(" ") for line in machine.splitlines())
        ticks = {name: values.split() for name, _, values in lines}
        busy = sum(int(ticks[f"cpu{cpu}"][field]) for cpu in self._cpus for field in _BUSY_FIELDS)
        fields = [field for text in workers for field in text.rpartition(")")[2].split()[_PROCESS_FIELDS]]
        own_s = sum(map(int, fields)) / TICKS_PER_S + sum(os.times()[:2])
        return time.monotonic(), busy / TICKS_PER_S, own_s
