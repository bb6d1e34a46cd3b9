"""One job from start to end: collect what the worker reads, enforce the limits, say how it ended.

Sleeps while the worker works. Time is monotonic, so a clock that jumps changes nothing.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.errors import InfrastructureError
from bench.records.messages import Failed, Job, ProbeJob
from bench.records.readings import Caveat
from bench.records.records import DeviceFacts, Failure, Measurement, Outcome, Phase
from bench.scenario.types import LimitsSpec
from bench.workers.classify import WorkerEnd, classify_exit, count_oom_kills
from bench.workers.launch import CHECK_INSTALLATION, Launcher, Worker, wait_for_any
from bench.workers.listeners import Findings, Hear, Transcript, Watch

STORED_TAIL_CHARACTERS = 8192
EXIT_GRACE_S = 5.0
MAX_SLEEP_S = 60.0

Stop = Literal["result", "ended", "timeout", "silent", "malformed"]
NO_LIMITS = LimitsSpec.model_validate({})
# How a run may have ended because of what others did; any other end would have come without them.
CONTAMINABLE = frozenset({"ok", "oom", "timeout"})


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


def run_job(  # noqa: PLR0913 - who looks on, and what a test stands in for
    job: Job,
    launcher: Launcher,
    limits: LimitsSpec = NO_LIMITS,
    *,
    ranks: int = 1,
    hear: Hear | None = None,
    watches: Sequence[Watch] = (),
    oom_kills: Callable[[], int | None] = count_oom_kills,
) -> JobEnd:
    """Run a job in workers of its own, one a rank; on every path they and their children are gone afterwards.

    ``watches`` look on meanwhile; what they find is in the end's measurement, and others' doings are the
    outcome *contaminated*. Raises ``InfrastructureError`` when no worker starts or one cannot be ended.
    """
    running = RunningJob(job, launcher, limits, ranks=ranks, hear=hear, watches=watches, oom_kills=oom_kills)
    try:
        while (end := running.advance(MAX_SLEEP_S)) is None:
            pass
    except BaseException:
        running.abandon()
        raise
    return end


def probe(launcher: Launcher, note: Callable[[str], None] | None = None) -> DeviceFacts:
    """Ask a worker what this machine has; ``note`` gets what the user has to know about workers.

    Raises ``InfrastructureError`` when even that fails.
    """
    end = run_job(ProbeJob(), launcher)
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


@dataclass(kw_only=True)
class _Rank:
    """One process of a job; ``stop`` says why it is followed no longer."""

    worker: Worker
    transcript: Transcript
    heard_s: float
    stop: Stop | None = None

    @property
    def failed(self) -> bool:
        return self.stop not in {None, "result"} or isinstance(self.transcript.result, Failed)

    def measurement(self) -> Measurement:
        measured, strays = self.transcript.measurement(), self.worker.strays
        if not strays:
            return measured
        what = "A process" if strays == 1 else f"{strays} processes"
        message = f"{what} that the worker had started in another session outlived it until killed."
        caveat = Caveat(code="strays-killed", message=message)
        return measured.replace(caveats=(*measured.caveats, caveat))


class RunningJob:
    """A job in workers of its own: followed until all have reported, or until one fails."""

    def __init__(  # noqa: PLR0913 - the same
        self,
        job: Job,
        launcher: Launcher,
        limits: LimitsSpec = NO_LIMITS,
        *,
        ranks: int = 1,
        hear: Hear | None = None,
        watches: Sequence[Watch] = (),
        oom_kills: Callable[[], int | None] = count_oom_kills,
    ) -> None:
        """Start the workers. Raises ``InfrastructureError`` when one does not come up."""
        self._asked_ns = time.monotonic_ns()
        self._limits = limits
        self._watches = watches
        self._oom_kills = oom_kills
        self._kills_before = oom_kills()
        self.workers = launcher.start(job, ranks=ranks, host_memory_gib=limits.host_memory_gib)
        for watch in watches:
            watch.begin(*(worker.pid for worker in self.workers))
        listeners = [*(watch.message for watch in watches), *([hear] if hear else [])]
        self._started_s = time.monotonic()
        self._ranks = [
            _Rank(worker=worker, transcript=Transcript(self._asked_ns, listeners), heard_s=self._started_s)
            for worker in self.workers
        ]

    def advance(self, timeout_s: float) -> JobEnd | None:
        """Sleep at most so long for what the workers say; once the job is over, end them and return how."""
        going = [rank for rank in self._ranks if rank.stop is None]
        silent_s = min(rank.heard_s for rank in going) + self._limits.heartbeat_timeout_s
        left_s = min(self._started_s + self._limits.timeout_s, silent_s) - time.monotonic()
        # Whether one had ended is asked before reading: what it sent before its end is then all there.
        ended = [rank.worker.ended for rank in going]
        wait_for_any([rank.worker for rank in going], 0 if any(ended) else max(0.0, min(left_s, timeout_s)))
        for rank, had_ended in zip(going, ended, strict=True):
            rank.stop = self._follow(rank, had_ended=had_ended)
        over = all(rank.stop for rank in going) or any(rank.failed for rank in going)
        return self._end() if over else None

    def abandon(self) -> None:
        """End the workers and their children, whatever they are doing."""
        for worker in self.workers:
            worker.end()
        for watch in self._watches:
            watch.finish()

    def _follow(self, rank: _Rank, *, had_ended: bool) -> Stop | None:
        received = rank.worker.receive()
        now_s = time.monotonic()
        if received:
            # Read before the limits are looked at: a supervisor that was itself stopped has mail waiting.
            rank.heard_s = now_s
            if not rank.transcript.feed(received):
                return "malformed"
            if rank.transcript.result is not None:
                rank.worker.wait_for_end(EXIT_GRACE_S)
                return "result"
        elif had_ended:
            return "ended"
        if now_s - self._started_s >= self._limits.timeout_s:
            return "timeout"
        if now_s - rank.heard_s >= self._limits.heartbeat_timeout_s:
            return "silent"
        return None

    def _end(self) -> JobEnd:
        blamed = next((rank for rank in self._ranks if rank.failed), self._ranks[0])
        # Before the workers are ended: what is seen as they die is neither their work nor anybody else's.
        findings = [watch.finish() for watch in self._watches]
        exit_codes = {id(rank): rank.worker.end() for rank in self._ranks}
        kills_before, kills_after = self._kills_before, self._oom_kills()
        killed = kills_before is not None and kills_after is not None and kills_after > kills_before
        tail, limits = blamed.worker.output_tail, self._limits
        end = WorkerEnd(exit_code=exit_codes[id(blamed)], output_tail=tail, killed_for_memory=killed)
        outcome, failure = _verdict(blamed.stop, blamed.transcript, limits, end)
        if failure is not None:
            if outcome == "oom" and limits.host_memory_gib is not None:
                advice = f", or raise limits.host_memory_gib ({limits.host_memory_gib:g})."
                failure = failure.replace(message=failure.message.removesuffix(".") + advice)
            failure = _complete(failure, blamed.transcript.phase, tail)
        end_of_job = JobEnd(
            outcome=outcome,
            failure=failure,
            measurements=tuple(rank.measurement() for rank in self._ranks),
            total_ns=time.monotonic_ns() - self._asked_ns,
        )
        return functools.reduce(add_findings, findings, end_of_job)


def add_findings(end: JobEnd, found: Findings) -> JobEnd:
    """Return the end with what a watch saw; a run disturbed by others is *contaminated*."""
    first, *others = end.measurements
    update = {"gpu": found.gpu or first.gpu, "caveats": (*first.caveats, *found.caveats)}
    end = replace(end, measurements=(first.replace(**update), *others))
    if not found.contamination or end.outcome not in CONTAMINABLE:
        return end
    failure = Failure(message=found.contamination)
    if end.failure is not None:
        message = f"{found.contamination} It ended as {end.outcome}: {end.failure.message}"
        failure = end.failure.replace(message=message)
    return replace(end, outcome="contaminated", failure=failure)


def _verdict(
    stop: Stop | None, transcript: Transcript, limits: LimitsSpec, end: WorkerEnd
) -> tuple[Outcome, Failure | None]:
    during = f" in phase {transcript.phase}" if transcript.phase else ""
    if isinstance(transcript.result, Failed):
        return transcript.result.outcome, transcript.result.failure
    if stop == "result":
        return "ok", None
    if stop == "malformed":
        message = f"The worker sent a line that is not a message{during}; {transcript.malformed}"
        return "crashed", Failure(message=message)
    if stop == "timeout":
        message = f"The job took longer than {limits.timeout_s:g} s and was ended{during}; "
        message += "raise limits.timeout_s or make the cell smaller."
        return "timeout", Failure(message=message)
    if stop == "silent":
        message = (
            f"The worker gave no sign of life for {limits.heartbeat_timeout_s:g} s and was ended{during}; "
        )
        message += "output_tail shows where it hung, and limits.heartbeat_timeout_s can be raised."
        return "timeout", Failure(message=message)
    return classify_exit(end, transcript.phase)


def _complete(failure: Failure, phase: Phase | None, output_tail: str) -> Failure:
    """Add the phase and the last output, without the user's home folder: records are published."""
    home = str(Path.home())

    def without_home(text: str) -> str:
        return text.replace(home, "~") if len(home) > 1 else text

    return failure.replace(
        message=without_home(failure.message),
        phase=failure.phase or phase,
        output_tail=without_home(output_tail)[-STORED_TAIL_CHARACTERS:],
    )
