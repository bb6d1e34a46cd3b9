"""The tables below the comparison: what set the peak, speed, accuracy, loss, time; no arithmetic.

``name`` says how a row is called, since a report on one window needs no whole cell id.
"""

from collections.abc import Callable, Sequence
from typing import get_args

from bench.compare.accuracy import Accuracy
from bench.compare.measured import Measured
from bench.metrics import INSTRUMENT_NAMES
from bench.records.readings import Category, Isolation
from bench.report.comparison_columns import after, saving_share
from bench.report.highlights import points
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    SMALL_MEBIBYTES,
    MemoryUnit,
    Table,
    operations,
    operator,
    p_value,
    seconds,
    share,
    significant,
    small_share,
    words,
)
from bench.stats.paired import Paired
from bench.stats.trend import Trend


def memory_table(rows: Sequence[Measured], name: Callable[[Measured], str], unit: MemoryUnit) -> Table:
    """Return every peak by every instrument, with its phase and its range over runs."""
    lines = []
    for row in rows:
        for peak in row.peaks:
            spread = f"{unit.show(peak.low_bytes)} to {unit.show(peak.high_bytes)}"
            lines.append(
                (
                    name(row),
                    INSTRUMENT_NAMES[peak.instrument],
                    unit.show(peak.peak_bytes),
                    spread if row.runs_ok > 1 else "one run",
                    words(peak.phase),
                    NOT_APPLICABLE if row.kind == "full" else share(saving_share(row, peak.instrument), 0),
                )
            )
    return Table(
        header=("Cell", "Instrument", "Peak", "Over runs", "Phase", "Saving"), rows=tuple(lines), left=2
    )


def predicted_table(rows: Sequence[Measured], name: Callable[[Measured], str], unit: MemoryUnit) -> Table:
    """Return each peak as predicted before the run and as read in it."""
    return Table(
        header=("Cell", "Instrument", "Predicted", "Read", "Difference"),
        left=2,
        rows=tuple(
            (
                name(row),
                INSTRUMENT_NAMES[one.instrument],
                unit.span(one.low_bytes, one.high_bytes),
                unit.show(one.measured_bytes),
                share(one.difference_share, 2),
            )
            for row in rows
            for one in row.predictions
        ),
    )


def model_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return what was trained: where the weights are from, and how many of them move."""
    return Table(
        header=("Cell", "Weights", "Parameters", "Trainable", "Share", "Adapter file"),
        left=2,
        rows=tuple(
            (
                name(row),
                facts.source if facts.weights_note is None else f"{facts.source}, {facts.weights_note}",
                f"{facts.parameters_total:,}",
                f"{facts.parameters_trainable:,}",
                small_share(row.trainable_share),
                NOT_APPLICABLE if row.kind == "full" else SMALL_MEBIBYTES.show(facts.adapter_file_bytes),
            )
            for row in rows
            if (facts := row.facts)
        ),
    )


def cause_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return what set each peak of live tensors."""
    return Table(
        header=("Cell", "Phase", "Operator", "Module", "Largest part"),
        left=5,
        rows=tuple(
            (
                name(row),
                words(cause.phase),
                operator(cause.op),
                cause.module or "outside any module",
                f"{words(cause.largest_category)}, {share(cause.largest_share, 0)}",
            )
            for row in rows
            if (cause := row.cause)
        ),
    )


def category_table(rows: Sequence[Measured], name: Callable[[Measured], str], unit: MemoryUnit) -> Table:
    """Return the live tensors at the peak by category; a category that no row has is left out."""
    with_cause = [(row, row.cause.categories_bytes) for row in rows if row.cause]
    present = [
        category
        for category in get_args(Category)
        if any(categories.get(category) for _, categories in with_cause)
    ]
    return Table(
        header=("Cell", *(words(category) for category in present)),
        rows=tuple(
            (name(row), *(unit.show(categories.get(category, 0)) for category in present))
            for row, categories in with_cause
        ),
    )


def speed_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return tokens/s with what its spread is, the trend, and what a step computes."""
    lines = []
    for row in rows:
        if row.throughput is None:
            continue
        speed = row.throughput
        lines.append(
            (
                name(row),
                significant(speed.tokens_per_second),
                f"{significant(speed.low)} to {significant(speed.high)}, {speed.spread}",
                str(speed.steps),
                _trend(speed.trend),
                seconds(row.load_time_ns),
                operations(row.flops_per_token),
            )
        )
    header = ("Cell", "tokens/s", "Spread", "Measured steps", "Trend", "Load time", "Per token")
    return Table(header=header, rows=tuple(lines))


def _trend(trend: Trend) -> str:
    if trend.drift_share is None or trend.p_value is None:
        return trend.verdict
    return f"{trend.verdict} (drift {share(trend.drift_share)}, {p_value(trend.p_value)})"


def accuracy_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return each task before and after, and the paired tests."""
    header = (
        "Cell",
        "Task",
        "Items",
        "Before",
        "After",
        "Change (gained, lost)",
        "Against full (gained, lost)",
    )
    return Table(
        header=header,
        left=2,
        rows=tuple(
            (
                name(row),
                f"{result.task} ({result.metric}, {result.num_fewshot}-shot)",
                str(result.items),
                _with_error(result.before, result.before_error),
                _after(result),
                _change(result),
                NOT_APPLICABLE if row.kind == "full" else _against(row, result.task),
            )
            for row in rows
            for result in row.accuracies
        ),
    )


def _after(result: Accuracy) -> str:
    error = result.after_error if len(result.seeds) > 1 else None
    return after(result, "" if error is None else f"± {error * 100:.1f} over items")


def _with_error(value: float | None, error: float | None) -> str:
    return share(value) if error is None else f"{share(value)} ± {error * 100:.1f}"


def _change(result: Accuracy) -> str:
    if result.change is not None:
        return _counted(result.change)
    found = result.change_seeds
    if found is None:
        return NOT_MEASURED
    if found.low is None or found.high is None or found.p_value is None:
        return points(found.mean)
    ends = (share(bound).removesuffix(" %") for bound in (found.low, found.high))
    return f"{points(found.mean)} ({' to '.join(ends)})"


def _against(row: Measured, task: str) -> str:
    one = row.against_full.accuracy(task) if row.against_full else None
    return (
        NOT_MEASURED if one is None else f"{points(one.share)} ({one.gained}, {one.lost}), {_p(one.p_value)}"
    )


def _counted(paired: Paired) -> str:
    return f"{points(paired.difference_share)} ({paired.gained}, {paired.lost}), {p_value(paired.p_value)}"


def _p(value: float | None) -> str:
    return "the same in all seeds" if value is None else p_value(value)


def loss_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return the loss at both ends."""
    return Table(
        header=("Cell", "First", "Last", "Steps"),
        rows=tuple(
            (name(row), f"{losses.first:.3f}", f"{losses.last:.3f}", str(losses.steps))
            for row in rows
            if (losses := row.losses)
        ),
    )


def merge_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return what merging the adapter into the base did to the logits."""
    return Table(
        header=("Cell", "Largest change of a logit", "Tolerance", "Verdict"),
        rows=tuple(
            (
                name(row),
                small_share(merge.worst_share),
                small_share(merge.tolerated_share),
                "as before, within tolerance" if merge.within_tolerance else "changed",
            )
            for row in rows
            if (merge := row.merge)
        ),
    )


def time_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return where each cell's wall time went."""
    header = (
        "Cell",
        "Total",
        "Loading",
        "Steps",
        "Instrumented steps",
        "Evaluation",
        "All else",
        "of it start",
        "of it data",
    )
    return Table(
        header=header,
        rows=tuple(
            (
                name(row),
                seconds(times.total_ns),
                seconds(times.loading_ns),
                seconds(times.stepping_ns),
                seconds(times.instruments_ns),
                seconds(times.evaluation_ns),
                seconds(times.overhead_ns),
                seconds(times.starting_ns),
                seconds(times.preparing_ns),
            )
            for row in rows
            if (times := row.times)
        ),
    )


def ending_table(rows: Sequence[Measured]) -> Table:
    """Return every run that did not end ok, with the sentence that says why."""
    return Table(
        header=("Cell", "Run", "Outcome", "Phase", "Why"),
        left=5,
        rows=tuple(
            (
                ending.cell,
                str(ending.run),
                ending.outcome,
                words(ending.phase) if ending.phase else NOT_APPLICABLE,
                ending.message,
            )
            for row in rows
            for ending in row.endings
        ),
    )


_READINGS: dict[Isolation, str] = {
    "process": "of the process",
    "device_delta": "of the device, less what was on it before",
    "unavailable": "none",
}


def isolation_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return which reading of NVML could be told to be the worker's, and why."""
    return Table(
        header=("Cell", "NVML's peak is", "Why", "Sampled every", "Longest gap"),
        left=3,
        rows=tuple(
            (
                name(row),
                _READINGS[isolation],
                why,
                _milliseconds(gpu.interval_ns),
                _longest(gpu.longest_gap_ns),
            )
            for row in rows
            if (gpu := row.gpu)
            for isolation, why in gpu.isolations
        ),
    )


def gpu_table(rows: Sequence[Measured], name: Callable[[Measured], str], unit: MemoryUnit) -> Table:
    """Return what the card was doing while the measured steps ran."""
    header = ("Cell", "Not torch's", "Energy per token", "Power", "SM clock", "Hottest", "Slowed by")
    return Table(
        header=header,
        rows=tuple(
            (
                name(row),
                unit.show(gpu.non_torch_bytes),
                NOT_MEASURED if energy is None else f"{significant(energy)} mJ",
                NOT_MEASURED if power is None else f"{significant(power / 1000)} W",
                _clocks(gpu.sm_clock_min_mhz, gpu.sm_clock_max_mhz),
                NOT_MEASURED if gpu.temperature_max_c is None else f"{gpu.temperature_max_c} °C",
                ", ".join(gpu.events) or NOT_APPLICABLE,
            )
            for row in rows
            if (gpu := row.gpu)
            for energy, power in [(gpu.energy_per_token_mj, gpu.power_mean_mw)]
        ),
    )


def _clocks(low_mhz: int | None, high_mhz: int | None) -> str:
    if low_mhz is None or high_mhz is None:
        return NOT_MEASURED
    return f"{high_mhz:,} MHz" if low_mhz == high_mhz else f"{low_mhz:,} to {high_mhz:,} MHz"


def _milliseconds(time_ns: int) -> str:
    return f"{time_ns / 1e6:,.0f} ms"


def _longest(gap_ns: int) -> str:
    return _milliseconds(gap_ns) if gap_ns else NOT_MEASURED


def torch_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return the settings that change speed or results, of the cells on a GPU."""
    header = (
        "Cell",
        "float32 products",
        "TF32 (products, cuDNN)",
        "cuDNN benchmark",
        "Deterministic",
        "bf16 sums",
        "Allocator",
    )
    return Table(
        header=header,
        left=len(header),
        rows=tuple(
            (
                name(row),
                found.float32_matmul_precision or NOT_MEASURED,
                f"{_switch(found.matmul_allow_tf32)}, {_switch(found.cudnn_allow_tf32)}",
                _switch(found.cudnn_benchmark),
                f"algorithms {found.deterministic_algorithms}, cuDNN {_switch(found.cudnn_deterministic)}",
                f"reduced precision {_switch(found.bf16_reduced_precision_reduction)}",
                f"{found.allocator_backend or NOT_MEASURED}, {found.allocator_settings or 'by default'}",
            )
            for row in rows
            if row.device == "cuda" and (found := row.torch_settings)
        ),
    )


def _switch(value: bool | None) -> str:  # noqa: FBT001 - a switch's position is what is written
    return NOT_MEASURED if value is None else "on" if value else "off"
