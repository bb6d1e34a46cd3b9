"""What a plan says of each cell, and which methods fit which card at which length. Predicts nothing.

Every number that a renderer shows is worked out here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.records.predictions import CardFit, Plan, PlannedCell, PredictedPhase, Prediction, Refusal
from bench.records.readings import Category, Caveat
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.types import Platform


@dataclass(frozen=True, kw_only=True)
class ChangeRow:
    """One change: what the cell then needs, and how much less that is. Bytes, the context not counted."""

    what: str
    allocated_bytes: int
    needed_bytes: int
    freed_bytes: int
    verdicts: tuple[CardFit, ...]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a cell will take, in bytes; the reserved figures are None on the CPU.

    Where the cards asked for differ in capability, the allocated and reserved figures span theirs, and the
    rest is of the one with the largest peak. ``total_bytes`` is the top of the reserved band with the
    context of the one card asked for.
    """

    platforms: tuple[Platform, ...]
    allocated_low_bytes: int
    allocated_bytes: int
    reserved_low_bytes: int | None
    reserved_high_bytes: int | None
    context_bytes: int | None
    total_bytes: int | None
    paged_bytes: int
    peak_phase: PredictedPhase
    peak_op: str
    peak_module: str
    phase_peaks_bytes: Mapping[PredictedPhase, int]
    categories_bytes: Mapping[Category, int]
    largest_category: Category | None  # None where the prediction has none
    largest_share: float
    smallest: CardFit | None  # of the cards that it fits on
    caveats: tuple[Caveat, ...]


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One cell: a forecast or the reason why there is none."""

    cell: str
    forecast: Forecast | None
    refusal: str | None
    verdicts: tuple[CardFit, ...]
    changes: tuple[ChangeRow, ...] | None

    def verdict(self, card: str) -> CardFit | None:
        """Return the verdict for a card, if this row was judged for it."""
        return next((verdict for verdict in self.verdicts if verdict.card == card), None)

    @property
    def fitting(self) -> bool:
        """Whether it fits on any of the cards."""
        return any(verdict.answer == "fits" for verdict in self.verdicts)


def plan_rows(plan: Plan) -> tuple[PlanRow, ...]:
    """Return one row for each cell, in the plan's order."""
    cells: dict[str, list[PlannedCell]] = {}
    for planned in plan.cells:
        cells.setdefault(planned.cell.id, []).append(planned)
    return tuple(_row(group, plan.cards) for group in cells.values())


def _row(group: Sequence[PlannedCell], cards: Sequence[Card]) -> PlanRow:
    """Return the row of one cell, over all platforms that it was predicted on."""
    predicted = [(one, one.answer) for one in group if isinstance(one.answer, Prediction)]
    refusals = [one.answer.message for one in group if isinstance(one.answer, Refusal)]
    if not predicted or refusals:
        return PlanRow(cell=group[0].cell.id, forecast=None, refusal=refusals[0], verdicts=(), changes=None)
    verdicts = {verdict.card: verdict for one, _ in predicted for verdict in one.verdicts}
    ordered = tuple(verdicts[card.name] for card in cards if card.name in verdicts)
    return PlanRow(
        cell=group[0].cell.id,
        forecast=_forecast([answer for _, answer in predicted], ordered, cards),
        refusal=None,
        verdicts=ordered,
        changes=_changes(predicted),
    )


def _forecast(
    predictions: Sequence[Prediction], verdicts: Sequence[CardFit], cards: Sequence[Card]
) -> Forecast:
    only = verdicts[0] if len(cards) == 1 and verdicts else None
    most = max(predictions, key=lambda one: one.allocated_peak_bytes)
    lows = [one.reserved_low_bytes for one in predictions if one.reserved_low_bytes is not None]
    highs = [one.reserved_high_bytes for one in predictions if one.reserved_high_bytes is not None]
    categories = most.categories_at_peak_bytes
    largest = max(categories, key=categories.__getitem__, default=None)
    return Forecast(
        platforms=tuple(one.platform for one in predictions),
        allocated_low_bytes=min(one.allocated_peak_bytes for one in predictions),
        allocated_bytes=most.allocated_peak_bytes,
        reserved_low_bytes=min(lows, default=None),
        reserved_high_bytes=max(highs, default=None),
        context_bytes=cards[0].context_bytes if only else None,
        total_bytes=only.needed_bytes if only else None,
        paged_bytes=most.paged_bytes,
        peak_phase=most.peak_phase,
        peak_op=most.peak_op,
        peak_module=most.peak_module,
        phase_peaks_bytes=most.phase_peaks_bytes,
        categories_bytes=most.categories_at_peak_bytes,
        largest_category=largest,
        largest_share=categories[largest] / max(1, sum(categories.values())) if largest else 0.0,
        smallest=next((verdict for verdict in verdicts if verdict.answer == "fits"), None),
        caveats=tuple(dict.fromkeys(caveat for one in predictions for caveat in one.caveats)),
    )


def _changes(predicted: Sequence[tuple[PlannedCell, Prediction]]) -> tuple[ChangeRow, ...] | None:
    """Return each change once, with its verdicts of every platform; None where none was tried."""
    if all(one.changes is None for one, _ in predicted):
        return None
    found: dict[str, ChangeRow] = {}
    for one, prediction in predicted:
        for change in one.changes or ():
            needed = change.prediction.needed_bytes
            row = ChangeRow(
                what=change.what,
                allocated_bytes=change.prediction.allocated_peak_bytes,
                needed_bytes=needed,
                freed_bytes=prediction.needed_bytes - needed,
                verdicts=change.verdicts,
            )
            known = found.get(row.what)
            found[row.what] = replace(known, verdicts=known.verdicts + row.verdicts) if known else row
    return tuple(found.values())


@dataclass(frozen=True, kw_only=True)
class CardCount:
    """How many of a plan's cells fit on a card, do not, or are too close to call."""

    card: Card
    fit: int
    close: int
    not_fit: int


def card_counts(plan: Plan) -> tuple[CardCount, ...]:
    """Count the verdicts of each card."""
    counts = Counter((verdict.card, verdict.answer) for planned in plan.cells for verdict in planned.verdicts)
    return tuple(
        CardCount(
            card=card,
            fit=counts[card.name, "fits"],
            close=counts[card.name, "too close to call"],
            not_fit=counts[card.name, "does not fit"],
        )
        for card in plan.cards
    )


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
class FitsOnCard:
    """One card at one length: what fits, what is too close to call, what does not fit in any window."""

    card: Card
    sequence_length: int
    fitting: tuple[Fitting, ...]
    close: tuple[Need, ...]
    not_fitting: tuple[Need, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFits:
    """All cards and lengths for one model."""

    model: str
    cards: tuple[Card, ...]
    sequence_lengths: tuple[int, ...]
    fits: tuple[FitsOnCard, ...]

    def at(self, card: str, sequence_length: int) -> FitsOnCard:
        """Return what is known of a card at a length."""
        return next(
            one for one in self.fits if (one.card.name, one.sequence_length) == (card, sequence_length)
        )


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
    found = [_ladder(model, length) for model in models for length in model.sequence_lengths]
    return tuple(sorted(found, key=lambda one: -one.sequence_length))


def _ladder(model: ModelFits, length: int) -> Ladder:
    fits = [model.at(card.name, length) for card in model.cards]
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


@dataclass(frozen=True)
class _Judged:
    """A cell for one card; its window is named without its length and without what all windows have."""

    method: str
    window: str
    need: Need
    answer: str


def card_fits(plan: Plan) -> tuple[ModelFits, ...]:
    """Return what fits for each model of a plan, over all windows tried; nothing without a card."""
    models: dict[str, list[PlannedCell]] = {}
    for planned in plan.cells if plan.cards else ():
        models.setdefault(planned.cell.labels.model, []).append(planned)
    return tuple(_of_model(model, cells, plan.cards) for model, cells in models.items())


def _of_model(model: str, cells: Sequence[PlannedCell], cards: Sequence[Card]) -> ModelFits:
    lengths = tuple(sorted({one.cell.training.sequence_length for one in cells}))
    common = set.intersection(*(set(_tokens(one.cell)) for one in cells))
    fits = []
    for card, length in product(cards, lengths):
        judged = [
            _Judged(
                method=one.cell.labels.method,
                window="-".join(token for token in _tokens(one.cell) if token not in common),
                need=Need(method=one.cell.labels.method, cell=one.cell.id, needed_bytes=verdict.needed_bytes),
                answer=verdict.answer,
            )
            for one in cells
            for verdict in one.verdicts
            if verdict.card == card.name and one.cell.training.sequence_length == length
        ]
        fits.append(_fit(card, length, judged))
    return ModelFits(model=model, cards=tuple(cards), sequence_lengths=lengths, fits=tuple(fits))


def _tokens(cell: Cell) -> list[str]:
    length = f"s{cell.training.sequence_length}"
    return [token for token in cell.labels.window.split("-") if token != length]


def _fit(card: Card, length: int, judged: Sequence[_Judged]) -> FitsOnCard:
    methods: dict[str, list[_Judged]] = {}
    for one in judged:
        methods.setdefault(one.method, []).append(one)
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[_Judged]]] = {}
    close, nowhere = [], []
    for tried in methods.values():
        fitting = [one for one in tried if one.answer == "fits"]
        open_ones = [one for one in tried if one.answer == "too close to call"]
        if fitting:
            windows = tuple(one.window for one in fitting), tuple(one.window for one in tried)
            groups.setdefault(windows, []).append(fitting)
        elif open_ones:
            close.append(_least(open_ones))
        else:
            nowhere.append(_least(tried))
    return FitsOnCard(
        card=card,
        sequence_length=length,
        fitting=tuple(_fitting(methods, *windows) for windows, methods in groups.items()),
        close=tuple(close),
        not_fitting=tuple(nowhere),
    )


def _fitting(methods: Sequence[Sequence[_Judged]], windows: Sequence[str], tried: Sequence[str]) -> Fitting:
    common, everywhere = (
        set.intersection(*(set(window.split("-")) for window in names)) for names in (windows, tried)
    )
    needed = [one.need.needed_bytes for fitting in methods for one in fitting]
    return Fitting(
        needs=tuple(_least(fitting) for fitting in methods),
        windows=tuple(windows),
        tried=len(tried),
        always=tuple(sorted(common - everywhere)),
        low_bytes=min(needed),
        high_bytes=max(needed),
    )


def _least(judged: Sequence[_Judged]) -> Need:
    return min((one.need for one in judged), key=lambda need: need.needed_bytes)
