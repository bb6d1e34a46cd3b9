"""The metrics of one record, computed from its raw samples; nothing here compares two records.

Every function returns None where the record lacks what it needs, never 0.
"""

import statistics
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter, itemgetter, mul
from typing import Literal

from msgspec import UNSET

from bench.metrics import METRICS, Instrument
from bench.records.readings import INVALIDATING, Caveat, GpuPhase, GpuReading, Isolation
from bench.records.records import NS_PER_SECOND, EvaluationReading, Phase, Record

# NVML's counters are brought up to date every 20 to 100 ms (Yang, Adamek and Armour, "Accurate and Convenient
# Energy Measurements for GPUs", SC 2024, arXiv:2312.02741), so that a difference is off by up to 100 ms of
# power: over two seconds, 5 %.
LEAST_ENERGY_TIME_NS = 2 * NS_PER_SECOND
LEAST_ENERGY_SAMPLES = 20

# What a user needs for training itself. Evaluation and the instrumented steps after it are left out:
# they would not run in a plain training job.
TRAINING_PHASES: tuple[Phase, ...] = (
    *("load", "adapt", "prepare_data"),
    *("first_forward", "first_backward", "first_optimizer_step"),
    *("warmup", "steady"),
)

_TRAINING = frozenset(TRAINING_PHASES)

BUSY_MACHINE = "busy-machine"
"""The caveat of a run beside which others used the CPUs."""

STEPS_IN_TURN = "steps-in-turn"
"""The caveat of a run whose steps were taken in turn with another run's."""

THROTTLED = "throttled"
"""The caveat of a run during which the GPU clocked lower than it could."""

Value = float | int | None
Derivation = Callable[[Record], Value]
Samples = dict[str, tuple[float, ...]]
PeakField = Literal["host_peak_bytes", "cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes"]
HeldField = Literal["heap_bytes", "cuda_allocated_bytes"]
PeakReader = Callable[[Record], tuple[int, str] | None]
When = Literal["before", "after"]
WHEN: tuple[When, ...] = ("before", "after")


def read_metrics(record: Record, *, paired: bool = True) -> dict[str, Value]:
    """Return one value for each entry of ``bench.metrics.METRICS``, in the unit stated there.

    Without ``paired`` those are left out that are compared question by question.
    """
    wanted = [name for name, metric in METRICS.items() if paired or metric.kind != "paired"]
    return {name: DERIVED[name](record) for name in wanted}


def read_samples(record: Record, values: Mapping[str, Value]) -> Samples:
    """Return the samples of each metric that varies between runs: one a measured step, or one a run.

    ``values`` are those of ``read_metrics``. A rate or a size of 0 has no logarithm, and no machine measures
    one.
    """
    found: Samples = {
        name: (value,)
        for name, metric in METRICS.items()
        if metric.kind == "statistical" and (value := values[name]) is not None and value > 0
    }
    if times := record.measurement.step_times_ns:
        found |= {"step_time_ns": times, "tokens_per_second": record.measurement.tokens_per_second}
    return found


def over_window(samples: Samples, metric: str) -> float:
    """Return one number for all measured steps of a run: the mean time of a step, tokens over total time."""
    values = samples[metric]
    if metric == "tokens_per_second":
        times = samples.get("step_time_ns") or [1 / value for value in values]
        tokens: float = sum(map(mul, values, times))
        return tokens / sum(times)
    return statistics.fmean(values)


def _highest(field: PeakField) -> PeakReader:
    read = attrgetter(field)

    def peak(record: Record) -> tuple[int, str] | None:
        found = [(read(phase), phase.name) for phase in record.measurement.phases if phase.name in _TRAINING]
        return max([one for one in found if one[0] is not None], key=itemgetter(0), default=None)

    return peak


def _net_of_start_up(record: Record) -> tuple[int, str] | None:
    """Leave out what was resident as loading began: Python and the libraries."""
    peak, phases = PEAKS["host"](record), record.measurement.phases
    start = next((phase.host_start_bytes for phase in phases if phase.name == "load"), None)
    return None if peak is None or start is None else (peak[0] - start, peak[1])


def _by_nvml(isolation: Isolation) -> PeakReader:
    """Only where NVML could be held to this reading; None if it told nothing in a phase that was sampled."""

    def peak(record: Record) -> tuple[int, str] | None:
        gpu = record.measurement.gpu
        return nvml_peak(gpu) if gpu is not None and gpu.isolation == isolation else None

    return peak


def nvml_peak(gpu: GpuReading) -> tuple[int, str] | None:
    """Return the most bytes of training that NVML showed, and the phase; None if one of them has none."""
    sampled = [phase for phase in gpu.phases if phase.name in _TRAINING and phase.samples]
    found = [(size, phase.name) for phase in sampled if (size := _nvml_bytes(phase, gpu)) is not None]
    return max(found, key=itemgetter(0)) if found and len(found) == len(sampled) else None


def _nvml_bytes(phase: GpuPhase, gpu: GpuReading) -> int | None:
    if gpu.isolation == "process":
        return phase.process_peak_bytes
    if phase.device_peak_bytes is None or gpu.idle_device_bytes is None:
        return None
    return max(0, phase.device_peak_bytes - gpu.idle_device_bytes)


def _of_ledger(record: Record) -> tuple[int, str] | None:
    ledger = record.measurement.ledger
    return (ledger.peak_bytes, ledger.peak_phase) if ledger else None


PEAKS: dict[Instrument, PeakReader] = {
    "ledger": _of_ledger,
    "host_net": _net_of_start_up,
    "host": _highest("host_peak_bytes"),
    "cuda_allocated": _highest("cuda_allocated_peak_bytes"),
    "cuda_reserved": _highest("cuda_reserved_peak_bytes"),
    "nvml_process": _by_nvml("process"),
    "nvml_device_delta": _by_nvml("device_delta"),
}
"""Bytes and phase of the highest peak of the training phases, by each instrument."""


def energy_per_token_mj(record: Record) -> float | None:
    """Return millijoules for a non-padding token of the measured steps; None where they took too short.

    The counter's mean power between its first and last reading, times what the phase took.
    """
    steady, duration_ns = _steady(record), phase_time_ns(record, ("steady",))
    if steady is None or steady.energy_mj is None or not steady.energy_time_ns or not duration_ns:
        return None
    tokens = sum(step.tokens.non_padding for step in record.measurement.measured_steps)
    if steady.energy_time_ns < LEAST_ENERGY_TIME_NS or steady.samples < LEAST_ENERGY_SAMPLES or not tokens:
        return None
    return steady.energy_mj / steady.energy_time_ns * duration_ns / tokens


def _steady(record: Record) -> GpuPhase | None:
    gpu = record.measurement.gpu
    return gpu.phase("steady") if gpu else None


def throttle_reasons(record: Record) -> int:
    """Return the bits of ``bench.records.readings`` that made the measured steps' speed worthless."""
    steady = _steady(record)
    return steady.event_reasons & INVALIDATING if steady else 0


def speed_disturbed(caveats: Iterable[Caveat]) -> bool:
    """Tell whether a run's own caveats say that its speed is not what it would be on a machine at rest."""
    return any(caveat.code in (BUSY_MACHINE, THROTTLED) for caveat in caveats)


def phase_time_ns(record: Record, names: Container[Phase]) -> int | None:
    """Return the time spent in the named phases together; None when the record has none of them."""
    durations = [phase.duration_ns for phase in record.measurement.phases if phase.name in names]
    return sum(durations) if durations else None


def evaluation(record: Record, task: str, when: When) -> EvaluationReading | None:
    """Return one task's reading before or after training."""
    readings = (item for item in record.measurement.evaluations if (item.task, item.when) == (task, when))
    return next(readings, None)


def evaluated_tasks(record: Record) -> tuple[str, ...]:
    """Return the names of the tasks with a reading, each once, in the order they were run."""
    return tuple(dict.fromkeys(reading.task for reading in record.measurement.evaluations))


def headline_evaluation(record: Record, when: When) -> EvaluationReading | None:
    """Return the reading of the first task that was run; a table names the task beside the number."""
    tasks = evaluated_tasks(record)
    return evaluation(record, tasks[0], when) if tasks else None


def accuracy(reading: EvaluationReading | None) -> float | None:
    """Return the share of items answered correctly; None without a reading or without items."""
    if reading is None or not reading.items:
        return None
    return sum(item.correct for item in reading.items) / len(reading.items)


def _field(reading: str, name: str) -> Derivation:
    """Return a field of a reading, or None where there is no such reading."""
    return lambda record: getattr(getattr(record.measurement, reading), name, None)


def _peak(instrument: Instrument) -> Derivation:
    return lambda record: peak[0] if (peak := PEAKS[instrument](record)) else None


def _levels(record: Record, field: HeldField) -> list[tuple[int, int]]:
    """Return the least held after a step of each quarter of the measured ones, and where that begins.

    The least, since garbage waits for its collection, and a value is replaced only when the next is there.
    """
    held = [step.held for step in record.measurement.measured_steps if step.held is not UNSET]
    values = [value for one in held if (value := getattr(one, field)) is not None]
    starts = sorted({len(values) * quarter // 4 for quarter in range(5)})
    return [(start, min(values[start:end])) for start, end in pairwise(starts)]


def _growth_per_step(field: HeldField) -> Derivation:
    """Return the growth from quarter to quarter, the median of three: it grew in most of the window.

    A leak in every tenth of thirty steps is found, and what was allocated once at whatever step is left out.
    """

    def growth(record: Record) -> int | None:
        levels = _levels(record, field)
        if len(levels) < 4:  # noqa: PLR2004 - quarters: too few steps
            return None
        grown = [(after - before) / (there - here) for (here, before), (there, after) in pairwise(levels)]
        return max(0, round(statistics.median(grown)))

    return growth


def _heap_kept(record: Record) -> int | None:
    """Return what the heap had after the last quarter of the measured steps, less that as loading began."""
    levels = _levels(record, "heap_bytes")
    start = next((one.heap_start_bytes for one in record.measurement.phases if one.name == "load"), None)
    return levels[-1][1] - start if levels and isinstance(start, int) else None


def _retained(name: str) -> Derivation:
    """Return what a ledger says of retained tensors; None of older ones, which did not look for them."""

    def read(record: Record) -> Value:
        ledger = record.measurement.ledger
        return None if ledger is None or ledger.retained is UNSET else getattr(ledger.retained, name)

    return read


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _evaluated(when: When) -> Derivation:
    return lambda record: accuracy(headline_evaluation(record, when))


DERIVED: dict[str, Derivation] = {
    "ledger_peak_bytes": _peak("ledger"),
    "retained_bytes": _retained("total_bytes"),
    "leaked_bytes_per_step": _retained("leaked_bytes_per_step"),
    "heap_kept_bytes": _heap_kept,
    "heap_growth_bytes_per_step": _growth_per_step("heap_bytes"),
    "cuda_growth_bytes_per_step": _growth_per_step("cuda_allocated_bytes"),
    "host_peak_bytes": _peak("host"),
    "cuda_requested_peak_bytes": lambda _record: None,  # of predictions only
    "cuda_allocated_peak_bytes": _peak("cuda_allocated"),
    "cuda_reserved_peak_bytes": _peak("cuda_reserved"),
    "paged_bytes": _field("paged", "paged_bytes"),
    "nvml_process_peak_bytes": _peak("nvml_process"),
    "nvml_device_delta_peak_bytes": _peak("nvml_device_delta"),
    "non_torch_bytes": _field("gpu", "non_torch_bytes"),
    "tokens_per_second": lambda record: _median(record.measurement.tokens_per_second),
    "step_time_ns": lambda record: _median(record.measurement.step_times_ns),
    "energy_per_token_mj": energy_per_token_mj,
    "load_time_ns": lambda record: phase_time_ns(record, ("load",)),
    "step_flops": _field("flops", "step_flops"),
    "op_count": _field("ledger", "op_count"),
    "saved_for_backward_bytes": _field("ledger", "saved_for_backward_bytes"),
    "parameters_trainable": _field("model", "parameters_trainable"),
    "adapter_file_bytes": _field("model", "adapter_file_bytes"),
    "text_loss_before_nats": _field("text_loss", "before_nats"),
    "text_loss_after_nats": _field("text_loss", "after_nats"),
    "accuracy_before": _evaluated("before"),
    "accuracy_after": _evaluated("after"),
}
"""How each metric of ``bench.metrics.METRICS`` is had from a record."""
