"""The columns of methods side by side, from which every table of a comparison is made.

A metric named in ``COLUMNS_OF_METRICS`` is in Markdown, HTML, the terminal and the frame.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from bench.compare.accuracy import Accuracy, AccuracyDifference
from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.compare.readings import Throughput
from bench.metrics import INSTRUMENT_NAMES, METRICS, PEAK_TITLES, Instrument
from bench.records.predictions import Speed
from bench.report.columns import Column, Grid, Place, frame, grid
from bench.report.highlights import difference, interval, over_seeds
from bench.report.rank_columns import rank_columns
from bench.report.text import (
    NAMED_UNITS,
    NOT_APPLICABLE,
    NOT_MEASURED,
    MemoryUnit,
    metric_value,
    set_by,
    share,
    significant,
    small_share,
    unit_for,
    words,
)
from bench.scenario.loop import LoopSpec

if TYPE_CHECKING:
    import pandas as pd

# The process with its start-up is below, among the details: it says more about Python than about a method.
_COMPARED = tuple(name for name in INSTRUMENT_NAMES if name != "host")
# Metrics shown beside those that have columns of their own, by name.
COLUMNS_OF_METRICS: tuple[str, ...] = ("text_loss_before_nats", "text_loss_after_nats")
# Where a caveat belongs; what is not named here concerns the cell as a whole.
_PLACES: Mapping[str, Place] = {
    "not-steady": "speed",
    "few-steps": "speed",
    "steps-skipped": "speed",
    "one-run": "speed",
    "ledger-differs": "memory",
    "retained": "memory",
    "leak": "memory",
    "accuracy-differs": "accuracy",
    "not-paired": "accuracy",
}


def memory_unit(rows: Sequence[Measured]) -> MemoryUnit:
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


def comparison_grid(comparison: Comparison, anchors: Mapping[str, str]) -> Grid[Measured]:
    """Return all cells of a comparison to sort and filter; ``anchors`` name the row of each key."""
    rows = [(anchors[row.key], row) for row in comparison.rows]
    columns = comparison_columns(comparison.rows, whole=True)
    if len(comparison.environments) == 1:
        columns = [column for column in columns if column.title != "Environment"]
    told, of_all = comparison.caveats_told, comparison.caveats_of_all

    def notes(row: Measured, place: Place) -> list[str]:
        here = (one for one in row.caveats if _PLACES.get(one.code, "cell") == place)
        found = [
            text for text in dict.fromkeys(told.get(one, one.message) for one in here) if text not in of_all
        ]
        if place == "cell":
            found += [
                f"Run {run.run} ended as {run.outcome}: {failure.message}" for run, failure in row.endings
            ]
        return found

    return grid(
        "cells", "All cells", columns, rows, notes, of_all=[*filter(of_all.__contains__, comparison.caveats)]
    )


def comparison_columns(
    rows: Sequence[Measured], unit: MemoryUnit | None = None, *, whole: bool = False
) -> list[Column[Measured]]:
    """Return the columns of methods side by side; one that no row has a value for is left out.

    ``whole`` is for all groups in one table, whose rows then need their model, window and device.
    """
    unit = unit or memory_unit(rows)
    columns = [*_naming_columns(rows, whole=whole)]
    for instrument in _COMPARED:
        if any(row.peak(instrument) for row in rows):
            columns += _peak_columns(rows, instrument, unit)
    if any(row.paged_bytes for row in rows):
        title, name = "Paged optimizer state", "paged_bytes"
        columns.append(
            Column(title, lambda row: unit.show(row.paged_bytes), lambda row: row.paged_bytes, frame=name)
        )
    columns += _speed_columns(rows)
    if any(row.cell.parallel.several for row in rows):
        columns += rank_columns(rows, unit)
    for task in dict.fromkeys(accuracy.task for row in rows for accuracy in row.accuracies):
        columns += _accuracy_columns(task)
    return [*columns, *_last_columns(rows, unit)]


def _naming_columns(rows: Sequence[Measured], *, whole: bool) -> Iterator[Column[Measured]]:
    name = "Method"
    yield Column(name, lambda row: row.method, frame="method", narrow=name, choice=name, place="cell")
    if any(row.cell.loop != LoopSpec() for row in rows):
        yield Column("Loop", lambda row: row.cell.loop.driver, frame="loop", choice="Loop")
    if whole:
        yield Column("Model", lambda row: row.model, frame="model", choice="Model")
        yield Column("Window", lambda row: row.window, frame="window", choice="Window")
        yield Column("Device", lambda row: row.device_name, frame="device", choice="Device")
    if whole or len({row.environment for row in rows}) > 1:
        name = "Environment"
        yield Column(name, lambda row: row.environment, frame="environment", narrow=name, choice=name)
    if whole or any(row.outcome != "ok" for row in rows):
        yield Column(
            "Outcome",
            lambda row: row.outcome,
            frame="outcome",
            narrow="Outcome",
            choice="Outcome",
            tone=lambda row: "" if row.outcome == "ok" else "bad",
        )


def _peak_columns(
    rows: Sequence[Measured], instrument: Instrument, unit: MemoryUnit
) -> Iterator[Column[Measured]]:
    saves = any(saving_share(row, instrument) is not None for row in rows)

    def text(row: Measured, against: str = "") -> str:
        peak = row.peak(instrument)
        return _marked(unit.show(peak.peak_bytes) + against, row, "memory") if peak else NOT_MEASURED

    def with_saving(row: Measured) -> str:
        saved = saving_share(row, instrument)
        return text(row, "" if saved is None else f" ({share(saved, 0)})")

    title = PEAK_TITLES[instrument]
    yield Column(
        title,
        text,
        lambda row: peak.peak_bytes if (peak := row.peak(instrument)) else None,
        frame=f"peak_{instrument}_bytes",
        narrow=f"{title[0].lower()}{title[1:]}{' (saving)' if saves else ''}",
        narrow_text=with_saving,
        at_most=unit.name,
        scale=unit.size_bytes,
        place="memory",
        bar=True,
        tone=lambda row: "bad" if "memory" in row.doubts and row.peak(instrument) else "",
    )
    if saves:
        yield Column(
            "Saving",
            lambda row: saving(row, instrument),
            lambda row: 0.0 if row.kind == "full" and row.peak(instrument) else saving_share(row, instrument),
            frame=f"saving_{instrument}_share",
        )


def _predicted_speed(row: Measured) -> Speed | None:
    return next((one.told for one in row.predicted_speeds), None)


def _speed_columns(rows: Sequence[Measured]) -> Iterator[Column[Measured]]:
    def ratio(row: Measured) -> float | None:
        one = row.against_full
        return one.speed_ratio if one and not one.disturbed else None

    def text(row: Measured) -> str:
        if (speed := row.throughput) is None:
            return NOT_MEASURED
        return _marked(f"{significant(speed.tokens_per_second)} ({_range(speed)})", row, "speed")

    def narrow(row: Measured) -> str:
        if row.throughput is None:
            return NOT_MEASURED
        against = "" if (value := ratio(row)) is None else f" ({value:.2f})"
        return _marked(significant(row.throughput.tokens_per_second) + against, row, "speed")

    def ratio_text(row: Measured) -> str:
        if row.kind == "full" and row.throughput:
            return "1"
        return NOT_MEASURED if (value := ratio(row)) is None else f"{value:.2f}"

    related = any(ratio(row) is not None for row in rows)
    yield Column(
        "tokens/s",
        text,
        lambda row: row.throughput.tokens_per_second if row.throughput else None,
        frame="tokens_per_second",
        narrow="tokens/s (full = 1)" if related else "tokens/s",
        narrow_text=narrow,
        place="speed",
        bar=True,
        tone=lambda row: "bad" if row.throughput and "speed" in row.doubts else "",
    )
    if any(row.predicted_speeds for row in rows):
        name = "Predicted tokens/s"
        yield Column(
            name,
            lambda row: NOT_APPLICABLE if (told := _predicted_speed(row)) is None else _range(told),
            lambda row: None if (told := _predicted_speed(row)) is None else told.point,
            frame="predicted_tokens_per_second",
            narrow=name.lower(),
        )
    if related:
        yield Column(
            "Speed, full = 1",
            ratio_text,
            lambda row: 1.0 if row.kind == "full" and row.throughput else ratio(row),
            frame="speed_against_full_ratio",
        )


def _range(speed: Throughput | Speed) -> str:
    return f"{significant(speed.low)} to {significant(speed.high)}"


def _accuracy_columns(task: str) -> Iterator[Column[Measured]]:
    def text(row: Measured, *, narrow: bool = False) -> str:
        if (result := row.accuracy(task)) is None:
            return NOT_MEASURED
        told = share(result.after) if narrow else after(result, f"n = {result.items}")
        return f"{share(result.before)} → {told}"

    def against_full(row: Measured) -> AccuracyDifference | None:
        return row.against_full.accuracy(task) if row.against_full else None

    def differs(row: Measured) -> str:
        if row.kind == "full":
            return NOT_APPLICABLE
        if (pair := against_full(row)) is None:
            return "not tested"
        return f"{'yes' if pair.significant else 'not shown'}: {difference(pair)}"

    yield Column(
        f"{task}: accuracy before → after",
        text,
        lambda row: result.after if (result := row.accuracy(task)) else None,
        frame=f"accuracy_{task}_share",
        narrow=f"{task} before → after",
        narrow_text=lambda row: text(row, narrow=True),
        place="accuracy",
        bar=True,
    )
    yield Column(
        "Differs from full?",
        differs,
        lambda row: pair.p_value if (pair := against_full(row)) else None,
        words=True,
        page=False,
        frame=f"accuracy_{task}_against_full_p",
    )


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


def saving(row: Measured, instrument: Instrument) -> str:
    """Write what is saved against full fine-tuning, which itself has no saving."""
    return NOT_APPLICABLE if row.kind == "full" else share(saving_share(row, instrument), 0)


def _last_columns(rows: Sequence[Measured], unit: MemoryUnit) -> Iterator[Column[Measured]]:
    def predicted(row: Measured) -> str:
        if not row.predictions:
            return NOT_MEASURED
        one = row.predictions[-1]
        span = unit.span(one.low_bytes, one.high_bytes)
        return f"{span} ({share(one.difference_share, 1)}, {INSTRUMENT_NAMES[one.instrument]})"

    def cause(row: Measured) -> str:
        if (found := row.cause) is None:
            return NOT_MEASURED
        return set_by(found, f"{words(found.largest_category)} {share(found.largest_share, 0)}")

    if any(row.predictions for row in rows):
        yield Column(
            "Predicted peak",
            predicted,
            lambda row: row.predictions[-1].high_bytes if row.predictions else None,
            page=False,
            frame="predicted_peak_bytes",
        )
    yield Column(
        "Trainable",
        lambda row: small_share(row.trainable_share),
        lambda row: row.trainable_share,
        frame="trainable_share",
        narrow="trainable",
    )
    for name in COLUMNS_OF_METRICS:
        if any(row.metrics.get(name) is not None for row in rows):
            yield _loss_column() if name == "text_loss_after_nats" else metric_column(name)
    if any(row.cause for row in rows):
        yield Column("Peak set by", cause, page=False)
    yield Column("Runs", _runs, lambda row: row.runs_ok, frame="runs_ok")


def metric_column(name: str) -> Column[Measured]:
    """Return the column of a metric, by its entry in ``bench.metrics``: median and range over runs."""
    metric = METRICS[name]

    def text(row: Measured) -> str:
        told, span = (metric_value(metric, row.metrics.get(name)), row.metric_spans.get(name, ()))
        least, most = (metric_value(metric, each) for each in span) if span else (told, told)
        return told if least == most else f"{told} ({least} to {most})"

    title = words(name.removesuffix(f"_{metric.unit}"))
    title = title if metric.unit in NAMED_UNITS else f"{title}, {metric.unit}"
    return Column(
        title,
        text,
        lambda row: row.metrics.get(name),
        frame=name,
        narrow=title,
        place="cell",
    )


def _loss_column() -> Column[Measured]:
    """Return the column of the loss after training: over seeds their mean, with Student's interval."""
    column = metric_column("text_loss_after_nats")

    def text(row: Measured) -> str:
        loss, several = row.text_loss, len(row.text_losses or ()) > 1
        return f"{significant(loss.mean)} ({over_seeds(loss)})" if loss and several else column.text(row)

    def value(row: Measured) -> float | None:
        return row.text_loss.mean if row.text_loss else None

    def narrow(row: Measured) -> str:
        return significant(row.text_loss.mean) if row.text_loss else NOT_MEASURED

    return replace(column, text=text, value=value, narrow_text=narrow)


def _runs(row: Measured) -> str:
    text = str(row.runs) if row.runs == row.runs_ok else f"{row.runs_ok} ok of {row.runs}"
    return f"{text} ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else text


def _marked(text: str, row: Measured, kind: Literal["speed", "memory"]) -> str:
    """Mark a number that cannot be right (a caveat says why), a speed not settled or not the card's own."""
    marks: list[str] = []
    if kind == "speed" and (speed := row.throughput):
        marks += ["not steady"] * (speed.trend.verdict == "not steady") + ["throttled"] * speed.throttled
    return ", ".join([text, *marks, *(["implausible"] if kind in row.doubts else [])])
