"""What NVML showed over the good runs of one cell, besides peaks of memory."""

import statistics
from collections.abc import Iterable, Sequence

from bench.compare.measured import GpuSeen
from bench.records.clock_events import name_events
from bench.records.derived_metrics import TRAINING_PHASES, energy_per_token_mj
from bench.records.gpu import GpuPhase, GpuReading
from bench.records.records import Record


def gpu_seen(runs: Sequence[Record]) -> GpuSeen | None:
    """Return it for the runs that were watched; None where none was."""
    watched = [gpu for run in runs if (gpu := run.measurement.gpu)]
    if not watched:
        return None
    steady = [phase for gpu in watched if (phase := gpu.phase("steady"))]
    reasons = 0
    for phase in steady:
        reasons |= phase.event_reasons
    return GpuSeen(
        isolations=tuple(dict.fromkeys((gpu.isolation, gpu.isolation_reason) for gpu in watched)),
        interval_ns=max(gpu.interval_ns for gpu in watched),
        longest_gap_ns=max(gpu.longest_gap_ns for gpu in watched),
        non_torch_bytes=_rounded(_median(gpu.non_torch_bytes for gpu in watched)),
        energy_per_token_mj=_median(energy_per_token_mj(run) for run in runs),
        power_mean_mw=_median(phase.power_mean_mw for phase in steady),
        sm_clock_min_mhz=min(_told(phase.sm_clock_min_mhz for phase in steady), default=None),
        sm_clock_max_mhz=max(_told(phase.sm_clock_max_mhz for phase in steady), default=None),
        temperature_max_c=max(
            _told(phase.temperature_max_c for gpu in watched for phase in _training(gpu)), default=None
        ),
        events=name_events(reasons),
    )


def _training(gpu: GpuReading) -> list[GpuPhase]:
    return [phase for phase in gpu.phases if phase.name in TRAINING_PHASES]


def _told(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
