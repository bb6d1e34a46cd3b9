"""Tests on accuracy after training: paired by question, over seeds where both sides ran with several."""

import statistics
from collections.abc import Sequence

import numpy as np

from bench.analysis.claims.cases import Answers, Case
from bench.analysis.claims.catalogue import AccuracyRule
from bench.analysis.claims.findings import Evidence, Figure
from bench.analysis.claims.rules_pairs import pair_row
from bench.analysis.claims.settings import like_pairs, matches
from bench.analysis.paired import Paired, drop_bounds, pair_items
from bench.analysis.seeds import CONFIDENCE, mean_over_seeds
from bench.errors import UsageError


def accuracy_evidence(rule: AccuracyRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair and task that both sides answered the same questions of."""
    subjects = [case for case in cases if case.answers and matches(case, rule.subject)]
    references = [case for case in cases if case.answers and matches(case, rule.reference)]
    rows = []
    for subject, reference in like_pairs(subjects, references, rule.freed):
        for task in dict.fromkeys(answer.task for answer in subject.answers):
            pairs = _by_seed(subject, reference, task)
            if pairs:
                figure = difference_figure(pairs)
                note = f"{task}, {pairs[0].items} questions, " + _runs(len(pairs))
                row = pair_row(
                    subject,
                    reference,
                    rule.freed,
                    figure,
                    _accuracies(subject, reference, task),
                    agrees=judge_difference(rule, figure),
                    note=note,
                )
                rows.append(row)
    return rows


def difference_figure(pairs: Sequence[Paired]) -> Figure:
    """Return the difference of accuracy, as a share of the questions, with a 95 % interval.

    Over several seeds that do not all agree, the t-interval over them, which covers training. Of one run, or
    of seeds that agree, the paired interval of Bonett and Price over questions, which does not.
    """
    differences = mean_over_seeds([pair.difference_share for pair in pairs])
    low, high = differences.low, differences.high
    if low is None or high is None or differences.p_value is None:
        only = pairs[0]
        lost, gained, items = (np.array([float(n)]) for n in (only.lost, only.gained, only.items))
        least, most = drop_bounds(lost, gained, items, (1 - CONFIDENCE) / 2)
        low, high = -float(most[0]), -float(least[0])
    return Figure(name="difference of accuracy", unit="points", value=differences.mean, low=low, high=high)


def judge_difference(rule: AccuracyRule, figure: Figure) -> bool | None:
    """Judge by the whole interval; None where it reaches across the line."""
    low, high = figure.low, figure.high
    assert low is not None  # noqa: S101 - differences always have an interval
    assert high is not None  # noqa: S101 - the same
    if rule.asks == "no worse":
        # Not similar: below nought for sure, and by the best guess beyond the margin.
        yes, no = low >= -rule.margin, high < 0 and figure.value < -rule.margin
    elif rule.asks == "worse":
        yes, no = high < 0, low >= -rule.margin
    else:
        yes, no = low > 0 or high < 0, max(-low, high) <= rule.margin
    return True if yes else False if no else None


def _by_seed(subject: Case, reference: Case, task: str) -> list[Paired]:
    """Pair the first run of each seed that both have; questions that differ are not compared."""
    ours, theirs = _first_of_seeds(subject, task), _first_of_seeds(reference, task)
    try:
        return [
            pair_items(theirs[seed].items, ours[seed].items) for seed in sorted(ours.keys() & theirs.keys())
        ]
    except UsageError:
        return []


def _first_of_seeds(case: Case, task: str) -> dict[int, Answers]:
    found: dict[int, Answers] = {}
    for answers in case.answers:
        if answers.task == task:
            found.setdefault(answers.seed, answers)
    return found


def _accuracies(subject: Case, reference: Case, task: str) -> tuple[Figure, ...]:
    named = (("accuracy", subject), ("accuracy, the other", reference))
    return tuple(
        Figure(name=name, unit="share", value=_mean_accuracy(list(_first_of_seeds(case, task).values())))
        for name, case in named
    )


def _mean_accuracy(answers: Sequence[Answers]) -> float:
    return statistics.fmean(
        sum(item.correct for item in answer.items) / len(answer.items) for answer in answers
    )


def _runs(count: int) -> str:
    return "one run" if count == 1 else f"{count} seeds"
