"""The tables below the comparison: what set the peak, speed, accuracy, loss, time; no arithmetic.

``name`` says how a row is called, since a report on one window needs no whole cell id.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, get_args

from bench.compare.accuracy import Accuracy
from bench.compare.measured import Measured
from bench.compare.readings import Peak
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
    cell_table,
    operations,
    operator,
    p_value,
    seconds,
    share,
    significant,
    small_share,
    table_of,
    words,
)
from bench.stats.paired import Paired
from bench.stats.trend import Trend

X = TypeVar("X")
Name = Callable[[Measured], str]


def _of_cells(
    name: Name, pairs: Iterable[tuple[Measured, X]], *columns: tuple[str, Callable[[X], str]], left: int = 1
) -> Table:
    """Return a table of what rows have, each line beginning with the name of its row."""
    return cell_table(((name(row), one) for row, one in pairs), *columns, left=left)


def memory_table(rows: Sequence[Measured], name: Name, unit: MemoryUnit) -> Table:
    """Return every peak by every instrument, with its phase and its range over runs."""

    def over_runs(row: Measured, peak: Peak) -> str:
        spread = f"{unit.show(peak.low_bytes)} to {unit.show(peak.high_bytes)}"
        return spread if row.runs_ok > 1 else "one run"

    def saving(row: Measured, peak: Peak) -> str:
        return NOT_APPLICABLE if row.kind == "full" else share(saving_share(row, peak.instrument), 0)

    return _of_cells(
        name,
        [(row, (row, peak)) for row in rows for peak in row.peaks],
        ("Instrument", lambda each: INSTRUMENT_NAMES[each[1].instrument]),
        ("Peak", lambda each: unit.show(each[1].peak_bytes)),
        ("Over runs", lambda each: over_runs(*each)),
        ("Phase", lambda each: words(each[1].phase)),
        ("Saving", lambda each: saving(*each)),
        left=2,
    )


def predicted_table(rows: Sequence[Measured], name: Name, unit: MemoryUnit) -> Table:
    """Return each peak as predicted before the run and as read in it."""
    return _of_cells(
        name,
        [(row, one) for row in rows for one in row.predictions],
        ("Instrument", lambda one: INSTRUMENT_NAMES[one.instrument]),
        ("Predicted", lambda one: unit.span(one.low_bytes, one.high_bytes)),
        ("Read", lambda one: unit.show(one.measured_bytes)),
        ("Difference", lambda one: share(one.difference_share, 2)),
        left=2,
    )


def model_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return what was trained: where the weights are from, and how many of them move."""

    def adapter(row: Measured, size_bytes: int | None) -> str:
        return NOT_APPLICABLE if row.kind == "full" else SMALL_MEBIBYTES.show(size_bytes)

    return _of_cells(
        name,
        [(row, (row, facts)) for row in rows if (facts := row.facts)],
        ("Weights", lambda each: ", ".join(filter(None, (each[1].source, each[1].weights_note)))),
        ("Parameters", lambda each: f"{each[1].parameters_total:,}"),
        ("Trainable", lambda each: f"{each[1].parameters_trainable:,}"),
        ("Share", lambda each: small_share(each[0].trainable_share)),
        ("Adapter file", lambda each: adapter(each[0], each[1].adapter_file_bytes)),
        left=2,
    )


def cause_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return what set each peak of live tensors."""
    return _of_cells(
        name,
        [(row, cause) for row in rows if (cause := row.cause)],
        ("Phase", lambda cause: words(cause.phase)),
        ("Operator", lambda cause: operator(cause.op)),
        ("Module", lambda cause: cause.module or "outside any module"),
        (
            "Largest part",
            lambda cause: f"{words(cause.largest_category)}, {share(cause.largest_share, 0)}",
        ),
        left=5,
    )


def category_table(rows: Sequence[Measured], name: Name, unit: MemoryUnit) -> Table:
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


def speed_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return tokens/s with what its spread is, the trend, and what a step computes."""
    return _of_cells(
        name,
        [(row, (row, speed)) for row in rows if (speed := row.throughput)],
        ("tokens/s", lambda each: significant(each[1].tokens_per_second)),
        (
            "Spread",
            lambda each: f"{significant(each[1].low)} to {significant(each[1].high)}, {each[1].spread}",
        ),
        ("Measured steps", lambda each: str(each[1].steps)),
        ("Trend", lambda each: _trend(each[1].trend)),
        ("Load time", lambda each: seconds(each[0].load_time_ns)),
        ("Per token", lambda each: operations(each[0].flops_per_token)),
    )


def _trend(trend: Trend) -> str:
    if trend.drift_share is None or trend.p_value is None:
        return trend.verdict
    return f"{trend.verdict} (drift {share(trend.drift_share)}, {p_value(trend.p_value)})"


def accuracy_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return each task before and after, and the paired tests."""

    def against_full(row: Measured, task: str) -> str:
        return NOT_APPLICABLE if row.kind == "full" else _against(row, task)

    return _of_cells(
        name,
        [(row, (row, result)) for row in rows for result in row.accuracies],
        ("Task", lambda each: f"{each[1].task} ({each[1].metric}, {each[1].num_fewshot}-shot)"),
        ("Items", lambda each: str(each[1].items)),
        ("Before", lambda each: _with_error(each[1].before, each[1].before_error)),
        ("After", lambda each: _after(each[1])),
        ("Change (gained, lost)", lambda each: _change(each[1])),
        ("Against full (gained, lost)", lambda each: against_full(each[0], each[1].task)),
        left=2,
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


def loss_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return the loss at both ends."""
    return _of_cells(
        name,
        [(row, losses) for row in rows if (losses := row.losses)],
        ("First", lambda losses: f"{losses.first:.3f}"),
        ("Last", lambda losses: f"{losses.last:.3f}"),
        ("Steps", lambda losses: str(losses.steps)),
    )


def merge_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return what merging the adapter into the base did to the logits."""
    return _of_cells(
        name,
        [(row, merge) for row in rows if (merge := row.merge)],
        ("Largest change of a logit", lambda merge: small_share(merge.worst_share)),
        ("Tolerance", lambda merge: small_share(merge.tolerated_share)),
        ("Verdict", lambda one: "as before, within tolerance" if one.within_tolerance else "changed"),
    )


def time_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return where each cell's wall time went."""
    return _of_cells(
        name,
        [(row, times) for row in rows if (times := row.times)],
        ("Total", lambda times: seconds(times.total_ns)),
        ("Loading", lambda times: seconds(times.loading_ns)),
        ("Steps", lambda times: seconds(times.stepping_ns)),
        ("Instrumented steps", lambda times: seconds(times.instruments_ns)),
        ("Evaluation", lambda times: seconds(times.evaluation_ns)),
        ("All else", lambda times: seconds(times.overhead_ns)),
        ("of it start", lambda times: seconds(times.starting_ns)),
        ("of it data", lambda times: seconds(times.preparing_ns)),
    )


def ending_table(rows: Sequence[Measured]) -> Table:
    """Return every run that did not end ok, with the sentence that says why."""
    return table_of(
        [ending for row in rows for ending in row.endings],
        ("Cell", lambda ending: ending[0].cell.id),
        ("Run", lambda ending: str(ending[0].run)),
        ("Outcome", lambda ending: ending[0].outcome),
        ("Phase", lambda ending: words(ending[1].phase) if ending[1].phase else NOT_APPLICABLE),
        ("Why", lambda ending: ending[1].message),
        left=5,
    )


_READINGS: dict[Isolation, str] = {
    "process": "of the process",
    "device_delta": "of the device, less what was on it before",
    "unavailable": "none",
}


def isolation_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return which reading of NVML could be told to be the worker's, and why."""
    return _of_cells(
        name,
        [(row, (gpu, one)) for row in rows if (gpu := row.gpu) for one in gpu.isolations],
        ("NVML's peak is", lambda each: _READINGS[each[1][0]]),
        ("Why", lambda each: each[1][1]),
        ("Sampled every", lambda each: _milliseconds(each[0].interval_ns)),
        (
            "Longest gap",
            lambda each: _milliseconds(gap) if (gap := each[0].longest_gap_ns) else NOT_MEASURED,
        ),
        left=3,
    )


def gpu_table(rows: Sequence[Measured], name: Name, unit: MemoryUnit) -> Table:
    """Return what the card was doing while the measured steps ran."""

    def number(value: float | None, unit_name: str) -> str:
        return NOT_MEASURED if value is None else f"{significant(value)} {unit_name}"

    return _of_cells(
        name,
        [(row, gpu) for row in rows if (gpu := row.gpu)],
        ("Not torch's", lambda gpu: unit.show(gpu.non_torch_bytes)),
        ("Energy per token", lambda gpu: number(gpu.energy_per_token_mj, "mJ")),
        ("Power", lambda gpu: number(mw / 1000 if (mw := gpu.power_mean_mw) is not None else None, "W")),
        ("SM clock", lambda gpu: _clocks(gpu.sm_clock_min_mhz, gpu.sm_clock_max_mhz)),
        ("Hottest", lambda gpu: NOT_MEASURED if (c := gpu.temperature_max_c) is None else f"{c} °C"),
        ("Slowed by", lambda gpu: ", ".join(gpu.events) or NOT_APPLICABLE),
    )


def _clocks(low_mhz: int | None, high_mhz: int | None) -> str:
    if low_mhz is None or high_mhz is None:
        return NOT_MEASURED
    return f"{high_mhz:,} MHz" if low_mhz == high_mhz else f"{low_mhz:,} to {high_mhz:,} MHz"


def _milliseconds(time_ns: int) -> str:
    return f"{time_ns / 1e6:,.0f} ms"


def torch_table(rows: Sequence[Measured], name: Name) -> Table:
    """Return the settings that change speed or results, of the cells on a GPU."""
    return _of_cells(
        name,
        [(row, found) for row in rows if row.device == "cuda" and (found := row.torch_settings)],
        ("float32 products", lambda found: found.float32_matmul_precision or NOT_MEASURED),
        (
            "TF32 (products, cuDNN)",
            lambda found: f"{_switch(found.matmul_allow_tf32)}, {_switch(found.cudnn_allow_tf32)}",
        ),
        ("cuDNN benchmark", lambda found: _switch(found.cudnn_benchmark)),
        (
            "Deterministic",
            lambda one: (
                f"algorithms {one.deterministic_algorithms}, cuDNN {_switch(one.cudnn_deterministic)}"
            ),
        ),
        (
            "bf16 sums",
            lambda found: f"reduced precision {_switch(found.bf16_reduced_precision_reduction)}",
        ),
        (
            "Allocator",
            lambda one: f"{one.allocator_backend or NOT_MEASURED}, {one.allocator_settings or 'by default'}",
        ),
        left=7,
    )


def _switch(value: bool | None) -> str:  # noqa: FBT001 - a switch's position is what is written
    return NOT_MEASURED if value is None else "on" if value else "off"
