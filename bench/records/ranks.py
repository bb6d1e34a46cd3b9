"""One measurement out of those of a cell's ranks: what they do together, and what the worst of them needs."""

import statistics
from collections.abc import Iterable, Sequence

from msgspec import UNSET

from bench.records.derived_metrics import nvml_peak
from bench.records.records import Measurement, PhaseReading, RankReading, StepSample, TokenCounts


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
