"""Runs on this machine, one worker after the other."""

import contextlib
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from msgspec import UNSET

from bench.predict.plan import why_unfit, with_prediction
from bench.records.derived_metrics import nvml_peak
from bench.records.environment import read_environment
from bench.records.messages import CellJob, FetchJob, Job, Message, StepTurns
from bench.records.predictions import Plan
from bench.records.readings import Caveat
from bench.records.records import (
    Failure,
    Measurement,
    Outcome,
    PhaseReading,
    RankReading,
    Record,
    StepSample,
    TokenCounts,
)
from bench.records.store import snapshot_file_name
from bench.runner import schedule
from bench.runner.cpu_watch import CpuLoadWatch
from bench.runner.executors import Ended, Machine
from bench.runner.gpu_watch import GpuWatch, SweepGpu, WatchOfRank, sweep_gpu
from bench.runner.schedule import Observe, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.scenario.types import LimitsSpec, ModelSpec
from bench.workers.launch import Launcher
from bench.workers.supervise import NO_LIMITS, Findings, JobEnd, RunningJob, Watch, add_findings, probe


@dataclass(kw_only=True)
class LocalExecutor:
    """Runs cells in workers of this process; remembers which weights were fetched."""

    options: SweepOptions
    observe: Observe
    launcher: Launcher
    slots: int = 1

    def __post_init__(self) -> None:
        self._fetched: dict[str, JobEnd] = {}

    def machine(self, cells: Sequence[Cell]) -> Machine:
        """Return what this machine is, and each cell's first run on it."""
        environment = read_environment()
        facts = probe(self.launcher, lambda text: self.observe(schedule.Note(text)))
        if slow := schedule.slow_on_cpu(cells):
            self.observe(schedule.Note(slow))
        runs = [schedule.prepare(cell, environment, facts, self.options.code_folder) for cell in cells]
        return Machine(environment, facts, runs)

    @contextlib.contextmanager
    def serving(self, machine: Machine, plan: Plan | None, *, on_gpu: bool) -> Iterator[None]:
        """Hold the GPU, where one is needed, for the runs that are started meanwhile."""
        self._machine, self._plan = machine, plan
        self._expected = {one.cell.id: one for one in plan.cells} if plan else {}
        ranks = max((run.cell.parallel.gpus for run in machine.prepared), default=1)
        with sweep_gpu(machine.facts, ranks) if on_gpu else contextlib.nullcontext(SweepGpu()) as self._gpu:
            yield

    def start(self, run: ScheduledRun) -> None:
        self._started = run

    def next_end(self) -> Ended:
        return Ended(self._started, self.run(self._started))

    def run(self, planned: ScheduledRun, turns: StepTurns | None = None) -> Record:
        """Run a cell, alone or step by step in turn with another run, or say why not; return its record."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        end = self._end_of(planned, turns)
        expected = self._expected.get(planned.cell.id)
        if end.failure is not None and end.outcome == "oom":
            end = replace(end, failure=with_prediction(end.failure, expected))
        return planned.ended(
            end,
            self._machine.facts,
            started_at=started_at,
            environment=self._machine.environment,
            prediction=expected.kept_answer if expected else None,
        )

    def _end_of(self, planned: ScheduledRun, turns: StepTurns | None) -> JobEnd:
        cell, expected = planned.cell, self._expected.get(planned.cell.id)
        if planned.reason is not None:
            return _not_run("unavailable", planned.reason)
        if expected is not None and self._plan is not None and self._plan.cards and self.options.skip_unfit:
            unfit = why_unfit(expected, self._plan.cards[0])
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
        if cell.parallel.several:
            return self._by_ranks(job, cell)
        return self._on_gpu(job, cell) if cell.device == "cuda" else self._on_cpu(job, cell)

    def _on_cpu(self, job: CellJob, cell: Cell) -> JobEnd:
        quota = self._machine.environment.threads.get("cpu_quota_percent") is not None
        return self._job(job, cell.limits, CpuLoadWatch(cpu_quota=quota))

    def _by_ranks(self, job: CellJob, cell: Cell) -> JobEnd:
        """Run a cell by as many workers as it has ranks, which meet in a file, each GPU watched by itself."""
        with tempfile.TemporaryDirectory(prefix="bench-ranks-") as folder:
            job = job.model_copy(update={"rendezvous": f"{folder}/rendezvous"})
            ranks = cell.parallel.gpus
            watches = [GpuWatch(gpu) for gpu in self._gpu.of_ranks(ranks)] if cell.device == "cuda" else []
            not_idle = next(filter(None, (watch.wait_until_idle() for watch in watches)), None)
            if not_idle is not None:
                for watch in watches:
                    watch.finish()
                return _not_run("contaminated", not_idle)
            end = RunningJob(
                job,
                self.launcher,
                cell.limits,
                ranks=ranks,
                hear=self._hear_first,
                watches=[WatchOfRank(watch, rank) for rank, watch in enumerate(watches)],
            ).to_end()
        end = replace(end, measurements=(of_ranks(end.measurements),))
        if watches:
            return end
        why = "Several processes were measured, without NVML and without looking who else uses the machine."
        return add_findings(end, Findings(caveats=(Caveat(code="ranks-unwatched", message=why),)))

    def _hear_first(self, message: Message) -> None:
        """Pass on what the first rank says: the others are as far."""
        if not message.rank:
            self.observe(message)

    def _job(self, job: Job, limits: LimitsSpec = NO_LIMITS, *watches: Watch) -> JobEnd:
        return RunningJob(job, self.launcher, limits, hear=self.observe, watches=watches).to_end()

    def _on_gpu(self, job: CellJob, cell: Cell) -> JobEnd:
        """Run a cell watched through NVML, once the GPU is idle; or unwatched, and say so in the record."""
        if not self._gpu.gpus:
            why = f"No peak by NVML: {(self._gpu.unwatched or '').rstrip('.')}."
            found = Findings(caveats=(Caveat(code="nvml-unavailable", message=why),))
            return add_findings(self._job(job, cell.limits), found)
        watch = GpuWatch(self._gpu.gpus[0], pages_state=cell.training.optimizer.startswith("paged"))
        not_idle = watch.wait_until_idle()
        if not_idle is not None:
            return _not_run("contaminated", not_idle)
        end = self._job(job, cell.limits, watch)
        if watch.silent:
            why = "NVML stopped answering in an earlier run; check dmesg and nvidia-smi"
            self._gpu = SweepGpu(unwatched=why)
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


def of_ranks(measurements: Sequence[Measurement]) -> Measurement:
    """Return the cell's: tokens of all ranks, the slowest's times, the highest peaks; each rank's beside it.

    The ledger is that of the rank with the highest peak, and NVML's reading that of the GPU on which most was
    held. What only one has to tell is the first one's.
    """
    if len(measurements) == 1:
        return measurements[0]
    first = measurements[0]
    ledgers = [one.ledger for one in measurements if one.ledger is not None]
    watched = [one.gpu for one in measurements if one.gpu is not None]
    caveats = {caveat.code: caveat for one in reversed(measurements) for caveat in one.caveats}
    own = {caveat.code for caveat in first.caveats}
    return first.replace(
        steps=tuple(map(_step_of, zip(*(one.steps for one in measurements), strict=False))),
        phases=tuple(map(_phase_of, zip(*(one.phases for one in measurements), strict=False))),
        ledger=max(ledgers, key=lambda one: one.peak_bytes, default=None),
        gpu=max(watched, key=lambda gpu: (nvml_peak(gpu) or (0, ""))[0], default=None),
        caveats=(*first.caveats, *(caveats[code] for code in caveats if code not in own)),
        ranks=tuple(_read(rank, one) for rank, one in enumerate(measurements)),
    )


def _step_of(samples: Sequence[StepSample]) -> StepSample:
    counts = [sample.tokens for sample in samples]
    tokens = TokenCounts(**{name: sum(getattr(one, name) for one in counts) for name in _COUNTS})
    return samples[0].replace(
        tokens=tokens,
        step_time_ns=max(sample.step_time_ns for sample in samples),
        loss=statistics.fmean(sample.loss for sample in samples),
    )


_COUNTS = TokenCounts.__struct_fields__
_PEAKS = ("host_peak_bytes", "cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes")


def _phase_of(readings: Sequence[PhaseReading]) -> PhaseReading:
    peaks = {name: _highest(getattr(one, name) for one in readings) for name in _PEAKS}
    return readings[0].replace(duration_ns=max(one.duration_ns for one in readings), **peaks)


def _read(rank: int, measurement: Measurement) -> RankReading:
    peaks = {name: _highest(getattr(one, name) for one in measurement.phases) for name in _PEAKS}
    times, gpu = measurement.step_times_ns, measurement.gpu
    peak = nvml_peak(gpu) if gpu else None
    return RankReading(
        rank=rank,
        ledger_peak_bytes=measurement.ledger.peak_bytes if measurement.ledger else None,
        step_time_ns=round(statistics.median(times)) if times else None,
        nvml_uuid=gpu.facts.uuid if gpu else UNSET,
        nvml_peak_bytes=peak[0] if peak else UNSET,
        **peaks,
    )


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
