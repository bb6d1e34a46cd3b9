"""Who listens to a worker: the transcript that becomes its measurement, and watches of the machine."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from bench.records.derived_metrics import BUSY_MACHINE
from bench.records.messages import MESSAGE, Failed, Finished, Message, PhaseStarted, ReadingMade
from bench.records.readings import Caveat, GpuReading, Part
from bench.records.records import Measurement, Phase, PhaseReading

MAX_MESSAGE_BYTES = 64 * 1024**2
_FIELDS = {
    kind: (name, get_origin(hint) is tuple)
    for name, hint in get_type_hints(Measurement).items()
    for kind in get_args(hint)
    if isinstance(kind, type) and issubclass(kind, Part)
}
"""Where each kind of reading stands in a measurement, and whether with others of its kind."""
FOREIGN_SHARE = 0.1
LEAST_S = 1.0  # the counters go by ticks of 10 ms
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # proc_stat(5): user, nice, system, irq, softirq, steal
_PROCESS_FIELDS = slice(11, 15)  # proc_pid_stat(5), after the name: utime, stime, cutime, cstime
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CpuSeconds = tuple[float, float, float]
"""Seconds since some moment: of the clock, of our CPUs by anyone, of any CPU by the worker and by us."""
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
        self._fields: dict[str, Any] = {}

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
        return Measurement(**self._fields)

    def _take(self, line: bytes) -> bool:
        try:
            message = MESSAGE.validate_json(line)
        except ValidationError:
            self.malformed = f"it begins with {line[:80].decode(errors='replace')!r}."
            return False
        match message:
            case PhaseStarted():
                if self.phase is None:
                    # What only the supervisor can time: from asking for the worker to its first phase.
                    self._keep(PhaseReading(name="start", duration_ns=time.monotonic_ns() - self._asked_ns))
                self.phase = message.phase
            case ReadingMade():
                self._keep(message.reading)
            case Finished() | Failed():
                self.result = message
        for hear in self._hear:
            hear(message)
        return True

    def _keep(self, reading: Part) -> None:
        name, one_of_several = _FIELDS[type(reading)]
        self._fields[name] = (*self._fields.get(name, ()), reading) if one_of_several else reading


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
                self._start = self._read()
            case ReadingMade(reading=PhaseReading(name="steady")):
                self._end = self._read()

    def finish(self) -> Findings:
        """Return a caveat, or nothing."""
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
        try:
            lines = (self._proc / "stat").read_text(encoding="ascii").splitlines()
            workers = [(self._proc / f"{pid}/stat").read_text(encoding="utf-8") for pid in self._worker_pids]
        except (OSError, UnicodeDecodeError):
            return None
        ticks = {name: values.split() for name, _, values in (line.partition(" ") for line in lines)}
        busy = sum(int(ticks[f"cpu{cpu}"][field]) for cpu in self._cpus for field in _BUSY_FIELDS)
        fields = [field for text in workers for field in text.rpartition(")")[2].split()[_PROCESS_FIELDS]]
        own_s = sum(map(int, fields)) / TICKS_PER_S + sum(os.times()[:2])
        return time.monotonic(), busy / TICKS_PER_S, own_s
