"""Tests on whether a cell fits a card: alone, or by one change that brings it in."""

from collections.abc import Sequence

from bench.claims.cases import Case, OnCard
from bench.claims.catalogue import FitsRule, RescueRule
from bench.claims.findings import Evidence, Figure
from bench.claims.rules_pairs import pair_row
from bench.claims.rules_values import evidence_of
from bench.claims.settings import like_pairs, matches
from bench.metrics import GIB

CARD = "memory of the card in GB"
MISSING = "what is missing without it, in % of the card"


def fits_evidence(rule: FitsRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each chosen cell and card of one of the sizes; too close to call decides nothing."""
    return [
        evidence_of(
            case,
            _needed(card),
            (Figure(name="memory of the card", unit="bytes", value=card.memory_bytes),),
            agrees=_answer(card),
            note=f"{card.card}: {card.answer}",
            more={CARD: card.memory_bytes // GIB},
        )
        for case in cases
        if matches(case, rule.where)
        for card in case.cards
        if card.memory_bytes in {size * GIB for size in rule.card_gib}
    ]


def rescue_evidence(rule: RescueRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair and card on which the reference does not fit for sure."""
    subjects = [case for case in cases if matches(case, rule.subject)]
    references = [case for case in cases if matches(case, rule.reference)]
    return [
        pair_row(
            subject,
            reference,
            rule.freed,
            _needed(ours),
            (Figure(name="needed, the other", unit="bytes", value=theirs.needed_bytes),),
            agrees=_answer(ours),
            note=f"{ours.card}: {ours.answer}; without: {theirs.answer}",
            more={MISSING: round(100 * (theirs.needed_bytes / theirs.usable_bytes - 1), 1)},
        )
        for subject, reference in like_pairs(subjects, references, rule.freed)
        for ours in subject.cards
        for theirs in reference.cards
        if ours.card == theirs.card and theirs.answer != "fits"
    ]


def _needed(card: OnCard) -> Figure:
    return Figure(name="memory needed on a card", unit="bytes", value=card.needed_bytes)


def _answer(card: OnCard) -> bool | None:
    return None if card.answer == "too close to call" else card.answer == "fits"
