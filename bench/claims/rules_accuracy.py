"""Tests on accuracy after training: paired by question, over seeds as the studies' pages do it."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from bench.claims.cases import Answers, Case
from bench.claims.catalogue import AccuracyRule
from bench.claims.findings import Evidence, Figure, Outcome
from bench.claims.rules_pairs import pair_row
from bench.claims.settings import like_pairs, matches, value_at
from bench.compare.accuracy import CONFIDENCE, SeedBlocks, difference_in_blocks, seed_blocks
from bench.errors import UsageError
from bench.stats.paired import Paired, drop_bounds, pair_items

_Answered = Mapping[int, Answers]


def accuracy_evidence(rule: AccuracyRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each pair of one study and task that both sides answered the same questions of."""
    subjects = [case for case in cases if case.answers and matches(case, rule.subject)]
    references = [case for case in cases if case.answers and matches(case, rule.reference)]
    rows = []
    for subject, reference in like_pairs(subjects, references, rule.freed):
        for task in dict.fromkeys(answer.task for answer in subject.answers):
            ours, theirs = _first_of_seeds(subject, task), _first_of_seeds(reference, task)
            design = _design(subject, reference, task, cases)
            pairs = _by_seed(ours, theirs, design.seeds if design else None)
            if pairs and subject.study == reference.study:
                figure = difference_figure(pairs, design)
                row = pair_row(
                    subject,
                    reference,
                    rule.freed,
                    figure,
                    _accuracies(ours, theirs),
                    agrees=judge_difference(rule, figure),
                    note=f"{task}, {pairs[0].items} questions, {_runs(len(pairs), design)}",
                    outcome=outcome_of(rule, figure, _skill(subject, task)),
                )
                rows.append(row)
    return rows


def difference_figure(pairs: Sequence[Paired], design: SeedBlocks | None) -> Figure:
    """Return the difference of accuracy, as a share of the questions, with a 95 % interval.

    Over several seeds, the study's simultaneous interval, which covers training; none where nothing varies,
    or where too few seeds are common to all methods. Of one run the paired interval of Bonett and Price over
    questions, which does not cover training, and is not adjusted for other comparisons.
    """
    found = difference_in_blocks([pair.difference_share for pair in pairs], design)
    low, high = (found.low, found.high) if found.p_value is not None else (None, None)
    if len(pairs) == 1:
        only = pairs[0]
        lost, gained, items = (np.array([float(n)]) for n in (only.lost, only.gained, only.items))
        least, most = drop_bounds(lost, gained, items, (1 - CONFIDENCE) / 2)
        low, high = -float(most[0]), -float(least[0])
    return Figure(name="difference of accuracy", unit="points", value=found.mean, low=low, high=high)


def judge_difference(rule: AccuracyRule, figure: Figure) -> bool | None:
    """Judge by the whole interval; None where it reaches across the line, or where there is none."""
    low, high = figure.low, figure.high
    if low is None or high is None:
        return None
    if rule.asks == "no worse":
        # Not similar: below nought for sure, and by the best guess beyond the margin.
        yes, no = low >= -rule.margin, high < 0 and figure.value < -rule.margin
    elif rule.asks == "worse":
        yes, no = high < 0, low >= -rule.margin
    else:
        yes, no = low > 0 or high < 0, max(-low, high) <= rule.margin
    return True if yes else False if no else None


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


def _skill(case: Case, task: str) -> str:
    """Return what the questions are about: the skill trained for, or a task of its own."""
    trained = value_at(case, "data.task")
    return trained if task == "held-out" and trained else task


def _design(subject: Case, reference: Case, task: str, cases: Sequence[Case]) -> SeedBlocks | None:
    """Return the study that both are part of; None where either has no part in its blocks."""
    members = [case for case in cases if case.study == subject.study]
    accuracies = {
        str(id(case)): {seed: _accuracy(one) for seed, one in _first_of_seeds(case, task).items()}
        for case in members
        if case.answers
    }
    design = seed_blocks(accuracies)
    both = {str(id(subject)), str(id(reference))}
    return design if design and both <= set(design.methods) else None


def _by_seed(ours: _Answered, theirs: _Answered, seeds: Sequence[int] | None) -> list[Paired]:
    """Pair the runs of the seeds, or of all that both have; questions that differ are not compared."""
    chosen = sorted(ours.keys() & theirs.keys()) if seeds is None else seeds
    try:
        return [pair_items(theirs[seed].items, ours[seed].items) for seed in chosen]
    except UsageError:
        return []


def _first_of_seeds(case: Case, task: str) -> dict[int, Answers]:
    found: dict[int, Answers] = {}
    for answers in case.answers:
        if answers.task == task:
            found.setdefault(answers.seed, answers)
    return found


def _accuracies(ours: _Answered, theirs: _Answered) -> tuple[Figure, ...]:
    return tuple(
        Figure(name=name, unit="share", value=statistics.fmean(map(_accuracy, found.values())))
        for name, found in (("accuracy", ours), ("accuracy, the other", theirs))
    )


def _accuracy(answers: Answers) -> float:
    return sum(item.correct for item in answers.items) / len(answers.items)


def _runs(count: int, design: SeedBlocks | None) -> str:
    if count == 1:
        return "one run"
    if design is None:
        return f"{count} seeds, too few in common with the study's other methods"
    return f"{count} seeds, adjusted for {len(design.methods)} methods of the study"
