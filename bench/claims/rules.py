"""Tests of claims on memory, speed, precision and cards: functions from cases to rows of evidence."""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.special import stdtrit

from bench.claims.cases import DTYPE_BYTES, Case, Scalar, like_pairs, matches, settings_of, value_at
from bench.claims.catalogue import (
    Compared,
    FitsRule,
    LeverRule,
    PairOf,
    PairRule,
    RescueRule,
    ValueOf,
    ValueRule,
)
from bench.claims.findings import Evidence, Figure, Outcome, Unit
from bench.compare.accuracy import CONFIDENCE
from bench.metrics import GIB
from bench.records.predictions import CardFit

CARD = "memory of the card in GB"
MISSING = "what is missing without it, in % of the card"


def chosen_cells(rule: ValueRule | Compared, cases: Sequence[Case]) -> Sequence[tuple[Case, ...]]:
    """Return the cells that a test looks at, each alone or in pairs."""
    if isinstance(rule, Compared):
        return chosen_pairs(rule, cases)
    return [(case,) for case in cases if matches(case, rule.where)]


def chosen_pairs(rule: Compared, cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Return the pairs that a test compares."""
    subjects = [case for case in cases if matches(case, rule.subject)]
    references = [case for case in cases if matches(case, rule.reference)]
    return like_pairs(subjects, references, rule.freed)


def evidence_of(  # noqa: PLR0913 - the parts of one row
    cells: Sequence[Case],
    figure: Figure,
    basis: Sequence[Figure] = (),
    *,
    agrees: bool | None,
    free: Collection[str] = (),
    note: str = "",
    more: Mapping[str, Scalar] | None = None,
    outcome: Outcome | None = None,
) -> Evidence:
    """Return what one cell says, or two together; ``more`` settings are looked at first for a boundary."""
    return Evidence(
        cells=tuple(case.cell.id for case in cells),
        instrument=cells[0].instrument,
        source=cells[0].source,
        model=cells[0].model,
        parameters=cells[0].parameters,
        figure=figure,
        basis=tuple(basis),
        agrees=agrees,
        settings={**(more or {}), **settings_of(*cells, free=free)},
        note=note,
        outcome=outcome,
    )


def bounds_evidence(rule: ValueRule | PairRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each cell or pair of which the quantity is known; of speed the interval decides."""
    rows = []
    for cells in chosen_cells(rule, cases):
        if found := _measure(rule.quantity, cells):
            one, basis = found
            low, high = (one.low, one.high) if rule.quantity == "speed" else (one.value, one.value)
            agrees = None if low is None or high is None else rule.judge(low, high)
            rows.append(evidence_of(cells, one, basis, agrees=agrees, free=rule.freed))
    return rows


def _measure(quantity: ValueOf | PairOf, cells: tuple[Case, ...]) -> tuple[Figure, Sequence[Figure]] | None:
    """Return a quantity and what it was computed from; speed with an interval over runs."""
    unit, measure = _QUANTITIES[quantity]
    if (found := measure(*cells)) is None:
        return None
    interval = ratio_interval(*(case.speeds for case in cells)) if quantity == "speed" else (None, None)
    return Figure(quantity, unit, found[0], *interval), found[1]


def lever_evidence(rule: LeverRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each value of the lever and the next higher one, all else being alike."""
    chosen = [case for case in cases if case.peak_bytes and matches(case, rule.where)]
    next_higher: dict[int, tuple[Case, Case]] = {}
    for subject, reference in like_pairs(chosen, chosen, (rule.lever, *rule.free)):
        value = value_at(reference, rule.lever)
        best = next_higher.get(id(subject))
        if value > value_at(subject, rule.lever) and (best is None or value < value_at(best[1], rule.lever)):
            next_higher[id(subject)] = (subject, reference)
    return [
        evidence_of(cells, figure, basis, agrees=figure.value >= rule.at_least)
        for cells in next_higher.values()
        for figure, basis in filter(None, [_measure("less peak memory", cells)])
    ]


# A value and what it was computed from; None where it is not known.
_Found = tuple[float, Sequence[Figure]] | None


def _trained(of: Callable[[int, int], float], case: Case) -> _Found:
    if not case.trainable or not case.parameters:
        return None
    basis = [_count("parameters trained", case.trainable), _count("parameters", case.parameters)]
    return of(case.trainable, case.parameters), basis


def _count(name: str, value: int) -> Figure:
    return Figure(name, "count", value)


def _needed_on_any(case: Case) -> _Found:
    """Return the top of the reserved band with the largest context of the cards that it was judged for."""
    if not case.cards:
        return None
    needed = max(card.needed_bytes for _, card in case.cards)
    return needed, [Figure("allocated at the peak", "bytes", case.peak_bytes or 0)]


def _adapter_bits(case: Case) -> _Found:
    """Return bits as read from the saved adapter where there is one, else as the cell says."""
    method, facts = case.cell.method, case.measured.facts if case.measured else None
    if method.kind == "full":
        return None
    if facts and facts.adapter_file_bytes and case.trainable:
        # The file has a header of some kilobytes, so that whole bytes a parameter are meant.
        size = Figure("saved adapter", "bytes", facts.adapter_file_bytes)
        bits = 8 * round(facts.adapter_file_bytes / case.trainable)
        return bits, [size, _count("parameters trained", case.trainable)]
    return 8 * DTYPE_BYTES[case.cell.training.dtype if method.adapter_dtype == "weights" else "fp32"], []


def _compute_bits(case: Case) -> _Found:
    method = case.cell.method
    return (8 * DTYPE_BYTES[method.compute_dtype], []) if method.kind == "qlora" else None


def _merge_change(case: Case) -> _Found:
    """Return the largest change of a logit over runs, in units of what rounding may do."""
    merge = case.measured.merge if case.measured else None
    if merge is None:
        return None
    change, tolerated = merge.worst_share, merge.tolerated_share
    return change / tolerated, [
        Figure("largest change", "share", change),
        Figure("tolerated", "share", tolerated),
    ]


def _peaks(of: Callable[[int, int], float], subject: Case, reference: Case) -> _Found:
    ours, theirs = subject.peak_bytes, reference.peak_bytes
    return (of(ours, theirs), both("peak", ours, theirs)) if ours and theirs else None


def _loaded(subject: Case, reference: Case) -> _Found:
    ours, theirs = subject.loaded_bytes, reference.loaded_bytes
    return (theirs / ours, both("once loaded", ours, theirs)) if ours and theirs else None


def _state_bits(subject: Case, reference: Case) -> _Found:
    """Return how many bits less the constants of quantisation take a parameter that can be quantised."""
    ours, theirs = subject.quantisation_state_bytes, reference.quantisation_state_bytes
    parameters = subject.quantisable_parameters
    if not ours or not theirs or not parameters:
        return None
    basis = [*both("state", ours, theirs), _count("parameters outside embeddings", parameters)]
    return 8 * (theirs - ours) / parameters, basis


def _speed(subject: Case, reference: Case) -> _Found:
    ours, theirs = subject.speeds, reference.speeds
    if not ours or not theirs:
        return None
    ratio = statistics.geometric_mean(ours) / statistics.geometric_mean(theirs)
    return ratio, both("speed", statistics.median(ours), statistics.median(theirs), "tokens/s")


def both(name: str, ours: float, theirs: float, unit: Unit = "bytes") -> list[Figure]:
    """Return one number of the subject and of the reference."""
    return [Figure(name, unit, ours), Figure(f"{name}, reference", unit, theirs)]


_QUANTITIES: dict[ValueOf | PairOf, tuple[Unit, Callable[..., _Found]]] = {
    "parameters trained": ("count", partial(_trained, lambda trained, _: trained)),
    "share of parameters trained": ("share", partial(_trained, lambda trained, every: trained / every)),
    "times fewer parameters trained": ("fold", partial(_trained, lambda trained, every: every / trained)),
    "memory needed on a card": ("bytes", _needed_on_any),
    "bits of an adapter's parameter": ("bits", _adapter_bits),
    "bits that products are computed in": ("bits", _compute_bits),
    "change of the largest logit": ("times the tolerance", _merge_change),
    "less peak memory": ("share", partial(_peaks, lambda ours, theirs: 1 - ours / theirs)),
    "more peak memory": ("share", partial(_peaks, lambda ours, theirs: ours / theirs - 1)),
    "times less peak memory": ("fold", partial(_peaks, lambda ours, theirs: theirs / ours)),
    "times less memory once loaded": ("fold", _loaded),
    "bits of quantisation state saved": ("bits", _state_bits),
    "speed": ("fold", _speed),
}


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return a 95 % interval of the ratio of two geometric means (Welch 1947, Biometrika 34:28).

    None where either side has fewer than two runs.
    """
    sizes = np.array([len(ours), len(theirs)])
    if sizes.min() < 2:  # noqa: PLR2004 - a spread takes two
        return None, None
    logs = [np.log(side) for side in (ours, theirs)]
    errors = np.array([side.var(ddof=1) for side in logs]) / sizes
    half, difference = 0.0, float(logs[0].mean() - logs[1].mean())
    if errors.any():
        freedom = errors.sum() ** 2 / (errors**2 / (sizes - 1)).sum()
        half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(errors.sum()))
    return math.exp(difference - half), math.exp(difference + half)


def fits_evidence(rule: FitsRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each chosen cell and card of one of the sizes; too close to call is inconclusive."""
    return [
        evidence_of(
            [case],
            _needed(card),
            [Figure("memory of the card", "bytes", memory_bytes)],
            agrees=_fits(card),
            note=f"{card.card}: {card.answer}",
            more={CARD: memory_bytes // GIB},
        )
        for case in cases
        if matches(case, rule.where)
        for memory_bytes, card in case.cards
        if memory_bytes in {size * GIB for size in rule.card_gib}
    ]


def rescue_evidence(rule: RescueRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair and card on which the reference does not fit for sure."""
    return [
        evidence_of(
            cells,
            _needed(ours),
            [Figure("needed, reference", "bytes", theirs.needed_bytes)],
            agrees=_fits(ours),
            free=rule.freed,
            note=f"{ours.card}: {ours.answer}; without: {theirs.answer}",
            more={MISSING: round(100 * (theirs.needed_bytes / theirs.usable_bytes - 1), 1)},
        )
        for cells in chosen_pairs(rule, cases)
        for _, ours in cells[0].cards
        for _, theirs in cells[1].cards
        if ours.card == theirs.card and theirs.answer != "fits"
    ]


def _needed(card: CardFit) -> Figure:
    return Figure("memory needed on a card", "bytes", card.needed_bytes)


def _fits(card: CardFit) -> bool | None:
    return None if card.answer == "too close to call" else card.answer == "fits"
