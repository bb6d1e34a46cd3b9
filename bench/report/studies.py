"""Studies over several seeds, as blocks of a page: sentences and tables, no arithmetic."""

from collections.abc import Callable, Iterator, Sequence

from bench.compare.measured import Comparison
from bench.compare.seed_differences import SeedDifference
from bench.compare.seeds import SeedMean
from bench.compare.studies import PROCESS, Level, Study, studies
from bench.records.records import Record
from bench.report.comparison_columns import INSTRUMENT_NAMES
from bench.report.layout import Table, bullets, markdown_table
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    NOT_MEASURED,
    markdown,
    p_value,
    share,
    significant,
)

Told = tuple[tuple[Level, SeedDifference], ...]


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


def seeds_table(comparison: Comparison) -> Table:
    """Return every cell that was trained with several seeds; without rows where there is none."""
    several_places = len(comparison.environments) > 1
    return Table(
        header=(
            "Cell, all seeds",
            "Task",
            "Seeds",
            "After: mean, 95 % over seeds",
            "Change",
            "Error over items",
        ),
        rows=tuple(
            (
                f"{one.name} ({one.environment})" if several_places else one.name,
                one.task,
                str(len(one.accuracy.seeds)) if one.accuracy else NOT_MEASURED,
                _mean(one.accuracy.after) if one.accuracy else one.why_not or NOT_MEASURED,
                _change(one.accuracy.change) if one.accuracy else NOT_MEASURED,
                _error(one.accuracy.items_error, one.accuracy.items) if one.accuracy else NOT_MEASURED,
            )
            for one in comparison.over_seeds
        ),
        left=2,
    )


def points(difference_share: float, *, sign: bool = False) -> str:
    """Write a difference of two shares in percentage points."""
    plus = "+" if sign and difference_share > 0 else ""
    return f"{plus}{share(difference_share).removesuffix(' %')} points"


def _title(study: Study) -> str:
    where = f", environment {study.environment}" if study.environment else ""
    return f"{study.model}, {study.window}{where}: accuracy on {study.task}"


def _sentences(study: Study) -> Iterator[str]:
    """Say which methods differ from the reference beyond their intervals, and what was too small to see."""
    base = next(level for level in study.levels if level.method == study.reference)
    if base.accuracy:
        yield f"{study.reference} answers {_mean(base.accuracy.after)} of the questions after training."
    told = study.differences
    if not told:
        yield "No other method has a seed in common with it."
        return
    yield from _differing(told)
    if study.resolution and study.design:
        design = study.design
        yield (
            f"The intervals of the differences reach {points(study.resolution)} to each side "
            f"({design.methods} methods with {len(design.seeds)} seeds, {design.degrees_of_freedom} degrees "
            "of freedom): smaller ones would not show."
        )


def _differing(told: Told) -> Iterator[str]:
    differing = [(level, one) for level, one in told if one.difference.excludes_nought]
    rest = [level.method for level, one in told if not one.difference.excludes_nought]
    if not differing:
        compared = "1 comparison" if len(told) == 1 else f"{len(told)} comparisons"
        yield f"No other method is shown to differ from it ({compared}, 95 % over seeds for all at once)."
        return
    for level, one in differing:
        verb = "gains" if one.difference.mean > 0 else "loses"
        yield f"{level.method} {verb} {points(abs(one.difference.mean))} against it ({_both_errors(one)})."
    if rest:
        yield f"Not shown to differ: {', '.join(rest)}."


def _both_errors(one: SeedDifference) -> str:
    over_items = "" if one.items_error is None else f"; ± {_digits(one.items_error)} over items"
    return f"{_interval(one)}{over_items}"


def _table(study: Study) -> Table:
    columns: list[tuple[str, Callable[[Level], str]]] = [
        ("Method", lambda level: level.method),
        ("Seeds", _seeds),
        ("Before", lambda level: _mean(level.accuracy.before if level.accuracy else None)),
        (
            "After: mean, 95 % over seeds",
            lambda level: _mean(level.accuracy.after if level.accuracy else None),
        ),
        ("Each seed", _each),
        ("Error over items", _items_error),
        (f"Against {study.reference}, 95 % for all at once", _difference),
        ("Its error over items", _difference_items_error),
        ("p, Dunnett's", _adjusted),
        ("Trainable", _trainable),
        (f"Peak memory: {INSTRUMENT_NAMES[PROCESS[study.device]]}", _memory),
    ]
    if not any(level.disturbed_runs for level in study.levels):
        columns.append(("tokens/s", _speed))
    return Table(
        header=tuple(name for name, _ in columns),
        rows=tuple(tuple(show(level) for _, show in columns) for level in study.levels),
    )


def _seeds(level: Level) -> str:
    failed = level.group.failed_seeds
    count = str(len(level.group.runs))
    return f"{count}, failed: {', '.join(map(str, failed))}" if failed else count


def _mean(found: SeedMean | None) -> str:
    """Write a mean with its interval; alone where there is one seed, or no spread."""
    if found is None:
        return NOT_MEASURED
    if found.low is None or found.p_value is None:
        return share(found.mean)
    return f"{share(found.mean)} ({_digits(found.low)} to {share(found.high)})"


def _change(found: SeedMean | None) -> str:
    if found is None:
        return NOT_MEASURED
    if found.low is None or found.high is None or found.p_value is None:
        return points(found.mean, sign=True)
    return f"{points(found.mean, sign=True)} ({_digits(found.low)} to {_digits(found.high)})"


def _each(level: Level) -> str:
    if level.accuracy is None:
        return NOT_MEASURED
    return ", ".join(_digits(value) for value in level.accuracy.after.values)


def _digits(value: float) -> str:
    return share(value).removesuffix(" %")


def _items_error(level: Level) -> str:
    return _error(level.accuracy.items_error, level.accuracy.items) if level.accuracy else NOT_MEASURED


def _difference_items_error(level: Level) -> str:
    return _error(level.against.items_error, level.against.items) if level.against else NOT_APPLICABLE


def _error(error: float | None, items: int) -> str:
    return NOT_MEASURED if error is None else f"± {_digits(error)} (n = {items:,})"


def _difference(level: Level) -> str:
    if level.against is None:
        return NOT_APPLICABLE
    return f"{points(level.against.difference.mean, sign=True)} ({_interval(level.against)})"


def _interval(one: SeedDifference) -> str:
    found = one.difference
    count = len(found.values)
    if count == 1:
        return "one seed, no interval"
    if found.low is None or found.high is None:
        return "too few seeds in common to all, no interval"
    if found.p_value is None:
        return f"the same in all {count} seeds, no interval"
    return f"{_digits(found.low)} to {_digits(found.high)}, {count} seeds"


def _adjusted(level: Level) -> str:
    found = level.against.difference.p_value if level.against else None
    return NOT_APPLICABLE if found is None else p_value(found)


def _trainable(level: Level) -> str:
    return NOT_MEASURED if level.parameters_trainable is None else f"{level.parameters_trainable:,}"


def _memory(level: Level) -> str:
    if level.peak is None:
        return NOT_MEASURED
    unit = GIBIBYTES if level.group.cell.device == "cuda" else MEBIBYTES
    return unit.span(level.peak.low_bytes, level.peak.high_bytes)


def _speed(level: Level) -> str:
    speed = level.throughput
    if speed is None:
        return NOT_MEASURED
    return f"{significant(speed.tokens_per_second)} ({significant(speed.low)} to {significant(speed.high)})"


def _how_read(found: Sequence[Study]) -> Iterator[str]:
    """Say what each column means, what was left out, and what the records themselves warn of."""
    yield (
        "Over seeds: the mean of the seeds' accuracies and Student's 95 % interval, for other training runs "
        "on these same questions; it may reach past 100 %."
    )
    yield from _how_compared(found)
    yield (
        "Over items: one standard error of that mean for other questions of the same kind, by answers "
        "averaged over the seeds. The two errors are of different chances, and neither holds the other."
    )
    levels = [level for study in found for level in study.levels]
    disturbed, runs = (
        sum(counts)
        for counts in zip(*((level.disturbed_runs, len(level.group.runs)) for level in levels), strict=True)
    )
    if disturbed:
        yield (
            "Speed is left out of a table if others used the CPUs during the measured steps, or the GPU was "
            f"throttled, as in {disturbed} of {runs} runs; accuracy and memory do not depend on it."
        )
    models = [run.measurement.model for level in levels for run in level.group.runs.values()]
    notes = dict.fromkeys(model.weights_note for model in models if model and model.weights_note)
    yield from (f"Weights: {note}." for note in notes)


def _how_compared(found: Sequence[Study]) -> Iterator[str]:
    """Say what the intervals of differences assume, where there are any."""
    if not any(study.design for study in found):
        return
    yield (
        "A difference is taken seed by seed, over the seeds that all methods of its table have. What varies "
        "beside methods and seeds is assumed to vary alike in all methods, and is estimated from all of them "
        "together; a method that wavers more than the others is told apart too easily, the others too rarely."
    )
    yield (
        "For all at once: if no method differed from the reference, in 5 % of studies any of a table's "
        "intervals would leave nought out (Dunnett, J. Am. Stat. Assoc. 50, 1955). p is adjusted alike: it "
        "is below 0.05 where the interval leaves nought out."
    )
