"""From figures to verdicts: what changed for certain, what cannot be decided, and the reason in a sentence.

How runs ended and metrics that repeat exactly are judged without chance; speed and accuracy from the
decisions of ``sequential`` and ``paired``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.errors import counted, percent
from bench.records.records import Outcome
from bench.records.verdicts import (
    EVERY_RUN_FINISHED,
    Interval,
    MetricVerdict,
    VerdictName,
    outcome_verdict,
)
from bench.scenario.gate import GateSpec
from bench.stats.chance import Rule
from bench.stats.noise import Noise
from bench.stats.paired import Paired, decide_drop, drop_bounds, drop_p_value
from bench.stats.power import MOST_REPEATS, power_of, repeats_needed
from bench.stats.sequential import DECISIONS, UNDECIDED, Decided, MetricPolicy
from bench.stats.trend import Floats

_WHOLE = 1000
"""Above it a figure is shown without its fraction, as a tolerance that is a share of a size has one."""


def _shown(value: float, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) > _WHOLE else f"{value:{sign},.10g}"


def judge_outcomes(cell: str, baseline: Sequence[Outcome], candidate: Sequence[Outcome]) -> MetricVerdict:
    """Judge how a cell's runs ended. Memory that no longer suffices is a regression, and the reverse a gain.

    Other failures say nothing about the code for sure: they are *not comparable*, and so is a side without
    a run.
    """
    verdict: VerdictName = "pass"
    improved, reason = False, EVERY_RUN_FINISHED
    before, after = set(baseline), set(candidate)
    for side, found in (("baseline", before), ("candidate", after)):
        others = sorted(found - {"ok", "oom"})
        if not found or others:
            why = (
                f"a run of the {side} ended as {' and '.join(others)}"
                if found
                else f"the {side} has no run of this cell; run it"
            )
            return outcome_verdict(cell, "not comparable", why)
    if after == before == {"oom"}:
        reason = "both sides run out of memory"
    elif before == {"ok"} and "oom" in after:
        verdict, reason = "regression", "the candidate runs out of memory where the baseline ran"
    elif after == {"ok"} and "oom" in before:
        improved, reason = True, "the candidate runs where the baseline ran out of memory"
    elif "oom" in before | after:
        verdict = "inconclusive"
        reason = "only some runs ran out of memory; free the device of other work and run again"
    return outcome_verdict(cell, verdict, reason, improved=improved)


def judge_exact(
    cell: str, policy: MetricPolicy, baseline: Sequence[float | None], candidate: Sequence[float | None]
) -> MetricVerdict:
    """Judge an exact metric by its values over the runs of each side.

    A change for the worse by the tolerance or more is a regression; with a tolerance of 0, any is. Where runs
    of one side differ, every pair of runs has to say so, or none; in between it is *inconclusive*. So it is
    where runs of a bounded metric differ more within a side than between the two.
    """
    before = [value for value in baseline if value is not None]
    after = [value for value in candidate if value is not None]
    if not before or not after:
        return _not_measured(policy, cell, baseline=bool(before), candidate=bool(after))
    tolerance = policy.tolerated(min(map(abs, before)))
    least, most = _change_for_the_worse(policy, before, after)
    verdict: VerdictName = "inconclusive"
    spread = max(max(side) - min(side) for side in (before, after))
    noise = max(tolerance, spread) if policy.metric.kind == "bounded" else 0.0
    if least > 0 and least >= max(tolerance, noise):
        verdict = "regression"
    elif most <= 0 or most < tolerance:
        verdict = "pass"
    first, second = before[0], after[0]
    varies = " (its runs differ)" if len({*before}) > 1 or len({*after}) > 1 else ""
    return policy.verdict(
        cell,
        verdict,
        f"{_shown(second - first, '+')} {policy.metric.unit}, tolerance {_shown(tolerance)}{varies}",
        improved=verdict == "pass" and policy.direction != "same" and most < -noise,
        baseline=first,
        candidate=second,
        ratio=second / first if first else None,
    )


def _not_measured(policy: MetricPolicy, cell: str, *, baseline: bool, candidate: bool) -> MetricVerdict:
    sides = [side for side, there in (("baseline", baseline), ("candidate", candidate)) if not there]
    return policy.verdict(cell, "not comparable", f"not measured in the {' or the '.join(sides)}")


def _change_for_the_worse(
    policy: MetricPolicy, before: Sequence[float], after: Sequence[float]
) -> tuple[float, float]:
    """Return the least and the greatest change for the worse between a run of each side."""
    changes = [min(after) - max(before), max(after) - min(before)]
    if policy.direction == "same":
        sizes = sorted(map(abs, changes))
        return (0.0 if changes[0] <= 0 <= changes[1] else sizes[0]), sizes[1]
    least, most = sorted(policy.worse_sign * change for change in changes)
    return least, most


class _Row(NamedTuple):
    """One cell of one metric: its row of ``Decided``, bounds and means; logs, positive being worse."""

    difference: float
    lower: float
    upper: float
    standard_error: float
    degrees_of_freedom: float
    calibration_held: bool
    family_p_value: float
    rests_on: float
    repeats: int
    needed: int
    overlap: bool
    median: float
    apart: bool
    baseline: float
    candidate: float
    decision: VerdictName
    cell: str
    note: str | None
    interval: Interval


def judge_statistical(
    cells: Sequence[str],
    policy: MetricPolicy,
    decided: Decided,
    rule: Rule,
    *,
    baseline: Floats,
    candidate: Floats,
    notes: Sequence[str | None] = (),
    intervals: Sequence[Interval] = (),
) -> list[MetricVerdict]:
    """Return the verdict on one metric of each cell; all arrays hold one number for each cell.

    ``baseline`` and ``candidate`` are means of log summaries signed so that positive is worse, ``NaN`` where
    a side has no run: *not comparable*. A sentence in ``notes`` makes its cell *inconclusive*, without a
    p-value. ``intervals`` say what each interval covers, by default the runs.
    """
    evidence, median = decided.evidence, decided.median
    columns = (
        evidence.difference,
        *evidence.bounds(decided.alpha),
        evidence.standard_error,
        evidence.degrees_of_freedom,
        evidence.calibration_held,
        decided.family_p_values,
        decided.lower,
        decided.repeats,
        decided.needed,
        decided.overlap,
        np.full(len(cells), np.nan) if median is None else median.difference,
        decided.apart,
        baseline,
        candidate,
    )
    notes = notes or [None] * len(cells)
    rows = zip(
        *(column.tolist() for column in columns),
        [
            DECISIONS[UNDECIDED if note else place]
            for place, note in zip(decided.decisions.tolist(), notes, strict=True)
        ],
        cells,
        notes,
        intervals or ["runs"] * len(cells),
        strict=True,
    )
    return [_statistical(_Row(*row), policy, rule, decided) for row in rows]


def _statistical(row: _Row, policy: MetricPolicy, rule: Rule, decided: Decided) -> MetricVerdict:
    """Return one cell's verdict; values and ratio in the metric's own direction."""
    missing = [math.isnan(row.baseline), math.isnan(row.candidate)]
    if any(missing):
        return _not_measured(policy, row.cell, baseline=not missing[0], candidate=not missing[1])
    sign, known = policy.worse_sign, row.degrees_of_freedom > 0
    low, high = sorted((sign * row.lower, sign * row.upper))
    return policy.verdict(
        row.cell,
        row.decision,
        row.note or _reason(row, policy, rule, decided),
        improved=row.decision == "pass" and row.upper < 0,
        baseline=math.exp(sign * row.baseline),
        candidate=math.exp(sign * row.candidate),
        ratio=math.exp(sign * (row.difference if known else row.candidate - row.baseline)),
        ratio_low=math.exp(low) if known else None,
        ratio_high=math.exp(high) if known else None,
        p_value=None if row.note else row.family_p_value,
        repeats=row.repeats,
        interval=row.interval if known else None,
        median_ratio=None if math.isnan(row.median) else math.exp(sign * row.median),
        median_disagrees=row.apart,
    )


def _reason(row: _Row, policy: MetricPolicy, rule: Rule, decided: Decided) -> str:
    difference, lower, upper = (_change(log, policy) for log in (row.difference, row.lower, row.upper))
    repeats = counted(row.repeats, "repeat")
    if row.decision == "regression":
        text = f"{difference}, at least {_change(row.rests_on, policy)}"
    elif row.decision == "pass":
        text = f"{upper} at {'least' if row.upper < 0 else 'most'}"
    elif row.degrees_of_freedom == 0:
        does = "does" if row.repeats == 1 else "do"
        least = max(rule.fewest_repeats(1, pairs=decided.pairs), row.repeats + 1)
        text = f"{repeats} {does} not show the noise; run at least {least}"
    elif row.needed:
        text = (
            f"from {lower} to {upper}, but {row.repeats} repeats may fall apart so by chance, whatever the "
            f"noise; run {row.needed}"
        )
    elif row.overlap:
        text = (
            f"from {lower} to {upper}, but the runs of both sides still lie as chance might put them after "
            f"{repeats}; more would decide"
        )
    else:
        advice = _advice(row, policy, rule, decided)
        text = f"too noisy: anything from {lower} to {upper} after {repeats}; {advice}"
    if not math.isnan(row.median):
        text += f"; the median step {_change(row.median, policy)}"
    if not row.calibration_held:
        text += " (today's runs are not like the calibration's, so it was left out; calibrate again)"
    return text


def _advice(row: _Row, policy: MetricPolicy, rule: Rule, decided: Decided) -> str:
    """Say how many repeats would do at the noise seen; more of them are useless where it is hopeless."""
    noise = Noise(
        log_variance=row.standard_error**2 * row.repeats / 2,
        degrees_of_freedom=int(row.degrees_of_freedom),
        of_pairs=decided.pairs,
    )
    tests = len(decided.repeats)
    needed = repeats_needed(noise, math.expm1(policy.tolerance_log), rule, tests=tests)
    tolerated = percent(policy.tolerance)
    if needed is None:
        return f"more than {MOST_REPEATS} would be needed to find {tolerated}: reduce background load"
    if needed > row.repeats:
        return f"about {needed} find a change of {tolerated} reliably"
    return f"the change lies near the tolerance of {tolerated}; more repeats would decide"


def _change(log: float, policy: MetricPolicy) -> str:
    """Return a change of the metric's value in words; ``log`` is positive where it is for the worse."""
    return f"{percent(abs(math.expm1(policy.worse_sign * log)))} {'worse' if log >= 0 else 'better'}"


@dataclass(frozen=True, kw_only=True)
class AccuracyChange:
    """One task of one cell: its accuracies, and how the answers changed or why that is not known."""

    cell: str
    task: str
    policy: MetricPolicy
    baseline: float | None
    candidate: float | None
    paired: Paired | None
    why_not: str | None = None

    @property
    def sign(self) -> int:
        """1 where an answer that was lost is for the worse, -1 where it is for the better."""
        return -1 if self.policy.direction == "lower" else 1


def _counts(found: Sequence[AccuracyChange]) -> Floats:
    """Return how many answers became worse, how many better, of how many, and how these hang together.

    A row for each of ``drop_bounds``' counts, a column for each change that is paired.
    """
    counts = [
        (*(paired.lost, paired.gained)[:: one.sign], paired.items, paired.squares, paired.source_items)
        for one in found
        if (paired := one.paired) is not None
    ]
    return np.array(counts, dtype=np.float64).reshape(-1, 5).T


def accuracy_p_values(found: Sequence[AccuracyChange]) -> Floats:
    """Return the p-value of each change being none for the worse, for those that are paired, in order."""
    worse, better, *_ = _counts(found)
    p_values = drop_p_value(worse, better)
    for place, one in enumerate(one for one in found if one.paired):
        if one.paired and one.paired.swings is not None:
            p_values[place] = one.paired.worse_p_value(one.sign)
    return p_values


def judge_accuracy(
    found: Sequence[AccuracyChange], family_p_values: Floats, gate: GateSpec
) -> tuple[MetricVerdict, ...]:
    """Return the verdict on each; the p-values are those of ``accuracy_p_values``, adjusted.

    It covers these questions and these two trained models, not the method: that takes several seeds.
    """
    worse, better, items, squares, source_items = _counts(found)
    together = {"squares": squares, "source_items": source_items}
    decisions = decide_drop(
        worse,
        better,
        items,
        family_p_values=family_p_values,
        alpha=gate.alpha,
        minimum_drop=gate.minimum_drop,
        tolerance=np.array([one.policy.tolerance for one in found if one.paired is not None]),
        **together,
    )
    low, high = np.clip(drop_bounds(worse, better, items, gate.alpha, **together), -1, 1)
    columns = (decisions, low, high, family_p_values, worse.astype(int), better.astype(int))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(_accuracy(one, next(rows) if one.paired else None, gate, tests=len(items)) for one in found)


def _accuracy(
    one: AccuracyChange,
    row: tuple[int, float, float, float, int, int] | None,
    gate: GateSpec,
    *,
    tests: int,
) -> MetricVerdict:
    """Return the verdict on one change: decision, bounds of the drop, p-value, answers worse and better."""
    known = {"task": one.task, "baseline": one.baseline, "candidate": one.candidate, "interval": "questions"}
    policy, paired = one.policy, one.paired
    if paired is None or row is None:
        return policy.verdict(one.cell, "not comparable", one.why_not or "", **known)
    decision, low, high, p_value, worse, better = row
    verdict = DECISIONS[decision]
    reason = f"{worse} of {paired.items} questions lost, {better} gained; {power_of(paired, gate, tests)}"
    if verdict == "inconclusive":
        reason += f"; too few to rule out a drop of {percent(policy.tolerance)}, evaluate more questions"
    interval = (low, high) if policy.direction == "lower" else (-high, -low)
    return policy.verdict(
        one.cell,
        verdict,
        reason,
        improved=verdict == "pass" and high < 0,
        difference=paired.difference_share,
        difference_low=interval[0],
        difference_high=interval[1],
        p_value=p_value,
        **known,
    )
