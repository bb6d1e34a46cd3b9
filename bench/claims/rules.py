"""Each kind of test of a claim: a function from cases to rows of evidence."""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.special import stdtrit

from bench.claims.cases import DTYPE_BYTES, Case, Scalar, like_pairs, matches, settings_of, value_at
from bench.claims.catalogue import (
    AccuracyRule,
    Compared,
    FitsRule,
    LeverRule,
    PairOf,
    PairRule,
    RescueRule,
    Rule,
    ValueOf,
    ValueRule,
)
from bench.claims.findings import Evidence, Figure, Outcome, Unit
from bench.compare.accuracy import CONFIDENCE, AccuracyDifference
from bench.compare.studies import differences_over_seeds
from bench.errors import UsageError
from bench.metrics import GIB
from bench.records.predictions import CardFit
from bench.stats.paired import drop_bounds

CARD = "memory of the card in GB"
MISSING = "what is missing without it, in % of the card"


def evidence(rule: Rule, cases: Sequence[Case]) -> list[Evidence]:
    """Return what the cases say of one test, a row for each cell or pair of cells that it chooses."""
    return _RULES[rule.kind](rule, cases)


def chosen_pairs(rule: Compared, cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Return the pairs that a test compares."""
    subjects, references = ([case for case in cases if matches(case, side)] for side in rule.sides)
    return like_pairs(subjects, references, rule.freed)


def evidence_of(  # noqa: PLR0913 - the parts of one row
    case: Case,
    figure: Figure,
    basis: Sequence[Figure] = (),
    *,
    agrees: bool | None,
    reference: Case | None = None,
    free: Collection[str] = (),
    note: str = "",
    more: Mapping[str, Scalar] | None = None,
    outcome: Outcome | None = None,
) -> Evidence:
    """Return what one cell says, or two together; ``more`` settings are looked at first for a boundary."""
    return Evidence(
        cells=(case.cell.id, reference.cell.id) if reference else (case.cell.id,),
        instrument=case.instrument,
        source=case.source,
        model=case.model,
        parameters=case.parameters,
        figure=figure,
        basis=tuple(basis),
        agrees=agrees,
        settings={**(more or {}), **settings_of(case, reference, free)},
        note=note,
        outcome=outcome,
    )


def _value_evidence(rule: ValueRule, cases: Sequence[Case]) -> list[Evidence]:
    unit, measure = _VALUES[rule.quantity]
    found = [(case, value) for case in cases if matches(case, rule.where) and (value := measure(case))]
    return [
        evidence_of(
            case,
            Figure(name=rule.quantity, unit=unit, value=value),
            basis,
            agrees=rule.judge(value, value),
        )
        for case, (value, basis) in found
    ]


_Value = tuple[float, tuple[Figure, ...]] | None


def _counts(case: Case) -> tuple[Figure, ...]:
    named = (("parameters trained", case.trainable), ("parameters", case.parameters))
    return tuple(Figure(name=name, unit="count", value=value) for name, value in named if value)


def _needed_on_any(case: Case) -> _Value:
    """Return the top of the reserved band with the largest context of the cards that it was judged for."""
    if not case.cards:
        return None
    allocated = Figure(name="allocated at the peak", unit="bytes", value=case.peak_bytes or 0)
    return max(verdict.needed_bytes for _, verdict in case.cards), (allocated,)


def _adapter_bits(case: Case) -> _Value:
    """Return bits as read from the saved adapter where there is one, else as the cell says."""
    method, facts = case.cell.method, case.measured.facts if case.measured else None
    if method.kind == "full":
        return None
    if facts and facts.adapter_file_bytes and case.trainable:
        # The file has a header of some kilobytes, so that whole bytes a parameter are meant.
        size = Figure(name="saved adapter", unit="bytes", value=facts.adapter_file_bytes)
        return 8 * round(facts.adapter_file_bytes / case.trainable), (size, _counts(case)[0])
    return 8 * DTYPE_BYTES[case.cell.training.dtype if method.adapter_dtype == "weights" else "fp32"], ()


def _compute_bits(case: Case) -> _Value:
    method = case.cell.method
    return (8 * DTYPE_BYTES[method.compute_dtype], ()) if method.kind == "qlora" else None


def _merge_change(case: Case) -> _Value:
    """Return the largest change of a logit over runs, in units of what rounding may do."""
    merge = case.measured.merge if case.measured else None
    if merge is None:
        return None
    worst = Figure(name="largest change", unit="share", value=merge.worst_share)
    tolerated = Figure(name="tolerated", unit="share", value=merge.tolerated_share)
    return worst.value / tolerated.value, (worst, tolerated)


def _trained(case: Case, of: Callable[[int, int], float]) -> _Value:
    trained, every = case.trainable, case.parameters
    return (of(trained, every), _counts(case)) if trained and every else None


_VALUES: Mapping[ValueOf, tuple[Unit, Callable[[Case], _Value]]] = {
    "parameters trained": ("count", lambda case: (case.trainable, _counts(case)) if case.trainable else None),
    "share of parameters trained": ("share", partial(_trained, of=lambda trained, every: trained / every)),
    "times fewer parameters trained": ("fold", partial(_trained, of=lambda trained, every: every / trained)),
    "memory needed on a card": ("bytes", _needed_on_any),
    "bits of an adapter's parameter": ("bits", _adapter_bits),
    "bits that products are computed in": ("bits", _compute_bits),
    "change of the largest logit": ("times the tolerance", _merge_change),
}


def _pair_evidence(rule: PairRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair of which the quantity is known; speed varies, so its interval decides."""
    free, rows = rule.freed, []
    for subject, reference in chosen_pairs(rule, cases):
        if found := _measure(rule.quantity, subject, reference):
            one = found[0]
            low, high = (one.low, one.high) if rule.quantity == "speed" else (one.value, one.value)
            agrees = None if low is None or high is None else rule.judge(low, high)
            rows.append(evidence_of(subject, *found, agrees=agrees, reference=reference, free=free))
    return rows


def _lever_evidence(rule: LeverRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each value of the lever and the next higher one, all else being alike."""
    chosen = [case for case in cases if case.peak_bytes and matches(case, rule.where)]
    next_higher: dict[int, tuple[Case, Case]] = {}
    for subject, reference in like_pairs(chosen, chosen, (rule.lever, *rule.free)):
        value = value_at(reference, rule.lever)
        best = next_higher.get(id(subject))
        if value > value_at(subject, rule.lever) and (best is None or value < value_at(best[1], rule.lever)):
            next_higher[id(subject)] = (subject, reference)
    rows = []
    for subject, reference in next_higher.values():
        if found := _measure("less peak memory", subject, reference):
            agrees = found[0].value >= rule.at_least
            rows.append(evidence_of(subject, *found, agrees=agrees, reference=reference))
    return rows


_Pair = tuple[Figure, tuple[Figure, ...]] | None
_PEAK, _LOADED = ("peak_bytes", "peak"), ("loaded_bytes", "once loaded")
_SIZES: Mapping[PairOf, tuple[Unit, tuple[str, str], Callable[[int, int], float]]] = {
    "less peak memory": ("share", _PEAK, lambda ours, theirs: 1 - ours / theirs),
    "more peak memory": ("share", _PEAK, lambda ours, theirs: ours / theirs - 1),
    "times less peak memory": ("fold", _PEAK, lambda ours, theirs: theirs / ours),
    "times less memory once loaded": ("fold", _LOADED, lambda ours, theirs: theirs / ours),
}


def _measure(quantity: PairOf, subject: Case, reference: Case) -> _Pair:
    if quantity == "speed":
        return _speed(subject, reference)
    if quantity == "bits of quantisation state saved":
        return _state_bits(subject, reference)
    unit, (field, name), of = _SIZES[quantity]
    ours, theirs = getattr(subject, field), getattr(reference, field)
    if not ours or not theirs:
        return None
    return Figure(name=quantity, unit=unit, value=of(ours, theirs)), _both(name, "bytes", ours, theirs)


def _both(name: str, unit: Unit, ours: float, theirs: float) -> tuple[Figure, Figure]:
    return (
        Figure(name=name, unit=unit, value=ours),
        Figure(name=f"{name}, reference", unit=unit, value=theirs),
    )


def _state_bits(subject: Case, reference: Case) -> _Pair:
    """Return how many bits less the constants of quantisation take a parameter that can be quantised."""
    ours, theirs = subject.quantisation_state_bytes, reference.quantisation_state_bytes
    parameters = subject.quantisable_parameters
    if not ours or not theirs or not parameters:
        return None
    saved = 8 * (theirs - ours) / parameters
    counted = Figure(name="parameters outside embeddings", unit="count", value=parameters)
    basis = (*_both("state", "bytes", ours, theirs), counted)
    return Figure(name="bits of quantisation state saved", unit="bits", value=saved), basis


def _speed(subject: Case, reference: Case) -> _Pair:
    """Return the ratio of tokens/s with an interval over runs; without one where either ran only once."""
    ours, theirs = subject.speeds, reference.speeds
    if not ours or not theirs:
        return None
    low, high = ratio_interval(ours, theirs)
    ratio = statistics.geometric_mean(ours) / statistics.geometric_mean(theirs)
    figure = Figure(name="speed", unit="fold", value=ratio, low=low, high=high)
    return figure, _both("speed", "tokens/s", statistics.median(ours), statistics.median(theirs))


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


def _fits_evidence(rule: FitsRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each chosen cell and card of one of the sizes; too close to call is inconclusive."""
    return [
        evidence_of(
            case,
            _needed(card),
            (Figure(name="memory of the card", unit="bytes", value=memory_bytes),),
            agrees=_answer(card),
            note=f"{card.card}: {card.answer}",
            more={CARD: memory_bytes // GIB},
        )
        for case in cases
        if matches(case, rule.where)
        for memory_bytes, card in case.cards
        if memory_bytes in {size * GIB for size in rule.card_gib}
    ]


def _rescue_evidence(rule: RescueRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair and card on which the reference does not fit for sure."""
    return [
        evidence_of(
            subject,
            _needed(ours),
            (Figure(name="needed, reference", unit="bytes", value=theirs.needed_bytes),),
            agrees=_answer(ours),
            reference=reference,
            free=rule.freed,
            note=f"{ours.card}: {ours.answer}; without: {theirs.answer}",
            more={MISSING: round(100 * (theirs.needed_bytes / theirs.usable_bytes - 1), 1)},
        )
        for subject, reference in chosen_pairs(rule, cases)
        for _, ours in subject.cards
        for _, theirs in reference.cards
        if ours.card == theirs.card and theirs.answer != "fits"
    ]


def _needed(card: CardFit) -> Figure:
    return Figure(name="memory needed on a card", unit="bytes", value=card.needed_bytes)


def _answer(card: CardFit) -> bool | None:
    return None if card.answer == "too close to call" else card.answer == "fits"


def _accuracy_evidence(rule: AccuracyRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair of one study and task that both sides answered the same questions of."""
    rows = []
    for subject, reference in chosen_pairs(rule, cases):
        if subject.measured is None or reference.measured is None or subject.study != reference.study:
            continue
        members = [case.measured for case in cases if case.measured and case.study == subject.study]
        for task in (one.task for one in subject.measured.accuracies):
            try:
                found = differences_over_seeds(members, reference.measured, task).get(subject.measured.key)
            except UsageError:
                continue  # questions that differ are not compared
            ours, theirs = (side.accuracy(task) for side in (subject.measured, reference.measured))
            if not found or not ours or not theirs:
                continue
            figure = difference_figure(found)
            outcome = outcome_of(rule, figure, _skill(subject, task))
            row = evidence_of(
                subject,
                figure,
                _both("accuracy", "share", ours.after or 0, theirs.after or 0),
                agrees=judge_outcome(rule, figure, outcome),
                reference=reference,
                free=rule.freed,
                note=f"{task}, {found.items} questions, {_runs(found)}",
                outcome=outcome,
            )
            rows.append(row)
    return rows


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
    return Figure(name="difference of accuracy", unit="points", value=one.mean, low=low, high=high)


def outcome_of(rule: AccuracyRule, figure: Figure, topic: str) -> Outcome:
    """Return what was found, whatever the claim asks: that there is a difference, or how small it is."""
    one_sided = rule.asks != "different"
    low = -1.0 if figure.low is None else figure.low  # without an interval it may be anything
    high = 1.0 if figure.high is None else figure.high
    return Outcome(
        topic=topic,
        direction="higher" if low > 0 else "lower" if high < 0 else None,
        within=low >= -rule.margin and (one_sided or high <= rule.margin),
        margin=rule.margin,
        one_sided=one_sided,
    )


def judge_outcome(rule: AccuracyRule, figure: Figure, outcome: Outcome) -> bool | None:
    """Judge by the whole interval; None where it reaches across the line, or where there is none."""
    lower = outcome.direction == "lower"
    yes, no = {
        # Not similar: surely below zero, and by the best estimate beyond the margin.
        "no worse": (outcome.within, lower and figure.value < -rule.margin),
        "worse": (lower, outcome.within),
        "different": (outcome.direction is not None, outcome.within),
    }[rule.asks]
    return True if yes else False if no else None


def _skill(case: Case, task: str) -> str:
    """Return what the questions are about: the skill trained for, or a task of its own."""
    trained = value_at(case, "data.task")
    return trained if task == "held-out" and trained else task


def _runs(found: AccuracyDifference) -> str:
    count = len(found.seeds)
    if count == 1:
        return "one run"
    if found.methods is None:
        return f"{count} seeds, too few in common with the study's other methods"
    return f"{count} seeds, adjusted for {found.methods} methods of the study"


_RULES: dict[str, Callable[[Any, Sequence[Case]], list[Evidence]]] = {
    "value": _value_evidence,
    "pair": _pair_evidence,
    "lever": _lever_evidence,
    "fits": _fits_evidence,
    "rescue": _rescue_evidence,
    "accuracy": _accuracy_evidence,
}
