"""The highlights of a comparison as sentences that link to their rows, for Markdown, terminal and HTML alike.

Every number is in a table too.
"""

from collections.abc import Iterator, Mapping, Sequence

from bench.compare.accuracy import AccuracyDifference
from bench.compare.caveats import COMMIT
from bench.compare.comparison import Comparison
from bench.compare.highlights import Highlights
from bench.compare.measured import Contrast, Measured
from bench.compare.readings import ROUGH_DRIFT_SHARE
from bench.errors import counted
from bench.metrics import HEADLINES, INSTRUMENT_NAMES, Instrument
from bench.records.readings import Category
from bench.report.text import (
    MemoryUnit,
    RowLink,
    Sentence,
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


def opening(comparison: Comparison) -> str:
    """Return how many cells there are, how they ended, and whether they come from one environment."""
    total = len(comparison.rows)
    cells = counted(total, "cell")
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
    yield from _without_full(found.ok)
    if found.fastest:
        yield _fastest(*found.fastest, alone=len(found.ok) == 1)
    if found.speeds:
        yield _speeds(found)
    elif reservations := [f"{each}." for each in _speed_reservations(found.ok)]:
        yield Sentence("Caution", (" ".join(reservations),))
    for task, (row, others) in found.most_accurate.items():
        yield _most_accurate(task, row, others, alone=len(found.ok) == 1)
    for contrast in found.qlora_vs_lora:
        yield _qlora_vs_lora(contrast, list(found.most_accurate))
    yield from _causes(found.ok)
    yield from _remedies(found.ok)
    if changed := [row for row in found.ok if row.merge and not row.merge.within_tolerance]:
        pieces = ("Do not merge ", *_listed(changed), f" {_merging(changed)}")
        yield Sentence("Merging", pieces)
    yield trained_with(found)


def _link(row: Measured) -> RowLink:
    return RowLink(row.method, row.key)


def _listed(rows: Sequence[Measured]) -> tuple[str | RowLink, ...]:
    return tuple(listed([_link(row) for row in rows]))


def _memory(
    instrument: Instrument, rows: Sequence[Measured], found: Highlights, unit: MemoryUnit
) -> Sentence:
    pieces: list[str | RowLink] = []
    for row in rows[:_MOST_CELLS]:
        peak, full = row.peak(instrument), row.against_full
        change = full.memory_share(instrument) if full else None
        size = unit.show(peak.peak_bytes if peak else None)
        pieces += [", then " if pieces else "", _link(row), f" with {size}"]
        if change is not None:
            told = _change(change, "less than", "more than", "as much as")
            pieces.append(f" ({told} full fine-tuning)")
    beyond = len(rows) - _MOST_CELLS
    end = f", and {counted(beyond, 'cell')} that need{'s' if beyond == 1 else ''} more" if beyond > 0 else ""
    if unmeasured := len(found.rows) - len(found.ok):
        end += f"; {unmeasured} of {len(found.rows)} cells did not end ok and have no reading"
    about = "Least memory" if len(rows) > 1 else "Peak memory"
    return Sentence(f"{about} ({INSTRUMENT_NAMES[instrument]})", (*pieces, f"{end}."))


def _without_full(rows: Sequence[Measured]) -> Iterator[Sentence]:
    """Yield which cells have no saving and no relative speed, by the reason."""
    for reason in dict.fromkeys(row.no_reference for row in rows if row.no_reference):
        alike = [_link(row) for row in rows if row.no_reference == reason]
        yield Sentence("Not set against full", (*listed(alike, _MOST_CELLS), f": {reason}."))


def _change(change: float, less: str, more: str, same: str) -> str:
    """Write a change without its sign; one that rounds to zero is none."""
    text = share(abs(change), 0)
    return same if text == share(0.0, 0) else f"{text} {less if change < 0 else more}"


def _fastest(row: Measured, level: Sequence[Measured], *, alone: bool) -> Sentence:
    speed, full = row.throughput, row.against_full
    assert speed is not None  # noqa: S101 - chosen for its speed
    throttled = " while throttled" if speed.throttled else ""
    text = (
        f" trains {significant(speed.tokens_per_second)} tokens/s{throttled} "
        f"({significant(speed.low)} to {significant(speed.high)}, {speed.spread})"
    )
    if full and full.speed_ratio is not None:
        overlap = ", not distinguishable (ranges overlap)" if full.speeds_overlap else ""
        text += f", {full.speed_ratio:.2f} times full fine-tuning's speed{overlap}"
    if alone:
        return Sentence("Speed", (_link(row), f"{text}."))
    if not level:
        return Sentence("Fastest", (_link(row), f"{text}; no other range reaches its own."))
    text += ". Not clearly slower (ranges overlap): "
    return Sentence("Fastest", (_link(row), text, *_listed(level), "."))


def _speeds(found: Highlights) -> Sentence:
    pieces: list[str | RowLink] = []
    for full in found.speeds[:_MOST_CELLS]:
        overlap = " (not distinguishable: ranges overlap)" if full.speeds_overlap else ""
        pieces += [", " if pieces else "", _link(full.measured), f" {full.speed_ratio:.2f}{overlap}"]
    if len(found.speeds) > _MOST_CELLS:
        pieces.append(f", and {len(found.speeds) - _MOST_CELLS} more")
    text = ". ".join(["", *_speed_reservations(found.ok)])
    return Sentence("Speed, full fine-tuning = 1", (*pieces, f"{text}."))


def _speed_reservations(rows: Sequence[Measured]) -> Iterator[str]:
    """Yield why speeds of these rows are to be taken with care, if they are."""
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
    worse = [(each, one) for each, one in compared if one.significant]
    level = [(each, one) for each, one in compared if not one.significant]
    if worse:
        pieces += [" Significantly less accurate: ", *_with_p(worse), "."]
    if level:
        pieces += [" No significant difference: ", *_with_p(level), "."]
    if len(compared) < len(others):
        pieces.append(" The rest answered other questions and cannot be compared.")
    if compared:
        several = any(len(one.seeds) > 1 for _, one in compared)
        over = "over training seeds" if several else "over these questions, one training run each"
        pieces.append(f" (Significant: p < {SIGNIFICANT_P} {over}.)")
    return Sentence(f"{'Accuracy' if alone else 'Most accurate'} on {task}", tuple(pieces))


def _with_p(pairs: Sequence[tuple[Measured, AccuracyDifference]]) -> Iterator[str | RowLink]:
    for index, (row, one) in enumerate(pairs[:_MOST_CELLS]):
        yield ", " if index else ""
        yield _link(row)
        yield f" ({difference(one)})"
    if len(pairs) > _MOST_CELLS:
        yield f" and {len(pairs) - _MOST_CELLS} more"


def difference(one: AccuracyDifference) -> str:
    """Write a difference of accuracies in points with its p-value."""
    text = f"{points(one.share)}"
    return f"{text}, {p_value(one.p_value)}" if one.p_value is not None else f"{text}, the same in all seeds"


def points(difference_share: float, *, sign: bool = False) -> str:
    """Write a difference of two shares in percentage points."""
    plus = "+" if sign and difference_share > 0 else ""
    return f"{plus}{share(difference_share).removesuffix(' %')} points"


def interval(low: float | None, high: float | None) -> str:
    """Write two shares as a range."""
    return f"{share(low).removesuffix(' %')} to {share(high)}"


def _qlora_vs_lora(found: Contrast, tasks: Sequence[str]) -> Sentence:
    told = [
        f"{_change(change, 'less', 'more', 'as much')} memory by {INSTRUMENT_NAMES[instrument]}"
        for instrument in HEADLINES[found.measured.device][:2]
        if (change := found.memory_share(instrument)) is not None
    ]
    if found.speed_ratio is not None:
        speed = _change(found.speed_ratio - 1, "slower", "faster", "as fast")
        told.append(f"speed not distinguishable ({speed}, ranges overlap)" if found.speeds_overlap else speed)
    for task in tasks:
        if one := found.accuracy(task):
            verdict = "significant" if one.significant else "not significant"
            told.append(f"{points(one.share)} on {task} ({p_value(one.p_value or 1.0)}, {verdict})")
    text = f": {', '.join(told) or 'not measured'}."
    return Sentence("QLoRA instead of LoRA", (_link(found.measured), " against ", _link(found.base), text))


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


def _merging(rows: Sequence[Measured]) -> str:
    """Return into what not to merge these rows' adapters, and what it does to the logits."""
    shares = sorted(row.merge.worst_share for row in rows if row.merge)
    low, high = share(shares[0], 0), share(shares[-1], 0)
    span = high if low == high else f"{low.removesuffix(' %')} to {high}"
    base = "the quantised base" if any(row.kind == "qlora" for row in rows) else "the base"
    return f"into {base} here: a logit changes by {span} of the largest."


def trained_with(found: Highlights) -> Sentence:
    """Return what all rows share, then what differs between them and where."""
    settings = found.settings
    shared = [f"{name} {value}" for name, values in settings.items() if len(values) == 1 for value in values]
    devices = dict.fromkeys(row.device_name for row in found.ok) or {found.rows[0].device: None}
    text = "; ".join([f"{found.rows[0].model} on {' and '.join(devices)}", *shared])
    differing = [_differing(name, values) for name, values in settings.items() if len(values) > 1]
    differs = f" Differs: {'; '.join(differing)}." if differing else ""
    return Sentence("Trained with", (f"{text}.{differs}",))


def _differing(name: str, values: Mapping[str, Sequence[str]]) -> str:
    return f"{name} " + ", ".join(f"{value} ({' and '.join(methods)})" for value, methods in values.items())


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
    if part == "activations" and row.cell.training.gradient_checkpointing == "off":
        return f"gradient checkpointing, {_SMALLER}"
    return f"a loss in chunks, {_SMALLER}" if part == "logits" else _SMALLER
