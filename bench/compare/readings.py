"""What the good runs of one cell give together: memory, speed, time and the GPU. Compares no two cells."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal, TypeVar, get_args

from bench.compare import grouped
from bench.metrics import MERGE_TOLERANCES, METRICS, TENSORS, Instrument
from bench.records.derived_metrics import (
    PEAKS,
    TRAINING_PHASES,
    energy_per_token_mj,
    phase_time_ns,
    read_metrics,
    throttle_reasons,
)
from bench.records.predictions import PredictedPhase, Prediction, Refusal, Speed
from bench.records.readings import Isolation, name_events
from bench.records.records import LedgerReading, ModelFacts, Phase, Record
from bench.stats.trend import Trend, TrendVerdict, find_trend

N = TypeVar("N", int, float)
ROUGH_DRIFT_SHARE = 0.1
_TIMED: tuple[tuple[Phase, ...], ...] = (  # as ``TimeBreakdown`` has them
    ("load", "adapt"),
    ("first_forward", "first_backward", "first_optimizer_step", "warmup", "steady"),
    ("ledger", "flops", "merge_check", "save_adapter"),
    ("evaluate_before", "evaluate_after"),
    ("start",),
    ("prepare_data",),
)
_WORST_FIRST: tuple[TrendVerdict, ...] = ("not steady", "too few steps to tell", "no clear trend", "steady")
_LOSSES_AT_EACH_END = 3


@dataclass(frozen=True)
class Peak:
    """The peak memory of training by one instrument: the median over runs, and its range."""

    instrument: Instrument
    peak_bytes: int
    low_bytes: int
    high_bytes: int
    phase: str


@dataclass(frozen=True)
class Predicted:
    """A peak as predicted before the run, beside the one that an instrument then read.

    ``difference_share`` is the prediction less the reading, over the reading; with a band, of its top.
    """

    instrument: Instrument
    low_bytes: int
    high_bytes: int
    measured_bytes: int
    difference_share: float
    phase: PredictedPhase | None = None
    set_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Non-padding tokens per second: the median over steps, then over runs.

    The spread is the range over runs when there are several, else the middle half of the steps. *Throttled*:
    in at least one run the card was too hot, or its supply too weak, for its own speed.
    """

    tokens_per_second: float
    low: float
    high: float
    spread: Literal["range over runs", "middle half of the steps"]
    steps: int
    trend: Trend
    throttled: bool = False

    @property
    def rough(self) -> bool:
        """Whether there were too few steps to see a drift, or the drift was a tenth or more."""
        drift = self.trend.drift_share
        return drift is None or abs(drift) >= ROUGH_DRIFT_SHARE


@dataclass(frozen=True, kw_only=True)
class GpuSeen:
    """What NVML showed besides peaks: the median over runs, or both ends over runs.

    ``isolations`` are the readings that could be attributed to the worker, each with the reason. Power, clock
    and events are those of the measured steps; the temperature is the highest of the training.
    """

    isolations: tuple[tuple[Isolation, str], ...]
    interval_ns: int
    longest_gap_ns: int
    non_torch_bytes: int | None
    energy_per_token_mj: float | None
    power_mean_mw: float | None
    sm_clock_min_mhz: int | None
    sm_clock_max_mhz: int | None
    temperature_max_c: int | None
    events: tuple[str, ...]


@dataclass(frozen=True)
class TimeBreakdown:
    """Where a cell's wall time went, the median over runs of each part. The parts add up within a run.

    ``overhead_ns`` is all that is not loading, stepping, instrumented steps and checks, or evaluation:
    starting the worker (``starting_ns``), making and tokenising the data (``preparing_ns``), handing over
    results and ending it.
    """

    total_ns: int
    loading_ns: int
    stepping_ns: int
    instruments_ns: int
    evaluation_ns: int
    starting_ns: int
    preparing_ns: int
    overhead_ns: int


@dataclass(frozen=True)
class Losses:
    """The loss at the first step and the last ones; the mean over up to three steps at each end."""

    first: float
    last: float
    steps: int


@dataclass(frozen=True)
class Merge:
    """The largest difference that merging the adapter made to a logit, as shares of the largest logit."""

    worst_share: float
    tolerated_share: float
    within_tolerance: bool


def peaks(runs: Sequence[Record]) -> tuple[Peak, ...]:
    peaks = []
    for instrument in get_args(Instrument):
        if found := [one for run in runs if (one := PEAKS[instrument](run))]:
            sizes = [size for size, _ in found]
            middle, (highest, phase) = round(statistics.median(sizes)), max(found)
            peaks.append(Peak(instrument, middle, min(sizes), highest, phase))
    return tuple(peaks)


def predictions(prediction: Prediction | Refusal | None, peaks: Sequence[Peak]) -> tuple[Predicted, ...]:
    if not isinstance(prediction, Prediction):
        return ()
    tensors, allocated = TENSORS[prediction.platform.device], prediction.allocated_peak_bytes
    figures = {tensors: (allocated, allocated)}
    if prediction.reserved_low_bytes is not None and prediction.reserved_high_bytes is not None:
        figures["cuda_reserved"] = (prediction.reserved_low_bytes, prediction.reserved_high_bytes)
    read = {peak.instrument: peak.peak_bytes for peak in peaks if peak.peak_bytes}
    return tuple(
        Predicted(
            name, low, high, read[name], high / read[name] - 1, prediction.peak_phase, prediction.peak_op
        )
        for name, (low, high) in figures.items()
        if name in read
    )


@dataclass(frozen=True)
class PredictedSpeed:
    """A speed as predicted before the run, beside the one that was measured; the share is of its time."""

    told: Speed
    measured: float

    @property
    def difference_share(self) -> float:
        return self.measured / self.told.point - 1

    @property
    def roofline_share(self) -> float | None:
        """What was measured as a share of what the roofline allows; None of records before it was kept."""
        return self.measured / self.told.roofline if self.told.roofline else None


def predicted_speeds(run: Record, measured: Throughput | None) -> tuple[PredictedSpeed, ...]:
    if measured is None or not isinstance(run.prediction, Prediction):
        return ()
    known = [one for one in run.prediction.speeds if not one.refused]
    return tuple(PredictedSpeed(one, measured.tokens_per_second) for one in known)


_READ_IN: dict[PredictedPhase, Phase] = {
    "load": "load",
    "adapt": "adapt",
    "forward": "first_forward",
    "backward": "first_backward",
    "optimizer_step": "first_optimizer_step",
}


def phase_predictions(run: Record) -> tuple[Predicted, ...]:
    """Return the most that was predicted to be allocated in each phase of the first step, and read."""
    if not isinstance(run.prediction, Prediction):
        return ()
    read = {phase.name: phase.cuda_allocated_peak_bytes for phase in run.measurement.phases}
    return tuple(
        Predicted("cuda_allocated", size, size, seen, size / seen - 1, phase)
        for phase, size in run.prediction.first_peaks_bytes.items()
        if phase in _READ_IN and (seen := read.get(_READ_IN[phase]))
    )


def cause(runs: Sequence[Record]) -> LedgerReading | None:
    """Return what the ledger saw at the peak, of the run with the highest one."""
    ledgers = [run.measurement.ledger for run in runs if run.measurement.ledger]
    highest = max(ledgers, key=lambda reading: reading.peak_bytes, default=None)
    return highest if highest and highest.categories_at_peak_bytes else None


def throughput(runs: Sequence[Record]) -> Throughput | None:
    """Return tokens/s with its spread, and the least steady of the runs' trends."""
    speeds = [values for run in runs if (values := run.measurement.tokens_per_second)]
    if not speeds:
        return None
    medians = [statistics.median(values) for values in speeds]
    several, only = len(medians) > 1, speeds[0]
    if several or len(only) == 1:
        low, high = min(medians), max(medians)
    else:
        low, _, high = statistics.quantiles(only, n=4, method="inclusive")
    return Throughput(
        tokens_per_second=statistics.median(medians),
        low=low,
        high=high,
        spread="range over runs" if several else "middle half of the steps",
        steps=min(len(values) for values in speeds),
        trend=min(
            (find_trend(values) for values in speeds),
            key=lambda trend: (_WORST_FIRST.index(trend.verdict), -abs(trend.drift_share or 0.0)),
        ),
        throttled=any(throttle_reasons(run) for run in runs),
    )


def gpu_seen(runs: Sequence[Record]) -> GpuSeen | None:
    watched = [gpu for run in runs if (gpu := run.measurement.gpu)]
    if not watched:
        return None
    steady = [phase for gpu in watched if (phase := gpu.phase("steady"))]
    training = [phase for gpu in watched for phase in gpu.phases if phase.name in TRAINING_PHASES]
    non_torch = _median(gpu.non_torch_bytes for gpu in watched)
    return GpuSeen(
        isolations=tuple(dict.fromkeys((gpu.isolation, gpu.isolation_reason) for gpu in watched)),
        interval_ns=max(gpu.interval_ns for gpu in watched),
        longest_gap_ns=max(gpu.longest_gap_ns for gpu in watched),
        non_torch_bytes=None if non_torch is None else round(non_torch),
        energy_per_token_mj=_median(energy_per_token_mj(run) for run in runs),
        power_mean_mw=_median(phase.power_mean_mw for phase in steady),
        sm_clock_min_mhz=min(_known(phase.sm_clock_min_mhz for phase in steady), default=None),
        sm_clock_max_mhz=max(_known(phase.sm_clock_max_mhz for phase in steady), default=None),
        temperature_max_c=max(_known(phase.temperature_max_c for phase in training), default=None),
        events=name_events(reduce(or_, (phase.event_reasons for phase in steady), 0)),
    )


def _known(values: Iterable[N | None]) -> list[N]:
    return [value for value in values if value is not None]


def _median(values: Iterable[float | None]) -> float | None:
    found = _known(values)
    return statistics.median(found) if found else None


def losses(runs: Sequence[Record]) -> Losses | None:
    """Return the loss at both ends of the first run of each seed that took a step, its mean over seeds."""
    stepped = grouped((run for run in runs if run.measurement.steps), lambda run: run.cell.training.seed)
    if not stepped:
        return None
    curves = [own[0].measurement.steps for own in stepped.values()]
    steps = min(map(len, curves))
    count = min(_LOSSES_AT_EACH_END, max(1, steps // 2))
    first = statistics.fmean(step.loss for curve in curves for step in curve[:count])
    last = statistics.fmean(step.loss for curve in curves for step in curve[-count:])
    return Losses(first, last, steps)


def merge(runs: Sequence[Record]) -> Merge | None:
    """Return the run whose merge moved the logits most, if any was merged."""
    shares = [
        check.max_abs_difference / check.reference_max_abs
        for run in runs
        if (check := run.measurement.merge) and check.reference_max_abs > 0
    ]
    if not shares:
        return None
    worst, tolerated = max(shares), MERGE_TOLERANCES[runs[0].cell.training.dtype]
    return Merge(worst, tolerated, worst <= tolerated)


def model_facts(runs: Sequence[Record]) -> ModelFacts | None:
    return next((run.measurement.model for run in runs if run.measurement.model), None)


def flops_per_token(runs: Sequence[Record]) -> float | None:
    """Return the operations of one step as executed, for each token that is not padding."""
    flops = next((run.measurement.flops for run in runs if run.measurement.flops), None)
    return flops.step_flops / flops.tokens.non_padding if flops else None


def metrics(runs: Sequence[Record]) -> dict[str, float]:
    return {name: statistics.median(found) for name, found in _values(runs).items()}


def metric_spans(runs: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """Return the least and the most of each metric over runs."""
    return {name: (min(found), max(found)) for name, found in _values(runs).items()}


def _values(runs: Sequence[Record]) -> dict[str, list[float]]:
    read = [read_metrics(run) for run in runs]
    values = {name: [*_known(each[name] for each in read)] for name in METRICS}
    return {name: found for name, found in values.items() if found}


def times(runs: Sequence[Record]) -> TimeBreakdown | None:
    rows = []
    for run in runs:
        *parts, starting, preparing = (phase_time_ns(run, names) or 0 for names in _TIMED)
        rows.append((run.total_ns, *parts, starting, preparing, run.total_ns - sum(parts)))
    return (
        TimeBreakdown(*(round(statistics.median(column)) for column in zip(*rows, strict=True)))
        if rows
        else None
    )
