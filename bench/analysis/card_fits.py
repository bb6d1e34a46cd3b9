"""Which methods of a plan fit which card at which sequence length, over all windows that were tried."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.results.plans import Plan
from bench.spec.cards import Card


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Methods that fit in the same windows; a window is named without its length. ``cells`` are in order."""

    methods: tuple[str, ...]
    windows: tuple[str, ...]
    cells: tuple[str, ...]  # of each method the first that fits

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Return each method with its cell."""
        return tuple(zip(self.methods, self.cells, strict=True))


@dataclass(frozen=True, kw_only=True)
class CardFit:
    """One card at one length: what fits, what is too close to call, what does not fit in any window."""

    card: Card
    sequence_length: int
    fitting: tuple[Fitting, ...]
    close: tuple[str, ...]
    not_fitting: tuple[str, ...]


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
    answers: dict[str, str]


def card_fits(plan: Plan) -> tuple[ModelFits, ...]:
    """Return what fits for each model of a plan; nothing where no card was asked about."""
    models: dict[str, list[_Judged]] = {}
    for planned in plan.cells:
        model, method, window = [*planned.cell.id.split("/"), "", ""][:3]
        length = planned.cell.training.sequence_length
        rest = "-".join(token for token in window.split("-") if token != f"s{length}")
        answers: dict[str, str] = {verdict.card: verdict.answer for verdict in planned.verdicts}
        models.setdefault(model, []).append(_Judged(method, rest, planned.cell.id, length, answers))
    if not plan.cards:
        return ()
    return tuple(_of_model(model, judged, plan.cards) for model, judged in models.items())


def _of_model(model: str, judged: Sequence[_Judged], cards: Sequence[Card]) -> ModelFits:
    judged = _without_common_tokens(judged)
    lengths = tuple(sorted({one.length for one in judged}))
    fits = (
        _fit(card, length, [one for one in judged if one.length == length and card.name in one.answers])
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
    groups: dict[tuple[str, ...], list[_Judged]] = {}
    close, nowhere = [], []
    for method, tried in methods.items():
        fitting = [one for one in tried if one.answers[card.name] == "fits"]
        if fitting:
            groups.setdefault(tuple(one.window for one in fitting), []).append(fitting[0])
        elif any(one.answers[card.name] == "too close to call" for one in tried):
            close.append(method)
        else:
            nowhere.append(method)
    return CardFit(
        card=card,
        sequence_length=length,
        fitting=tuple(
            Fitting(
                methods=tuple(one.method for one in firsts),
                windows=windows,
                cells=tuple(one.cell for one in firsts),
            )
            for windows, firsts in groups.items()
        ),
        close=tuple(close),
        not_fitting=tuple(nowhere),
    )
