"""One job from start to end: collect what the worker reads, enforce the limits, say how it ended.

Sleeps while the worker works. Time is monotonic, so a clock that jumps changes nothing.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from bench.errors import InfrastructureError
from bench.records.messages import (
    MESSAGE,
    Failed,
    Finished,
    Job,
    Message,
    PhaseStarted,
    ProbeJob,
    ReadingMade,
)
from bench.records.readings import Caveat, GpuReading, Part
from bench.records.records import DeviceFacts, Failure, Measurement, Outcome, Phase, PhaseReading
from bench.scenario.types import LimitsSpec
from bench.workers.classify import classify_exit, count_oom_kills, during, waited_for_others
from bench.workers.launch import CHECK_INSTALLATION, Launcher, Worker, wait_for_any

STORED_TAIL_CHARACTERS = 8192
EXIT_GRACE_S = 5.0
DEATH_GRACE_S = 2.0
MAX_SLEEP_S = 60.0
MAX_MESSAGE_BYTES = 64 * 1024**2

Hear = Callable[[Message], None]
"""Gets each message of a worker as it comes. Must return soon: the supervisor waits for it."""


Verdict = tuple[Outcome, Failure | None]
NO_LIMITS = LimitsSpec.model_validate({})
# How a run may have ended because of what others did; any other end would have come without them.
CONTAMINABLE = frozenset({"ok", "oom", "timeout"})


_FIELDS = {
    kind: (name, get_origin(hint) is tuple)
    for name, hint in get_type_hints(Measurement).items()
    for kind in get_args(hint)
    if isinstance(kind, type) and issubclass(kind, Part)
}
"""Where each kind of reading stands in a measurement, and whether with others of its kind."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was seen; ``contamination`` is the sentence why this run says nothing, None where it does.

    It is of the GPU of one ``rank``.
    """

    gpu: GpuReading | None = None
    caveats: tuple[Caveat, ...] = ()
    contamination: str | None = None
    rank: int = 0


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
        read: dict[str, Any] = {
            name: tuple(each) if type(each) is list else each for name, each in self._fields.items()
        }
        return Measurement(**read)

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
        if one_of_several:
            self._fields.setdefault(name, []).append(reading)
        else:
            self._fields[name] = reading


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended, with what each rank had read until then.

    The outcome is that of the rank that failed first. ``total_ns`` counts from asking for the workers.
    """

    outcome: Outcome
    failure: Failure | None
    measurements: tuple[Measurement, ...]
    total_ns: int

    @property
    def measurement(self) -> Measurement:
        """Rank 0's, which is the whole of a job on one device."""
        return self.measurements[0]


@dataclass(kw_only=True, eq=False)
class _Rank:
    """One process of a job; once ``over`` it is followed no longer, and without a verdict its exit tells."""

    worker: Worker
    transcript: Transcript
    heard_s: float
    over: bool = False
    verdict: Verdict | None = None

    @property
    def failed(self) -> bool:
        return self.over and (self.verdict is None or self.verdict[0] != "ok")

    def measurement(self) -> Measurement:
        measured, strays = self.transcript.measurement(), self.worker.strays
        if not strays:
            return measured
        what = "A process" if strays == 1 else f"{strays} processes"
        message = f"{what} that the worker had started in another session outlived it until killed."
        caveat = Caveat(code="strays-killed", message=message)
        return measured.replace(caveats=(*measured.caveats, caveat))


@dataclass(eq=False)
class RunningJob:
    """A job in workers of its own, one a rank: followed until all have reported, or until one fails.

    ``watches`` look on meanwhile; what they find is in the end's measurement, and others' doings are the
    outcome *contaminated*. Raises ``InfrastructureError`` when a worker does not start or cannot be ended.
    """

    job: Job
    launcher: Launcher
    limits: LimitsSpec = NO_LIMITS
    _: KW_ONLY
    ranks: int = 1
    hear: Hear | None = None
    watches: Sequence[Watch] = ()
    oom_kills: Callable[[], int | None] = count_oom_kills

    def __post_init__(self) -> None:
        self._asked_ns = time.monotonic_ns()
        self._kills_before = self.oom_kills()
        limit_gib = self.limits.host_memory_gib
        self.workers = self.launcher.start(self.job, ranks=self.ranks, host_memory_gib=limit_gib)
        for watch in self.watches:
            watch.begin(*(worker.pid for worker in self.workers))
        listeners = [*(watch.message for watch in self.watches), *([self.hear] if self.hear else [])]
        self._started_s = time.monotonic()
        self._ranks = [
            _Rank(worker=worker, transcript=Transcript(self._asked_ns, listeners), heard_s=self._started_s)
            for worker in self.workers
        ]

    def to_end(self) -> JobEnd:
        """Follow the job to its end; on every path the workers and their children are gone afterwards."""
        try:
            while (end := self.advance(MAX_SLEEP_S)) is None:
                pass
        except BaseException:
            self.abandon()
            raise
        return end

    def advance(self, timeout_s: float) -> JobEnd | None:
        """Sleep at most so long for what the workers say; once the job is over, end them and return how."""
        going = [rank for rank in self._ranks if not rank.over]
        silent_s = min(rank.heard_s for rank in going) + self.limits.heartbeat_timeout_s
        left_s = min(self._started_s + self.limits.timeout_s, silent_s) - time.monotonic()
        # Whether one had ended is asked before reading: what it sent before its end is then all there.
        ended = [rank.worker.ended for rank in going]
        wait_for_any([rank.worker for rank in going], 0 if any(ended) else max(0.0, min(left_s, timeout_s)))
        for rank, had_ended in zip(going, ended, strict=True):
            received = rank.worker.receive()
            rank.over = had_ended and not received
            if not rank.over:
                rank.verdict = self._judge(rank, received)
                rank.over = rank.verdict is not None
        over = all(rank.over for rank in going) or any(rank.failed for rank in going)
        return self._end() if over else None

    def abandon(self) -> None:
        """End the workers and their children, whatever they are doing."""
        for worker in self.workers:
            worker.end()
        for watch in self.watches:
            watch.finish()

    def _judge(self, rank: _Rank, received: bytes) -> Verdict | None:
        """Return how a rank ends by what it has sent or by a limit; None where it goes on."""
        now_s, transcript, limits = time.monotonic(), rank.transcript, self.limits
        if received:
            # Read before the limits are looked at: a supervisor that was itself stopped has mail waiting.
            rank.heard_s = now_s
            if not transcript.feed(received):
                what = f"a line that is not a message{during(transcript.phase)}; {transcript.malformed}"
                return "crashed", Failure(message=f"The worker sent {what}")
            if (result := transcript.result) is not None:
                rank.worker.wait_for_end(EXIT_GRACE_S)
                return (result.outcome, result.failure) if isinstance(result, Failed) else ("ok", None)
        ended = f"and was ended{during(transcript.phase)}; "
        if now_s - self._started_s >= limits.timeout_s:
            message = (
                f"The job took longer than {limits.timeout_s:g} s {ended}"
                "raise limits.timeout_s or make the cell smaller."
            )
            return "timeout", Failure(message=message)
        if now_s - rank.heard_s >= limits.heartbeat_timeout_s:
            message = (
                f"The worker gave no sign of life for {limits.heartbeat_timeout_s:g} s {ended}"
                "output_tail shows where it hung, and limits.heartbeat_timeout_s can be raised."
            )
            return "timeout", Failure(message=message)
        return None

    def _end(self) -> JobEnd:
        for rank in self._ranks:  # that one was killed is known a moment after others have lost it
            if not rank.over and rank.worker.wait_for_end(DEATH_GRACE_S / self.ranks):
                rank.over, rank.verdict = True, self._judge(rank, rank.worker.receive())
        failed = [rank for rank in self._ranks if rank.failed]
        # One that died without a word comes first, then a silent one: the others then failed for want of it.
        blamed = min(failed, key=_how_late_to_blame, default=self._ranks[0])
        # Before the workers are ended: what is seen as they die is neither their work nor anybody else's.
        findings = [watch.finish() for watch in self.watches]
        exit_codes = {rank: rank.worker.end() for rank in self._ranks}
        kills_before, kills_after = self._kills_before, self.oom_kills()
        killed = kills_before is not None and kills_after is not None and kills_after > kills_before
        tail, phase = blamed.worker.output_tail, blamed.transcript.phase
        outcome, failure = blamed.verdict or classify_exit(
            exit_codes[blamed], tail, phase, killed_for_memory=killed
        )
        hung = next((rank for rank in self._ranks if not rank.over), None)
        if failure is not None and hung is not None and waited_for_others(f"{failure.message}\n{tail}"):
            outcome, failure = "timeout", self._did_not_take_part(hung, blamed)
            blamed, tail, phase = hung, hung.worker.output_tail, hung.transcript.phase
        if failure is not None:
            message, limit_gib = failure.message, self.limits.host_memory_gib
            if outcome == "oom" and limit_gib is not None:
                message = message.removesuffix(".") + f", or raise limits.host_memory_gib ({limit_gib:g})."
            if self.ranks > 1:
                message = f"Rank {self._ranks.index(blamed)} of {self.ranks}: {message}"
            failure = failure.replace(
                message=_without_home(message),
                phase=failure.phase or phase,
                output_tail=_without_home(tail)[-STORED_TAIL_CHARACTERS:],
            )
        end = JobEnd(
            outcome=outcome,
            failure=failure,
            measurements=tuple(rank.measurement() for rank in self._ranks),
            total_ns=time.monotonic_ns() - self._asked_ns,
        )
        return functools.reduce(add_findings, findings, end)

    def _did_not_take_part(self, hung: _Rank, waiting: _Rank) -> Failure:
        """Return the failure of a rank that was alive and for which another waited in vain."""
        message = (
            f"It hung{during(hung.transcript.phase)}: rank {self._ranks.index(waiting)} waited for it in a "
            f"collective for {min(self.limits.timeout_s, self.limits.heartbeat_timeout_s):g} s; output_tail "
            "shows where it hung, and limits.heartbeat_timeout_s can be raised."
        )
        return Failure(message=message)


def _how_late_to_blame(rank: _Rank) -> int:
    return 0 if rank.verdict is None else 1 if rank.verdict[0] == "timeout" else 2


def _without_home(text: str) -> str:
    """Return a text without the user's home folder: records are published."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def add_findings(end: JobEnd, found: Findings) -> JobEnd:
    """Return the end with what a watch saw; a run disturbed by others is *contaminated*."""
    measurements = [*end.measurements]
    its = measurements[found.rank]
    measurements[found.rank] = its.replace(gpu=found.gpu or its.gpu, caveats=(*its.caveats, *found.caveats))
    end = replace(end, measurements=tuple(measurements))
    if not found.contamination or end.outcome not in CONTAMINABLE:
        return end
    failure = Failure(message=found.contamination)
    if end.failure is not None:
        message = f"{found.contamination} It ended as {end.outcome}: {end.failure.message}"
        failure = end.failure.replace(message=message)
    return replace(end, outcome="contaminated", failure=failure)


def probe(
    launcher: Launcher, note: Callable[[str], None] | None = None, *, imports: Sequence[str] = ()
) -> DeviceFacts:
    """Ask a worker what this machine has; ``note`` gets what the user has to know about workers.

    ``imports`` are modules without which nothing can be run here.

    Raises ``InfrastructureError`` when even that fails.
    """
    end = RunningJob(ProbeJob(imports=tuple(imports)), launcher).to_end()
    if launcher.start_method == "spawn" and note is not None:
        note(
            "importing the libraries has touched CUDA, so workers are started afresh instead of forked; "
            "each start takes seconds longer."
        )
    if end.failure is not None or end.measurement.device is None:
        reason = end.failure.message if end.failure else "the worker exited before reporting"
        tail = end.failure.output_tail.strip() if end.failure else ""
        raise InfrastructureError(
            f"{tail}\nno worker could look at this machine ({reason.rstrip('.')}); "
            f"{CHECK_INSTALLATION}".lstrip()
        )
    return end.measurement.device
