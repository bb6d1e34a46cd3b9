"""Studies over several seeds, and memory levers one at a time, as blocks of a page; no arithmetic."""

from collections.abc import Callable, Iterable, Sequence

from bench.compare.accuracy import Accuracy, AccuracyDifference, SeedMean
from bench.compare.comparison import IDLE_SHARE, Levers, Study, changes, compare, levers, studies
from bench.compare.measured import Contrast, Measured
from bench.metrics import CAPACITY, INSTRUMENT_NAMES, PEAK_TITLES, TENSORS, Instrument
from bench.records.derived_metrics import BUSY_MACHINE, THROTTLED
from bench.records.records import Record
from bench.report.comparison_columns import memory_unit
from bench.report.highlights import interval
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    NOT_MEASURED,
    MemoryUnit,
    Table,
    bullets,
    grouped,
    markdown,
    markdown_table,
    notes,
    operations,
    p_value,
    points,
    share,
    significant,
    table_of,
    words,
)

# Caveats that the page on levers states for all its cells.
_STATED = {"few-steps", "one-run", BUSY_MACHINE, THROTTLED, "synthetic-data"}


def render_study(records: Sequence[Record], reference: str) -> str:
    """Return, for each setting and task, sentences and a table, and then how to read them.

    Raises UsageError where a setting has no method of that name.
    """
    found = studies(records, reference)
    parts = []
    for study in found:
        where = f", environment {study.environment}" if study.environment else ""
        setting = f"{study.reference.cell.model.name}, {study.reference.window}{where}"
        parts.append(_block(f"{setting}: accuracy on {study.task}", _told(study=study), _table(study)))
    levels = [level for study in found for level in study.levels]
    how_read = _told(study=None, levels=levels, designs=any(study.design for study in found))
    return "\n\n".join([*parts, bullets(map(markdown, how_read))])


def _block(title: str, sentences: Iterable[str], table: Table) -> str:
    return f"**{markdown(title)}**\n\n{markdown(' '.join(sentences))}\n\n{markdown_table(table)}"


def _told(**values: object) -> list[str]:
    return notes("study.j2", digits=_digits, interval=_interval, mean=_mean, **values)


def _table(study: Study) -> Table:
    task, capacity = study.task, CAPACITY[study.reference.device]

    def against(show: Callable[[AccuracyDifference], str]) -> Callable[[Measured], str]:
        return lambda level: show(found) if (found := study.against.get(level.key)) else NOT_APPLICABLE

    def of_accuracy(show: Callable[[Accuracy], str]) -> Callable[[Measured], str]:
        return lambda level: show(found) if (found := level.accuracy(task)) else NOT_MEASURED

    speed = () if any(level.disturbed_runs for level in study.levels) else (("tokens/s", _speed),)
    return table_of(
        study.levels,
        ("Method", lambda level: level.method),
        ("Mean over seeds, 95 %", of_accuracy(lambda found: _mean(found.after_seeds))),
        (
            f"Against {study.reference.method}, 95 % for all at once",
            against(lambda one: f"{points(one.share, sign=True)} ({_interval(one)})"),
        ),
        ("p, Dunnett's", against(lambda one: NOT_APPLICABLE if (p := one.p_value) is None else p_value(p))),
        ("Before training", of_accuracy(lambda found: _mean(found.before_seeds))),
        ("Seeds", _seeds),
        ("Each seed", of_accuracy(_each)),
        ("Error over items", of_accuracy(lambda found: _error(found.after_error, found.items))),
        ("Of the difference", against(lambda one: _error(one.items_error, one.items))),
        ("Trainable", lambda level: NOT_MEASURED if (n := level.parameters_trainable) is None else f"{n:,}"),
        (PEAK_TITLES[capacity], lambda level: _range(level, capacity)),
        *speed,
    )


def _seeds(level: Measured) -> str:
    count = str(len(level.seeds) - len(level.failed_seeds))
    return f"{count}, failed: {', '.join(map(str, level.failed_seeds))}" if level.failed_seeds else count


def _mean(found: SeedMean | None) -> str:
    """Write a mean with its interval; alone where there is one seed, or no spread."""
    if found is None:
        return NOT_MEASURED
    spread = "" if found.p_value is None else f" ({interval(found.low, found.high)})"
    return f"{share(found.mean)}{spread}"


def _each(found: Accuracy) -> str:
    return ", ".join(map(_digits, found.after_seeds.values)) if found.after_seeds else NOT_MEASURED


def _digits(value: float) -> str:
    return share(value).removesuffix(" %")


def _error(error: float | None, items: int) -> str:
    return NOT_MEASURED if error is None else f"± {_digits(error)} (n = {items:,})"


def _interval(one: AccuracyDifference) -> str:
    found, count = one.difference, len(one.difference.values)
    if count == 1:
        return "one seed, no interval"
    if found.low is None or found.high is None:
        return "too few seeds in common to all, no interval"
    if found.p_value is None:
        return f"the same in all {count} seeds, no interval"
    return f"{_digits(found.low)} to {_digits(found.high)}, {count} seeds"


def _range(level: Measured, instrument: Instrument) -> str:
    peak, unit = level.peak(instrument), GIBIBYTES if level.device == "cuda" else MEBIBYTES
    return unit.span(peak.low_bytes, peak.high_bytes) if peak else NOT_MEASURED


def _speed(level: Measured) -> str:
    if (speed := level.throughput) is None:
        return NOT_MEASURED
    return f"{significant(speed.tokens_per_second)} ({significant(speed.low)} to {significant(speed.high)})"


def render_levers(records: Sequence[Record]) -> str:
    """Return, for each plain method, what every lever does to its memory, operations and speed.

    Raises UsageError where no plain method ended well.
    """
    comparison = compare(records)
    found, unit = levers(comparison), memory_unit(comparison.rows)
    parts = []
    for one in found:
        title = f"Against {one.baseline.id}, {one.baseline.device_name}"
        told = _levers_told(one=one, unit=unit, tensors=TENSORS[one.baseline.device])
        parts.append(_block(title, told, _levers_table(one, unit)))
    return "\n\n".join([*parts, bullets(map(markdown, _how_levers_read(found)))])


def _levers_told(**values: object) -> list[str]:
    return notes(
        "levers.j2",
        change=_change,
        digits=_digits,
        names=INSTRUMENT_NAMES,
        idle=IDLE_SHARE,
        **values,
    )


def _rows(one: Levers) -> list[Contrast]:
    """Return the plain method, set against itself, then each lever."""
    return [Contrast(one.baseline, one.baseline), *one.effects]


def _levers_table(one: Levers, unit: MemoryUnit) -> Table:
    tensors, capacity = TENSORS[one.baseline.device], CAPACITY[one.baseline.device]

    def change(
        read: Callable[[Contrast], float | None], title: str = "Change"
    ) -> tuple[str, Callable[[Contrast], str]]:
        return title, lambda row: NOT_APPLICABLE if row.measured is row.base else _change(read(row))

    def peak(instrument: Instrument) -> tuple[str, Callable[[Contrast], str]]:
        """Write a peak; where a cell did not end well, how it ended."""

        def text(row: Contrast) -> str:
            found = row.measured.peak(instrument)
            return unit.show(found.peak_bytes if found else None) if row.measured.ok else row.measured.outcome

        return PEAK_TITLES[instrument], text

    def speed(row: Contrast) -> str:
        found = row.measured.throughput
        return significant(found.tokens_per_second if found and not row.disturbed else None)

    return table_of(
        _rows(one),
        ("Method", lambda row: row.measured.method),
        ("What changes", _changes),
        peak(tensors),
        change(lambda row: row.memory_share(tensors)),
        change(lambda row: row.predicted_share(tensors), "Predicted"),
        peak(capacity),
        change(lambda row: row.memory_share(capacity)),
        ("FLOPs per token", lambda row: operations(row.measured.flops_per_token)),
        change(lambda row: row.flops_share),
        ("tokens/s", speed),
        change(lambda row: None if row.disturbed or row.speed_ratio is None else row.speed_ratio - 1),
        left=2,
    )


def _change(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    text = share(round(value, 3) + 0.0)  # no minus before a nought
    return text if value < 0 or text == share(0) else f"+{text}"


def _changes(row: Contrast) -> str:
    def value(told: object) -> str:
        if isinstance(told, tuple):
            return ", ".join(map(str, told))
        return str(told).lower() if isinstance(told, bool) else str(told)

    told = (
        f"{words(one.field)} {'' if one.before is None else f'{value(one.before)} → '}{value(one.after)}"
        for one in changes(row)
    )
    return "; ".join(told) or NOT_APPLICABLE


def _how_levers_read(found: Sequence[Levers]) -> list[str]:
    rows = [row for one in found for row in _rows(one)]
    warned = (
        (each.message, row.measured.method)
        for row in rows
        for each in row.measured.caveats
        if each.code not in _STATED
    )
    instruments = [INSTRUMENT_NAMES[TENSORS[one.baseline.device]] for one in found]
    return _levers_told(one=None, rows=rows, instruments=instruments, caveats=grouped(warned))
