"""Tests that set one cell against another that is like it: memory, quantisation state, speed, levers."""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from scipy.special import stdtrit

from bench.claims.cases import Case
from bench.claims.catalogue import LeverRule, PairOf, PairRule
from bench.claims.findings import Evidence, Figure, Outcome, Setting, Unit
from bench.claims.rules_values import within
from bench.claims.settings import like_pairs, matches, settings_of, value_at
from bench.compare.accuracy import CONFIDENCE


def pair_evidence(rule: PairRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair that may be compared and of which the quantity is known."""
    unit, measure = _QUANTITIES[rule.quantity]
    subjects = [case for case in cases if matches(case, rule.subject)]
    references = [case for case in cases if matches(case, rule.reference)]
    rows = []
    for subject, reference in like_pairs(subjects, references, rule.freed):
        found = measure(subject, reference)
        if found is not None:
            value, low, high, basis = found
            figure = Figure(name=rule.quantity, unit=unit, value=value, low=low, high=high)
            rows.append(pair_row(subject, reference, rule.freed, figure, basis, agrees=_agrees(rule, figure)))
    return rows


def lever_evidence(rule: LeverRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each value of the lever and the next higher one, all else being alike."""
    chosen = [case for case in cases if case.peak_bytes and matches(case, rule.where)]
    free = (rule.lever, *rule.free)
    next_higher: dict[int, tuple[Case, Case]] = {}
    for subject, reference in like_pairs(chosen, chosen, free):
        value = value_at(reference, rule.lever)
        best = next_higher.get(id(subject))
        if value > value_at(subject, rule.lever) and (best is None or value < value_at(best[1], rule.lever)):
            next_higher[id(subject)] = (subject, reference)
    rows = []
    for subject, reference in next_higher.values():
        found = _saving(subject, reference)
        if found:
            figure = Figure(name="less peak memory", unit="share", value=found[0])
            agrees = figure.value >= rule.at_least
            rows.append(pair_row(subject, reference, (), figure, found[3], agrees=agrees))
    return rows


def pair_row(  # noqa: PLR0913 - the parts of one row
    subject: Case,
    reference: Case,
    free: Collection[str],
    figure: Figure,
    basis: Sequence[Figure],
    *,
    agrees: bool | None,
    note: str = "",
    more: Mapping[str, Setting] = MappingProxyType({}),
    outcome: Outcome | None = None,
) -> Evidence:
    """Return what two cells say together; ``more`` settings are looked at first for a boundary."""
    return Evidence(
        cells=(subject.cell.id, reference.cell.id),
        instrument=subject.instrument,
        source=subject.source,
        model=subject.model,
        parameters=subject.parameters,
        figure=figure,
        basis=tuple(basis),
        agrees=agrees,
        settings={**more, **settings_of(subject, reference, free)},
        note=note,
        outcome=outcome,
    )


def _agrees(rule: PairRule, figure: Figure) -> bool | None:
    """Judge a figure; speed, which varies, only where all of its interval lies on the same side."""
    if rule.quantity != "speed":
        return within(rule, figure.value)
    if figure.low is None or figure.high is None:
        return None
    if figure.low > _or(rule.at_most, math.inf) or figure.high < _or(rule.at_least, -math.inf):
        return False
    return True if within(rule, figure.low) and within(rule, figure.high) else None


def _or(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else bound


_Found = tuple[float, float | None, float | None, tuple[Figure, ...]] | None


def _peaks(subject: Case, reference: Case) -> tuple[int, int, tuple[Figure, ...]] | None:
    if not subject.peak_bytes or not reference.peak_bytes:
        return None
    ours, theirs = subject.peak_bytes, reference.peak_bytes
    return ours, theirs, _sizes("peak", ours, theirs)


def _sizes(name: str, ours: float, theirs: float) -> tuple[Figure, ...]:
    return (
        Figure(name=name, unit="bytes", value=ours),
        Figure(name=f"{name}, the other", unit="bytes", value=theirs),
    )


def _saving(subject: Case, reference: Case) -> _Found:
    peaks = _peaks(subject, reference)
    return peaks and (1 - peaks[0] / peaks[1], None, None, peaks[2])


def _excess(subject: Case, reference: Case) -> _Found:
    peaks = _peaks(subject, reference)
    return peaks and (peaks[0] / peaks[1] - 1, None, None, peaks[2])


def _fold(subject: Case, reference: Case) -> _Found:
    peaks = _peaks(subject, reference)
    return peaks and (peaks[1] / peaks[0], None, None, peaks[2])


def _loaded(subject: Case, reference: Case) -> _Found:
    if not subject.loaded_bytes or not reference.loaded_bytes:
        return None
    ours, theirs = subject.loaded_bytes, reference.loaded_bytes
    return theirs / ours, None, None, _sizes("once loaded", ours, theirs)


def _state_bits(subject: Case, reference: Case) -> _Found:
    """Return how many bits less the constants of quantisation take a parameter that can be quantised."""
    ours, theirs = subject.quantisation_state_bytes, reference.quantisation_state_bytes
    parameters = subject.quantisable_parameters
    if not ours or not theirs or not parameters:
        return None
    counted = Figure(name="parameters outside embeddings", unit="count", value=parameters)
    return 8 * (theirs - ours) / parameters, None, None, (*_sizes("state", ours, theirs), counted)


def _speed(subject: Case, reference: Case) -> _Found:
    """Return the ratio of tokens/s with an interval over runs; without one where either ran only once."""
    ours, theirs = subject.speeds, reference.speeds
    if not ours or not theirs:
        return None
    basis = tuple(
        Figure(name=name, unit="tokens/s", value=statistics.median(speeds))
        for name, speeds in (("speed", ours), ("speed, the other", theirs))
    )
    low, high = ratio_interval(ours, theirs)
    logs = [statistics.fmean(map(math.log, speeds)) for speeds in (ours, theirs)]
    return math.exp(logs[0] - logs[1]), low, high, basis


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return a 95 % interval of the ratio of two geometric means (Welch 1947, Biometrika 34:28).

    None where either side has fewer than two runs.
    """
    if min(len(ours), len(theirs)) < 2:  # noqa: PLR2004 - a spread takes two
        return None, None
    logs = [[math.log(value) for value in side] for side in (ours, theirs)]
    errors = [statistics.variance(side) / len(side) for side in logs]
    difference = statistics.fmean(logs[0]) - statistics.fmean(logs[1])
    if not sum(errors):
        return math.exp(difference), math.exp(difference)
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(side) - 1) for error, side in zip(errors, logs, strict=True)
    )
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(errors))
    return math.exp(difference - half), math.exp(difference + half)


_QUANTITIES: Mapping[PairOf, tuple[Unit, Callable[[Case, Case], _Found]]] = MappingProxyType(
    {
        "less peak memory": ("share", _saving),
        "more peak memory": ("share", _excess),
        "times less peak memory": ("fold", _fold),
        "times less memory once loaded": ("fold", _loaded),
        "bits of quantisation state saved": ("bits", _state_bits),
        "speed": ("fold", _speed),
    }
)
