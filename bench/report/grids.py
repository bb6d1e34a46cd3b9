"""All cells as one table to sort and filter: what each column shows, sorts by and offers as a choice."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from bench.compare.answers import HEADLINES
from bench.compare.measured import Comparison, Instrument, Measured
from bench.report.operators import operator
from bench.report.sentences import SIGNIFICANT_P
from bench.report.tables import INSTRUMENT_NAMES, memory_unit
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    MemoryUnit,
    p_value,
    share,
    significant,
    small_share,
    words,
)

R = TypeVar("R")
Tone = Literal["", "good", "close", "bad"]
# Where a caveat belongs; what is not named here concerns the cell as a whole.
_PLACES = {
    "not-steady": "speed",
    "few-steps": "speed",
    "steps-skipped": "speed",
    "one-run": "speed",
    "ledger-differs": "memory",
    "accuracy-differs": "accuracy",
    "not-paired": "accuracy",
}


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """What one cell of the table shows. ``value`` is what it is sorted by, None comes last."""

    text: str
    value: float | str | None
    notes: tuple[int, ...] = ()
    tone: Tone = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: how it is called and chosen by. ``at_most`` is the unit of a limit that can be typed."""

    title: str
    numeric: bool = False
    choices: tuple[str, ...] = ()
    choice_title: str = ""
    at_most: str = ""


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """A row and where links find it."""

    anchor: str
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The table with its notes, numbered from 1; ``constants``: title and value of columns all rows share."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[GridRow, ...]
    notes: tuple[str, ...]
    constants: tuple[tuple[str, str], ...] = ()


class Notes:
    """Each note once, in the order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a note."""
        return self._numbers.setdefault(text, len(self._numbers) + 1)

    def texts(self) -> tuple[str, ...]:
        """Return all notes, the first being number 1."""
        return tuple(self._numbers)


@dataclass(frozen=True)
class Part(Generic[R]):
    """A column in the making."""

    title: str
    show: Callable[[R], GridCell]
    numeric: bool = False
    choice: str = ""
    at_most: str = ""


def comparison_grid(comparison: Comparison, anchors: Mapping[str, str]) -> Grid:
    """Return all rows of a comparison; ``anchors`` name the row of each key."""
    notes, unit, rows = Notes(), memory_unit(comparison), comparison.rows

    def marks(row: Measured, place: str) -> tuple[int, ...]:
        found = [one.message for one in row.caveats if _PLACES.get(one.code, "cell") == place]
        if place == "cell":
            found += [f"Run {end.run} ended as {end.outcome}: {end.message}" for end in row.endings]
        return tuple(notes.number(text) for text in found)

    def named(row: Measured) -> GridCell:
        return GridCell(text=row.method, value=row.method, notes=marks(row, "cell"))

    parts: list[Part[Measured]] = [Part("Method", named, choice="Method")]
    parts.append(text_part("Model", lambda row: row.model))
    parts.append(text_part("Window", lambda row: row.window))
    if len({row.device_name for row in rows}) > 1:
        parts.append(text_part("Device", lambda row: row.device_name))
    if len(comparison.environments) > 1:
        parts.append(text_part("Environment", lambda row: row.environment))
    parts.append(Part("Outcome", _outcome, choice="Outcome"))
    shown = [name for name in INSTRUMENT_NAMES if any(row.peak(name) for row in rows) and name != "host"]
    headlines = {name for names in HEADLINES.values() for name in names}
    for name in shown:
        limit = unit.name if name in headlines else ""
        parts.append(
            Part(f"Peak: {INSTRUMENT_NAMES[name]}", _peak(name, unit, marks), numeric=True, at_most=limit)
        )
        parts.append(Part("Saving against full", _saving(name), numeric=True))
    parts.append(Part("tokens/s", lambda row: _speed(row, marks(row, "speed")), numeric=True))
    parts.append(Part("Speed, full = 1", _ratio, numeric=True))
    for task in dict.fromkeys(one.task for row in rows for one in row.accuracies):
        parts.append(Part(f"Accuracy, {task}", _accuracy(task, marks), numeric=True))
        parts.append(Part("Differs from full?", _differs(task)))
    if any(row.predictions for row in rows):
        parts.append(Part("Predicted peak", _predicted(unit), numeric=True))
    parts.append(Part("Trainable", _trainable, numeric=True))
    parts.append(Part("Peak set by", _cause))
    parts.append(Part("Runs", _runs, numeric=True))
    return made_grid("cells", "All cells", parts, [(anchors[row.key], row) for row in rows], notes)


def made_grid(
    name: str, title: str, parts: Sequence[Part[R]], rows: Sequence[tuple[str, R]], notes: Notes
) -> Grid:
    """Return the table of rows with their anchors; a choice is offered where there are several.

    A column in which all rows show the same is told once, not shown; the first column names the rows.
    """
    shown_by = [(part, [part.show(row) for _, row in rows]) for part in parts]
    titles = Counter(part.title for part in parts)  # one that comes again belongs to the column before it
    alike = [
        index > 0
        and len(rows) > 1
        and titles[part.title] == 1
        and not cells[0].notes
        and all(cell == cells[0] for cell in cells)
        for index, (part, cells) in enumerate(shown_by)
    ]
    varying = [pair for pair, same in zip(shown_by, alike, strict=True) if not same]
    made = [
        GridRow(anchor=anchor, cells=tuple(cells[index] for _, cells in varying))
        for index, (anchor, _) in enumerate(rows)
    ]
    columns = []
    for part, shown in varying:
        choices = dict.fromkeys(tag for cell in shown for tag in (cell.tags or (cell.text,)))
        offered = tuple(choices) if part.choice and len(choices) > 1 else ()
        columns.append(
            Column(
                title=part.title,
                numeric=part.numeric,
                choices=offered,
                choice_title=part.choice,
                at_most=part.at_most,
            )
        )
    constants = [
        (part.title, cells[0].text) for (part, cells), same in zip(shown_by, alike, strict=True) if same
    ]
    return Grid(
        name=name,
        title=title,
        columns=tuple(columns),
        rows=tuple(made),
        notes=notes.texts(),
        constants=tuple(constants),
    )


def text_part(title: str, show: Callable[[R], str]) -> Part[R]:
    """Return a column of words that can be chosen by."""
    return Part(title, lambda row: GridCell(text=show(row), value=show(row)), choice=title)


_NONE = GridCell(text=NOT_MEASURED, value=None)


def _outcome(row: Measured) -> GridCell:
    return GridCell(text=row.outcome, value=row.outcome, tone="" if row.outcome == "ok" else "bad")


def _peak(
    instrument: Instrument, unit: MemoryUnit, marks: Callable[[Measured, str], tuple[int, ...]]
) -> Callable[[Measured], GridCell]:
    def show(row: Measured) -> GridCell:
        peak = row.peak(instrument)
        if peak is None:
            return _NONE
        doubted = "memory" in row.doubts
        return GridCell(
            text=unit.show(peak.peak_bytes) + (", implausible" if doubted else ""),
            value=unit.scaled(peak.peak_bytes),
            notes=marks(row, "memory"),
            tone="bad" if doubted else "",
        )

    return show


def _saving(instrument: Instrument) -> Callable[[Measured], GridCell]:
    def show(row: Measured) -> GridCell:
        peak = row.peak(instrument)
        saving = peak.saving_share if peak else None
        if row.kind == "full" and saving is None:
            return GridCell(text=NOT_APPLICABLE, value=0.0)
        return GridCell(text=share(saving, 0), value=saving)

    return show


def _speed(row: Measured, notes: tuple[int, ...]) -> GridCell:
    speed = row.throughput
    if speed is None:
        return _NONE
    text = f"{significant(speed.tokens_per_second)} ({significant(speed.low)} to {significant(speed.high)})"
    text += ", not steady" if speed.trend.verdict == "not steady" else ""
    doubted = "speed" in row.doubts
    text += ", implausible" if doubted else ""
    return GridCell(text=text, value=speed.tokens_per_second, notes=notes, tone="bad" if doubted else "")


def _ratio(row: Measured) -> GridCell:
    if row.throughput is None:
        return _NONE
    if row.kind == "full":
        return GridCell(text="1", value=1.0)
    ratio = row.throughput.against_full
    return _NONE if ratio is None else GridCell(text=f"{ratio:.2f}", value=ratio)


def _accuracy(task: str, marks: Callable[[Measured, str], tuple[int, ...]]) -> Callable[[Measured], GridCell]:
    def show(row: Measured) -> GridCell:
        result = row.accuracy(task)
        if result is None:
            return _NONE
        error = "" if result.after_error is None else f" ± {result.after_error * 100:.1f}"
        text = f"{share(result.before)} → {share(result.after)}{error} (n = {result.items})"
        return GridCell(text=text, value=result.after, notes=marks(row, "accuracy"))

    return show


def _differs(task: str) -> Callable[[Measured], GridCell]:
    def show(row: Measured) -> GridCell:
        result = row.accuracy(task)
        pair = result.against_full if result else None
        if row.kind == "full":
            return GridCell(text=NOT_APPLICABLE, value=None)
        if pair is None:
            return GridCell(text="not tested", value=None)
        verdict = "yes" if pair.p_value < SIGNIFICANT_P else "not shown"
        points = share(pair.difference_share).removesuffix(" %")
        return GridCell(text=f"{verdict}: {points} points, {p_value(pair.p_value)}", value=pair.p_value)

    return show


def _predicted(unit: MemoryUnit) -> Callable[[Measured], GridCell]:
    def show(row: Measured) -> GridCell:
        if not row.predictions:
            return _NONE
        one = row.predictions[-1]
        text = f"{unit.span(one.low_bytes, one.high_bytes)} ({share(one.difference_share, 1)}, "
        return GridCell(text=f"{text}{INSTRUMENT_NAMES[one.instrument]})", value=unit.scaled(one.high_bytes))

    return show


def _trainable(row: Measured) -> GridCell:
    return GridCell(text=small_share(row.trainable_share), value=row.trainable_share)


def _cause(row: Measured) -> GridCell:
    cause = row.cause
    if cause is None:
        return _NONE
    text = f"{words(cause.phase)}: {operator(cause.op)} in {cause.module or 'no module'}"
    return GridCell(
        text=f"{text}; {words(cause.largest_category)} {share(cause.largest_share, 0)}", value=text
    )


def _runs(row: Measured) -> GridCell:
    text = str(row.runs) if row.runs == row.runs_ok else f"{row.runs_ok} ok of {row.runs}"
    return GridCell(text=text, value=row.runs_ok)
