"""Who listens to a worker: the transcript that becomes its measurement, and watches of the machine."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from bench.records.derived_metrics import BUSY_MACHINE
from bench.records.messages import MESSAGE, Failed, Finished, Message, PhaseStarted, ReadingMade
from bench.records.readings import AllocatorSnapshot, Caveat, GpuReading, PagedMemory, Part, TorchSettings
from bench.records.records import (
    DeviceFacts,
    EvaluationReading,
    FlopsReading,
    LedgerReading,
    Measurement,
    MergeCheck,
    ModelFacts,
    Phase,
    PhaseReading,
    StepSample,
)

MAX_MESSAGE_BYTES = 64 * 1024**2
_SINGLE: dict[type[Part], str] = {
    DeviceFacts: "device",
    TorchSettings: "torch_settings",
    PagedMemory: "paged",
    AllocatorSnapshot: "snapshot",
    ModelFacts: "model",
    LedgerReading: "ledger",
    FlopsReading: "flops",
    MergeCheck: "merge",
}
"""Readings that a measurement has at most one of, by the field it stands in."""
_SEVERAL: dict[type[Part], str] = {
    PhaseReading: "phases",
    StepSample: "steps",
    EvaluationReading: "evaluations",
    Caveat: "caveats",
}
FOREIGN_SHARE = 0.1
LEAST_S = 1.0  # the counters go by ticks of 10 ms
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # proc_stat(5): user, nice, system, irq, softirq, steal
_PROCESS_FIELDS = slice(11, 15)  # proc_pid_stat(5), after the name: utime, stime, cutime, cstime
Hear = Callable[[Message], None]
"""Gets each message of a worker as it comes. Must return soon: the supervisor waits for it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was seen; ``contamination`` is the sentence why this run says nothing, None where it does."""

    gpu: GpuReading | None = None
    caveats: tuple[Caveat, ...] = ()
    contamination: str | None = None


class Watch(Protocol):
    """Watches one run from outside the worker. Every call returns soon: the supervisor waits for it."""

    def begin(self, *worker_pids: int) -> None:
        """Say that the workers are there, in order of rank."""

    def message(self, message: Message) -> None:
        """Pass on what it says."""

    def finish(self) -> Findings:
        """End watching, however the run went, and return what was seen; called once."""


class Transcript:
    """Takes the bytes of the message pipe, one JSON object a line, and keeps every reading at once."""

    def __init__(self, asked_ns: int, hear: Sequence[Hear] = ()) -> None:
        """Start when the worker was asked for, on the clock of ``time.monotonic_ns``; pass on to ``hear``."""
        self.phase: Phase | None = None
        self.result: Finished | Failed | None = None
        self.malformed: str | None = None
        self._asked_ns = asked_ns
        self._hear = hear
        self._unfinished_line = bytearray()
        self._single: dict[str, Any] = {}
        self._several: dict[str, list[Any]] = {field: [] for field in _SEVERAL.values()}

    def feed(self, content: bytes) -> bool:
        """Take some bytes; False, with the reason in ``malformed``, when they are not the protocol's."""
        *lines, rest = content.split(b"\n")
        for line in lines:
            whole = bytes(self._unfinished_line) + line
            self._unfinished_line.clear()
            if self.result is None and not self._take(whole):
                return False
        self._unfinished_line += rest
        if len(self._unfinished_line) > MAX_MESSAGE_BYTES:
            self.malformed = f"it is longer than {MAX_MESSAGE_BYTES} bytes."
            return False
        return True

    def measurement(self) -> Measurement:
        """Return everything read so far."""
        several: dict[str, Any] = {field: tuple(readings) for field, readings in self._several.items()}
        return Measurement(**self._single, **several)

    def _take(self, line: bytes) -> bool:
        try:
            message = MESSAGE.validate_json(line)
        except ValidationError:
            self.malformed = f"it begins with {line[:80].decode(errors='replace')!r}."
            return False
        self._note(message)
        for hear in self._hear:
            hear(message)
        return True

    def _note(self, message: Message) -> None:
        if isinstance(message, PhaseStarted):
            if self.phase is None:
                # What only the supervisor can time: from asking for the worker to its first phase.
                self._keep(PhaseReading(name="start", duration_ns=time.monotonic_ns() - self._asked_ns))
            self.phase = message.phase
        elif isinstance(message, ReadingMade):
            self._keep(message.reading)
        elif isinstance(message, Finished | Failed):
            self.result = message

    def _keep(self, reading: Part) -> None:
        if type(reading) in _SEVERAL:
            self._several[_SEVERAL[type(reading)]].append(reading)
        else:
            self._single[_SINGLE[type(reading)]] = reading


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
        self._worker_pids: tuple[int, ...] = ()
        self._start: CpuTimes | None = None
        self._end: CpuTimes | None = None

    def begin(self, *worker_pids: int) -> None:
        """Count the workers' time as ours."""
        self._worker_pids = worker_pids

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
            workers = [(self._proc / f"{pid}/stat").read_text(encoding="utf-8") for pid in self._worker_pids]
        except (OSError, UnicodeDecodeError):
            return None
        ticks = {name: values.split() for name, _, values in (line.partition(" ") for line in lines)}
        busy = sum(int(ticks[f"cpu{cpu}"][field]) for cpu in self._cpus for field in _BUSY_FIELDS)
        fields = [field for text in workers for field in text.rpartition(")")[2].split()[_PROCESS_FIELDS]]
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        return CpuTimes(
            clock_s=time.monotonic(),
            busy_s=busy / ticks_per_s,
            own_s=sum(map(int, fields)) / ticks_per_s + sum(os.times()[:2]),
        )
