"""Which methods of a plan fit, in sentences by model, length and card that lead to rows; no arithmetic."""

from collections.abc import Iterator, Sequence

from bench.compare.plans import CardStep, FitsOnCard, Fitting, Ladder, ModelFits, Need, card_fits, ladders
from bench.records.plans import Plan
from bench.report.linked import Pieces, RowLink, Sentence, listed
from bench.report.text import GIBIBYTES

MOST_SENTENCES = 8
_MOST_METHODS = 12
_SETTINGS = {"ckpt": "gradient checkpointing", "pack": "packed sequences", "b1": "a batch of one sequence"}


def fit_sentences(plan: Plan) -> tuple[Sentence, ...]:
    """Return what fits which card, the largest length first; on a ladder of cards the smallest that fits.

    Nothing is returned where no card was asked about.
    """
    models = card_fits(plan)
    if plan.ladder:
        return tuple(_on_ladder(one) for one in ladders(models))
    lengths = sorted({length for model in models for length in model.sequence_lengths}, reverse=True)
    return tuple(
        sentence
        for length in lengths
        for model in models
        if length in model.sequence_lengths
        for card in model.cards
        for sentence in _of_card(model, model.at(card.name, length))
    )


def _of_card(model: ModelFits, fit: FitsOnCard) -> Iterator[Sentence]:
    parts = [_fits(one) for one in fit.fitting]
    parts += [_fails(needs, told) for needs, told in _failing(fit) if needs]
    if parts:
        about = f"{model.model} at {fit.sequence_length:,} tokens, {fit.card.name}"
        yield Sentence(about, _joined(parts))


def _failing(fit: FitsOnCard) -> Iterator[tuple[Sequence[Need], tuple[str, str]]]:
    yield fit.close, ("is too close to call", "are too close to call")
    yield fit.not_fitting, ("does not fit", "do not fit")


def _joined(parts: Sequence[Pieces]) -> Pieces:
    ends = ["; "] * (len(parts) - 1) + ["."]
    return tuple(piece for part, end in zip(parts, ends, strict=True) for piece in (*part, end))


def _fits(one: Fitting) -> Pieces:
    """Say which methods fit, with which settings only, and what they need."""
    told = " fits" if len(one.needs) == 1 else " fit"
    if one.always:
        told += f" only with {' and '.join(_SETTINGS.get(name, name) for name in one.always)}"
    elif len(one.windows) < one.tried:
        told += f" with {' or '.join(one.windows)}, not with all {one.tried} settings tried"
    return (*_methods(one.needs), f"{told} ({GIBIBYTES.span(one.low_bytes, one.high_bytes)} needed)")


def _fails(needs: Sequence[Need], told: tuple[str, str]) -> Pieces:
    least = min(needs, key=lambda need: need.needed_bytes)
    said = told[0] if len(needs) == 1 else told[1]
    return (*_methods(needs), f" {said} (at least {GIBIBYTES.show(least.needed_bytes)} needed)")


def _methods(needs: Sequence[Need]) -> Iterator[str | RowLink]:
    yield from listed([RowLink(need.method, need.cell) for need in needs], _MOST_METHODS)


def _on_ladder(one: Ladder) -> Sentence:
    parts: list[Pieces] = [_step(step) for step in one.steps]
    if one.nowhere:
        parts.append(_fails(one.nowhere, ("fits for certain on none", "fit for certain on none")))
    about = f"{one.model} at {one.sequence_length:,} tokens, smallest card that fits"
    return Sentence(about, _joined(parts) if parts else ("no cell could be judged.",))


def _step(step: CardStep) -> Pieces:
    size = f"{GIBIBYTES.scaled(step.card.memory_bytes):.0f} GiB"
    return (f"{step.card.name} ({size}) for ", *_methods(step.needs))
