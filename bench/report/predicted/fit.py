"""What fits: bounds for the terminal and as Markdown, and what a plan says of its cells in sentences."""

import math
from collections.abc import Collection, Iterator, Sequence

from rich.console import Group
from rich.text import Text

from bench.compare import Reason
from bench.compare.plans import PlanRow, card_counts, card_fits, loop_changes, remedies
from bench.records.predictions import Answer, Bound, Fit, Plan
from bench.records.readings import Category, Caveat
from bench.report.columns import TerminalTable
from bench.report.predicted.speed import over_several, settings_table
from bench.report.tables import Writer, described_table
from bench.report.text import (
    GIBIBYTES,
    NOT_APPLICABLE,
    MemoryUnit,
    RowLink,
    Sentence,
    Table,
    bullets,
    grouped,
    markdown,
    markdown_table,
    notes,
    plain,
    said,
    share,
    texts,
    words,
)
from bench.scenario.catalogue import Card
from bench.scenario.platform import Platform

_SAID = texts("predictions")
WHAT_SET_IT, PREDICTED = _SAID["set_peak"], _SAID["predicted"]
_AXES = {"micro_batch": "micro-batch", "sequence_length": "sequence length", "rank": "rank"}
_STEPS_OF_DOUBLING = 4
MOST_SENTENCES = 8
_MOST_METHODS = 12
_WHY: dict[tuple[str, Category], str] = {("trl-sft", "logits"): "the loss in chunks"}
"""Why a loop needs less of a category than others do."""
_ANSWERS: tuple[tuple[Answer, str, str], ...] = (
    ("fits", "fits", "fit"),
    ("does not fit", "does not fit", "do not fit"),
    ("too close to call", "is too close to call", "are too close to call"),
)
_SETTINGS = {"ckpt": "gradient checkpointing", "pack": "packed sequences", "b1": "a batch of one sequence"}


def render_markdown(fit: Fit) -> str:
    listed_notes = bullets(markdown(note) for note in _notes(fit))
    over = bullets(markdown(sentence) for sentence in gpu_sentences(fit))
    over = f"How many GPUs:\n\n{over}\n\n" if over else ""
    table = settings_table(fit)
    fastest = f"Fastest settings that fit:\n\n{markdown_table(table)}\n\n" if table.rows else ""
    return (
        f"# {markdown(_title(fit))}\n\nLargest micro-batch at each sequence length:\n\n"
        f"```\n{frontier(fit)}\n```\n\n{over}{markdown_table(_bounds(fit))}\n\n{fastest}"
        f"How to read it:\n\n{listed_notes}\n"
    )


def render_terminal(fit: Fit) -> Group:
    table = settings_table(fit)
    return Group(
        Text(f"{_title(fit)}\n\nlargest micro-batch at each sequence length:\n\n{frontier(fit)}\n"),
        *(Text(plain(f"- {sentence}")) for sentence in gpu_sentences(fit)),
        TerminalTable(_bounds(fit), "Every bound, predicted on both sides"),
        *([TerminalTable(table, "Fastest settings that fit")] if table.rows else []),
        *(Text(plain(f"- {note}")) for note in _notes(fit)),
    )


def _title(fit: Fit) -> str:
    return f"{fit.model} on {fit.card.title}: what fits"


def frontier(fit: Fit) -> str:
    """Return the largest batch at each length as bars, one line a method; a doubling is one step longer."""
    bounds = [bound for bound in fit.bounds if bound.axis == "micro_batch"]
    width = max((len(_called(fit, bound)) for bound in bounds), default=0)
    groups: dict[int, list[str]] = {}
    for bound in bounds:
        line = f"{bound.sequence_length:>7,}  {_called(fit, bound):<{width}}  {_bar(bound)}"
        groups.setdefault(bound.sequence_length, []).append(line)
    return "\n\n".join("\n".join(lines) for lines in groups.values())


def _bar(bound: Bound) -> str:
    if bound.refusal is not None:
        return "cannot be predicted"
    if bound.fits is None:
        return "1 is borderline" if bound.borderline else "not even 1"
    size = bound.fits.value
    beyond = " or more" if bound.next is None else ""
    return f"{'█' * (1 + round(math.log2(size) * _STEPS_OF_DOUBLING))} {size:,}{beyond}"


def _bounds(fit: Fit) -> Table:
    def held(bound: Bound) -> str:
        values = {
            "micro_batch": f"batch {bound.micro_batch}",
            "sequence_length": f"length {bound.sequence_length:,}",
            "rank": None if bound.rank is None else f"rank {bound.rank}",
        }
        return ", ".join(text for axis, text in values.items() if axis != bound.axis and text)

    def verdict(bound: Bound) -> str:
        if bound.refusal is not None:
            return "cannot be predicted"
        if bound.next is None:
            return f"{bound.limit:,} is the limit"
        answer = bound.next.verdict.answer
        return f"borderline ({answer})" if bound.borderline else answer

    writers: dict[str, Writer] = {
        "method": lambda bound: _called(fit, bound),
        "axis": _AXES.__getitem__,
        "held": held,
        "value": lambda tried: f"{tried.value:,}" if tried else NOT_APPLICABLE,
        "needed": lambda tried: GIBIBYTES.show(tried.verdict.needed_bytes) if tried else NOT_APPLICABLE,
        "verdict": verdict,
    }
    return described_table("bounds", fit.bounds, writers)


def _notes(fit: Fit) -> list[str]:
    return notes(
        "fit_notes.j2",
        fit=fit,
        called=lambda bound: _called(fit, bound),
        memory=_memory_of(fit.card),
        steps={_AXES[bound.axis]: bound.step for bound in fit.bounds if bound.step > 1},
        show=GIBIBYTES.show,
        caveats=[caveat.message for bound in fit.bounds for caveat in bound.caveats],
        assumed={one.speed.assumed for one in fit.settings if one.speed.assumed},
        refused=grouped((one.speed.refused, one.method) for one in fit.settings if one.speed.refused),
    )


def _called(fit: Fit, bound: Bound) -> str:
    """Name a method, with its number of GPUs where there are several numbers."""
    return plain(bound.method) + (f" on {bound.gpus}" if fit.over_several else "")


def gpu_sentences(fit: Fit) -> list[str]:
    """Say how many GPUs each method needs, and where one card does as much; nothing of one number of them."""
    if not fit.over_several:
        return []
    bounds = [bound for bound in fit.bounds if bound.axis == "micro_batch" and bound.refusal is None]
    alike = grouped(((one.sequence_length, one.method), one) for one in bounds)
    return notes("fit_gpus.j2", methods=alike, beaten=[*_beaten(bounds)])


def _beaten(bounds: Sequence[Bound]) -> Iterator[tuple[Bound, Bound]]:
    """Yield each adapter that takes as many sequences on one GPU as full fine-tuning over several."""
    for adapter in bounds:
        if adapter.gpus > 1 or adapter.method == "full" or not adapter.fits:
            continue
        least = adapter.fits.value
        several = [
            one
            for one in bounds
            if (one.method, one.sequence_length) == ("full", adapter.sequence_length)
            if one.gpus > 1 and (one.fits is None or one.gpus * one.fits.value <= least)
            if one.fits or not one.borderline
        ]
        if several:
            yield adapter, max(several, key=lambda one: one.gpus)


def _memory_of(card: Card) -> str:
    usable, context = GIBIBYTES.show(card.usable_bytes), GIBIBYTES.show(card.context_bytes)
    assumed = f"; {', '.join(card.assumptions)}" if card.assumptions else ""
    return f"{usable} usable, CUDA context {context}{assumed}."


def fit_sentences(plan: Plan) -> list[Sentence]:
    """Return what fits which card, the largest length first; on a ladder of cards the smallest that fits.

    Nothing is returned where no card was asked about.
    """
    asked = [(model, length) for model in card_fits(plan) for length in model.sequence_lengths]
    return said(
        "fits.j2",
        lambda need: RowLink(need.method, need.cell),
        asked=sorted(asked, key=lambda each: -each[1]),
        plan=plan,
        unit=GIBIBYTES,
        most=_MOST_METHODS,
        settings=_SETTINGS,
        card_size=card_size,
    )


def loop_sentences(plan: Plan, rows: Sequence[PlanRow]) -> list[Sentence]:
    """Return what each cell takes in one loop instead of another, and why where that is known."""
    return said(
        "loops.j2",
        lambda one: RowLink(one.cell, one.cell),
        loops=grouped(((one.driver, one.other), one) for one in loop_changes(plan, rows)),
        tensors="allocated" if plan.cards else "live",
        unit=GIBIBYTES,
        change=change,
        reason_in_words=reason_in_words,
    )


def change(by: float, less: str, more: str, same: str) -> str:
    """Write a change without its sign; one that rounds to zero is none."""
    text = share(abs(by), 0)
    return same if text == share(0.0, 0) else f"{text} {less if by < 0 else more}"


def reason_in_words(reason: Reason | None, by: float, driver: str, unit: MemoryUnit) -> str:
    """Say in brackets which category of tensors makes a change of the peak; nothing of one that is none."""
    if reason is None or change(by, "less", "more", "") == "":
        return ""
    here, there = unit.show(reason.bytes_here), unit.show(reason.bytes_there)
    known = _WHY.get((driver, reason.category)) if reason.bytes_here < reason.bytes_there else None
    return f" ({words(reason.category)} {here} instead of {there}{f': {known}' if known else ''})"


def card_size(card: Card) -> str:
    """Write a card's memory in whole GiB."""
    return f"{GIBIBYTES.scaled(card.memory_bytes):.0f} GiB"


def plan_sentences(plan: Plan, rows: Sequence[PlanRow]) -> list[str]:
    refused = sum(row.forecast is None for row in rows)
    return notes(
        "plan_sentences.j2",
        plan=plan,
        rows=rows,
        refused=refused,
        nowhere=sum(row.forecast is not None and bool(row.verdicts) and not row.fitting for row in rows),
        card_counts=() if plan.ladder or refused == len(rows) else card_counts(plan),
        answers=_ANSWERS,
        remedies=remedies(plan, rows),
        either=lambda changes: " or ".join(filter(None, (", ".join(changes[:-1]), changes[-1]))),
    )


def notes_on(plan: Plan, rows: Sequence[PlanRow], template: str = "plan_notes.j2") -> list[str]:
    forecasts = [row.forecast for row in rows if row.forecast]
    if not forecasts:
        return []
    platforms = {platform for forecast in forecasts for platform in forecast.platforms}
    verdicts = [verdict for planned in plan.cells for verdict in planned.verdicts]
    speeds = [verdict.tokens_per_second for verdict in verdicts if verdict.tokens_per_second]
    speeds += [speed for forecast in forecasts for speed in forecast.speeds]  # of a CPU, which judges nothing
    return notes(
        template,
        plan=plan,
        worked=any(row.tokens for row in rows),
        scripts=any(planned.cell.loop.driver == "script" for planned in plan.cells),
        targets=_targets(platforms),
        on_cpu=any(platform.device == "cpu" for platform in platforms),
        what_set_it=WHAT_SET_IT,
        paged=any(forecast.paged_bytes for forecast in forecasts),
        cards=card_notes(plan),
        speeds=any(not speed.refused for speed in speeds),
        several=over_several(rows),
        assumed=grouped((speed.assumed, speed.card) for speed in speeds if speed.assumed),
        refused=grouped((speed.refused, speed.card) for speed in speeds if speed.refused),
        caveats=[caveat.message for forecast in forecasts for caveat in sorted(forecast.caveats, key=_aside)],
    )


def _aside(caveat: Caveat) -> bool:
    """Tell what concerns few readers, and stands last: a terminal without --details shows the first two."""
    return caveat.code == "values-assumed"


def card_notes(plan: Plan) -> Iterator[str]:
    """Yield what each card is taken to have, and what of it is assumed."""
    return (f"{card.name}: {card.title}, {_memory_of(card)}" for card in plan.cards)


def _targets(platforms: Collection[Platform]) -> str:
    versions = {f"torch {one.torch}, bitsandbytes {one.bitsandbytes}" for one in platforms}
    cuda = sorted({one.capability for one in platforms if one.device == "cuda"})
    capabilities = " and ".join(f"{major}.{minor}" for major, minor in cuda)
    names = [f"CUDA compute capability {capabilities}"] if cuda else []
    names += ["the CPU"] if any(one.device == "cpu" for one in platforms) else []
    return f"{' and '.join(names)} ({'; '.join(sorted(versions))})"


def why_untried(plan: Plan) -> list[str]:
    """Say why no changes are shown, where none were tried."""
    tried = any(one.changes is not None or one.cell.loop.driver == "script" for one in plan.cells)
    return [] if tried else [_SAID["untried"]]
