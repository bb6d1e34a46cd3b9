"""The answers of a comparison as sentences that link to their rows; every number is in the table too."""

from collections.abc import Iterator, Sequence

from bench.compare.answers import Answers, Exchange, Fastest, MostAccurate
from bench.compare.measured import Instrument, Measured
from bench.records.stored import Category
from bench.report.comparison_columns import INSTRUMENT_NAMES
from bench.report.linked import RowLink, Sentence, listed
from bench.report.operators import operator
from bench.report.recipe import recipe
from bench.report.sentences import merging, speed_reservations, times_full
from bench.report.text import MemoryUnit, p_value, share, significant, words
from bench.stats.paired import SIGNIFICANT_P, Paired

_SMALLER = "a smaller batch or shorter sequences"
_ADVICE = "bench plan SCENARIO --advice predicts what each change frees."


def answer_sentences(found: Answers, unit: MemoryUnit) -> Iterator[Sentence]:
    """Yield what is known of one group, the question first that readers ask first."""
    for instrument, row in found.least_memory.items():
        yield _least_memory(instrument, row, found.rows, unit)
    if found.fastest:
        yield _fastest(found.fastest)
    if found.against_full:
        yield _speeds(found)
    for one in found.most_accurate:
        yield _most_accurate(one)
    for exchange in found.exchanges:
        yield _exchange(exchange)
    yield from _causes(found.rows)
    yield from _remedies(found.rows)
    yield from _merging(found.rows)
    yield Sentence("Trained with", (recipe(found.rows),))


def _link(row: Measured) -> RowLink:
    return RowLink(row.method, row.key)


def _listed(rows: Sequence[Measured]) -> tuple[str | RowLink, ...]:
    return tuple(listed([_link(row) for row in rows]))


def _least_memory(
    instrument: Instrument, row: Measured, rows: Sequence[Measured], unit: MemoryUnit
) -> Sentence:
    peak = row.peak(instrument)
    assert peak is not None  # noqa: S101 - chosen for its peak
    told = f" needs least, {unit.show(peak.peak_bytes)}"
    if peak.saving_share is not None:
        told += f", {share(peak.saving_share, 0)} less than full fine-tuning"
    unmeasured = sum(other.outcome != "ok" for other in rows)
    if unmeasured:
        told += f"; {unmeasured} of {len(rows)} cells did not end ok and have no reading"
    return Sentence(f"Least memory ({INSTRUMENT_NAMES[instrument]})", (_link(row), f"{told}."))


def _fastest(found: Fastest) -> Sentence:
    speed = found.row.throughput
    assert speed is not None  # noqa: S101 - chosen for its speed
    told = (
        f" trains {significant(speed.tokens_per_second)} tokens/s "
        f"({significant(speed.low)} to {significant(speed.high)}, {speed.spread})"
    )
    if speed.against_full is not None:
        told += ", " + times_full(speed, "full fine-tuning's")
    if not found.level:
        return Sentence("Fastest", (_link(found.row), f"{told}; no other range reaches its own."))
    return Sentence(
        "Fastest",
        (
            _link(found.row),
            f"{told}. Not clearly slower, since the ranges meet: ",
            *_listed(found.level),
            ".",
        ),
    )


def _speeds(found: Answers) -> Sentence:
    pieces: list[str | RowLink] = []
    for row in found.against_full:
        if row.throughput:
            overlaps = " (ranges overlap: not told apart)" if row.throughput.against_full_overlaps else ""
            pieces += [", " if pieces else "", _link(row), f" {row.throughput.against_full:.2f}{overlaps}"]
    told = ". ".join(["", *speed_reservations(found.rows)])
    return Sentence("Speed, full fine-tuning = 1", (*pieces, f"{told}."))


def _most_accurate(found: MostAccurate) -> Sentence:
    error = "" if found.accuracy.after_error is None else f" ± {found.accuracy.after_error * 100:.1f}"
    told: list[str | RowLink] = [
        _link(found.row),
        f" answers {share(found.accuracy.after)}{error} of {found.accuracy.items} questions after training.",
    ]
    pairs = [(row, pair) for row, pair in found.others if pair is not None]
    worse = [(row, pair) for row, pair in pairs if pair.p_value < SIGNIFICANT_P]
    level = [(row, pair) for row, pair in pairs if pair.p_value >= SIGNIFICANT_P]
    if worse:
        told += [" Significantly less accurate: ", *_with_p(worse), "."]
    if level:
        told += [" No significant difference: ", *_with_p(level), "."]
    if len(pairs) < len(found.others):
        told.append(" The rest answered other questions and cannot be compared.")
    if pairs:
        told.append(f" (Significant: p < {SIGNIFICANT_P} over these questions, one training run each.)")
    return Sentence(f"Most accurate on {found.task}", tuple(told))


def _with_p(pairs: Sequence[tuple[Measured, Paired]]) -> Iterator[str | RowLink]:
    for index, (row, pair) in enumerate(pairs):
        yield ", " if index else ""
        yield _link(row)
        yield f" ({_points(pair)}, {p_value(pair.p_value)})"


def _points(pair: Paired) -> str:
    return f"{share(pair.difference_share).removesuffix(' %')} points"


def _exchange(found: Exchange) -> Sentence:
    told = [
        f"{share(abs(change), 0)} {'less' if change < 0 else 'more'} memory by {INSTRUMENT_NAMES[instrument]}"
        for instrument, change in found.memory_shares.items()
    ]
    if found.speed_share is not None:
        change = f"{share(abs(found.speed_share), 0)} {'slower' if found.speed_share < 0 else 'faster'}"
        told.append(f"speed not told apart ({change}, ranges overlap)" if found.speed_overlaps else change)
    if found.accuracy is not None:
        verdict = "significant" if found.accuracy.p_value < SIGNIFICANT_P else "not significant"
        told.append(
            f"{_points(found.accuracy)} on {found.task} ({p_value(found.accuracy.p_value)}, {verdict})"
        )
    pieces = (_link(found.qlora), " against ", _link(found.lora), f": {', '.join(told) or 'not measured'}.")
    return Sentence("QLoRA instead of LoRA", pieces)


def _causes(rows: Sequence[Measured]) -> Iterator[Sentence]:
    """Yield what set the peak, one sentence for cells in which it was the same operator."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in rows:
        if row.cause:
            groups.setdefault((row.cause.phase, row.cause.op), []).append(row)
    for (phase, op), alike in groups.items():
        modules = dict.fromkeys(row.cause.module or "outside any module" for row in alike if row.cause)
        told = f"{operator(op)} in {' or '.join(modules)}, in the {_during(phase)}"
        pieces = (*_listed(alike), f": {told}.")
        yield Sentence("What set the peak of live tensors", pieces)


def _during(phase: str) -> str:
    return f"{phase} pass" if phase in {"forward", "backward"} else words(phase)


def _remedies(rows: Sequence[Measured]) -> Iterator[Sentence]:
    """Yield what to try where memory is short, by the largest part of the peak and what the method allows."""
    groups: dict[tuple[Category, str], list[Measured]] = {}
    for row in rows:
        if row.cause:
            part = row.cause.largest_category
            groups.setdefault((part, _remedy(part, row)), []).append(row)
    for index, ((category, remedy), alike) in enumerate(groups.items(), start=1):
        shares = sorted(row.cause.largest_share for row in alike if row.cause)
        most = share(shares[-1], 0)
        span = most if share(shares[0], 0) == most else f"{share(shares[0], 0)} to {most}"
        told = f": the largest part is {words(category)} ({span}); try {remedy}."
        pieces = (*_listed(alike), f"{told} {_ADVICE}" if index == len(groups) else told)
        yield Sentence("To need less", pieces)


def _merging(rows: Sequence[Measured]) -> Iterator[Sentence]:
    """Yield which adapters are not to be merged into the base that they were trained on."""
    changed = [row for row in rows if row.merge and not row.merge.within_tolerance]
    if changed:
        yield Sentence("Merging", ("Do not merge ", *_listed(changed), f" {merging(changed)}"))


def _remedy(part: Category, row: Measured) -> str:
    """Return what can be tried: nothing that the cell does already."""
    full = row.kind == "full"
    if part == "weights":
        return {
            "full": "adapters on a frozen base (lora), which can be quantised as well (qlora)",
            "qlora": "a smaller model, since the base is quantised already",
        }.get(row.kind, "a quantised base (qlora)")
    if part == "quantisation_state":
        return "quantised block scales (double_quantisation)"
    fewer = "an adapter (lora), which trains fewer parameters" if full else "fewer trained parameters"
    if part == "gradients":
        return fewer
    if part == "optimizer_state":
        return f"an optimizer with 8-bit or paged state, or {fewer}"
    if part == "activations" and "gradient checkpointing" not in row.recipe:
        return f"gradient checkpointing, {_SMALLER}"
    return f"a loss in chunks, {_SMALLER}" if part == "logits" else _SMALLER
