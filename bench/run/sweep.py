"""All cells of a scenario, one worker after the other, each ending in a record on disk."""

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import InfrastructureError, InterruptedByUserError
from bench.results.environment import read_environment
from bench.results.messages import CellJob, FetchJob, ProbeJob
from bench.results.plans import Plan
from bench.results.records import DeviceFacts, Environment, Failure, Measurement, Outcome, Record
from bench.results.store import load_records, open_folder, write_record
from bench.run.availability import why_unavailable
from bench.run.expect import expect, why_unfit
from bench.run.inputs import inputs_digest
from bench.run.launch import Launcher
from bench.run.observe import Observer
from bench.run.plan import PlannedRun, PlanOptions, choose_cells, plan_runs, run_key
from bench.run.supervise import JobEnd, run_job
from bench.spec.types import Cell, ModelSpec


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Where records go, which cells are run, how often, and what is run again.

    ``predict`` has memory predicted first; ``skip_unfit`` then skips cells that cannot fit the card.
    """

    results: Path
    plan: PlanOptions = field(default_factory=PlanOptions)
    only: str | None = None
    trust_remote_code: bool = False
    predict: bool = False
    skip_unfit: bool = False


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
        bad = [f"{outcomes[name]} {name}" for name in ("failed", "crashed", "timeout") if outcomes[name]]
        if bad:
            return (
                f"not every cell could be run: {', '.join(bad)}; see the reasons above, and run those again "
                "with --retry failed,crashed,timeout"
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
    with open_folder(options.results), _terminate_like_interrupt():
        try:
            return _sweep(chosen, options, observer, launcher or Launcher())
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {options.results}, and the same command again resumes"
            ) from None


def _sweep(
    cells: Sequence[Cell], options: SweepOptions, observer: Observer, launcher: Launcher
) -> SweepResult:
    loaded = load_records(options.results)
    for problem in loaded.problems:
        observer.note(problem)
    observer.preparing("importing the libraries")
    environment = read_environment()
    facts = probe(launcher, observer)
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
    runner = _Runner(
        launcher=launcher,
        observer=observer,
        environment=environment,
        facts=facts,
        inputs=inputs,
        options=options,
        plan=plan,
    )
    for run in planned:
        record = runner.run(run)
        write_record(options.results, record)
        records.append(record)
        observer.run_ended(record)
    order = list(keys)
    records.sort(key=lambda record: (order.index(record.key), record.run))
    return SweepResult(records=tuple(records), new_records=len(planned))


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


def probe(launcher: Launcher, observer: Observer) -> DeviceFacts:
    """Ask a worker what this machine has; raise ``InfrastructureError`` when even that fails."""
    end = run_job(ProbeJob(), launcher, observer=observer)
    if launcher.start_method == "spawn":
        observer.note(
            "importing the libraries has touched CUDA, so workers are started afresh instead of forked; "
            "each start takes seconds longer."
        )
    if end.failure is not None or end.measurement.device is None:
        reason = end.failure.message if end.failure else "The worker told nothing."
        tail = end.failure.output_tail.strip() if end.failure else ""
        raise InfrastructureError(
            f"{tail}\nno worker could look at this machine ({reason.rstrip('.')}); "
            "check the installation with: python -c 'import bench.window.preload'".lstrip()
        )
    return end.measurement.device


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C meanwhile; signals can be set in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(kw_only=True)
class _Runner:
    """Turns a planned run into a record; remembers which weights were fetched."""

    launcher: Launcher
    observer: Observer
    environment: Environment
    facts: DeviceFacts
    inputs: Mapping[str, str | None]
    options: SweepOptions
    plan: Plan | None = None

    def __post_init__(self) -> None:
        self._fetched: dict[str, JobEnd] = {}
        self._expected = {one.cell.id: one for one in self.plan.cells} if self.plan else {}

    def run(self, planned: PlannedRun) -> Record:
        """Run a cell, or say why not, and return its record."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        end = self._end_of(planned)
        measurement = end.measurement
        if measurement.device is None:
            measurement = measurement.model_copy(update={"device": self.facts})
        expected = self._expected.get(planned.cell.id)
        return Record(
            cell=planned.cell,
            key=planned.key,
            inputs_digest=self.inputs[planned.cell.id],
            run=planned.run,
            outcome=end.outcome,
            failure=end.failure,
            started_at=started_at,
            total_ns=end.total_ns,
            environment=self.environment,
            measurement=measurement,
            prediction=expected.answer if expected else None,
        )

    def _end_of(self, planned: PlannedRun) -> JobEnd:
        cell = planned.cell
        if planned.reason is not None:
            return _not_run("unavailable", planned.reason)
        unfit = self._why_unfit(cell)
        if unfit is not None:
            return _not_run("skipped", unfit)
        if cell.model.path is None:
            fetched = self._fetch(cell.model)
            if fetched.outcome != "ok":
                return fetched
        self.observer.run_started(cell, planned.run)
        job = CellJob(cell_json=cell.model_dump_json(), trust_remote_code=self.options.trust_remote_code)
        return run_job(job, self.launcher, cell.limits, self.observer)

    def _why_unfit(self, cell: Cell) -> str | None:
        """Return why a cell is skipped; None where it is to be run."""
        expected = self._expected.get(cell.id)
        if expected is None or self.plan is None or not self.plan.cards or not self.options.skip_unfit:
            return None
        return why_unfit(expected, self.plan.cards[0])

    def _fetch(self, model: ModelSpec) -> JobEnd:
        """Bring weights here once per sweep; how that ended is how all cells of the model end."""
        model_json = model.model_dump_json()
        if model_json not in self._fetched:
            self.observer.preparing(f"fetching the weights of {model.name}")
            self._fetched[model_json] = run_job(
                FetchJob(model_json=model_json), self.launcher, observer=self.observer
            )
        return self._fetched[model_json]


def _not_run(outcome: Outcome, reason: str) -> JobEnd:
    return JobEnd(outcome=outcome, failure=Failure(message=reason), measurement=Measurement(), total_ns=0)
