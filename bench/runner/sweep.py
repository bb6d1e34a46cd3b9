"""All cells of a scenario, one worker after the other, each ending in a record on disk."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from bench.errors import InterruptedByUserError
from bench.predict.plan import plan_before_sweep, why_unfit, with_prediction
from bench.records.environment import read_environment
from bench.records.messages import CellJob, FetchJob, Job, StepTurns
from bench.records.predictions import Plan
from bench.records.readings import Caveat
from bench.records.records import DeviceFacts, Environment, Failure, Measurement, Outcome, Record
from bench.records.store import OpenFolder, load_records, open_folder, snapshot_file_name
from bench.runner import schedule
from bench.runner.cpu_watch import CpuLoadWatch
from bench.runner.gpu_watch import GpuWatch, SweepGpu, sweep_gpu
from bench.runner.schedule import Observe, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.scenario.load import choose_cells
from bench.scenario.types import LimitsSpec, ModelSpec
from bench.workers import interrupts
from bench.workers.launch import Launcher
from bench.workers.supervise import NO_LIMITS, Findings, JobEnd, RunningJob, Watch, add_findings, probe

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


@dataclass(kw_only=True)
class CellRunner:
    """Turns a scheduled run into a record; remembers which weights were fetched."""

    options: SweepOptions
    launcher: Launcher
    observe: Observe
    environment: Environment
    facts: DeviceFacts
    gpu: SweepGpu = field(default_factory=SweepGpu)
    plan: Plan | None = None

    def __post_init__(self) -> None:
        self._fetched: dict[str, JobEnd] = {}
        self._expected = {one.cell.id: one for one in self.plan.cells} if self.plan else {}

    def run(self, planned: ScheduledRun, turns: StepTurns | None = None) -> Record:
        """Run a cell, alone or step by step in turn with another run, or say why not; return its record."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        end = self._end_of(planned, turns)
        expected = self._expected.get(planned.cell.id)
        if end.failure is not None and end.outcome == "oom":
            end = replace(end, failure=with_prediction(end.failure, expected))
        return planned.ended(
            end,
            self.facts,
            started_at=started_at,
            environment=self.environment,
            prediction=expected.kept_answer if expected else None,
        )

    def _end_of(self, planned: ScheduledRun, turns: StepTurns | None) -> JobEnd:
        cell, expected = planned.cell, self._expected.get(planned.cell.id)
        if planned.reason is not None:
            return _not_run("unavailable", planned.reason)
        if expected is not None and self.plan is not None and self.plan.cards and self.options.skip_unfit:
            unfit = why_unfit(expected, self.plan.cards[0])
            if unfit is not None:
                return _not_run("skipped", unfit)
        if cell.model.path is None and cell.loop.driver != "script":  # which fetches its own
            fetched = self._fetch(cell.model)
            if fetched.outcome != "ok":
                return fetched
        self.observe(schedule.RunStarted(cell, planned.run))
        snapshot = self.options.results.resolve() / snapshot_file_name(cell.id, planned.key, planned.run)
        job = CellJob(
            cell_json=cell.model_dump_json(),
            trust_remote_code=self.options.trust_remote_code,
            allow_code=tuple(self.options.allow_code),
            code_folder=self.options.code_folder,
            snapshot_path=str(snapshot) if self.options.snapshot else None,
            turns=turns,
        )
        if turns is not None:
            # Beside another run it takes twice as long, and the CPUs' counters see somebody else.
            return self._job(job, cell.limits.model_copy(update={"timeout_s": 2 * cell.limits.timeout_s}))
        if cell.device == "cuda":
            return self._on_gpu(job, cell)
        quota = self.environment.threads.get("cpu_quota_percent") is not None
        return self._job(job, cell.limits, CpuLoadWatch(cpu_quota=quota))

    def _job(self, job: Job, limits: LimitsSpec = NO_LIMITS, *watches: Watch) -> JobEnd:
        return RunningJob(job, self.launcher, limits, hear=self.observe, watches=watches).to_end()

    def _on_gpu(self, job: CellJob, cell: Cell) -> JobEnd:
        """Run a cell watched through NVML, once the GPU is idle; or unwatched, and say so in the record."""
        if self.gpu.gpu is None:
            why = f"No peak by NVML: {(self.gpu.unwatched or '').rstrip('.')}."
            found = Findings(caveats=(Caveat(code="nvml-unavailable", message=why),))
            return add_findings(self._job(job, cell.limits), found)
        watch = GpuWatch(self.gpu.gpu, pages_state=cell.training.optimizer.startswith("paged"))
        not_idle = watch.wait_until_idle()
        if not_idle is not None:
            return _not_run("contaminated", not_idle)
        end = self._job(job, cell.limits, watch)
        if watch.silent:
            why = "NVML stopped answering in an earlier run; check dmesg and nvidia-smi"
            self.gpu.gpu, self.gpu.unwatched = None, why
        return end

    def _fetch(self, model: ModelSpec) -> JobEnd:
        """Bring weights here once per sweep; how that ended is how all cells of the model end."""
        model_json = model.model_dump_json()
        if model_json not in self._fetched:
            self.observe(schedule.Preparing(f"fetching the weights of {model.name}"))
            self._fetched[model_json] = self._job(FetchJob(model_json=model_json))
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
    schedule.require_allowed_code(chosen, options.allow_code)
    with open_folder(options.results) as folder, interrupts.caught():
        try:
            return _sweep(chosen, options, folder, observe, launcher or Launcher())
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {options.results}, and the same command again resumes"
            ) from None


def _sweep(
    cells: Sequence[Cell], options: SweepOptions, folder: OpenFolder, observe: Observe, launcher: Launcher
) -> SweepResult:
    def note(text: str) -> None:
        observe(schedule.Note(text))

    loaded = load_records(options.results)
    for problem in loaded.problems:
        note(problem)
    observe(schedule.Preparing("importing the libraries"))
    environment = read_environment()
    facts = probe(launcher, note)
    prepared = [schedule.prepare(cell, environment, facts) for cell in cells]
    planned = schedule.schedule_runs(prepared, loaded.records, options)
    possible = [run.cell for run in planned if run.reason is None]
    plan = None
    if options.predict and possible:
        observe(schedule.Preparing("predicting memory"))
        plan = plan_before_sweep(list({cell.id: cell for cell in possible}.values()), facts, launcher)
        observe(plan)
    order = list(dict.fromkeys(one.key for one in prepared))
    records = [record for record in loaded.records if record.key in order]
    observe(schedule.SweepStarted(runs_to_do=len(planned), runs_on_disk=len(records)))
    on_gpu = any(cell.device == "cuda" for cell in possible)
    with sweep_gpu(facts) if on_gpu else contextlib.nullcontext(SweepGpu()) as gpu:
        runner = CellRunner(
            options=options,
            launcher=launcher,
            observe=observe,
            environment=environment,
            facts=facts,
            gpu=gpu,
            plan=plan,
        )
        made = _run_all(planned, runner, folder)
    records = sorted([*records, *made], key=lambda record: (order.index(record.key), record.run))
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
            spoilt = record.outcome == "contaminated" and bool(record.measurement.phases)
            again = spoilt and attempt < MOST_RERUNS
            runner.observe(schedule.RunEnded(record, again))
            if not again:
                break
    return made
