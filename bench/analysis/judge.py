"""From decisions to judgements: each cell's figures in its metric's unit, and the reason in a sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.analysis.detectable import MOST_REPEATS, repeats_needed
from bench.analysis.moderated import Noise
from bench.analysis.paired import Paired, decide_drop, drop_bounds
from bench.analysis.policy import MetricPolicy
from bench.analysis.sequential import DECISIONS, Decided, Decision, Rule
from bench.analysis.settling import Floats
from bench.analysis.verdicts import Judgement, Verdict
from bench.spec.gate import GateSpec

_VERDICTS: dict[Decision, Verdict] = {
    "undecided": "inconclusive",
    "pass": "pass",
    "regression": "regression",
}


@dataclass(frozen=True, kw_only=True)
class _CellEvidence:
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
    rows = zip(cells, _rows(decided, rule), baseline.tolist(), candidate.tolist(), notes, strict=True)
    return tuple(
        _judge(
            cell,
            policy,
            replace(row, decision="undecided") if note else row,
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
    columns = {
        "difference": decided.evidence.difference,
        "lower": lower,
        "upper": upper,
        "standard_error": decided.evidence.standard_error,
        "degrees_of_freedom": decided.evidence.degrees_of_freedom,
        "calibration_held": decided.evidence.calibration_held,
        "family_p_value": decided.family_p_values,
        "repeats": decided.repeats,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        _CellEvidence(decision=DECISIONS[decision], **dict(zip(columns, row, strict=True)))
        for decision, row in zip(decided.decisions.tolist(), values, strict=True)
    ]


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


def judge_accuracy(
    cell: str, policy: MetricPolicy, paired: Paired, family_p_value: float, gate: GateSpec
) -> Judgement:
    """Return the judgement on the answers to the same questions, ``paired`` being baseline against candidate.

    It covers these questions and these two trained models, not the method: that takes several seeds.
    """
    better_higher = policy.direction == "higher"
    worse, better = (paired.lost, paired.gained) if better_higher else (paired.gained, paired.lost)
    lost, gained, items = (np.array([float(count)]) for count in (worse, better, paired.items))
    (decision,) = decide_drop(
        lost,
        gained,
        items,
        family_p_values=np.array([family_p_value]),
        alpha=gate.alpha,
        minimum_drop=gate.minimum_drop,
        tolerance=policy.tolerance,
    )
    low, high = (float(bound[0]) for bound in drop_bounds(lost, gained, items, gate.alpha))
    verdict = _VERDICTS[DECISIONS[int(decision)]]
    changed = f"{worse} of {paired.items} questions lost, {better} gained"
    few = f"; too few to rule out a drop of {policy.tolerance:.1%}, evaluate more questions"
    interval = (-high, -low) if better_higher else (low, high)
    return Judgement(
        cell=cell,
        metric=policy.metric.name,
        verdict=verdict,
        gated=policy.gated,
        reason=changed + (few if verdict == "inconclusive" else ""),
        improved=verdict == "pass" and high < 0,
        difference=paired.difference_share,
        difference_low=interval[0],
        difference_high=interval[1],
        p_value=family_p_value,
    )
