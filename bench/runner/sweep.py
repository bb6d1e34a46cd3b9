"""All cells of a scenario, one worker after the other, each ending in a record on disk."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.errors import InterruptedByUserError
from bench.records.environment import read_environment
from bench.records.plans import Plan
from bench.records.records import DeviceFacts, Outcome, Record
from bench.records.store import OpenFolder, load_records, open_folder
from bench.runner.availability import why_unavailable
from bench.runner.cell_runs import CellRunner
from bench.runner.gpu.sweep import SweepGpu, sweep_gpu
from bench.runner.inputs import inputs_digest
from bench.runner.observe import Observer
from bench.runner.plan_before_sweep import expect
from bench.runner.schedule import PlannedRun, PlanOptions, choose_cells, plan_runs, run_key
from bench.scenario.types import Cell
from bench.workers import interrupts
from bench.workers.launch import Launcher
from bench.workers.supervise import probe

MOST_RERUNS = 2  # of a run that others spoilt; what is still spoilt then is left to the next sweep
_TO_RETRY: tuple[Outcome, ...] = ("failed", "crashed", "timeout", "contaminated")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Where records go, which cells are run, how often, and what is run again.

    ``predict`` has memory predicted first; ``skip_unfit`` then skips cells that cannot fit the card.
    ``snapshot`` has the worker write the history of CUDA's allocator beside each record.
    """

    results: Path
    plan: PlanOptions = field(default_factory=PlanOptions)
    only: str | None = None
    trust_remote_code: bool = False
    predict: bool = False
    skip_unfit: bool = False
    snapshot: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Every run of the chosen cells under this machine's keys, in order of cell and run."""

    records: tuple[Record, ...]
    new_records: int

    @property
    def latest(self) -> tuple[Record, ...]:
        """The last run of each cell."""
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
    cells: Sequence[Cell], options: SweepOptions, observer: Observer, launcher: Launcher | None = None
) -> SweepResult:
    """Run what is not on disk yet; a cell that fails is a record like any other and stops nothing.

    Raises ``UsageError`` when no cell is chosen, ``InfrastructureError`` when records cannot be written or
    workers cannot be started, ``InterruptedByUserError`` on Ctrl-C and SIGTERM.
    """
    chosen = choose_cells(cells, options.only)
    with open_folder(options.results) as folder, interrupts.caught():
        try:
            return _sweep(chosen, options, folder, observer, launcher or Launcher())
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {options.results}, and the same command again resumes"
            ) from None


def _sweep(
    cells: Sequence[Cell],
    options: SweepOptions,
    folder: OpenFolder,
    observer: Observer,
    launcher: Launcher,
) -> SweepResult:
    loaded = load_records(options.results)
    for problem in loaded.problems:
        observer.note(problem)
    observer.preparing("importing the libraries")
    environment = read_environment()
    facts = probe(launcher, observer.note)
    inputs = {cell.id: inputs_digest(cell) for cell in cells}
    key_of = {cell.id: run_key(cell, environment, facts, inputs[cell.id]) for cell in cells}
    planned = plan_runs(
        cells,
        loaded.records,
        key_of=lambda cell: key_of[cell.id],
        reason_of=lambda cell: why_unavailable(cell, facts, environment),
        options=options.plan,
    )
    plan = _plan(planned, facts, options, observer, launcher)
    keys = dict.fromkeys(key_of.values())
    records = [record for record in loaded.records if record.key in keys]
    observer.sweep_started(runs_to_do=len(planned), runs_on_disk=len(records))
    on_gpu = any(run.cell.device == "cuda" and run.reason is None for run in planned)
    with sweep_gpu(facts, observer) if on_gpu else contextlib.nullcontext(SweepGpu()) as gpu:
        runner = CellRunner(
            launcher=launcher,
            observer=observer,
            environment=environment,
            facts=facts,
            inputs=inputs,
            gpu=gpu,
            plan=plan,
            trust_remote_code=options.trust_remote_code,
            skip_unfit=options.skip_unfit,
            snapshots=options.results.resolve() if options.snapshot else None,
        )
        made = _run_all(planned, runner, folder)
    order = list(keys)
    records += made
    records.sort(key=lambda record: (order.index(record.key), record.run))
    return SweepResult(records=tuple(records), new_records=len(made))


def _run_all(planned: Sequence[PlannedRun], runner: CellRunner, folder: OpenFolder) -> list[Record]:
    """Run and write one after the other; a run that others spoilt is kept, and run again as the next."""
    made = []
    reruns: Counter[str] = Counter()
    for run in planned:
        for attempt in range(1 + MOST_RERUNS):
            reruns[run.key] += attempt > 0
            with interrupts.held():  # an interrupt comes before a run's end or after its record is written
                record = runner.run(replace(run, run=run.run + reruns[run.key]))
                folder.write(record)
            made.append(record)
            # Where nothing was begun, the GPU was waited for already.
            again = record.outcome == "contaminated" and record.measurement.phases and attempt < MOST_RERUNS
            if again:
                runner.observer.run_added()
            runner.observer.run_ended(record)
            if not again:
                break
    return made


def _plan(
    planned: Sequence[PlannedRun],
    facts: DeviceFacts,
    options: SweepOptions,
    observer: Observer,
    launcher: Launcher,
) -> Plan | None:
    """Predict the cells that are about to run, and show it."""
    cells = list({run.cell.id: run.cell for run in planned if run.reason is None}.values())
    if not cells or not options.predict:
        return None
    observer.preparing("predicting memory")
    plan = expect(cells, facts, launcher)
    observer.predicted(plan)
    return plan
