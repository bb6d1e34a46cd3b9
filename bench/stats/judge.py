"""From decisions to judgements: each cell's figures in its metric's unit, and the reason in a sentence."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import starmap
from typing import NamedTuple

import numpy as np

from bench.scenario.gate import GateSpec
from bench.stats.detectable import MOST_REPEATS, repeats_needed
from bench.stats.moderated import Noise
from bench.stats.paired import Paired, decide_drop, drop_bounds
from bench.stats.policy import MetricPolicy
from bench.stats.sequential import DECISIONS, UNDECIDED, Decided, Decision, Rule
from bench.stats.settling import Floats
from bench.stats.verdicts import Judgement, Verdict

_VERDICTS: dict[Decision, Verdict] = {
    "undecided": "inconclusive",
    "pass": "pass",
    "regression": "regression",
}


class _CellEvidence(NamedTuple):
    """One cell's row of ``Decided``, with its bounds; logs, positive being worse."""

    decision: Decision
    difference: float
    lower: float
    upper: float
    standard_error: float
    degrees_of_freedom: float
    calibration_held: bool
    family_p_value: float
    repeats: int
    needed: int


def judge_statistical(  # noqa: PLR0913 - names, policy and promise of the gate, and what was found
    cells: Sequence[str],
    policy: MetricPolicy,
    decided: Decided,
    rule: Rule,
    *,
    baseline: Floats,
    candidate: Floats,
    too_little: Sequence[str | None] = (),
) -> tuple[Judgement, ...]:
    """Return the judgement of each cell on one metric; all arrays hold one number for each cell.

    ``baseline`` and ``candidate`` are means of log summaries signed so that positive is worse, ``NaN`` where
    a side has no run: *not comparable*. A sentence in ``too_little`` makes its cell *inconclusive*.
    """
    notes = too_little or [None] * len(cells)
    noted = np.array([bool(note) for note in notes], dtype=np.bool_)
    decided = replace(decided, decisions=np.where(noted, UNDECIDED, decided.decisions).astype(np.int8))
    rows = zip(cells, _rows(decided, rule), baseline.tolist(), candidate.tolist(), notes, strict=True)
    return tuple(
        _judge(
            cell,
            policy,
            row,
            before=before,
            after=after,
            reason=note or _reason(row, policy, rule, tests=len(cells)),
        )
        for cell, row, before, after, note in rows
    )


def centre(runs: Floats) -> Floats:
    """Return the mean of each row of runs; ``NaN`` where there is none."""
    count = (~np.isnan(runs)).sum(axis=-1)
    return np.where(count > 0, np.nansum(runs, axis=-1) / np.maximum(count, 1), np.nan)


def _rows(decided: Decided, rule: Rule) -> list[_CellEvidence]:
    """Return the evidence cell by cell."""
    lower, upper = decided.evidence.bounds(rule.alpha_of_a_look)
    rows = zip(
        [DECISIONS[decision] for decision in decided.decisions.tolist()],
        decided.evidence.difference.tolist(),
        lower.tolist(),
        upper.tolist(),
        decided.evidence.standard_error.tolist(),
        decided.evidence.degrees_of_freedom.tolist(),
        decided.evidence.calibration_held.tolist(),
        decided.family_p_values.tolist(),
        decided.repeats.tolist(),
        decided.needed.tolist(),
        strict=True,
    )
    return list(starmap(_CellEvidence, rows))


def _judge(  # noqa: PLR0913 - one cell of several columns
    cell: str, policy: MetricPolicy, row: _CellEvidence, *, before: float, after: float, reason: str
) -> Judgement:
    """Return one cell's judgement; values and ratio in the metric's own direction."""
    missing = [side for side, value in (("baseline", before), ("candidate", after)) if math.isnan(value)]
    if missing:
        return Judgement(
            cell=cell,
            metric=policy.metric.name,
            verdict="not comparable",
            gated=policy.gated,
            reason=f"not measured in the {' or the '.join(missing)}",
        )
    sign, known = policy.worse_sign, row.degrees_of_freedom > 0
    low, high = sorted((sign * row.lower, sign * row.upper))
    return Judgement(
        cell=cell,
        metric=policy.metric.name,
        gated=policy.gated,
        reason=reason,
        verdict=_VERDICTS[row.decision],
        improved=row.decision == "pass" and row.upper < 0,
        baseline=math.exp(sign * before),
        candidate=math.exp(sign * after),
        ratio=math.exp(sign * (row.difference if known else after - before)),
        ratio_low=math.exp(low) if known else None,
        ratio_high=math.exp(high) if known else None,
        p_value=row.family_p_value,
        repeats=row.repeats,
    )


def _reason(row: _CellEvidence, policy: MetricPolicy, rule: Rule, *, tests: int) -> str:
    difference, lower, upper = (_change(log, policy) for log in (row.difference, row.lower, row.upper))
    if row.decision == "regression":
        text = f"{difference}, at least {lower}"
    elif row.decision == "pass":
        text = f"{upper} at {'least' if row.upper < 0 else 'most'}"
    elif row.degrees_of_freedom == 0:
        text = f"{row.repeats} repeats do not tell the noise; run at least {rule.looks[0]}"
    elif row.needed:
        text = (
            f"from {lower} to {upper}, but without a calibration {row.repeats} repeats may fall apart so by "
            f"chance; run {row.needed}, or bench calibrate"
        )
    else:
        text = (
            f"too noisy: anything from {lower} to {upper} after {row.repeats} repeats; "
            f"{_advice(row, policy, rule, tests=tests)}"
        )
    if not row.calibration_held:
        text += " (the runs spread more than the calibration allows, so it was left out; calibrate again)"
    return text


def _advice(row: _CellEvidence, policy: MetricPolicy, rule: Rule, *, tests: int) -> str:
    """Say how many repeats would do at the noise seen; more of them are useless where it is hopeless."""
    noise = Noise(
        log_variance=row.standard_error**2 * row.repeats / 2, degrees_of_freedom=int(row.degrees_of_freedom)
    )
    needed = repeats_needed(noise, math.expm1(policy.tolerance_log), rule, tests=tests)
    if needed is None:
        return f"more than {MOST_REPEATS} would be needed to find {policy.tolerance:.1%}: quieten the machine"
    if needed > row.repeats:
        return f"about {needed} find a change of {policy.tolerance:.1%} reliably"
    return f"the change lies near the tolerance of {policy.tolerance:.1%}; more repeats would decide"


def _change(log: float, policy: MetricPolicy) -> str:
    """Return a change of the metric's value in words; ``log`` is positive where it is for the worse."""
    return f"{abs(math.expm1(policy.worse_sign * log)):.1%} {'worse' if log >= 0 else 'better'}"


class Answered(NamedTuple):
    """The answers to the same questions, baseline against candidate; ``family_p_value`` is adjusted."""

    cell: str
    policy: MetricPolicy
    paired: Paired
    family_p_value: float

    @property
    def worse_and_better(self) -> tuple[int, int]:
        """How many answers changed for the worse, and how many for the better."""
        lost, gained = self.paired.lost, self.paired.gained
        return (gained, lost) if self.policy.direction == "lower" else (lost, gained)


def judge_accuracy(found: Sequence[Answered], gate: GateSpec) -> tuple[Judgement, ...]:
    """Return the judgement on each.

    It covers these questions and these two trained models, not the method: that takes several seeds.
    """
    lost, gained = np.array([one.worse_and_better for one in found], dtype=np.float64).reshape(-1, 2).T
    items = np.array([one.paired.items for one in found], dtype=np.float64)
    decisions = decide_drop(
        lost,
        gained,
        items,
        family_p_values=np.array([one.family_p_value for one in found]),
        alpha=gate.alpha,
        minimum_drop=gate.minimum_drop,
        tolerance=np.array([one.policy.tolerance for one in found]),
    )
    low, high = drop_bounds(lost, gained, items, gate.alpha)
    rows = zip(found, decisions.tolist(), low.tolist(), high.tolist(), strict=True)
    return tuple(_answered(one, DECISIONS[decision], low, high) for one, decision, low, high in rows)


def _answered(one: Answered, decision: Decision, low: float, high: float) -> Judgement:
    """Return the judgement on one; ``low`` and ``high`` bound the drop."""
    policy, paired = one.policy, one.paired
    worse, better = one.worse_and_better
    verdict = _VERDICTS[decision]
    reason = f"{worse} of {paired.items} questions lost, {better} gained"
    if verdict == "inconclusive":
        reason += f"; too few to rule out a drop of {policy.tolerance:.1%}, evaluate more questions"
    if paired.unmatched:
        reason += f"; {paired.unmatched} questions on one side only"
    interval = (low, high) if policy.direction == "lower" else (-high, -low)
    return Judgement(
        cell=one.cell,
        metric=policy.metric.name,
        verdict=verdict,
        gated=policy.gated,
        reason=reason,
        improved=verdict == "pass" and high < 0,
        difference=paired.difference_share,
        difference_low=interval[0],
        difference_high=interval[1],
        p_value=one.family_p_value,
    )
