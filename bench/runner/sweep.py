"""All cells of a scenario, one worker after the other, each ending in a record on disk."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import InterruptedByUserError
from bench.predict.plan import plan_before_sweep, why_unfit, with_prediction
from bench.records.environment import read_environment
from bench.records.messages import CellJob, FetchJob, Message, StepTurns
from bench.records.predictions import Plan
from bench.records.readings import Caveat
from bench.records.records import DeviceFacts, Environment, Failure, Measurement, Outcome, Record
from bench.records.store import OpenFolder, load_records, open_folder, snapshot_file_name
from bench.runner import events, schedule
from bench.runner.events import Observe
from bench.runner.gpu.watch import GpuWatch, SweepGpu, sweep_gpu
from bench.runner.schedule import ScheduledRun, ScheduleOptions
from bench.scenario.cell import Cell
from bench.scenario.load import choose_cells
from bench.scenario.types import ModelSpec
from bench.workers import interrupts
from bench.workers.launch import Launcher, LocalLauncher
from bench.workers.listeners import CpuLoadWatch, Findings
from bench.workers.supervise import JobEnd, add_findings, probe, run_job

MOST_RERUNS = 2  # of a contaminated run; what is contaminated even then is left to the next sweep
_TO_RETRY: tuple[Outcome, ...] = ("failed", "crashed", "timeout", "contaminated")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Where records go, which cells are run, how often, and what is run again.

    ``predict`` has memory predicted first; ``skip_unfit`` then skips cells that cannot fit the card.
    ``snapshot`` has the worker write the history of CUDA's allocator beside each record.
    """

    results: Path
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
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


@dataclass(kw_only=True)
class CellRunner:
    """Turns a scheduled run into a record; remembers which weights were fetched.

    ``snapshots`` is the folder that allocator snapshots go to, None where none are asked for.
    """

    launcher: Launcher
    observe: Observe
    environment: Environment
    facts: DeviceFacts
    inputs: Mapping[str, str | None]
    gpu: SweepGpu = field(default_factory=SweepGpu)
    plan: Plan | None = None
    trust_remote_code: bool = False
    skip_unfit: bool = False
    snapshots: Path | None = None

    def __post_init__(self) -> None:
        self._fetched: dict[str, JobEnd] = {}
        self._expected = {one.cell.id: one for one in self.plan.cells} if self.plan else {}

    def run(self, planned: ScheduledRun, turns: StepTurns | None = None) -> Record:
        """Run a cell, alone or step by step in turn with another run, or say why not; return its record."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        end = self._end_of(planned, turns)
        measurement = end.measurement
        if measurement.device is None:
            measurement = measurement.replace(device=self.facts)
        expected, failure = self._expected.get(planned.cell.id), end.failure
        if failure is not None and end.outcome == "oom":
            failure = with_prediction(failure, expected)
        return Record(
            cell=planned.cell,
            key=planned.key,
            inputs_digest=self.inputs[planned.cell.id],
            run=planned.run,
            outcome=end.outcome,
            failure=failure,
            started_at=started_at,
            total_ns=end.total_ns,
            environment=self.environment,
            measurement=measurement,
            prediction=expected.answer if expected else None,
        )

    def _end_of(self, planned: ScheduledRun, turns: StepTurns | None) -> JobEnd:
        cell = planned.cell
        if planned.reason is not None:
            return _not_run("unavailable", planned.reason)
        expected = self._expected.get(cell.id)
        if expected is not None and self.plan is not None and self.plan.cards and self.skip_unfit:
            unfit = why_unfit(expected, self.plan.cards[0])
            if unfit is not None:
                return _not_run("skipped", unfit)
        if cell.model.path is None:
            fetched = self._fetch(cell.model)
            if fetched.outcome != "ok":
                return fetched
        self.observe(events.RunStarted(cell, planned.run))
        job = CellJob(
            cell_json=cell.model_dump_json(),
            trust_remote_code=self.trust_remote_code,
            snapshot_path=None
            if self.snapshots is None
            else str(self.snapshots / snapshot_file_name(cell.id, planned.key, planned.run)),
            turns=turns,
        )
        if turns is not None:
            # Beside another run it takes twice as long, and the CPUs' counters see somebody else.
            limits = cell.limits.model_copy(update={"timeout_s": 2 * cell.limits.timeout_s})
            return run_job(job, self.launcher, limits, hear=self._hear)
        if cell.device == "cuda":
            return self._on_gpu(job, cell)
        load = CpuLoadWatch(cpu_quota=self.environment.threads.get("cpu_quota_percent") is not None)
        return run_job(job, self.launcher, cell.limits, hear=self._hear, watches=[load])

    def _hear(self, message: Message) -> None:
        self.observe(events.Heard(message))

    def _on_gpu(self, job: CellJob, cell: Cell) -> JobEnd:
        """Run a cell watched through NVML, once the GPU is idle; or unwatched, and say so in the record."""
        gpu, unwatched = self.gpu.gpu, self.gpu.unwatched
        if gpu is None:
            end = run_job(job, self.launcher, cell.limits, hear=self._hear)
            why = f"No peak by NVML: {(unwatched or '').rstrip('.')}."
            return add_findings(end, Findings(caveats=(Caveat(code="nvml-unavailable", message=why),)))
        watch = GpuWatch(gpu, pages_state=cell.training.optimizer.startswith("paged"))
        not_idle = watch.wait_until_idle()
        if not_idle is not None:
            return _not_run("contaminated", not_idle)
        end = run_job(job, self.launcher, cell.limits, hear=self._hear, watches=[watch])
        if watch.silent:
            self.gpu.give_up("NVML stopped answering in an earlier run; check dmesg and nvidia-smi")
        return end

    def _fetch(self, model: ModelSpec) -> JobEnd:
        """Bring weights here once per sweep; how that ended is how all cells of the model end."""
        model_json = model.model_dump_json()
        if model_json not in self._fetched:
            self.observe(events.Preparing(f"fetching the weights of {model.name}"))
            job = FetchJob(model_json=model_json)
            self._fetched[model_json] = run_job(job, self.launcher, hear=self._hear)
        return self._fetched[model_json]


def _not_run(outcome: Outcome, reason: str) -> JobEnd:
    return JobEnd(outcome=outcome, failure=Failure(message=reason), measurements=(Measurement(),), total_ns=0)


def run_sweep(
    cells: Sequence[Cell], options: SweepOptions, observe: Observe, launcher: Launcher | None = None
) -> SweepResult:
    """Run what is not on disk yet; a cell that fails is a record like any other and stops nothing.

    Raises ``UsageError`` when no cell is chosen, ``InfrastructureError`` when records cannot be written or
    workers cannot be started, ``InterruptedByUserError`` on Ctrl-C and SIGTERM.
    """
    chosen = choose_cells(cells, options.only)
    with open_folder(options.results) as folder, interrupts.caught():
        try:
            return _sweep(chosen, options, folder, observe, launcher or LocalLauncher())
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {options.results}, and the same command again resumes"
            ) from None


def _sweep(
    cells: Sequence[Cell], options: SweepOptions, folder: OpenFolder, observe: Observe, launcher: Launcher
) -> SweepResult:
    def note(text: str) -> None:
        observe(events.Note(text))

    loaded = load_records(options.results)
    for problem in loaded.problems:
        note(problem)
    observe(events.Preparing("importing the libraries"))
    environment = read_environment()
    facts = probe(launcher, note)
    inputs = {cell.id: schedule.inputs_digest(cell) for cell in cells}
    key_of = {cell.id: schedule.run_key(cell, environment, facts, inputs[cell.id]) for cell in cells}
    planned = schedule.schedule_runs(
        cells,
        loaded.records,
        key_of=lambda cell: key_of[cell.id],
        reason_of=lambda cell: schedule.why_unavailable(cell, facts, environment),
        options=options.schedule,
    )
    plan = _plan(planned, facts, observe, launcher) if options.predict else None
    keys = dict.fromkeys(key_of.values())
    records = [record for record in loaded.records if record.key in keys]
    observe(events.SweepStarted(runs_to_do=len(planned), runs_on_disk=len(records)))
    on_gpu = any(run.cell.device == "cuda" and run.reason is None for run in planned)
    with sweep_gpu(facts, note) if on_gpu else contextlib.nullcontext(SweepGpu()) as gpu:
        runner = CellRunner(
            launcher=launcher,
            observe=observe,
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


def _run_all(planned: Sequence[ScheduledRun], runner: CellRunner, folder: OpenFolder) -> list[Record]:
    """Run and write one after the other; a contaminated run is kept, and run again as the next."""
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
                runner.observe(events.RunAdded())
            runner.observe(events.RunEnded(record))
            if not again:
                break
    return made


def _plan(
    planned: Sequence[ScheduledRun], facts: DeviceFacts, observe: Observe, launcher: Launcher
) -> Plan | None:
    cells = list({run.cell.id: run.cell for run in planned if run.reason is None}.values())
    if not cells:
        return None
    observe(events.Preparing("predicting memory"))
    plan = plan_before_sweep(cells, facts, launcher)
    observe(events.Predicted(plan))
    return plan
