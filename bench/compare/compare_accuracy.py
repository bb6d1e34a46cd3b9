"""Accuracy over the cells of a comparison: the same questions before and after, task by task."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np
from msgspec import structs

from bench.compare.compare_pairs import Pair
from bench.errors import UsageError
from bench.records.run_facts import Answers, RunFacts
from bench.scenario.gate import GateSpec
from bench.stats.judge import Answered, judge_accuracy
from bench.stats.paired import Paired, drop_p_value, pair_items
from bench.stats.policy import MetricPolicy
from bench.stats.settling import Floats
from bench.stats.verdicts import Judgement

_WHEN: dict[str, Literal["before", "after"]] = {"accuracy_before": "before", "accuracy_after": "after"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One task of one cell: how its answers changed, or why that cannot be told."""

    cell: str
    task: str
    policy: MetricPolicy
    baseline: float | None
    candidate: float | None
    paired: Paired | None
    why_not: str | None


def changes(policy: MetricPolicy, pairs: Sequence[Pair]) -> Iterator[Change]:
    """Yield the tasks that either side evaluated, where both have good runs; each from the first that did."""
    when = _WHEN[policy.metric.name]
    for pair in pairs:
        if not pair.baseline_ok or not pair.candidate_ok:
            continue  # how the runs ended is judged already
        before = _by_task(pair.baseline_ok, when)
        after = _by_task(pair.candidate_ok, when)
        for task in {**before, **after}:
            first, second = before.get(task), after.get(task)
            paired, why_not = _pair(first, second)
            yield Change(
                cell=pair.cell_id,
                task=task,
                policy=policy,
                baseline=None if first is None else first.accuracy,
                candidate=None if second is None else second.accuracy,
                paired=paired,
                why_not=why_not,
            )


def _by_task(runs: Sequence[RunFacts], when: str) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for run in runs:
        for answers in run.answers:
            if answers.when == when:
                found.setdefault(answers.task, answers)
    return found


def _pair(first: Answers | None, second: Answers | None) -> tuple[Paired | None, str | None]:
    if first is None or second is None:
        return None, f"not evaluated in the {'baseline' if first is None else 'candidate'}"
    for name in ("metric", "num_fewshot", "instrument"):
        before, after = getattr(first, name), getattr(second, name)
        if before != after:
            return None, f"read by different instruments: {name} {before} before, {after} now"
    try:
        # Runs that saw the same questions share one object, and their answers are counted as whole numbers.
        if first.questions is second.questions and first.questions:
            return _counted(first.correct, second.correct), None
        return pair_items(first.items, second.items), None
    except UsageError as error:
        return None, str(error)


def _counted(before: bytes, after: bytes) -> Paired:
    was, is_now = int.from_bytes(before), int.from_bytes(after)
    return Paired(
        items=len(before),
        unmatched=0,
        gained=(is_now & ~was).bit_count(),
        lost=(was & ~is_now).bit_count(),
    )


def p_values(found: Sequence[Change]) -> Floats:
    """Return the p-value of each change being none for the worse, for those that can be told, in order."""
    counts = [one.worse_and_better for one in _answered(found)]
    worse, better = np.array(counts, dtype=np.float64).reshape(-1, 2).T
    return drop_p_value(worse, better)


def _answered(found: Sequence[Change], family_p_values: Iterable[float] = repeat(1.0)) -> list[Answered]:
    """Return the changes that can be told, each with its p-value."""
    told = ((change, change.paired) for change in found if change.paired is not None)
    return [
        Answered(cell=change.cell, policy=change.policy, paired=paired, family_p_value=p_value)
        for (change, paired), p_value in zip(told, family_p_values, strict=False)
    ]


def judge_changes(found: Sequence[Change], family_p_values: Floats, gate: GateSpec) -> Iterator[Judgement]:
    """Yield the judgement of each change; the p-values are those of ``p_values``, adjusted."""
    judged = iter(judge_accuracy(_answered(found, family_p_values.tolist()), gate))
    for change in found:
        judgement = _not_told(change) if change.paired is None else next(judged)
        yield structs.replace(
            judgement, task=change.task, baseline=change.baseline, candidate=change.candidate
        )


def _not_told(change: Change) -> Judgement:
    return Judgement(
        cell=change.cell,
        metric=change.policy.metric.name,
        verdict="not comparable",
        gated=change.policy.gated,
        reason=change.why_not or "",
    )
