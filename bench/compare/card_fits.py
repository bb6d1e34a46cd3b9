"""Which methods of a plan fit which card at which sequence length, over all windows that were tried."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.records.plans import CardVerdict, Plan
from bench.scenario.catalogue import Card


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a method needs on a card in the window in which it needs least; bytes with the CUDA context."""

    method: str
    cell: str
    needed_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Methods that fit in the same windows, of as many tried; a window is named without its length.

    ``needs`` are each method's in the window of these that takes least; ``high_bytes`` is the most that any
    takes in any. ``always`` are the settings that all of these windows have and some other tried has not.
    """

    needs: tuple[Need, ...]
    windows: tuple[str, ...]
    tried: int
    always: tuple[str, ...]
    low_bytes: int
    high_bytes: int


@dataclass(frozen=True, kw_only=True)
class CardFit:
    """One card at one length: what fits, what is too close to call, what does not fit in any window."""

    card: Card
    sequence_length: int
    fitting: tuple[Fitting, ...]
    close: tuple[Need, ...]
    not_fitting: tuple[Need, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFits:
    """All cards and lengths for one model, and how many windows each method was tried in."""

    model: str
    cards: tuple[Card, ...]
    sequence_lengths: tuple[int, ...]
    fits: tuple[CardFit, ...]

    def at(self, card: str, sequence_length: int) -> CardFit:
        """Return what is known of a card at a length."""
        return next(
            one for one in self.fits if (one.card.name, one.sequence_length) == (card, sequence_length)
        )


@dataclass(frozen=True)
class _Judged:
    method: str
    window: str
    cell: str
    length: int
    verdicts: dict[str, CardVerdict]


@dataclass(frozen=True, kw_only=True)
class CardStep:
    """Of a ladder of cards one, and the methods that it is the smallest for."""

    card: Card
    needs: tuple[Need, ...]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The smallest card for each method of a model at one length; ``nowhere`` fit on no card for certain."""

    model: str
    sequence_length: int
    steps: tuple[CardStep, ...]
    nowhere: tuple[Need, ...]


def ladders(models: Sequence[ModelFits]) -> tuple[Ladder, ...]:
    """Return the smallest card of each method, for the largest length first."""
    found = [
        _ladder(model, [model.at(card.name, length) for card in model.cards], length)
        for model in models
        for length in model.sequence_lengths
    ]
    return tuple(sorted(found, key=lambda one: -one.sequence_length))


def _ladder(model: ModelFits, fits: Sequence[CardFit], length: int) -> Ladder:
    seen: set[str] = set()
    steps = []
    for fit in fits:
        needs = [need for each in fit.fitting for need in each.needs if need.method not in seen]
        seen.update(need.method for need in needs)
        if needs:
            steps.append(CardStep(card=fit.card, needs=tuple(needs)))
    # A card may not have been judged for a method whose kernels it lacks.
    others = {need.method: need for fit in fits for need in (*fit.close, *fit.not_fitting)}
    nowhere = tuple(need for method, need in others.items() if method not in seen)
    return Ladder(model=model.model, sequence_length=length, steps=tuple(steps), nowhere=nowhere)


def card_fits(plan: Plan) -> tuple[ModelFits, ...]:
    """Return what fits for each model of a plan; nothing where no card was asked about."""
    models: dict[str, list[_Judged]] = {}
    for planned in plan.cells:
        model, method, window = [*planned.cell.id.split("/"), "", ""][:3]
        length = planned.cell.training.sequence_length
        rest = "-".join(token for token in window.split("-") if token != f"s{length}")
        verdicts = {verdict.card: verdict for verdict in planned.verdicts}
        models.setdefault(model, []).append(_Judged(method, rest, planned.cell.id, length, verdicts))
    if not plan.cards:
        return ()
    return tuple(_of_model(model, judged, plan.cards) for model, judged in models.items())


def _of_model(model: str, judged: Sequence[_Judged], cards: Sequence[Card]) -> ModelFits:
    judged = _without_common_tokens(judged)
    lengths = tuple(sorted({one.length for one in judged}))
    fits = (
        _fit(card, length, [one for one in judged if one.length == length and card.name in one.verdicts])
        for card, length in product(cards, lengths)
    )
    return ModelFits(model=model, cards=tuple(cards), sequence_lengths=lengths, fits=tuple(fits))


def _without_common_tokens(judged: Sequence[_Judged]) -> list[_Judged]:
    """Leave out of each window's name what all of them have, or all names if there is one window only."""
    common = set.intersection(*(set(one.window.split("-")) for one in judged))
    return [
        replace(one, window="-".join(token for token in one.window.split("-") if token not in common))
        for one in judged
    ]


def _fit(card: Card, length: int, judged: Sequence[_Judged]) -> CardFit:
    methods: dict[str, list[_Judged]] = {}
    for one in judged:
        methods.setdefault(one.method, []).append(one)
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[_Judged]]] = {}
    close, nowhere = [], []
    for tried in methods.values():
        answers = {one.cell: one.verdicts[card.name].answer for one in tried}
        fitting = [one for one in tried if answers[one.cell] == "fits"]
        if fitting:
            windows = tuple(one.window for one in fitting), tuple(one.window for one in tried)
            groups.setdefault(windows, []).append(fitting)
        elif "too close to call" in answers.values():
            close.append(_least(card, [one for one in tried if answers[one.cell] == "too close to call"]))
        else:
            nowhere.append(_least(card, tried))
    return CardFit(
        card=card,
        sequence_length=length,
        fitting=tuple(_fitting(card, methods, *windows) for windows, methods in groups.items()),
        close=tuple(close),
        not_fitting=tuple(nowhere),
    )


def _fitting(
    card: Card, methods: Sequence[Sequence[_Judged]], windows: Sequence[str], tried: Sequence[str]
) -> Fitting:
    common, everywhere = (
        set.intersection(*(set(window.split("-")) for window in names)) for names in (windows, tried)
    )
    needed = [one.verdicts[card.name].needed_bytes for fitting in methods for one in fitting]
    return Fitting(
        needs=tuple(_least(card, fitting) for fitting in methods),
        windows=tuple(windows),
        tried=len(tried),
        always=tuple(sorted(common - everywhere)),
        low_bytes=min(needed),
        high_bytes=max(needed),
    )


def _least(card: Card, judged: Sequence[_Judged]) -> Need:
    least = min(judged, key=lambda one: one.verdicts[card.name].needed_bytes)
    needed = least.verdicts[card.name].needed_bytes
    return Need(method=least.method, cell=least.cell, needed_bytes=needed)
