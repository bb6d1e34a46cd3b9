"""The rows of a plan: what a renderer shows of each cell, with every number worked out. Predicts nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.records.plans import CardVerdict, Change, Plan, PlannedCell, needed_bytes
from bench.records.predictions import PredictedPhase, Prediction, Refusal
from bench.records.readings import Category, Caveat
from bench.scenario.catalogue import Card
from bench.scenario.platforms import Platform


@dataclass(frozen=True, kw_only=True)
class ChangeRow:
    """One change: what the cell then needs, and how much less that is. Bytes, the context not counted."""

    what: str
    allocated_bytes: int
    needed_bytes: int
    freed_bytes: int
    verdicts: tuple[CardVerdict, ...]


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
    smallest: CardVerdict | None  # of the cards that it fits on
    caveats: tuple[Caveat, ...]


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One cell: a forecast or the reason why there is none."""

    cell: str
    forecast: Forecast | None
    refusal: str | None
    verdicts: tuple[CardVerdict, ...]
    changes: tuple[ChangeRow, ...] | None

    def verdict(self, card: str) -> CardVerdict | None:
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
    changes = [_changes(answer, one.changes) for one, answer in predicted if one.changes is not None]
    return PlanRow(
        cell=group[0].cell.id,
        forecast=_forecast([answer for _, answer in predicted], ordered, cards),
        refusal=None,
        verdicts=ordered,
        changes=_merged(changes) if changes else None,
    )


def _forecast(
    predictions: Sequence[Prediction], verdicts: Sequence[CardVerdict], cards: Sequence[Card]
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


def _merged(changes: Sequence[tuple[ChangeRow, ...]]) -> tuple[ChangeRow, ...]:
    """Return each change once, with its verdicts on the cards of every platform."""
    found: dict[str, ChangeRow] = {}
    for row in (row for rows in changes for row in rows):
        before = found.get(row.what)
        found[row.what] = row if before is None else replace(before, verdicts=before.verdicts + row.verdicts)
    return tuple(found.values())


def _changes(prediction: Prediction, changes: Sequence[Change]) -> tuple[ChangeRow, ...]:
    before = needed_bytes(prediction)
    return tuple(
        ChangeRow(
            what=change.what,
            allocated_bytes=change.prediction.allocated_peak_bytes,
            needed_bytes=needed_bytes(change.prediction),
            freed_bytes=before - needed_bytes(change.prediction),
            verdicts=change.verdicts,
        )
        for change in changes
    )


@dataclass(frozen=True, kw_only=True)
class CardCount:
    """How many of a plan's cells fit on a card, do not, or are too close to call."""

    card: Card
    fit: int
    close: int
    not_fit: int


def card_counts(plan: Plan) -> tuple[CardCount, ...]:
    """Count the verdicts of each card."""
    answers = [verdict for planned in plan.cells for verdict in planned.verdicts]
    return tuple(
        CardCount(
            card=card,
            fit=sum(one.card == card.name and one.answer == "fits" for one in answers),
            close=sum(one.card == card.name and one.answer == "too close to call" for one in answers),
            not_fit=sum(one.card == card.name and one.answer == "does not fit" for one in answers),
        )
        for card in plan.cards
    )
