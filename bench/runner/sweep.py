"""All cells of a scenario, each ending in a record on disk."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from bench.errors import InterruptedByUserError
from bench.predict.plan import plan_before_sweep
from bench.records.records import Failure, Measurement, Outcome, Record
from bench.records.store import OpenFolder, load_records, open_folder
from bench.runner import schedule
from bench.runner.executors import Executor, Machine
from bench.runner.executors.local import LocalExecutor
from bench.runner.schedule import Observe, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.scenario.load import choose_cells
from bench.workers import interrupts
from bench.workers.launch import EVALUATES, PRELOAD, Launcher
from bench.workers.supervise import JobEnd

MOST_RERUNS = 2  # of a contaminated run; what is contaminated even then is left to the next sweep
_TO_RETRY: tuple[Outcome, ...] = ("failed", "crashed", "timeout", "contaminated")


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Every run of the chosen cells under this machine's keys, in order of cell and run."""

    records: tuple[Record, ...]
    new_records: int

    @property
    def latest(self) -> tuple[Record, ...]:
        return tuple({record.key: record for record in self.records}.values())

    @property
    def complaint(self) -> str | None:
        """Why the sweep as a whole is not a success; None when it is."""
        outcomes = Counter(record.outcome for record in self.latest)
        bad = [f"{outcomes[name]} {name}" for name in _TO_RETRY if outcomes[name]]
        if bad:
            return (
                f"not every cell could be run: {', '.join(bad)}; see the reasons above, and run those again "
                f"with --retry {','.join(_TO_RETRY)}"
            )
        if not outcomes["ok"] and not outcomes["oom"]:
            return "nothing could be measured on this machine; see the reasons above, and bench doctor"
        return None


def run_sweep(
    cells: Sequence[Cell],
    options: SweepOptions,
    observe: Observe,
    launcher: Launcher | None = None,
    executor: Executor | None = None,
) -> SweepResult:
    """Run what is not on disk yet; a cell that fails is a record like any other and stops nothing.

    Raises ``UsageError`` when no cell is chosen, ``InfrastructureError`` when records cannot be written or
    workers cannot be started, ``InterruptedByUserError`` on Ctrl-C and SIGTERM.
    """
    chosen = choose_cells(cells, options.only)
    schedule.require_allowed_code(chosen, options.allow_code)
    evaluates = any(cell.evaluation.tasks for cell in chosen)
    launcher = launcher or Launcher(preload=(*PRELOAD, *EVALUATES) if evaluates else PRELOAD)
    executor = executor or LocalExecutor(options=options, observe=observe, launcher=launcher)
    with open_folder(options.results) as folder, interrupts.caught():
        try:
            return _sweep(chosen, options, folder, observe, launcher=launcher, executor=executor)
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {options.results}, and the same command again resumes"
            ) from None


def _sweep(
    cells: Sequence[Cell],
    options: SweepOptions,
    folder: OpenFolder,
    observe: Observe,
    *,
    launcher: Launcher,
    executor: Executor,
) -> SweepResult:
    loaded = load_records(options.results)
    for problem in loaded.problems:
        observe(schedule.Note(problem))
    observe(schedule.Preparing("importing the libraries"))
    machine = executor.machine(cells)
    planned = schedule.schedule_runs(machine.prepared, loaded.records, options)
    possible = [run.cell for run in planned if run.reason is None]
    plan = None
    if options.predict and possible:
        observe(schedule.Preparing("predicting memory"))
        plan = plan_before_sweep(list({cell.id: cell for cell in possible}.values()), machine.facts, launcher)
        observe(plan)
    order = list(dict.fromkeys(one.key for one in machine.prepared))
    records = [record for record in loaded.records if record.key in order]
    expected_s = schedule.expected_s(planned, loaded.records)
    observe(schedule.SweepStarted(len(planned), len(records), expected_s))
    on_gpu = any(cell.device == "cuda" for cell in possible)
    made = []
    if planned:
        with executor.serving(machine, plan, on_gpu=on_gpu):
            made = _run_all(planned, machine, executor, folder, observe)
    records = sorted([*records, *made], key=lambda record: (order.index(record.key), record.run))
    return SweepResult(records=tuple(records), new_records=len(made))


class _Turn(NamedTuple):
    """A run to start: how often it was spoilt before, and whether a machine was lost with it."""

    run: ScheduledRun
    spoilt: int = 0
    lost: bool = False


def _run_all(
    planned: Sequence[ScheduledRun],
    machine: Machine,
    executor: Executor,
    folder: OpenFolder,
    observe: Observe,
) -> list[Record]:
    """Have all runs executed and write each as it ends; a contaminated one is kept, and run again next.

    A run whose machine was lost is started once more.
    """
    made: list[Record] = []
    numbers = {run.key: run.run for run in reversed(planned)}
    left, started = deque(map(_Turn, planned)), dict[tuple[str, int], _Turn]()
    while left or started:
        while left and len(started) < executor.slots:
            turn = left.popleft()
            if not turn.lost:
                turn = turn._replace(run=replace(turn.run, run=numbers[turn.run.key]))
                numbers[turn.run.key] += 1
            started[turn.run.key, turn.run.run] = turn
            executor.start(turn.run)
        with interrupts.held():  # an interrupt comes before a run's end or after its record is written
            ended = executor.next_end()
            turn = started.pop((ended.run.key, ended.run.run))
            if ended.record is None and not turn.lost:
                left.appendleft(turn._replace(lost=True))
                continue
            record = ended.record or _lost(turn.run, machine)
            folder.write(record)
        made.append(record)
        # Where nothing was begun, the GPU was waited for already.
        spoilt = record.outcome == "contaminated" and bool(record.measurement.phases)
        again = spoilt and turn.spoilt < MOST_RERUNS
        observe(schedule.RunEnded(record, again))
        if again:
            left.appendleft(_Turn(turn.run, turn.spoilt + 1))
    return made


def _lost(run: ScheduledRun, machine: Machine) -> Record:
    """Return the record of a run with which a machine was lost, and another one after that."""
    why = (
        "Two machines were lost while this ran: look at them, then run the same command with --retry crashed."
    )
    end = JobEnd(outcome="crashed", failure=Failure(message=why), measurements=(Measurement(),), total_ns=0)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return run.ended(end, machine.facts, started_at=now, environment=machine.environment)
