"""One job from start to end: collect what the worker reads, enforce the limits, say how it ended.

Sleeps while the worker works. Time is monotonic, so a clock that jumps changes nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.results.messages import Failed, Job
from bench.results.records import Failure, Measurement, Outcome, Phase
from bench.run.classify import WorkerEnd, classify_exit, count_oom_kills
from bench.run.launch import Launcher, Worker
from bench.run.observe import NullObserver, Observer
from bench.run.transcript import Transcript
from bench.spec.types import LimitsSpec

STORED_TAIL_CHARACTERS = 8192
EXIT_GRACE_S = 5.0
MAX_SLEEP_S = 60.0

Stop = Literal["result", "ended", "timeout", "silent", "malformed"]
NO_LIMITS = LimitsSpec.model_validate({})


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended and all that was read until then; ``total_ns`` counts from asking for the worker."""

    outcome: Outcome
    failure: Failure | None
    measurement: Measurement
    total_ns: int


def run_job(
    job: Job,
    launcher: Launcher,
    limits: LimitsSpec = NO_LIMITS,
    observer: Observer | None = None,
    *,
    oom_kills: Callable[[], int | None] = count_oom_kills,
) -> JobEnd:
    """Run a job in a worker of its own; on every path the worker and its children are gone afterwards.

    Raises ``InfrastructureError`` when no worker starts or one cannot be ended.
    """
    asked_ns = time.monotonic_ns()
    transcript = Transcript(asked_ns, observer or NullObserver())
    kills_before = oom_kills()
    worker = launcher.start(job, host_memory_gib=limits.host_memory_gib)
    try:
        stop = _watch(worker, transcript, limits)
    finally:
        exit_code = worker.end()
    kills_after = oom_kills()
    end = WorkerEnd(
        exit_code=exit_code,
        output_tail=worker.output_tail,
        killed_for_memory=kills_before is not None and kills_after is not None and kills_after > kills_before,
    )
    outcome, failure = _verdict(stop, transcript, limits, end)
    if failure is not None:
        if outcome == "oom" and limits.host_memory_gib is not None:
            advice = f", or raise limits.host_memory_gib ({limits.host_memory_gib:g})."
            failure = failure.model_copy(update={"message": failure.message.removesuffix(".") + advice})
        failure = _complete(failure, transcript.phase, worker.output_tail)
    return JobEnd(
        outcome=outcome,
        failure=failure,
        measurement=transcript.measurement(),
        total_ns=time.monotonic_ns() - asked_ns,
    )


def _watch(worker: Worker, transcript: Transcript, limits: LimitsSpec) -> Stop:
    """Follow the worker until it has reported, has ended, or has to be ended."""
    started_s = heard_s = time.monotonic()
    while True:
        left_s = min(started_s + limits.timeout_s, heard_s + limits.heartbeat_timeout_s) - time.monotonic()
        # Whether it had ended is asked before reading: what it sent before its end is then all there.
        ended = worker.ended
        received = worker.receive(0 if ended else max(0.0, min(left_s, MAX_SLEEP_S)))
        now_s = time.monotonic()
        if received:
            # Read before the limits are looked at: a supervisor that was itself stopped has mail waiting.
            heard_s = now_s
            if not transcript.feed(received):
                return "malformed"
            if transcript.result is not None:
                worker.wait_for_end(EXIT_GRACE_S)
                return "result"
        elif ended:
            return "ended"
        if now_s - started_s >= limits.timeout_s:
            return "timeout"
        if now_s - heard_s >= limits.heartbeat_timeout_s:
            return "silent"


def _verdict(
    stop: Stop, transcript: Transcript, limits: LimitsSpec, end: WorkerEnd
) -> tuple[Outcome, Failure | None]:
    """Return the outcome and, unless it is ok, one sentence on why."""
    during = f" in phase {transcript.phase}" if transcript.phase else ""
    if isinstance(transcript.result, Failed):
        return transcript.result.outcome, transcript.result.failure
    if stop == "result":
        return "ok", None
    if stop == "malformed":
        return "crashed", Failure(
            message=f"The worker sent a line that is not a message{during}; {transcript.malformed}"
        )
    if stop == "timeout":
        message = (
            f"The job took longer than {limits.timeout_s:g} s and was ended{during}; "
            "raise limits.timeout_s or make the cell smaller."
        )
        return "timeout", Failure(message=message)
    if stop == "silent":
        message = (
            f"The worker gave no sign of life for {limits.heartbeat_timeout_s:g} s and was ended{during}; "
            "output_tail shows where it hung, and limits.heartbeat_timeout_s can be raised."
        )
        return "timeout", Failure(message=message)
    return classify_exit(end, transcript.phase)


def _complete(failure: Failure, phase: Phase | None, output_tail: str) -> Failure:
    """Add the phase and the last output, without the user's home folder: records are published."""
    home = str(Path.home())

    def without_home(text: str) -> str:
        return text.replace(home, "~") if len(home) > 1 else text

    return failure.model_copy(
        update={
            "message": without_home(failure.message),
            "phase": failure.phase or phase,
            "output_tail": without_home(output_tail)[-STORED_TAIL_CHARACTERS:],
        }
    )
