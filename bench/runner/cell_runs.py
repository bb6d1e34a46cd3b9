"""One planned run made into a record: fetched, watched, run; or the reason why it was not run."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.records.messages import CellJob, FetchJob, StepTurns
from bench.records.plans import Plan
from bench.records.records import Caveat, DeviceFacts, Environment, Failure, Measurement, Outcome, Record
from bench.records.store import snapshot_file_name
from bench.runner.cpu_load import CpuLoadWatch
from bench.runner.gpu.sweep import SweepGpu
from bench.runner.gpu.watch import GpuWatch
from bench.runner.observe import Observer
from bench.runner.plan_before_sweep import beside_expectation, why_unfit
from bench.runner.schedule import PlannedRun
from bench.scenario.types import Cell, ModelSpec
from bench.workers.launch import Launcher
from bench.workers.supervise import JobEnd, add_findings, run_job
from bench.workers.watch import Findings


@dataclass(kw_only=True)
class CellRunner:
    """Turns a planned run into a record; remembers which weights were fetched.

    ``snapshots`` is the folder that allocator snapshots go to, None where none are asked for.
    """

    launcher: Launcher
    observer: Observer
    environment: Environment
    facts: DeviceFacts
    inputs: Mapping[str, str | None]
    gpu: SweepGpu
    plan: Plan | None = None
    trust_remote_code: bool = False
    skip_unfit: bool = False
    snapshots: Path | None = None

    def __post_init__(self) -> None:
        self._fetched: dict[str, JobEnd] = {}
        self._expected = {one.cell.id: one for one in self.plan.cells} if self.plan else {}

    def run(self, planned: PlannedRun, turns: StepTurns | None = None) -> Record:
        """Run a cell, alone or step by step in turn with another run, or say why not; return its record."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        end = self._end_of(planned, turns)
        measurement = end.measurement
        if measurement.device is None:
            measurement = measurement.model_copy(update={"device": self.facts})
        expected, failure = self._expected.get(planned.cell.id), end.failure
        if failure is not None and end.outcome == "oom":
            failure = beside_expectation(failure, expected)
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

    def _end_of(self, planned: PlannedRun, turns: StepTurns | None) -> JobEnd:
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
        job = CellJob(
            cell_json=cell.model_dump_json(),
            trust_remote_code=self.trust_remote_code,
            snapshot_path=self._snapshot_path(planned),
            turns=turns,
        )
        if turns is not None:
            return self._in_turn(job, cell)
        if cell.device == "cuda":
            return self._on_gpu(job, cell)
        load = CpuLoadWatch(cpu_quota=self.environment.threads.get("cpu_quota_percent") is not None)
        return run_job(job, self.launcher, cell.limits, hear=self.observer.message, watches=[load])

    def _in_turn(self, job: CellJob, cell: Cell) -> JobEnd:
        """Run a cell beside another: that takes twice as long, and the CPUs' counters see somebody else."""
        limits = cell.limits.model_copy(update={"timeout_s": 2 * cell.limits.timeout_s})
        return run_job(job, self.launcher, limits, hear=self.observer.message)

    def _on_gpu(self, job: CellJob, cell: Cell) -> JobEnd:
        """Run a cell watched through NVML, once the GPU is idle; or unwatched, and say so in the record."""
        gpu, unwatched = self.gpu.gpu, self.gpu.unwatched
        if gpu is None:
            end = run_job(job, self.launcher, cell.limits, hear=self.observer.message)
            caveat = Caveat(
                code="nvml-unavailable", message=f"No peak by NVML: {(unwatched or '').rstrip('.')}."
            )
            return add_findings(end, Findings(caveats=(caveat,)))
        watch = GpuWatch(gpu, pages_state=cell.training.optimizer.startswith("paged"))
        not_idle = watch.wait_until_idle()
        if not_idle is not None:
            return _not_run("contaminated", not_idle)
        end = run_job(job, self.launcher, cell.limits, hear=self.observer.message, watches=[watch])
        if watch.silent:
            self.gpu.give_up("NVML stopped answering in an earlier run; check dmesg and nvidia-smi")
        return end

    def _snapshot_path(self, planned: PlannedRun) -> str | None:
        if self.snapshots is None:
            return None
        return str(self.snapshots / snapshot_file_name(planned.cell.id, planned.key, planned.run))

    def _why_unfit(self, cell: Cell) -> str | None:
        """Return why a cell is skipped; None where it is to be run."""
        expected = self._expected.get(cell.id)
        if expected is None or self.plan is None or not self.plan.cards or not self.skip_unfit:
            return None
        return why_unfit(expected, self.plan.cards[0])

    def _fetch(self, model: ModelSpec) -> JobEnd:
        """Bring weights here once per sweep; how that ended is how all cells of the model end."""
        model_json = model.model_dump_json()
        if model_json not in self._fetched:
            self.observer.preparing(f"fetching the weights of {model.name}")
            self._fetched[model_json] = run_job(
                FetchJob(model_json=model_json), self.launcher, hear=self.observer.message
            )
        return self._fetched[model_json]


def _not_run(outcome: Outcome, reason: str) -> JobEnd:
    return JobEnd(outcome=outcome, failure=Failure(message=reason), measurement=Measurement(), total_ns=0)
