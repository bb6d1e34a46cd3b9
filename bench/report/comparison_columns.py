"""The columns of methods side by side, from which every table of a comparison is made.

A metric named in ``COLUMNS_OF_METRICS`` is in Markdown, HTML, the terminal and the frame.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from bench.compare.accuracy import Accuracy, AccuracyDifference
from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.metrics import INSTRUMENT_NAMES, METRICS, Instrument
from bench.report.columns import Column, Grid, Place, frame, grid
from bench.report.highlights import difference, interval
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    SMALL_MEBIBYTES,
    MemoryUnit,
    duration,
    operator,
    share,
    significant,
    small_share,
    unit_for,
    words,
)

if TYPE_CHECKING:
    import pandas as pd

# The process with its start-up is below, among the details: it says more about Python than about a method.
_COMPARED = tuple(name for name in INSTRUMENT_NAMES if name != "host")
# Metrics shown beside those that have columns of their own, by name.
COLUMNS_OF_METRICS: tuple[str, ...] = ()
# Where a caveat belongs; what is not named here concerns the cell as a whole.
_PLACES: Mapping[str, Place] = {
    "not-steady": "speed",
    "few-steps": "speed",
    "steps-skipped": "speed",
    "one-run": "speed",
    "ledger-differs": "memory",
    "accuracy-differs": "accuracy",
    "not-paired": "accuracy",
}


def memory_unit(rows: Sequence[Measured]) -> MemoryUnit:
    """Return the unit of all sizes of a report."""
    sizes = [peak.peak_bytes for row in rows for peak in row.peaks]
    return unit_for(sizes, on_gpu=any(row.device == "cuda" and row.peaks for row in rows))


def group_title(rows: Sequence[Measured], comparison: Comparison) -> str:
    """Return what the rows of one group have in common, with the note on the weights if there is one."""
    notes = dict.fromkeys(row.weights_note for row in rows if row.weights_note)
    model = f"{rows[0].model} ({'; '.join(notes)})" if notes else rows[0].model
    devices = dict.fromkeys(row.device_name for row in rows if row.runs_ok) or {rows[0].device: None}
    where = f", environment {rows[0].environment}" if len(comparison.environments) > 1 else ""
    return f"{model}, {rows[0].window}, {' and '.join(devices)}{where}"


def comparison_frame(comparison: Comparison) -> "pd.DataFrame":
    """Return one row per cell: labels, outcome, peaks with savings, speed, accuracy; units in the names."""
    return frame(comparison_columns(comparison.rows, whole=True), comparison.rows)


def comparison_grid(comparison: Comparison, anchors: Mapping[str, str]) -> Grid:
    """Return all cells of a comparison to sort and filter; ``anchors`` name the row of each key."""
    rows = [(anchors[row.key], row) for row in comparison.rows]
    columns = comparison_columns(comparison.rows, whole=True)
    if len(comparison.environments) == 1:
        columns = [column for column in columns if column.title != "Environment"]
    return grid("cells", "All cells", columns, rows, _notes)


def _notes(row: Measured, place: Place) -> list[str]:
    found = [one.message for one in row.caveats if _PLACES.get(one.code, "cell") == place]
    if place == "cell":
        found += [f"Run {run.run} ended as {run.outcome}: {failure.message}" for run, failure in row.endings]
    return found


def comparison_columns(
    rows: Sequence[Measured], unit: MemoryUnit | None = None, *, whole: bool = False
) -> list[Column[Measured]]:
    """Return the columns of methods side by side; one that no row has a value for is left out.

    ``whole`` is for all groups in one table, whose rows then need their model, window and device.
    """
    unit = unit or memory_unit(rows)
    columns = _naming_columns(rows, whole=whole)
    for instrument in _COMPARED:
        if any(row.peak(instrument) for row in rows):
            columns += _peak_columns(instrument, unit)
    if any(row.paged_bytes for row in rows):
        columns.append(
            Column(
                title="Paged optimizer state",
                value=lambda row: row.paged_bytes,
                text=lambda row: unit.show(row.paged_bytes),
                frame="paged_bytes",
            )
        )
    columns += _speed_columns(rows)
    for task in dict.fromkeys(accuracy.task for row in rows for accuracy in row.accuracies):
        columns += _accuracy_columns(task)
    columns += _last_columns(rows, unit)
    return columns


def _naming_columns(rows: Sequence[Measured], *, whole: bool) -> list[Column[Measured]]:
    columns: list[Column[Measured]] = [
        Column(
            title="Method",
            text=lambda row: row.method,
            frame="method",
            narrow="Method",
            choice="Method",
            place="cell",
        )
    ]
    if whole:
        columns += [
            Column(title="Model", text=lambda row: row.model, frame="model", choice="Model"),
            Column(title="Window", text=lambda row: row.window, frame="window", choice="Window"),
            Column(title="Device", text=lambda row: row.device_name, frame="device", choice="Device"),
        ]
    if whole or len({row.environment for row in rows}) > 1:
        columns.append(
            Column(
                title="Environment",
                text=lambda row: row.environment,
                frame="environment",
                narrow="Environment",
                choice="Environment",
            )
        )
    if whole or any(row.outcome != "ok" for row in rows):
        columns.append(
            Column(
                title="Outcome",
                text=lambda row: row.outcome,
                frame="outcome",
                narrow="Outcome",
                choice="Outcome",
                tone=lambda row: "" if row.outcome == "ok" else "bad",
            )
        )
    return columns


def _peak_columns(instrument: Instrument, unit: MemoryUnit) -> list[Column[Measured]]:
    def saving(row: Measured) -> float | None:
        peak = row.peak(instrument)
        return 0.0 if row.kind == "full" and peak else saving_share(row, instrument)

    def peak_text(row: Measured) -> str:
        peak = row.peak(instrument)
        return _doubted(unit.show(peak.peak_bytes), row, "memory") if peak else NOT_MEASURED

    def peak_and_saving(row: Measured) -> str:
        peak = row.peak(instrument)
        if peak is None:
            return NOT_MEASURED
        found = saving_share(row, instrument)
        against = "" if found is None else f" ({share(found, 0)})"
        return _doubted(unit.show(peak.peak_bytes) + against, row, "memory")

    return [
        Column(
            title=f"Peak memory: {INSTRUMENT_NAMES[instrument]}",
            value=lambda row: peak.peak_bytes if (peak := row.peak(instrument)) else None,
            text=peak_text,
            frame=f"peak_{instrument}_bytes",
            narrow=f"peak: {INSTRUMENT_NAMES[instrument]} (saving)",
            narrow_text=peak_and_saving,
            at_most=unit.name,
            scale=unit.size_bytes,
            place="memory",
            tone=lambda row: "bad" if "memory" in row.doubts and row.peak(instrument) else "",
        ),
        Column(
            title="Saving",
            value=saving,
            text=lambda row: NOT_APPLICABLE if row.kind == "full" else share(saving(row), 0),
            frame=f"saving_{instrument}_share",
        ),
    ]


def _speed_columns(rows: Sequence[Measured]) -> list[Column[Measured]]:
    def text(row: Measured) -> str:
        speed = row.throughput
        if speed is None:
            return NOT_MEASURED
        spread = f"({significant(speed.low)} to {significant(speed.high)})"
        return _marked_speed(f"{significant(speed.tokens_per_second)} {spread}", row)

    def ratio(row: Measured) -> float | None:
        if row.throughput is None:
            return None
        full = row.against_full
        return 1.0 if row.kind == "full" else full.speed_ratio if full else None

    def ratio_text(row: Measured) -> str:
        value = ratio(row)
        return NOT_MEASURED if value is None else "1" if row.kind == "full" else f"{value:.2f}"

    def narrow(row: Measured) -> str:
        if row.throughput is None:
            return NOT_MEASURED
        value = None if row.kind == "full" else ratio(row)
        against = "" if value is None else f" ({value:.2f})"
        return _marked_speed(significant(row.throughput.tokens_per_second) + against, row)

    columns: list[Column[Measured]] = [
        Column(
            title="tokens/s",
            value=lambda row: row.throughput.tokens_per_second if row.throughput else None,
            text=text,
            frame="tokens_per_second",
            narrow="tokens/s (full = 1)",
            narrow_text=narrow,
            place="speed",
            tone=lambda row: "bad" if row.throughput and "speed" in row.doubts else "",
        )
    ]
    if any(row.against_full and row.against_full.speed_ratio is not None for row in rows):
        columns.append(
            Column(title="Speed, full = 1", value=ratio, text=ratio_text, frame="speed_against_full_ratio")
        )
    return columns


def _accuracy_columns(task: str) -> list[Column[Measured]]:
    def text(row: Measured) -> str:
        result = row.accuracy(task)
        if result is None:
            return NOT_MEASURED
        return f"{share(result.before)} → {after(result, f'n = {result.items}')}"

    def narrow(row: Measured) -> str:
        result = row.accuracy(task)
        return NOT_MEASURED if result is None else f"{share(result.before)} → {share(result.after)}"

    def against_full(row: Measured) -> AccuracyDifference | None:
        return row.against_full.accuracy(task) if row.against_full else None

    def differs(row: Measured) -> str:
        if row.kind == "full":
            return NOT_APPLICABLE
        pair = against_full(row)
        if pair is None:
            return "not tested"
        return f"{'yes' if pair.significant else 'not shown'}: {difference(pair)}"

    return [
        Column(
            title=f"{task}: accuracy before → after",
            value=lambda row: result.after if (result := row.accuracy(task)) else None,
            text=text,
            frame=f"accuracy_{task}_share",
            narrow=f"{task} before → after",
            narrow_text=narrow,
            place="accuracy",
        ),
        Column(
            title="Differs from full?",
            value=lambda row: pair.p_value if (pair := against_full(row)) else None,
            text=differs,
            words=True,
            page=False,
            frame=f"accuracy_{task}_against_full_p",
        ),
    ]


def after(result: Accuracy, items: str = "") -> str:
    """Write accuracy after training: over seeds with its interval, else with its error over items."""
    text, found = share(result.after), result.after_seeds
    if found and len(result.seeds) > 1:
        spread = f"{interval(found.low, found.high)} over " if found.p_value is not None else ""
        return f"{text} ({spread}{len(result.seeds)} seeds{items and f', {items}'})"
    error = "" if result.after_error is None else f" ± {result.after_error * 100:.1f}"
    return f"{text}{error}{items and f' ({items})'}"


def saving_share(row: Measured, instrument: Instrument) -> float | None:
    """Return 1 less the peak over that of full fine-tuning; None where they cannot be compared."""
    change = row.against_full.memory_share(instrument) if row.against_full else None
    return None if change is None else -change


def _runs(row: Measured) -> str:
    text = str(row.runs) if row.runs == row.runs_ok else f"{row.runs_ok} ok of {row.runs}"
    return f"{text} ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else text


def _last_columns(rows: Sequence[Measured], unit: MemoryUnit) -> list[Column[Measured]]:
    columns: list[Column[Measured]] = []
    if any(row.predictions for row in rows):
        columns.append(
            Column(
                title="Predicted peak",
                value=lambda row: row.predictions[-1].high_bytes if row.predictions else None,
                text=lambda row: _predicted(row, unit),
                page=False,
                frame="predicted_peak_bytes",
            )
        )
    columns.append(
        Column(
            title="Trainable",
            value=lambda row: row.trainable_share,
            text=lambda row: small_share(row.trainable_share),
            frame="trainable_share",
            narrow="trainable",
        )
    )
    columns += [
        metric_column(name)
        for name in COLUMNS_OF_METRICS
        if any(row.metrics.get(name) is not None for row in rows)
    ]
    if any(row.cause for row in rows):
        columns.append(Column(title="Peak set by", text=_cause, page=False))
    columns.append(
        Column(
            title="Runs",
            value=lambda row: row.runs_ok,
            text=_runs,
            frame="runs_ok",
        )
    )
    return columns


def metric_column(name: str) -> Column[Measured]:
    """Return the column of a metric, by its entry in ``bench.metrics``: the median over runs."""
    metric = METRICS[name]
    write: Mapping[str, Callable[[float], str]] = {
        "bytes": lambda value: SMALL_MEBIBYTES.show(round(value)),
        "ns": duration,
        "share": share,
    }

    def text(row: Measured) -> str:
        value = row.metrics.get(name)
        return NOT_MEASURED if value is None else write.get(metric.unit, significant)(value)

    title = words(name.removesuffix(f"_{metric.unit}"))
    title = title if metric.unit in write else f"{title}, {metric.unit}"
    return Column(
        title=title,
        value=lambda row: row.metrics.get(name),
        text=text,
        frame=name,
        narrow=title,
        place="cell",
    )


def _marked_speed(text: str, row: Measured) -> str:
    """Mark a speed that had not settled, or that is not the card's own."""
    speed = row.throughput
    marks = (
        ("not steady", speed is not None and speed.trend.verdict == "not steady"),
        ("throttled", speed is not None and speed.throttled),
    )
    return _doubted(", ".join([text, *(word for word, holds in marks if holds)]), row, "speed")


def _doubted(text: str, row: Measured, kind: Literal["speed", "memory"]) -> str:
    """Mark a number that cannot be right; a caveat says why."""
    return f"{text}, implausible" if kind in row.doubts else text


def _predicted(row: Measured, unit: MemoryUnit) -> str:
    if not row.predictions:
        return NOT_MEASURED
    one = row.predictions[-1]
    difference = f"{share(one.difference_share, 1)}, {INSTRUMENT_NAMES[one.instrument]}"
    return f"{unit.span(one.low_bytes, one.high_bytes)} ({difference})"


def _cause(row: Measured) -> str:
    cause = row.cause
    if cause is None:
        return NOT_MEASURED
    largest = f"{words(cause.largest_category)} {share(cause.largest_share, 0)}"
    return f"{words(cause.phase)}: {operator(cause.op)} in {cause.module or 'no module'}; {largest}"
