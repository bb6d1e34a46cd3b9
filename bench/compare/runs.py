"""What the good runs of one cell say together: peaks, speed, accuracy, cause, times, losses.

Every function takes the runs of one cell under one key, all with outcome *ok*, and compares no two cells.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, get_args

from bench.compare.measured import (
    Accuracy,
    Instrument,
    Losses,
    Merge,
    Peak,
    PeakCause,
    Throughput,
    TimeBreakdown,
)
from bench.metrics import MERGE_TOLERANCES
from bench.records.derived_metrics import (
    PeakField,
    accuracy,
    evaluated_tasks,
    evaluation,
    nvml_peak,
    peak_phase,
    phase_time_ns,
    read_metrics,
    start_up_bytes,
    step_tokens_per_second,
    throttle_reasons,
)
from bench.records.records import EvaluationReading, Phase, Record
from bench.stats.paired import try_pair
from bench.stats.trend import Trend, TrendVerdict, find_trend

_LOADING: tuple[Phase, ...] = ("load", "adapt")
_STEPPING: tuple[Phase, ...] = ("first_forward", "first_backward", "first_optimizer_step", "warmup", "steady")
_INSTRUMENTS: tuple[Phase, ...] = ("ledger", "flops", "merge_check", "save_adapter")
_BEFORE: tuple[Phase, Phase] = ("start", "prepare_data")
_EVALUATION: tuple[Phase, ...] = ("evaluate_before", "evaluate_after")
_PHASE_FIELDS: dict[Instrument, PeakField] = {
    "host": "host_peak_bytes",
    "cuda_allocated": "cuda_allocated_peak_bytes",
    "cuda_reserved": "cuda_reserved_peak_bytes",
}
_NVML: dict[Instrument, Literal["process", "device_delta"]] = {
    "nvml_process": "process",
    "nvml_device_delta": "device_delta",
}
_WORST_FIRST: tuple[TrendVerdict, ...] = ("not steady", "too few steps to tell", "no clear trend", "steady")
_LOSSES_AT_EACH_END = 3


def peaks(runs: Sequence[Record]) -> tuple[Peak, ...]:
    """Return the peak by each instrument that was there, in the order of ``Instrument``."""
    readings = {instrument: _readings(runs, instrument) for instrument in get_args(Instrument)}
    return tuple(
        Peak(
            instrument=instrument,
            peak_bytes=round(statistics.median(size for size, _ in found)),
            low_bytes=min(size for size, _ in found),
            high_bytes=max(size for size, _ in found),
            phase=max(found)[1],
        )
        for instrument, found in readings.items()
        if found
    )


def _readings(runs: Sequence[Record], instrument: Instrument) -> list[tuple[int, str]]:
    """Return bytes and phase of the peak of each run by one instrument."""
    if instrument == "ledger":
        ledgers = [run.measurement.ledger for run in runs]
        return [(ledger.peak_bytes, ledger.peak_phase) for ledger in ledgers if ledger]
    if instrument == "host_net":
        return [
            (phase.host_peak_bytes - start, phase.name)
            for run in runs
            if (phase := peak_phase(run, "host_peak_bytes"))
            and phase.host_peak_bytes is not None
            and (start := start_up_bytes(run)) is not None
        ]
    if instrument in _NVML:
        found_by_nvml = [nvml_peak(run, _NVML[instrument]) for run in runs]
        return [(peak[1], peak[0].name) for peak in found_by_nvml if peak]
    field = _PHASE_FIELDS[instrument]
    found = [(phase, getattr(phase, field)) for run in runs if (phase := peak_phase(run, field))]
    return [(size, phase.name) for phase, size in found]


def throughput(runs: Sequence[Record]) -> Throughput | None:
    """Return tokens/s with its spread, and the least steady of the runs' trends."""
    speeds = [values for run in runs if (values := step_tokens_per_second(run))]
    if not speeds:
        return None
    medians = [statistics.median(values) for values in speeds]
    low, high = (min(medians), max(medians)) if len(medians) > 1 else _middle_half(speeds[0])
    return Throughput(
        tokens_per_second=statistics.median(medians),
        low=low,
        high=high,
        spread="range over runs" if len(medians) > 1 else "middle half of the steps",
        runs=len(medians),
        steps=min(len(values) for values in speeds),
        trend=min((find_trend(values) for values in speeds), key=_badness),
        throttled=any(throttle_reasons(run) for run in runs),
    )


def _badness(trend: Trend) -> tuple[int, float]:
    """Order trends, the one to report first."""
    return _WORST_FIRST.index(trend.verdict), -abs(trend.drift_share or 0.0)


def _middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles around the middle half; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def accuracies(runs: Sequence[Record]) -> tuple[Accuracy, ...]:
    """Return every task's accuracy, each from the first run that evaluated it."""
    tasks = dict.fromkeys(task for run in runs for task in evaluated_tasks(run))
    return tuple(_accuracy(next(run for run in runs if task in evaluated_tasks(run)), task) for task in tasks)


def _accuracy(run: Record, task: str) -> Accuracy:
    """Return one run's accuracy on one task. At least one of its two readings is there."""
    before, after = evaluation(run, task, "before"), evaluation(run, task, "after")
    either = after or before
    assert either is not None  # noqa: S101 - the task was taken from this run's readings
    change, not_paired = try_pair(before, after)
    return Accuracy(
        task=task,
        metric=either.metric,
        instrument=either.instrument,
        num_fewshot=either.num_fewshot,
        items=len(either.items),
        before=accuracy(before),
        before_error=standard_error(before),
        after=accuracy(after),
        after_error=standard_error(after),
        change=change,
        not_paired=not_paired,
    )


def standard_error(reading: EvaluationReading | None) -> float | None:
    """Return the standard error of the mean over items, sqrt(p (1 - p) / (n - 1)).

    The same as lm-eval's ``mean_stderr`` (lm_eval/api/metrics.py): the sample standard deviation over
    the root of the number of items.
    """
    share = accuracy(reading)
    if share is None or reading is None or len(reading.items) < 2:  # noqa: PLR2004 - one item has no spread
        return None
    return math.sqrt(share * (1 - share) / (len(reading.items) - 1))


def cause(runs: Sequence[Record]) -> PeakCause | None:
    """Return what the ledger saw at the peak, of the run with the highest one."""
    ledgers = [run.measurement.ledger for run in runs if run.measurement.ledger]
    if not ledgers:
        return None
    ledger = max(ledgers, key=lambda reading: reading.peak_bytes)
    categories = ledger.categories_at_peak_bytes
    largest = max(categories, key=lambda category: categories[category], default=None)
    if largest is None:
        return None
    return PeakCause(
        phase=ledger.peak_phase,
        op=ledger.peak_op,
        module=ledger.peak_module,
        categories_bytes=categories,
        largest_category=largest,
        largest_share=categories[largest] / max(ledger.peak_bytes, 1),
    )


def losses(runs: Sequence[Record]) -> Losses | None:
    """Return the loss at both ends of the first run that took a step."""
    for run in runs:
        curve = [step.loss for step in run.measurement.steps]
        if curve:
            count = min(_LOSSES_AT_EACH_END, max(1, len(curve) // 2))
            return Losses(
                first=statistics.fmean(curve[:count]), last=statistics.fmean(curve[-count:]), steps=len(curve)
            )
    return None


def merge(runs: Sequence[Record]) -> Merge | None:
    """Return the run whose merge moved the logits most, if any was merged."""
    shares = [
        check.max_abs_difference / check.reference_max_abs
        for run in runs
        if (check := run.measurement.merge) and check.reference_max_abs > 0
    ]
    if not shares:
        return None
    tolerated_share = MERGE_TOLERANCES[runs[0].cell.training.dtype]
    return Merge(
        worst_share=max(shares),
        tolerated_share=tolerated_share,
        within_tolerance=max(shares) <= tolerated_share,
    )


def metrics(runs: Sequence[Record]) -> dict[str, float]:
    """Return the median over runs of each metric that was read, by its name in ``bench.metrics``."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in read_metrics(run).items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: statistics.median(found) for name, found in values.items()}


def load_time_ns(runs: Sequence[Record]) -> int | None:
    """Return the median time of the load phase."""
    found = [time for run in runs if (time := phase_time_ns(run, ("load",))) is not None]
    return round(statistics.median(found)) if found else None


def times(runs: Sequence[Record]) -> TimeBreakdown:
    """Return the median over runs of each part of the wall time."""
    parts = [
        (
            run.total_ns,
            *(phase_time_ns(run, names) or 0 for names in (_LOADING, _STEPPING, _INSTRUMENTS, _EVALUATION)),
        )
        for run in runs
    ]
    total, loading, stepping, instruments, evaluating = (
        round(statistics.median(column)) for column in zip(*parts, strict=True)
    )
    starting, preparing = (
        round(statistics.median(phase_time_ns(run, (name,)) or 0 for run in runs)) for name in _BEFORE
    )
    return TimeBreakdown(
        total_ns=total,
        loading_ns=loading,
        stepping_ns=stepping,
        instruments_ns=instruments,
        evaluation_ns=evaluating,
        overhead_ns=round(statistics.median(part[0] - sum(part[1:]) for part in parts)),
        starting_ns=starting,
        preparing_ns=preparing,
    )
