"""What a plan says of each cell, and which methods fit which card at which length. Predicts nothing.

Every number that a renderer shows is worked out here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from bench.compare import LOOP_ALONE, Reason, grouped, loop_pairs, reason_of
from bench.records.predictions import Answer, CardFit, Change, Plan, PlannedCell, Prediction, Refusal, Speed
from bench.records.readings import Category
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform


class Forecast(Prediction):
    """What a cell will take: the prediction with the largest peak, on all platforms that were asked about.

    Where the cards differ in capability, the allocated and reserved figures span theirs. ``total_bytes`` is
    the top of the reserved band with the context of the one card asked for.
    """

    platforms: tuple[Platform, ...]
    allocated_low_bytes: int
    context_bytes: int | None
    total_bytes: int | None

    @property
    def quantised_share(self) -> float | None:
        """The share of the weights in 4 or 8 bits; None where there are none, or it was not counted."""
        return self.reach.quantised / self.reach.parameters if self.reach and self.reach.quantised else None

    @property
    def largest(self) -> tuple[Category, float] | None:
        """The category with most bytes at the peak, and its share; None where the prediction has none."""
        sizes = self.categories_at_peak_bytes
        most = max(sizes, key=sizes.__getitem__, default=None)
        return (most, sizes[most] / max(1, sum(sizes.values()))) if most else None


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One cell: a forecast or the reason why there is none.

    ``changes`` stand beside the bytes that each frees, and hold the verdicts of all platforms. ``tokens`` are
    to be trained on.
    """

    cell: str
    forecast: Forecast | None = None
    refusal: str | None = None
    verdicts: tuple[CardFit, ...] = ()
    changes: tuple[tuple[Change, int], ...] = ()
    tokens: int | None = None

    def verdict(self, card: str) -> CardFit | None:
        return next((verdict for verdict in self.verdicts if verdict.card == card), None)

    def speed(self, card: str) -> Speed | None:
        """Return how fast it trains there, if that is told: on a card, or on this machine's CPU."""
        verdict = self.verdict(card)
        known = [verdict.tokens_per_second] if verdict else self.forecast.speeds if self.forecast else ()
        return next((one for one in known if one and one.card == card and not one.refused), None)

    @property
    def fitting(self) -> tuple[CardFit, ...]:
        """The verdicts of the cards that it fits on, the smallest first."""
        return tuple(verdict for verdict in self.verdicts if verdict.answer == "fits")


def remedies(plan: Plan, rows: Sequence[PlanRow]) -> list[tuple[str, tuple[str, ...], list[str]]]:
    """Return with which changes cells would fit a named card that they do not fit: card, changes, cells.

    Those that change least stand first; combined ones only where none fits alone.
    """
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for card, row in product(() if plan.ladder else plan.cards, rows):
        verdict = row.verdict(card.name)
        if verdict is None or verdict.answer == "fits":
            continue
        fit = [change.what for change, _ in reversed(row.changes) if _fits(change, card.name)]
        alone = tuple(what for what in fit if " and " not in what)
        if fit:
            found.setdefault((card.title, alone or tuple(fit)), []).append(row.cell)
    return [(*key, cells) for key, cells in found.items()]


def _fits(change: Change, card: str) -> bool:
    return any(verdict.card == card and verdict.answer == "fits" for verdict in change.verdicts)


def plan_rows(plan: Plan) -> tuple[PlanRow, ...]:
    cells = grouped(plan.cells, lambda one: one.cell.id).values()
    return tuple(_row(plan, own) for own in cells)


def _row(plan: Plan, planned: Sequence[PlannedCell]) -> PlanRow:
    cell, each, cards = planned[0].cell.id, planned[0].epoch_tokens, plan.cards
    tokens = plan.epochs * each if plan.epochs and each else plan.tokens
    predictions = [one.answer for one in planned if isinstance(one.answer, Prediction)]
    refusals = [one.answer.message for one in planned if isinstance(one.answer, Refusal)]
    if refusals:
        return PlanRow(cell=cell, refusal=refusals[0], tokens=tokens)
    verdicts = {verdict.card: verdict for one in planned for verdict in one.verdicts}
    only = verdicts.get(cards[0].name) if len(cards) == 1 else None
    most = max(predictions, key=lambda one: one.allocated_peak_bytes)
    lows = [one.reserved_low_bytes for one in predictions if one.reserved_low_bytes is not None]
    highs = [one.reserved_high_bytes for one in predictions if one.reserved_high_bytes is not None]
    spans = {
        "reserved_low_bytes": min(lows, default=None),
        "reserved_high_bytes": max(highs, default=None),
        "caveats": tuple(dict.fromkeys(caveat for one in predictions for caveat in one.caveats)),
        "platforms": tuple(one.platform for one in predictions),
        "allocated_low_bytes": min(one.allocated_peak_bytes for one in predictions),
        "context_bytes": cards[0].context_bytes if only else None,
        "total_bytes": only.needed_bytes if only else None,
    }
    return PlanRow(
        cell=cell,
        forecast=Forecast.model_construct(**dict(most) | spans),
        verdicts=tuple(verdicts[card.name] for card in cards if card.name in verdicts),
        changes=tuple(_changes(planned)),
        tokens=tokens,
    )


def _changes(planned: Iterable[PlannedCell]) -> Iterator[tuple[Change, int]]:
    """Yield each change once, with its verdicts of every platform, and the bytes that it frees."""
    found = [
        (change, one.answer.needed_bytes - change.prediction.needed_bytes)
        for one in planned
        for change in one.changes or ()
        if isinstance(one.answer, Prediction)
    ]
    for alike in grouped(found, lambda pair: pair[0].what).values():
        verdicts = tuple(verdict for change, _ in alike for verdict in change.verdicts)
        yield alike[0][0].model_copy(update={"verdicts": verdicts}), alike[0][1]


@dataclass(frozen=True, kw_only=True)
class LoopChange:
    """What a cell takes in its loop instead of another: shares of the other's peaks, 0 being no change."""

    cell: str
    driver: str
    other: str
    tensors_share: float
    reserved_share: float | None
    reason: Reason | None


def loop_changes(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[LoopChange]:
    cells = {planned.cell.id: planned.cell for planned in plan.cells}
    forecasts = {row.cell: row.forecast for row in rows if row.forecast}
    for here, there in loop_pairs(
        forecasts, cells.__getitem__, lambda one: cells[one].comparison_key(LOOP_ALONE)
    ):
        mine, theirs = forecasts[here], forecasts[there]
        reserved, other = mine.reserved_high_bytes, theirs.reserved_high_bytes
        yield LoopChange(
            cell=here,
            driver=cells[here].loop.driver,
            other=cells[there].loop.driver,
            tensors_share=mine.allocated_peak_bytes / theirs.allocated_peak_bytes - 1,
            reserved_share=reserved / other - 1 if reserved and other else None,
            reason=reason_of(mine.categories_at_peak_bytes, theirs.categories_at_peak_bytes),
        )


def card_counts(plan: Plan) -> tuple[tuple[Card, Counter[Answer]], ...]:
    found = grouped((each for planned in plan.cells for each in planned.verdicts), lambda each: each.card)
    return tuple((card, Counter(each.answer for each in found.get(card.name, ()))) for card in plan.cards)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a method needs on a card in one window; bytes with the CUDA context.

    The window is named without its length and without what all windows of the model have.
    """

    card: str
    sequence_length: int
    method: str
    cell: str
    window: str
    needed_bytes: int
    answer: Answer


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
class FitsOnCard:
    """One card at one length: what fits, what is too close to call, what does not fit in any window."""

    fitting: tuple[Fitting, ...]
    close: tuple[Need, ...]
    not_fitting: tuple[Need, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFits:
    """One model on each card at each length; ``at`` is by the card's name and the length."""

    model: str
    cards: tuple[Card, ...]
    sequence_lengths: tuple[int, ...]
    at: Mapping[tuple[str, int], FitsOnCard]

    def smallest_cards(self, length: int) -> tuple[list[tuple[Card, list[Need]]], list[Need]]:
        """Return the smallest card for each method at one length, and those that surely fit on no card."""
        fits = {card.name: self.at[card.name, length] for card in self.cards}
        smallest: dict[str, Need] = {}
        for need in (need for fit in fits.values() for one in fit.fitting for need in one.needs):
            smallest.setdefault(need.method, need)
        on_card = grouped(smallest.values(), lambda need: need.card)
        # A card may not have been judged for a method whose kernels it lacks.
        others = {need.method: need for fit in fits.values() for need in (*fit.close, *fit.not_fitting)}
        nowhere = [need for method, need in others.items() if method not in smallest]
        return [(card, on_card[card.name]) for card in self.cards if card.name in on_card], nowhere


def card_fits(plan: Plan) -> tuple[ModelFits, ...]:
    """Return what fits for each model of a plan, over all windows tried; nothing without a card."""
    models = grouped(plan.cells if plan.cards else (), lambda one: one.cell.labels.model)
    return tuple(_of_model(model, cells, plan.cards) for model, cells in models.items())


def _of_model(model: str, cells: Sequence[PlannedCell], cards: Sequence[Card]) -> ModelFits:
    windows = {one.cell.id: _tokens(one.cell) for one in cells}
    common = set.intersection(*map(set, windows.values()))
    needs = (
        Need(
            card=verdict.card,
            sequence_length=one.cell.training.sequence_length,
            method=one.cell.labels.method,
            cell=one.cell.id,
            window="-".join(token for token in windows[one.cell.id] if token not in common),
            needed_bytes=verdict.needed_bytes,
            answer=verdict.answer,
        )
        for one in cells
        for verdict in one.verdicts
    )
    found = grouped(needs, lambda need: (need.card, need.sequence_length))
    lengths = sorted({one.cell.training.sequence_length for one in cells})
    places = [(card.name, length) for card in cards for length in lengths]
    return ModelFits(
        model=model,
        cards=tuple(cards),
        sequence_lengths=tuple(lengths),
        at={place: _fit(found.get(place, ())) for place in places},
    )


def _tokens(cell: Cell) -> list[str]:
    length = f"s{cell.training.sequence_length}"
    return [token for token in cell.labels.window.split("-") if token != length]


def _fit(needs: Sequence[Need]) -> FitsOnCard:
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[Need]]] = {}
    close, nowhere = [], []
    for tried in grouped(needs, lambda need: need.method).values():
        by_answer = grouped(tried, lambda need: need.answer)
        if fitting := by_answer.get("fits"):
            windows = tuple(need.window for need in fitting), tuple(need.window for need in tried)
            groups.setdefault(windows, []).append(fitting)
        elif open_ones := by_answer.get("too close to call"):
            close.append(_least(open_ones))
        else:
            nowhere.append(_least(tried))
    return FitsOnCard(
        fitting=tuple(_fitting(methods, *windows) for windows, methods in groups.items()),
        close=tuple(close),
        not_fitting=tuple(nowhere),
    )


def _fitting(methods: Sequence[Sequence[Need]], windows: tuple[str, ...], tried: Sequence[str]) -> Fitting:
    common, everywhere = (
        set.intersection(*(set(window.split("-")) for window in names)) for names in (windows, tried)
    )
    needed = [need.needed_bytes for fitting in methods for need in fitting]
    return Fitting(
        needs=tuple(map(_least, methods)),
        windows=windows,
        tried=len(tried),
        always=tuple(sorted(common - everywhere)),
        low_bytes=min(needed),
        high_bytes=max(needed),
    )


def _least(needs: Sequence[Need]) -> Need:
    return min(needs, key=lambda need: need.needed_bytes)
