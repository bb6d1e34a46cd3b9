"""Studies over several seeds, as blocks of a page: sentences and tables, no arithmetic."""

from collections.abc import Callable, Iterator, Sequence

from bench.compare.accuracy import AccuracyDifference, SeedMean
from bench.compare.measured import Measured
from bench.compare.studies import Study, studies
from bench.errors import counted
from bench.metrics import CAPACITY, INSTRUMENT_NAMES
from bench.records.records import Record
from bench.report.highlights import interval, points
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    NOT_MEASURED,
    Table,
    bullets,
    markdown,
    markdown_table,
    p_value,
    share,
    significant,
)

Told = tuple[tuple[Measured, AccuracyDifference], ...]


def render_study(records: Sequence[Record], reference: str) -> str:
    """Return, for each setting and task, sentences and a table, and then how to read them.

    Raises UsageError where a setting has no method of that name.
    """
    found = studies(records, reference)
    parts = []
    for study in found:
        parts.append(f"**{markdown(_title(study))}**")
        parts.append(markdown(" ".join(_sentences(study))))
        parts.append(markdown_table(_table(study)))
    parts.append(bullets(markdown(line) for line in _how_read(found)))
    return "\n\n".join(parts)


def _title(study: Study) -> str:
    where = f", environment {study.environment}" if study.environment else ""
    return f"{study.reference.cell.model.name}, {study.reference.window}{where}: accuracy on {study.task}"


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
    task = study.task
    columns: list[tuple[str, Callable[[Measured], str]]] = [
        ("Method", lambda level: level.method),
        ("Seeds", _seeds),
        ("Before", lambda level: _mean(found.before_seeds if (found := level.accuracy(task)) else None)),
        (
            "After: mean, 95 % over seeds",
            lambda level: _mean(found.after_seeds if (found := level.accuracy(task)) else None),
        ),
        ("Each seed", lambda level: _each(level, task)),
        ("Error over items", lambda level: _items_error(level, task)),
        (f"Against {study.reference.method}, 95 % for all at once", lambda level: _difference(study, level)),
        ("Its error over items", lambda level: _difference_items_error(study, level)),
        ("p, Dunnett's", lambda level: _adjusted(study, level)),
        ("Trainable", _trainable),
        (f"Peak memory: {INSTRUMENT_NAMES[CAPACITY[study.reference.device]]}", _memory),
    ]
    if not any(level.disturbed_runs for level in study.levels):
        columns.append(("tokens/s", _speed))
    return Table(
        header=tuple(name for name, _ in columns),
        rows=tuple(tuple(show(level) for _, show in columns) for level in study.levels),
    )


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


def _each(level: Measured, task: str) -> str:
    found = level.accuracy(task)
    if found is None or found.after_seeds is None:
        return NOT_MEASURED
    return ", ".join(_digits(value) for value in found.after_seeds.values)


def _digits(value: float) -> str:
    return share(value).removesuffix(" %")


def _items_error(level: Measured, task: str) -> str:
    found = level.accuracy(task)
    return _error(found.after_error, found.items) if found and found.after_seeds else NOT_MEASURED


def _difference_items_error(study: Study, level: Measured) -> str:
    found = study.against.get(level.key)
    return _error(found.items_error, found.items) if found else NOT_APPLICABLE


def _error(error: float | None, items: int) -> str:
    return NOT_MEASURED if error is None else f"± {_digits(error)} (n = {items:,})"


def _difference(study: Study, level: Measured) -> str:
    found = study.against.get(level.key)
    return f"{points(found.share, sign=True)} ({_interval(found)})" if found else NOT_APPLICABLE


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


def _adjusted(study: Study, level: Measured) -> str:
    found = study.against.get(level.key)
    return NOT_APPLICABLE if found is None or found.p_value is None else p_value(found.p_value)


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
