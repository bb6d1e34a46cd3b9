"""Studies over several seeds, and memory levers one at a time, as blocks of a page; no arithmetic."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from bench.compare.accuracy import Accuracy, AccuracyDifference, SeedMean
from bench.compare.comparison import compare
from bench.compare.measured import Contrast, Measured
from bench.compare.studies import IDLE_SHARE, Change, Levers, Study, changes, levers, studies
from bench.errors import counted
from bench.metrics import CAPACITY, INSTRUMENT_NAMES, TENSORS, Instrument
from bench.records.derived_metrics import BUSY_MACHINE, THROTTLED, speed_disturbed
from bench.records.records import Record
from bench.report.comparison_columns import memory_unit
from bench.report.highlights import interval, points
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    NOT_MEASURED,
    MemoryUnit,
    Table,
    bullets,
    markdown,
    markdown_table,
    operations,
    p_value,
    share,
    significant,
    table_of,
    words,
)

Told = tuple[tuple[Measured, AccuracyDifference], ...]
_Lever = tuple[Measured, Contrast | None]
# Caveats that the page on levers states for all its cells.
_SAID = {"few-steps", "one-run", BUSY_MACHINE, THROTTLED, "synthetic-data"}


def render_study(records: Sequence[Record], reference: str) -> str:
    """Return, for each setting and task, sentences and a table, and then how to read them.

    Raises UsageError where a setting has no method of that name.
    """
    found = studies(records, reference)
    parts: list[str] = []
    for study in found:
        where = f", environment {study.environment}" if study.environment else ""
        title = (
            f"{study.reference.cell.model.name}, {study.reference.window}{where}: accuracy on {study.task}"
        )
        parts += _block(title, _sentences(study), _table(study))
    parts.append(bullets(markdown(line) for line in _how_read(found)))
    return "\n\n".join(parts)


def _block(title: str, sentences: Iterable[str], table: Table) -> tuple[str, str, str]:
    return f"**{markdown(title)}**", markdown(" ".join(sentences)), markdown_table(table)


def _sentences(study: Study) -> Iterator[str]:
    """Say which methods differ from the reference beyond their intervals, and what was too small to see."""
    base = study.reference.accuracy(study.task)
    if base and base.after_seeds:
        yield f"{study.reference.method} answers {_mean(base.after_seeds)} of the questions after training."
    told = study.differences
    if not told:
        yield "No other method has a seed in common with it."
        return
    yield from _differing(told)
    if design := study.design:
        width = points(design.difference.half_width or 0.0)
        yield (
            f"The intervals of the differences reach {width} to each side ({design.methods} methods with "
            f"{len(design.seeds)} seeds, {design.degrees_of_freedom} degrees of freedom): smaller ones "
            "would not show."
        )


def _differing(told: Told) -> Iterator[str]:
    differing = [(level, one) for level, one in told if one.difference.excludes_zero]
    rest = [level.method for level, one in told if not one.difference.excludes_zero]
    if not differing:
        compared = counted(len(told), "comparison")
        yield f"No other method is shown to differ from it ({compared}, 95 % over seeds for all at once)."
        return
    for level, one in differing:
        verb = "gains" if one.difference.mean > 0 else "loses"
        yield f"{level.method} {verb} {points(abs(one.difference.mean))} against it ({_both_errors(one)})."
    if rest:
        yield f"Not shown to differ: {', '.join(rest)}."


def _both_errors(one: AccuracyDifference) -> str:
    over_items = "" if one.items_error is None else f"; ± {_digits(one.items_error)} over items"
    return f"{_interval(one)}{over_items}"


def _table(study: Study) -> Table:
    task, device = study.task, study.reference.device

    def against(show: Callable[[AccuracyDifference], str]) -> Callable[[Measured], str]:
        return lambda level: show(found) if (found := study.against.get(level.key)) else NOT_APPLICABLE

    def of_accuracy(show: Callable[[Accuracy], str]) -> Callable[[Measured], str]:
        return lambda level: show(found) if (found := level.accuracy(task)) else NOT_MEASURED

    columns: list[tuple[str, Callable[[Measured], str]]] = [
        ("Method", lambda level: level.method),
        ("Seeds", _seeds),
        ("Before", of_accuracy(lambda found: _mean(found.before_seeds))),
        ("After: mean, 95 % over seeds", of_accuracy(lambda found: _mean(found.after_seeds))),
        ("Each seed", of_accuracy(_each)),
        ("Error over items", of_accuracy(_items_error)),
        (
            f"Against {study.reference.method}, 95 % for all at once",
            against(lambda one: f"{points(one.share, sign=True)} ({_interval(one)})"),
        ),
        ("Its error over items", against(lambda one: _error(one.items_error, one.items))),
        (
            "p, Dunnett's",
            against(lambda one: NOT_APPLICABLE if one.p_value is None else p_value(one.p_value)),
        ),
        ("Trainable", _trainable),
        (f"Peak memory: {INSTRUMENT_NAMES[CAPACITY[device]]}", _memory),
    ]
    if not any(level.disturbed_runs for level in study.levels):
        columns.append(("tokens/s", _speed))
    return table_of(study.levels, *columns)


def _seeds(level: Measured) -> str:
    failed = level.failed_seeds
    count = str(len(level.seeds) - len(failed))
    return f"{count}, failed: {', '.join(map(str, failed))}" if failed else count


def _mean(found: SeedMean | None) -> str:
    """Write a mean with its interval; alone where there is one seed, or no spread."""
    if found is None:
        return NOT_MEASURED
    if found.low is None or found.p_value is None:
        return share(found.mean)
    return f"{share(found.mean)} ({interval(found.low, found.high)})"


def _each(found: Accuracy) -> str:
    after = found.after_seeds
    return NOT_MEASURED if after is None else ", ".join(_digits(value) for value in after.values)


def _digits(value: float) -> str:
    return share(value).removesuffix(" %")


def _items_error(found: Accuracy) -> str:
    return _error(found.after_error, found.items) if found.after_seeds else NOT_MEASURED


def _error(error: float | None, items: int) -> str:
    return NOT_MEASURED if error is None else f"± {_digits(error)} (n = {items:,})"


def _interval(one: AccuracyDifference) -> str:
    found = one.difference
    count = len(found.values)
    if count == 1:
        return "one seed, no interval"
    if found.low is None or found.high is None:
        return "too few seeds in common to all, no interval"
    if found.p_value is None:
        return f"the same in all {count} seeds, no interval"
    return f"{_digits(found.low)} to {_digits(found.high)}, {count} seeds"


def _trainable(level: Measured) -> str:
    return NOT_MEASURED if level.parameters_trainable is None else f"{level.parameters_trainable:,}"


def _memory(level: Measured) -> str:
    peak = level.peak(CAPACITY[level.device])
    unit = GIBIBYTES if level.device == "cuda" else MEBIBYTES
    return unit.span(peak.low_bytes, peak.high_bytes) if peak else NOT_MEASURED


def _speed(level: Measured) -> str:
    speed = level.throughput
    if speed is None:
        return NOT_MEASURED
    return f"{significant(speed.tokens_per_second)} ({significant(speed.low)} to {significant(speed.high)})"


def _how_read(found: Sequence[Study]) -> Iterator[str]:
    """Say what each column means, what was left out, and what the records themselves warn of."""
    yield (
        "Over seeds: the mean of the seeds' accuracies and Student's 95 % interval, for other training runs "
        "on these same questions, cut off at 0 and 100 %."
    )
    yield from _how_compared(found)
    yield (
        "Over items: one standard error of that mean for other questions of the same kind, by answers "
        "averaged over the seeds. The two errors are of different chances, and neither holds the other."
    )
    levels = [level for study in found for level in study.levels]
    disturbed, runs = (
        sum(counts)
        for counts in zip(*((level.disturbed_runs, level.runs_ok) for level in levels), strict=True)
    )
    if disturbed:
        yield (
            "Speed is left out of a table if others used the CPUs during the measured steps, or the GPU was "
            f"throttled, as in {disturbed} of {runs} runs; accuracy and memory do not depend on it."
        )
    notes = dict.fromkeys(level.weights_note for level in levels if level.weights_note)
    yield from (f"Weights: {note}." for note in notes)


def _how_compared(found: Sequence[Study]) -> Iterator[str]:
    """Say what the intervals of differences assume, where there are any."""
    if not any(study.design for study in found):
        return
    yield (
        "A difference is taken seed by seed, over the seeds that all methods of its table have. What varies "
        "beside methods and seeds is assumed to vary alike in all methods, and is estimated from all of them "
        "together; a method that wavers more than the others is found to differ too easily, the others too "
        "rarely."
    )
    yield (
        "For all at once: if no method differed from the reference, in 5 % of studies any of a table's "
        "intervals would exclude zero (Dunnett, J. Am. Stat. Assoc. 50, 1955). p is adjusted alike: it "
        "is below 0.05 where the interval excludes zero."
    )


def render_levers(records: Sequence[Record]) -> str:
    """Return, for each plain method, what every lever does to its memory, operations and speed.

    Raises UsageError where no plain method ended well.
    """
    comparison = compare(records)
    found = levers(comparison)
    unit = memory_unit(comparison.rows)
    parts: list[str] = []
    for one in found:
        title = f"Against {one.baseline.id}, {one.baseline.device_name}"
        parts += _block(title, _levers_sentences(one, unit), _levers_table(one, unit))
    parts.append(bullets(markdown(line) for line in _how_levers_read(found)))
    return "\n\n".join(parts)


def _levers_sentences(one: Levers, unit: MemoryUnit) -> Iterator[str]:
    """Say what saves, what costs, what does nothing, and how far predictions were from the readings."""
    base, tensors = one.baseline, TENSORS[one.baseline.device]
    peak = base.peak(tensors)
    if peak:
        name = INSTRUMENT_NAMES[peak.instrument]
        yield f"{base.method} peaks at {unit.show(peak.peak_bytes)} ({name})."
    for told, effects in (("Less", one.saving), ("More", one.costing)):
        if effects:
            listed = ", ".join(
                f"{each.measured.method} ({_change(each.memory_share(tensors))})" for each in effects
            )
            yield f"{told} with {listed}."
    if one.idle:
        yield f"Within {share(IDLE_SHARE, 0)}: {', '.join(each.measured.method for each in one.idle)}."
    if one.misses:
        farthest = share(max(one.misses)).removesuffix(" %")
        yield (
            f"Of {len(one.misses)} changes predicted before the runs, the farthest from its reading is "
            f"{farthest} points of the baseline's peak off."
        )


def _levers_table(one: Levers, unit: MemoryUnit) -> Table:
    """Return the plain method, then each lever with what it does."""
    tensors, capacity = TENSORS[one.baseline.device], CAPACITY[one.baseline.device]
    rows: list[_Lever] = [(one.baseline, None), *((each.measured, each) for each in one.effects)]

    def change(read: Callable[[Contrast], float | None]) -> tuple[str, Callable[[_Lever], str]]:
        return "Change", lambda row: _change(read(row[1])) if row[1] else NOT_APPLICABLE

    def changed(row: _Lever) -> str:
        return "; ".join(map(_changed, changes(row[1]) if row[1] else ())) or NOT_APPLICABLE

    def speed(row: _Lever) -> str:
        measured, effect = row
        disturbed = effect.disturbed if effect else speed_disturbed(measured.caveats)
        found = measured.throughput
        return significant(found.tokens_per_second if found and not disturbed else None)

    return table_of(
        rows,
        ("Method", lambda row: row[0].method),
        ("What changes", changed),
        (f"Peak: {INSTRUMENT_NAMES[tensors]}", lambda row: _peak(row[0], tensors, unit)),
        change(lambda effect: effect.memory_share(tensors)),
        ("Predicted", change(lambda effect: effect.predicted_share(tensors))[1]),
        (f"Peak: {INSTRUMENT_NAMES[capacity]}", lambda row: _peak(row[0], capacity, unit)),
        change(lambda effect: effect.memory_share(capacity)),
        ("FLOPs per token", lambda row: operations(row[0].flops_per_token)),
        change(lambda effect: effect.flops_share),
        ("tokens/s", speed),
        change(lambda one: None if one.disturbed or one.speed_ratio is None else one.speed_ratio - 1),
        left=2,
    )


def _change(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    text = share(round(value, 3) + 0.0)  # no minus before a nought
    return text if value < 0 or text == share(0) else f"+{text}"


def _peak(row: Measured, instrument: Instrument, unit: MemoryUnit) -> str:
    """Write a peak; where a cell did not end well, how it ended."""
    peak = row.peak(instrument)
    return unit.show(peak.peak_bytes if peak else None) if row.ok else row.outcome


def _changed(change: Change) -> str:
    name = words(change.field)
    if change.before is None:
        return f"{name} {_value(change.after)}"
    return f"{name} {_value(change.before)} → {_value(change.after)}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _how_levers_read(found: Sequence[Levers]) -> Iterator[str]:
    """Say what each column means, what was left out, and what the records themselves warn of."""
    yield (
        "Change: against the plain method above, by the same instrument. Predicted: the change of the "
        f"peak of {_names(found, TENSORS)}, as predicted before the runs."
    )
    yield (
        "FLOPs per token: operations of one step as executed, recomputation included, for each token that "
        "is not padding."
    )
    rows = [row for one in found for row in (one.baseline, *(each.measured for each in one.effects))]
    yield from _on_speed(found, rows)
    yield from _warnings(rows)


def _on_speed(found: Sequence[Levers], rows: Sequence[Measured]) -> Iterator[str]:
    disturbed = sum(
        speed_disturbed(one.baseline.caveats) + sum(each.disturbed for each in one.effects) for one in found
    )
    if disturbed:
        yield (
            "Speed is left out where, during the measured steps of the cell or of the plain method, others "
            f"used the CPUs or the GPU was throttled: {disturbed} of {len(rows)} rows. Bytes and "
            "operations do not depend on it."
        )
    steps = [row.throughput.steps for row in rows if row.throughput]
    if steps and disturbed < len(rows):
        yield f"A cell has {min(steps)} measured steps: only large differences in speed are distinguishable."


def _warnings(rows: Sequence[Measured]) -> Iterator[str]:
    """Yield what the records warn of, beyond what this page says of every cell."""
    gathered: dict[str, list[str]] = {}
    for row in rows:
        for caveat in row.caveats:
            if caveat.code not in _SAID:
                gathered.setdefault(caveat.message, []).append(row.method)
    for message, methods in gathered.items():
        yield f"{message} ({'all' if len(methods) == len(rows) else ', '.join(methods)})"


def _names(found: Sequence[Levers], instruments: Mapping[str, Instrument]) -> str:
    return " or ".join(dict.fromkeys(INSTRUMENT_NAMES[instruments[one.baseline.device]] for one in found))
