"""The metrics of one record, computed from its raw samples; nothing here compares two records.

Every function returns None where the record lacks what it needs, never 0.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from bench.metrics import METRICS
from bench.records.readings import INVALIDATING, Caveat, GpuPhase, GpuReading, Part
from bench.records.records import EvaluationReading, Phase, PhaseReading, Record, StepSample

NS_PER_SECOND = 1_000_000_000

# NVML's counters are brought up to date every 20 to 100 ms (Yang, Adamek and Armour, "Accurate and Convenient
# Energy Measurements for GPUs", SC 2024, arXiv:2312.02741), so that a difference is off by up to 100 ms of
# power: over two seconds, 5 %.
LEAST_ENERGY_TIME_NS = 2 * NS_PER_SECOND
LEAST_ENERGY_SAMPLES = 20

# What a user needs for training itself. Evaluation and the instrumented steps after it are left out:
# they would not run in a plain training job.
TRAINING_PHASES: tuple[Phase, ...] = (
    "load",
    "adapt",
    "prepare_data",
    "first_forward",
    "first_backward",
    "first_optimizer_step",
    "warmup",
    "steady",
)

_TRAINING = frozenset(TRAINING_PHASES)

BUSY_MACHINE = "busy-machine"
"""The caveat of a run beside which others used the CPUs."""

STEPS_IN_TURN = "steps-in-turn"
"""The caveat of a run whose steps were taken in turn with another run's."""

THROTTLED = "throttled"
"""The caveat of a run during which the GPU clocked lower than it could."""

PeakField = Literal["host_peak_bytes", "cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes"]


def read_metrics(record: Record) -> dict[str, float | int | None]:
    """Return one value for each entry of ``bench.metrics.METRICS``, in the unit stated there."""
    return {name: DERIVED[name](record) for name in METRICS}


def unpaired_metrics(record: Record) -> dict[str, float | int | None]:
    """Return the same without the metrics that are compared question by question."""
    return {name: DERIVED[name](record) for name, metric in METRICS.items() if metric.kind != "paired"}


Samples = dict[str, tuple[float, ...]]


def read_samples(record: Record, values: Mapping[str, float | int | None]) -> Samples:
    """Return the samples of each metric that varies between runs: one a measured step, or one a run.

    ``values`` are those of ``read_metrics``. A rate or a size of 0 has no logarithm, and no machine measures
    one.
    """
    found: Samples = {
        name: (value,)
        for name, metric in METRICS.items()
        if metric.kind == "statistical" and (value := values[name]) is not None and value > 0
    }
    if steps := measured_steps(record):
        found["step_time_ns"] = tuple([step.step_time_ns for step in steps])
        found["tokens_per_second"] = step_tokens_per_second(record)
    return found


def measured_steps(record: Record) -> tuple[StepSample, ...]:
    """Return the steps after the first and the warm-up."""
    return tuple([step for step in record.measurement.steps if step.stage == "measured"])


def step_tokens_per_second(record: Record) -> tuple[float, ...]:
    """Return non-padding tokens per second of each measured step, in order."""
    return tuple(
        [step.tokens.non_padding * NS_PER_SECOND / step.step_time_ns for step in measured_steps(record)]
    )


def peak_phase(record: Record, field: PeakField) -> PhaseReading | None:
    """Return the training phase with the highest peak by one instrument."""
    readings = [
        phase
        for phase in record.measurement.phases
        if phase.name in _TRAINING and getattr(phase, field) is not None
    ]
    return max(readings, key=lambda phase: getattr(phase, field), default=None)


def peak_bytes(record: Record, field: PeakField) -> int | None:
    """Return the highest peak of the training phases by one instrument, in bytes."""
    sizes = [getattr(phase, field) for phase in record.measurement.phases if phase.name in _TRAINING]
    return max((size for size in sizes if size is not None), default=None)


def nvml_peak(record: Record, instrument: Literal["process", "device_delta"]) -> tuple[GpuPhase, int] | None:
    """Return the training phase with the highest peak by NVML, and its bytes.

    Only where NVML could be held to this instrument; None if it told nothing in a phase that was sampled.
    """
    gpu = record.measurement.gpu
    if gpu is None or gpu.isolation != instrument:
        return None
    sampled = [phase for phase in gpu.phases if phase.name in TRAINING_PHASES and phase.samples]
    peaks = [(phase, size) for phase in sampled if (size := _nvml_bytes(phase, gpu)) is not None]
    return max(peaks, key=lambda peak: peak[1]) if peaks and len(peaks) == len(sampled) else None


def _nvml_bytes(phase: GpuPhase, gpu: GpuReading) -> int | None:
    if gpu.isolation == "process":
        return phase.process_peak_bytes
    if phase.device_peak_bytes is None or gpu.idle_device_bytes is None:
        return None
    return max(0, phase.device_peak_bytes - gpu.idle_device_bytes)


def _nvml_peak_bytes(record: Record, instrument: Literal["process", "device_delta"]) -> int | None:
    peak = nvml_peak(record, instrument)
    return peak and peak[1]


def energy_per_token_mj(record: Record) -> float | None:
    """Return millijoules for a non-padding token of the measured steps; None where they took too short.

    The counter's mean power between its first and last reading, times what the phase took.
    """
    gpu, duration_ns = record.measurement.gpu, phase_time_ns(record, ("steady",))
    steady = gpu.phase("steady") if gpu else None
    if steady is None or steady.energy_mj is None or not steady.energy_time_ns or not duration_ns:
        return None
    tokens = sum(step.tokens.non_padding for step in measured_steps(record))
    if steady.energy_time_ns < LEAST_ENERGY_TIME_NS or steady.samples < LEAST_ENERGY_SAMPLES or not tokens:
        return None
    return steady.energy_mj / steady.energy_time_ns * duration_ns / tokens


def throttle_reasons(record: Record) -> int:
    """Return the bits of ``bench.records.readings`` that made the measured steps' speed worthless."""
    gpu = record.measurement.gpu
    steady = gpu.phase("steady") if gpu else None
    return steady.event_reasons & INVALIDATING if steady else 0


def speed_disturbed(caveats: Iterable[Caveat]) -> bool:
    """Tell whether a run's own caveats say that its speed is not what it would be on a machine at rest."""
    return any(caveat.code in (BUSY_MACHINE, THROTTLED) for caveat in caveats)


def start_up_bytes(record: Record) -> int | None:
    """Return the worker's resident bytes as loading began: Python and the libraries."""
    starts = [phase.host_start_bytes for phase in record.measurement.phases if phase.name == "load"]
    return starts[0] if starts else None


def phase_time_ns(record: Record, names: Iterable[Phase]) -> int | None:
    """Return the time spent in the named phases together; None when the record has none of them."""
    wanted = frozenset(names)
    durations = [phase.duration_ns for phase in record.measurement.phases if phase.name in wanted]
    return sum(durations) if durations else None


def evaluation(record: Record, task: str, when: Literal["before", "after"]) -> EvaluationReading | None:
    """Return one task's reading before or after training."""
    readings = (item for item in record.measurement.evaluations if (item.task, item.when) == (task, when))
    return next(readings, None)


def evaluated_tasks(record: Record) -> tuple[str, ...]:
    """Return the names of the tasks with a reading, each once, in the order they were run."""
    return tuple(dict.fromkeys(reading.task for reading in record.measurement.evaluations))


def headline_evaluation(record: Record, when: Literal["before", "after"]) -> EvaluationReading | None:
    """Return the reading of the first task that was run; a table names the task beside the number."""
    tasks = evaluated_tasks(record)
    return evaluation(record, tasks[0], when) if tasks else None


def accuracy(reading: EvaluationReading | None) -> float | None:
    """Return the share of items answered correctly; None without a reading or without items."""
    if reading is None or not reading.items:
        return None
    return [item.correct for item in reading.items].count(True) / len(reading.items)


def _of(reading: Part | None, name: str) -> int | None:
    """Return a field of a reading, or None where there is no such reading."""
    return getattr(reading, name, None)


def _median(values: Iterable[float]) -> float | None:
    """Return the median, or None of nothing."""
    found = list(values)
    return statistics.median(found) if found else None


def _evaluated(record: Record, when: Literal["before", "after"]) -> float | None:
    return accuracy(headline_evaluation(record, when))


DERIVED: dict[str, Callable[[Record], float | int | None]] = {
    "ledger_peak_bytes": lambda record: _of(record.measurement.ledger, "peak_bytes"),
    "host_peak_bytes": lambda record: peak_bytes(record, "host_peak_bytes"),
    "cuda_allocated_peak_bytes": lambda record: peak_bytes(record, "cuda_allocated_peak_bytes"),
    "cuda_reserved_peak_bytes": lambda record: peak_bytes(record, "cuda_reserved_peak_bytes"),
    "paged_bytes": lambda record: _of(record.measurement.paged, "paged_bytes"),
    "nvml_process_peak_bytes": lambda record: _nvml_peak_bytes(record, "process"),
    "nvml_device_delta_peak_bytes": lambda record: _nvml_peak_bytes(record, "device_delta"),
    "non_torch_bytes": lambda record: _of(record.measurement.gpu, "non_torch_bytes"),
    "tokens_per_second": lambda record: _median(step_tokens_per_second(record)),
    "step_time_ns": lambda record: _median(step.step_time_ns for step in measured_steps(record)),
    "energy_per_token_mj": energy_per_token_mj,
    "load_time_ns": lambda record: phase_time_ns(record, ("load",)),
    "step_flops": lambda record: _of(record.measurement.flops, "step_flops"),
    "op_count": lambda record: _of(record.measurement.ledger, "op_count"),
    "saved_for_backward_bytes": lambda record: _of(record.measurement.ledger, "saved_for_backward_bytes"),
    "parameters_trainable": lambda record: _of(record.measurement.model, "parameters_trainable"),
    "adapter_file_bytes": lambda record: _of(record.measurement.model, "adapter_file_bytes"),
    "accuracy_before": lambda record: _evaluated(record, "before"),
    "accuracy_after": lambda record: _evaluated(record, "after"),
}
"""How each metric of ``bench.metrics.METRICS`` is had from a record."""
