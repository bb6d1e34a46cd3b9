"""The tests of claims, as data that a catalogue names: each looks at cases, and gives rows of evidence."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from bench.claims.cases import Case, Where, like_pairs
from bench.claims.evidence import (
    QUANTITIES,
    Evidence,
    Figure,
    Outcome,
    both,
    evidence_of,
    quantities_of,
    quantity_of,
)
from bench.compare.accuracy import CONFIDENCE, AccuracyDifference
from bench.compare.comparison import differences_over_seeds
from bench.errors import UsageError
from bench.metrics import GIB
from bench.records.predictions import CardFit
from bench.scenario.types import Frozen
from bench.stats.paired import drop_bounds

CARD = "memory of the card in GB"
MISSING = "what is missing without it, in % of the card"

Cells = tuple[Case, ...]


class _Rule(Frozen):
    part: str = Field("", description="Which half of a claim, where it has several.")
    needs: str = Field("", description="What would have to be run to test it, where nothing here does.")

    @property
    def freed(self) -> tuple[str, ...]:
        """In which fields the cells of a pair may differ."""
        return ()

    def judge(self, cases: Sequence[Case]) -> list[Evidence]:
        return [row for cells in self.chosen(cases) for row in self._rows(cells, cases)]

    def chosen(self, cases: Sequence[Case]) -> Sequence[Cells]:
        raise NotImplementedError

    def _rows(self, cells: Cells, cases: Sequence[Case]) -> Iterator[Evidence]:
        raise NotImplementedError


class _Alone(_Rule):
    """Cells, each for itself."""

    kind: Literal["value", "fits"]
    where: Where = Field(description="Dotted fields of a cell, and the value or values they may have.")

    def chosen(self, cases: Sequence[Case]) -> Sequence[Cells]:
        return [(case,) for case in cases if case.matches(self.where)]


class Compared(_Rule):
    """Cells set against others that are alike but for the ``free`` fields."""

    subject: Where
    reference: Where
    free: tuple[str, ...] = ()

    @property
    def freed(self) -> tuple[str, ...]:
        """The free fields, and the kind of method where both sides name different ones."""
        kinds = (self.subject.get("method.kind"), self.reference.get("method.kind"))
        return (*self.free, "method.kind") if None not in kinds and kinds[0] != kinds[1] else self.free

    def chosen(self, cases: Sequence[Case]) -> Sequence[Cells]:
        subjects = [case for case in cases if case.matches(self.subject)]
        references = [case for case in cases if case.matches(self.reference)]
        return like_pairs(subjects, references, self.freed)


class _Bounds(_Rule):
    """Between which values a figure agrees with the claim, both included; of speed the whole interval."""

    at_least: float | None = None
    at_most: float | None = None
    kind: Literal["value", "pair"]
    quantity: str = Field(description="One of ``QUANTITIES`` of this kind.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.quantity not in QUANTITIES[self.kind]:
            raise ValueError(f"unknown quantity {self.quantity!r}; use {' or '.join(QUANTITIES[self.kind])}")
        return self

    def _rows(self, cells: Cells, _cases: Sequence[Case]) -> Iterator[Evidence]:
        for figure, basis, note in quantities_of(self.quantity, cells):
            agrees = self._agrees(figure)
            yield evidence_of(cells, figure, basis, agrees=agrees, free=self.freed, note=note)

    def _agrees(self, figure: Figure) -> bool | None:
        low, high = (figure.low, figure.high) if self.quantity == "speed" else (figure.value, figure.value)
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        if low is None or high is None:
            return None
        return True if least <= low and high <= most else False if low > most or high < least else None


class ValueRule(_Alone, _Bounds):
    """A number of one cell lies within bounds."""

    kind: Literal["value"]


class PairRule(_Bounds, Compared):
    """A number that sets one cell against another lies within bounds."""

    kind: Literal["pair"]


class LeverRule(_Rule):
    """Every lower value of one field takes less peak memory, by ``at_least`` as a share, than the next."""

    kind: Literal["lever"]
    lever: str
    where: Where = Field(default_factory=dict)
    free: tuple[str, ...] = ()
    at_least: float = Field(gt=0)

    def chosen(self, cases: Sequence[Case]) -> Sequence[Cells]:
        """Return each cell with that of the next higher value, all else being alike."""
        peaks = [case for case in cases if case.peak_bytes and case.matches(self.where)]
        level = {case: case.fields[self.lever] for case in peaks if self.lever in case.fields}
        next_higher: dict[Case, Case] = {}
        for subject, reference in like_pairs(level, level, (self.lever, *self.free)):
            best = next_higher.get(subject)
            if level[reference] > level[subject] and (best is None or level[reference] < level[best]):
                next_higher[subject] = reference
        return list(next_higher.items())

    def _rows(self, cells: Cells, _cases: Sequence[Case]) -> Iterator[Evidence]:
        if found := quantity_of("less peak memory", cells):
            yield evidence_of(cells, *found, agrees=found[0].value >= self.at_least)


class FitsRule(_Alone):
    """A cell fits on each card of so much memory, as sold; too close to call is inconclusive."""

    kind: Literal["fits"]
    card_gib: tuple[int, ...]

    def _rows(self, cells: Cells, _cases: Sequence[Case]) -> Iterator[Evidence]:
        for memory_bytes, card in cells[0].cards:
            if memory_bytes in {size * GIB for size in self.card_gib}:
                needed, agrees = _needed(card)
                basis = [Figure("memory of the card", "bytes", memory_bytes)]
                note, more = f"{card.card}: {card.answer}", {CARD: memory_bytes // GIB}
                yield evidence_of(cells, needed, basis, agrees=agrees, note=note, more=more)


class RescueRule(Compared):
    """What does not surely fit on a card, fits there by the change of the ``free`` fields alone."""

    kind: Literal["rescue"]

    def _rows(self, cells: Cells, _cases: Sequence[Case]) -> Iterator[Evidence]:
        """Yield a row for each card on which the reference does not fit for sure."""
        without = {card.card: card for _, card in cells[1].cards if card.answer != "fits"}
        for _, ours in cells[0].cards:
            if theirs := without.get(ours.card):
                needed, agrees = _needed(ours)
                basis = [Figure("needed, reference", "bytes", theirs.needed_bytes)]
                note = f"{ours.card}: {ours.answer}; without: {theirs.answer}"
                more = {MISSING: round(100 * (theirs.needed_bytes / theirs.usable_bytes - 1), 1)}
                yield evidence_of(cells, needed, basis, agrees=agrees, free=self.freed, note=note, more=more)


class AccuracyRule(Compared):
    """Accuracy after training, paired by question; over seeds by the studies' intervals.

    ``no worse``: by no more than ``margin``; ``worse``: significantly below; ``different``: significantly
    above or below.
    """

    kind: Literal["accuracy"]
    asks: Literal["no worse", "worse", "different"]
    margin: float = Field(0.0, ge=0, lt=1, description="As a share of the questions.")

    def _rows(self, cells: Cells, cases: Sequence[Case]) -> Iterator[Evidence]:
        """Yield a row for each task that both of one study answered the same questions of."""
        subject, reference = (case.measured for case in cells)
        if not subject or not reference or cells[0].study != cells[1].study:
            return
        members = [case.measured for case in cases if case.measured and case.study == cells[0].study]
        for one in subject.accuracies:
            try:
                found = differences_over_seeds(members, reference, one.task).get(subject.key)
            except UsageError:
                continue  # questions that differ are not compared
            if not found or not (other := reference.accuracy(one.task)):
                continue
            trained = cells[0].fields.get("data.task")  # the skill, where it is what was trained for
            figure = difference_figure(found)
            outcome = self.outcome(figure, trained if one.task == "held-out" and trained else one.task)
            basis = both("accuracy", one.after or 0, other.after or 0, "share")
            note = f"{one.task}, {found.items} questions, {_runs(found)}"
            agrees = self._agrees(figure, outcome)
            yield evidence_of(
                cells, figure, basis, agrees=agrees, free=self.freed, note=note, outcome=outcome
            )

    def outcome(self, figure: Figure, topic: str) -> Outcome:
        """Return what was found, whatever the claim asks: that there is a difference, or how small it is."""
        one_sided = self.asks != "different"
        low = -1.0 if figure.low is None else figure.low  # without an interval it may be anything
        high = 1.0 if figure.high is None else figure.high
        return Outcome(
            topic=topic,
            direction="higher" if low > 0 else "lower" if high < 0 else None,
            within=low >= -self.margin and (one_sided or high <= self.margin),
            margin=self.margin,
            one_sided=one_sided,
        )

    def _agrees(self, figure: Figure, outcome: Outcome) -> bool | None:
        """Judge by the whole interval; None where it reaches across the line, or where there is none."""
        lower = outcome.direction == "lower"
        yes, no = {
            # Not similar: surely below zero, and by the best estimate beyond the margin.
            "no worse": (outcome.within, lower and figure.value < -self.margin),
            "worse": (lower, outcome.within),
            "different": (outcome.direction is not None, outcome.within),
        }[self.asks]
        return True if yes else False if no else None


Rule = Annotated[
    ValueRule | PairRule | LeverRule | FitsRule | RescueRule | AccuracyRule,
    Field(discriminator="kind"),
]


def _needed(card: CardFit) -> tuple[Figure, bool | None]:
    fits = None if card.answer == "too close to call" else card.answer == "fits"
    return Figure("memory needed on a card", "bytes", card.needed_bytes), fits


def difference_figure(found: AccuracyDifference) -> Figure:
    """Return the difference of accuracy, as a share of the questions, with a 95 % interval.

    Over several seeds, the study's simultaneous interval, which covers training; none where nothing varies,
    or where too few seeds are common to all methods. Of one run the paired interval of Bonett and Price over
    questions, which does not cover training, and is not adjusted for other comparisons.
    """
    one = found.difference
    low, high = (one.low, one.high) if one.p_value is not None else (None, None)
    if len(found.seeds) == 1:
        lost, gained, items = (np.array([float(count)]) for count in (found.lost, found.gained, found.items))
        least, most = drop_bounds(lost, gained, items, (1 - CONFIDENCE) / 2)
        low, high = -float(most[0]), -float(least[0])
    return Figure("difference of accuracy", "points", one.mean, low, high)


def _runs(found: AccuracyDifference) -> str:
    count = len(found.seeds)
    if count == 1:
        return "one run"
    if found.methods is None:
        return f"{count} seeds, too few in common with the study's other methods"
    return f"{count} seeds, adjusted for {found.methods} methods of the study"
