"""Tests of claims on accuracy after training: paired by question, over seeds by the studies' intervals."""

from collections.abc import Sequence

import numpy as np

from bench.claims.cases import Case, value_at
from bench.claims.catalogue import AccuracyRule
from bench.claims.findings import Evidence, Figure, Outcome
from bench.claims.rules import both, chosen_pairs, evidence_of
from bench.compare.accuracy import CONFIDENCE, AccuracyDifference
from bench.compare.studies import differences_over_seeds
from bench.errors import UsageError
from bench.stats.paired import drop_bounds


def accuracy_evidence(rule: AccuracyRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair of one study and task that both sides answered the same questions of."""
    rows = []
    for cells in chosen_pairs(rule, cases):
        subject, reference = (case.measured for case in cells)
        if not subject or not reference or cells[0].study != cells[1].study:
            continue
        members = [case.measured for case in cases if case.measured and case.study == cells[0].study]
        for one in subject.accuracies:
            try:
                found = differences_over_seeds(members, reference, one.task).get(subject.key)
            except UsageError:
                continue  # questions that differ are not compared
            other = reference.accuracy(one.task)
            if not found or not other:
                continue
            figure = difference_figure(found)
            outcome = outcome_of(rule, figure, _skill(cells[0], one.task))
            row = evidence_of(
                cells,
                figure,
                both("accuracy", one.after or 0, other.after or 0, "share"),
                agrees=judge_outcome(rule, figure, outcome),
                free=rule.freed,
                note=f"{one.task}, {found.items} questions, {_runs(found)}",
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
    return Figure("difference of accuracy", "points", one.mean, low, high)


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
