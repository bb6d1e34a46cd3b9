"""The highlights of a comparison as sentences that link to their rows, for Markdown, terminal and HTML alike.

Every number is in a table too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from bench.compare.accuracy import AccuracyDifference
from bench.compare.caveats import COMMIT
from bench.compare.comparison import Comparison
from bench.compare.highlights import Highlights
from bench.compare.measured import Contrast, Measured
from bench.compare.readings import ROUGH_DRIFT_SHARE
from bench.errors import counted
from bench.metrics import HEADLINES, INSTRUMENT_NAMES, Instrument
from bench.records.readings import Category
from bench.report.fit import change, reason_in_words
from bench.report.text import (
    MemoryUnit,
    Pieces,
    RowLink,
    Sentence,
    grouped,
    listed,
    operator,
    p_value,
    share,
    significant,
    words,
)
from bench.stats.paired import SIGNIFICANT_P

_MOST_CELLS = 6  # of one sentence; more are read in the table
_SMALLER = "a smaller batch or shorter sequences"
_ADVICE = "bench plan SCENARIO --advice predicts what each change frees."
X = TypeVar("X")


def opening(comparison: Comparison) -> str:
    """Return how many cells there are, how they ended, and whether they come from one environment."""
    cells = counted(len(comparison.rows), "cell")
    endings = ", ".join(f"{count} {outcome}" for outcome, count in comparison.outcomes.items())
    text = f"{cells} of {', '.join(comparison.scenarios)}: {endings}."
    if same := one_environment(comparison):
        text += f" {same}"
    elif len(comparison.environments) > 1:
        text += (
            f" The records come from {len(comparison.environments)} different environments; "
            "what differs between them is listed below, and nothing is compared across machines or versions."
        )
    return text


def one_environment(comparison: Comparison) -> str | None:
    """Return one line where environments differ in the project's own commit only."""
    if len(comparison.differences) != 1 or not comparison.differences[0].startswith(f"{COMMIT}: "):
        return None
    commits = comparison.differences[0].removeprefix(f"{COMMIT}: ")
    return f"The records were made by different commits of bench, and are alike in all else: {commits}."


def sentences(found: Highlights, unit: MemoryUnit) -> Iterator[Sentence]:
    """Yield what is known of one group, the question first that readers ask first."""
    for instrument, rows in found.by_memory.items():
        yield _memory(instrument, rows, found, unit)
    for reason, alike in grouped((row.no_reference, row) for row in found.ok if row.no_reference).items():
        yield Sentence("Not set against full", (*_listed(alike, _MOST_CELLS), f": {reason}."))
    if found.fastest:
        yield _fastest(*found.fastest, alone=len(found.ok) == 1)
    yield from _speeds(found)
    for task, (row, others) in found.most_accurate.items():
        yield _most_accurate(task, row, others, alone=len(found.ok) == 1)
    for contrast in found.qlora_vs_lora:
        text = f": {_contrast(contrast, list(found.most_accurate)) or 'not measured'}."
        pair = (_link(contrast.measured), " against ", _link(contrast.base), text)
        yield Sentence("QLoRA instead of LoRA", pair)
    for drivers, pairs in grouped((_drivers(one), one) for one in found.loops).items():
        yield _loops(drivers, pairs, list(found.most_accurate), unit)
    yield from _causes(found.ok)
    yield from _remedies(found.ok)
    if changed := [row for row in found.ok if row.merge and not row.merge.within_tolerance]:
        shares = [row.merge.worst_share for row in changed if row.merge]
        base = "the quantised base" if any(row.kind == "qlora" for row in changed) else "the base"
        told = f" into {base} here: a logit changes by {_span(shares)} of the largest."
        yield Sentence("Merging", ("Do not merge ", *_listed(changed), told))
    yield trained_with(found)


def _link(row: Measured) -> RowLink:
    return RowLink(row.method, row.key)


def _listed(rows: Iterable[Measured], most: int | None = None) -> Pieces:
    return tuple(listed([_link(row) for row in rows], most))


def _told(
    found: Sequence[X],
    tell: Callable[[X], tuple[Measured, str]],
    separator: str = ", ",
    more: str = ", and {} more",
) -> Pieces:
    """Return links to rows with what there is to tell of each; those a sentence does not hold are counted."""
    pieces: list[str | RowLink] = []
    for row, text in map(tell, found[:_MOST_CELLS]):
        pieces += [separator if pieces else "", _link(row), text]
    return (*pieces, more.format(len(found) - _MOST_CELLS) if found[_MOST_CELLS:] else "")


def _memory(
    instrument: Instrument, rows: Sequence[Measured], found: Highlights, unit: MemoryUnit
) -> Sentence:
    def tell(row: Measured) -> tuple[Measured, str]:
        peak, full = row.peak(instrument), row.against_full
        text = f" with {unit.show(peak.peak_bytes if peak else None)}"
        if full and (by := full.memory_share(instrument)) is not None:
            text += f" ({change(by, 'less than', 'more than', 'as much as')} full fine-tuning)"
        return row, text

    beyond = len(rows) - _MOST_CELLS
    more = f", and {counted(beyond, 'cell')} that need{'s' if beyond == 1 else ''} more"
    bad = len(found.rows) - len(found.ok)
    unread = f"; {bad} of {len(found.rows)} cells did not end ok and have no reading" if bad else ""
    pieces = _told(rows, tell, ", then ", more)
    about = "Least memory" if len(rows) > 1 else "Peak memory"
    return Sentence(f"{about} ({INSTRUMENT_NAMES[instrument]})", (*pieces, f"{unread}."))


def _span(shares: Collection[float], *, unit: bool = False) -> str:
    """Write the least and the largest share, or one where both look the same; the unit once or twice."""
    low, high = share(min(shares), 0), share(max(shares), 0)
    return high if low == high else f"{low if unit else low.removesuffix(' %')} to {high}"


def _fastest(row: Measured, level: Sequence[Measured], *, alone: bool) -> Sentence:
    speed, full = row.throughput, row.against_full
    assert speed is not None  # noqa: S101 - chosen for its speed
    text = (
        f" trains {significant(speed.tokens_per_second)} tokens/s{' while throttled' * speed.throttled} "
        f"({significant(speed.low)} to {significant(speed.high)}, {speed.spread})"
    )
    if full and full.speed_ratio is not None:
        overlap = ", not distinguishable (ranges overlap)" * full.speeds_overlap
        text += f", {full.speed_ratio:.2f} times full fine-tuning's speed{overlap}"
    if alone:
        return Sentence("Speed", (_link(row), f"{text}."))
    if not level:
        return Sentence("Fastest", (_link(row), f"{text}; no other range reaches its own."))
    text += ". Not clearly slower (ranges overlap): "
    return Sentence("Fastest", (_link(row), text, *_listed(level), "."))


def _speeds(found: Highlights) -> Iterator[Sentence]:
    def tell(one: Contrast) -> tuple[Measured, str]:
        overlap = " (not distinguishable: ranges overlap)" if one.speeds_overlap else ""
        return one.measured, f" {one.speed_ratio:.2f}{overlap}"

    reservations = list(_reservations(found.ok))
    if found.speeds:
        pieces = (*_told(found.speeds, tell), f"{'. '.join(['', *reservations])}.")
        yield Sentence("Speed, full fine-tuning = 1", pieces)
    elif reservations:
        yield Sentence("Caution", (" ".join(f"{each}." for each in reservations),))


def _reservations(rows: Sequence[Measured]) -> Iterator[str]:
    speeds = [row.throughput for row in rows if row.throughput]
    if any(speed.trend.drift_share is None for speed in speeds):
        yield "Throughput is approximate: too few steps were measured to see whether it drifted"
    elif any(speed.rough for speed in speeds):
        yield f"Throughput is approximate: some runs drifted by more than {share(ROUGH_DRIFT_SHARE, 0)}"
    if speeds and rows[0].device == "cpu":
        yield "Measured on a CPU; do not extrapolate to GPUs"


def _most_accurate(task: str, row: Measured, others: Sequence[Contrast], *, alone: bool) -> Sentence:
    result = row.accuracy(task)
    assert result is not None  # noqa: S101 - chosen for its accuracy
    after = result.after_seeds
    text = f" answers {share(result.after)}"
    if after and after.p_value is not None and len(result.seeds) > 1:
        text += f" ({interval(after.low, after.high)} over {len(result.seeds)} seeds)"
    elif result.after_error is not None:
        text += f" ± {result.after_error * 100:.1f}"
    pieces: list[str | RowLink] = [_link(row), f"{text} of {result.items} questions after training."]
    compared = [(each.measured, one) for each in others if (one := each.accuracy(task))]
    for about, significantly in (("Significantly less accurate", True), ("No significant difference", False)):
        alike = [(each, one) for each, one in compared if one.significant is significantly]
        if alike:
            told = _told(alike, lambda pair: (pair[0], f" ({difference(pair[1])})"), more=" and {} more")
            pieces += [f" {about}: ", *told, "."]
    if len(compared) < len(others):
        pieces.append(" The rest answered other questions and cannot be compared.")
    if compared:
        several = any(len(one.seeds) > 1 for _, one in compared)
        over = "over training seeds" if several else "over these questions, one training run each"
        pieces.append(f" (Significant: p < {SIGNIFICANT_P} {over}.)")
    return Sentence(f"{'Accuracy' if alone else 'Most accurate'} on {task}", tuple(pieces))


def difference(one: AccuracyDifference) -> str:
    """Write a difference of accuracies in points with its p-value."""
    p = p_value(one.p_value) if one.p_value is not None else "the same in all seeds"
    return f"{points(one.share)}, {p}"


def points(difference_share: float, *, sign: bool = False) -> str:
    """Write a difference of two shares in percentage points."""
    plus = "+" if sign and difference_share > 0 else ""
    return f"{plus}{share(difference_share).removesuffix(' %')} points"


def interval(low: float | None, high: float | None) -> str:
    return f"{share(low).removesuffix(' %')} to {share(high)}"


def _drivers(found: Contrast) -> tuple[str, str]:
    return found.measured.cell.loop.driver, found.base.cell.loop.driver


def _loops(
    drivers: tuple[str, str], found: Sequence[Contrast], tasks: Sequence[str], unit: MemoryUnit
) -> Sentence:
    """Say what each method needs in one loop instead of another, and why where that is known."""

    def tell(one: Contrast) -> tuple[Measured, str]:
        by = one.memory_share("ledger") or 0.0
        why = reason_in_words(one.reason, by, drivers[0], unit)
        return one.measured, f": {_contrast(one, tasks) or 'not measured'}{why}"

    return Sentence(" instead of ".join(drivers), (*_told(found, tell, "; "), "."))


def _contrast(found: Contrast, tasks: Sequence[str]) -> str:
    """Say what one cell needs and brings against another: memory, speed, accuracy."""
    told = [
        f"{change(by, 'less', 'more', 'as much')} memory by {INSTRUMENT_NAMES[instrument]}"
        for instrument in HEADLINES[found.measured.device][:2]
        if (by := found.memory_share(instrument)) is not None
    ]
    if found.disturbed:
        told.append("speed not compared (others disturbed it)")
    elif found.speed_ratio is not None:
        speed = change(found.speed_ratio - 1, "slower", "faster", "as fast")
        told.append(f"speed not distinguishable ({speed}, ranges overlap)" if found.speeds_overlap else speed)
    for task in tasks:
        if one := found.accuracy(task):
            verdict = "significant" if one.significant else "not significant"
            told.append(f"{points(one.share)} on {task} ({p_value(one.p_value or 1.0)}, {verdict})")
    return ", ".join(told)


def _causes(rows: Sequence[Measured]) -> Iterator[Sentence]:
    found = grouped(
        ((row.cause.peak_phase, row.cause.peak_op), (row, row.cause)) for row in rows if row.cause
    )
    for (phase, op), alike in found.items():
        modules = dict.fromkeys(cause.peak_module or "outside any module" for _, cause in alike)
        during = f"{phase} pass" if phase in {"forward", "backward"} else words(phase)
        told = f": {operator(op)} in {' or '.join(modules)}, in the {during}."
        yield Sentence("What set the peak of live tensors", (*_listed(row for row, _ in alike), told))


def _remedies(rows: Sequence[Measured]) -> Iterator[Sentence]:
    """Yield what to try where memory is short, by the largest part of the peak and what the method allows."""
    parts = [(row, row.cause.largest_category, row.cause.largest_share) for row in rows if row.cause]
    found = grouped(((part, _remedy(part, row)), (row, size)) for row, part, size in parts)
    for (part, remedy), alike in found.items():
        span = _span([size for _, size in alike], unit=True)
        told = f": the largest part is {words(part)} ({span}); try {remedy}."
        advice = f" {_ADVICE}" if (part, remedy) == list(found)[-1] else ""
        yield Sentence("To need less", (*_listed(row for row, _ in alike), told + advice))


def _remedy(part: Category, row: Measured) -> str:
    """Return what can be tried: nothing that the cell does already."""
    full, no_checkpointing = row.kind == "full", row.cell.training.gradient_checkpointing == "off"
    fewer = "an adapter (lora), which trains fewer parameters" if full else "fewer trained parameters"
    of_weights = {
        "full": "adapters on a frozen base (lora), which can be quantised as well (qlora)",
        "qlora": "a smaller model, since the base is quantised already",
    }
    remedies: dict[Category, str] = {
        "weights": of_weights.get(row.kind, "a quantised base (qlora)"),
        "quantisation_state": "quantised block scales (double_quantisation)",
        "gradients": fewer,
        "optimizer_state": f"an optimizer with 8-bit or paged state, or {fewer}",
        "activations": f"gradient checkpointing, {_SMALLER}" if no_checkpointing else _SMALLER,
        "logits": f"a loss in chunks, {_SMALLER}",
    }
    return remedies.get(part, _SMALLER)


def trained_with(found: Highlights) -> Sentence:
    """Return what all rows share, then what differs between them and where."""
    devices = dict.fromkeys(row.device_name for row in found.ok) or {found.rows[0].device: None}
    shared, differing = [f"{found.rows[0].model} on {' and '.join(devices)}"], []
    for name, values in found.settings.items():
        if len(values) == 1:
            shared.append(f"{name} {next(iter(values))}")
        else:
            by_value = (f"{value} ({' and '.join(methods)})" for value, methods in values.items())
            differing.append(f"{name} {', '.join(by_value)}")
    differs = f" Differs: {'; '.join(differing)}." if differing else ""
    return Sentence("Trained with", (f"{'; '.join(shared)}.{differs}",))
