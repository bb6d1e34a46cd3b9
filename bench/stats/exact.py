"""Verdicts without chance: outcomes, and metrics that are the same in every run of the same code."""

from collections.abc import Sequence

from bench.records.records import Outcome
from bench.stats.policy import MetricPolicy
from bench.stats.verdicts import Judgement, Verdict

OUTCOME = "outcome"
"""Stands for a metric in the judgement of how a cell's runs ended."""


def judge_outcomes(cell: str, baseline: Sequence[Outcome], candidate: Sequence[Outcome]) -> Judgement:
    """Judge how a cell's runs ended. Memory that no longer suffices is a regression, and the reverse a gain.

    Other failures say nothing about the code for sure: they are *not comparable*, and so is a side without
    a run.
    """
    verdict: Verdict = "pass"
    improved, reason = False, "every run finished on both sides"
    before, after = set(baseline), set(candidate)
    for side, found in (("baseline", before), ("candidate", after)):
        if not found:
            return _outcome(cell, "not comparable", f"the {side} has no run of this cell; run it")
        others = sorted(found - {"ok", "oom"})
        if others:
            return _outcome(
                cell, "not comparable", f"a run of the {side} ended as {' and '.join(others)}; run it again"
            )
    if after == before == {"oom"}:
        reason = "both sides run out of memory"
    elif before == {"ok"} and "oom" in after:
        verdict, reason = "regression", "the candidate runs out of memory where the baseline ran"
    elif after == {"ok"} and "oom" in before:
        improved, reason = True, "the candidate runs where the baseline ran out of memory"
    elif "oom" in before | after:
        verdict = "inconclusive"
        reason = "only some runs ran out of memory; free the device of other work and run again"
    return _outcome(cell, verdict, reason, improved=improved)


def _outcome(cell: str, verdict: Verdict, reason: str, *, improved: bool = False) -> Judgement:
    return Judgement(cell=cell, metric=OUTCOME, verdict=verdict, gated=True, reason=reason, improved=improved)


def judge_exact(
    cell: str, policy: MetricPolicy, baseline: Sequence[float | None], candidate: Sequence[float | None]
) -> Judgement:
    """Judge a deterministic metric by its values over the runs of each side.

    A change for the worse by the tolerance or more is a regression; with a tolerance of 0, any is. Where runs
    of one side differ, every pair of runs has to say so, or none; in between it is *inconclusive*.
    """
    name = policy.metric.name
    before = [value for value in baseline if value is not None]
    after = [value for value in candidate if value is not None]
    if not before or not after:
        sides = [side for side, values in (("baseline", before), ("candidate", after)) if not values]
        reason = f"not measured in the {' or the '.join(sides)}"
        return Judgement(cell=cell, metric=name, verdict="not comparable", gated=policy.gated, reason=reason)
    tolerance = max(policy.tolerance, policy.relative_tolerance * min(map(abs, before)))
    least, most = _change_for_the_worse(policy, before, after)
    verdict: Verdict = "inconclusive"
    if least > 0 and least >= tolerance:
        verdict = "regression"
    elif most <= 0 or most < tolerance:
        verdict = "pass"
    first, second = before[0], after[0]
    varies = " (its runs differ)" if len({*before}) > 1 or len({*after}) > 1 else ""
    return Judgement(
        cell=cell,
        metric=name,
        verdict=verdict,
        gated=policy.gated,
        improved=verdict == "pass" and policy.direction != "same" and most < 0,
        baseline=first,
        candidate=second,
        ratio=second / first if first else None,
        reason=f"{second - first:+,.10g} {policy.metric.unit}, tolerance {tolerance:,.10g}{varies}",
    )


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
