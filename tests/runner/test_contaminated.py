"""Runs that others spoilt: kept, run again as the next, and not counted as done."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.records.environment import read_environment
from bench.records.readings import Caveat
from bench.records.records import DeviceFacts, Failure, Measurement, Outcome, PhaseReading, Record
from bench.runner.executors import Ended, Machine
from bench.runner.schedule import Event, RunEnded, ScheduledRun, SweepOptions, schedule_runs
from bench.runner.sweep import SweepResult, _run_all
from bench.workers.supervise import Findings, JobEnd, add_findings
from gpu_factory import make_gpu
from records_factory import make_record
from replay_worker import make_cell


def played(outcomes: Iterable[str], phases: tuple[PhaseReading, ...]) -> Callable[[ScheduledRun], Record]:
    """Return what makes a record of each run, with these outcomes in turn."""
    script = iter(outcomes)

    def run(planned: ScheduledRun) -> Record:
        outcome = next(script)
        failure = None if outcome == "ok" else Failure(message="Spoilt.")
        return make_record(
            cell=planned.cell,
            key=planned.key,
            run=planned.run,
            outcome=outcome,
            failure=failure,
            measurement=Measurement(phases=phases),
        )

    return run


class Playing:
    """Executes one run at a time, as a function has it end."""

    slots = 1

    def __init__(self, run: Callable[[ScheduledRun], Record]) -> None:
        self._run = run

    def machine(self, cells: object) -> Machine:
        raise NotImplementedError

    def serving(self, *_: object, on_gpu: bool) -> Any:
        raise NotImplementedError

    def start(self, run: ScheduledRun) -> None:
        self._started = run

    def next_end(self) -> Ended:
        return Ended(self._started, self._run(self._started))


@pytest.mark.parametrize(
    ("script", "begun", "expected"),
    [
        (["contaminated", "ok", "ok"], True, [(1, "contaminated"), (2, "ok"), (3, "ok")]),
        (
            ["contaminated"] * 3 + ["ok"],
            True,
            [(1, "contaminated"), (2, "contaminated"), (3, "contaminated"), (4, "ok")],
        ),
        (["contaminated", "ok"], False, [(1, "contaminated"), (2, "ok")]),
    ],
)
def test_a_spoilt_run_is_kept_and_run_again_as_the_next(
    script: list[str],
    begun: bool,  # noqa: FBT001 - a table
    expected: list[tuple[int, str]],
) -> None:
    """Twice at the most, with later repeats numbered after it; not where nothing had begun."""
    cell = make_cell("ok")
    planned = [ScheduledRun(cell=cell, key="k" * 64, run=run, reason=None) for run in (1, 2)]
    phases = (PhaseReading(name="load", duration_ns=1),) if begun else ()
    told: list[Event] = []
    executor = Playing(played(script, phases))
    there = Machine(read_environment(), DeviceFacts(cpu_threads=1, cuda_available=False), planned)
    written: list[Record] = []
    folder: Any = SimpleNamespace(write=written.append)
    made = _run_all(planned, there, executor, folder, told.append)
    assert expected == [(record.run, record.outcome) for record in made]
    added = sum(event.again for event in told if isinstance(event, RunEnded))
    assert (written, len(planned) + added) == (made, len(made))


def test_a_spoilt_run_on_disk_is_not_done_and_alone_is_no_success() -> None:
    """The next sweep tries again, under the next number; until then the sweep says what is missing."""
    cell = make_cell("ok")
    spoilt = make_record(cell=cell, outcome="contaminated", failure=Failure(message="Spoilt."))
    (planned,) = schedule_runs(
        [ScheduledRun(cell=cell, key=spoilt.key)], [spoilt], SweepOptions(results=Path())
    )
    assert 2 == planned.run
    assert "1 contaminated" in (SweepResult(records=(spoilt,), new_records=1).complaint or "")


@pytest.mark.parametrize(
    ("outcome", "expected", "message"),
    [
        ("ok", "contaminated", "Process 7 came."),
        ("oom", "contaminated", "Process 7 came. It ended as oom: Too little."),
        ("timeout", "contaminated", "Process 7 came. It ended as timeout: Too little."),
        ("crashed", "crashed", "Too little."),
        ("failed", "failed", "Too little."),
    ],
)
def test_only_ends_that_others_may_have_caused_are_theirs(
    outcome: Outcome, expected: str, message: str
) -> None:
    """A crash or a mistake of our own would have come without them; what was seen is kept either way."""
    gpu, caveat = make_gpu(), Caveat(code="throttled", message="Hot.")
    failure = None if outcome == "ok" else Failure(message="Too little.", requested_bytes=5)
    end = JobEnd(outcome=outcome, failure=failure, measurements=(Measurement(),), total_ns=1)
    ended = add_findings(end, Findings(gpu=gpu, caveats=(caveat,), contamination="Process 7 came."))
    assert ended.failure is not None
    assert (expected, message) == (ended.outcome, ended.failure.message)
    assert (gpu, (caveat,)) == (ended.measurement.gpu, ended.measurement.caveats)
    assert (None if outcome == "ok" else 5) == ended.failure.requested_bytes
    assert end == add_findings(end, Findings())
