"""Accuracy of one cell and differences between cells: over items, and over training seeds.

Two errors are kept apart and named. *Over seeds*: how far another training run on the same questions may
lie (Student's t). *Over items*: how far the same runs may lie on other questions. Neither contains the other.
Shares (0 to 1) throughout.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.errors import UsageError
from bench.records.derived_metrics import accuracy, evaluated_tasks, evaluation
from bench.records.records import EvaluationReading, Record
from bench.stats.paired import SIGNIFICANT_P, Blocks, block_design, pair_items
from bench.stats.trend import Floats

CONFIDENCE = 0.95

Readings = Mapping[int, EvaluationReading]
"""A task's readings by training seed."""


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """A mean over seeds with its 95 % t-interval, and the two-sided p-value of a mean of zero.

    With one seed there is no interval. Where every seed gave the same value it has no width, and there is no
    p-value: that these seeds agree does not say that all would.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def half_width(self) -> float | None:
        """How far the interval of a difference reaches to each side; None without a spread."""
        return None if self.high is None or self.p_value is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; never without a spread."""
        return self.p_value is not None and self.p_value < 1 - CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One task before and after training, of the first run of each seed; ``after_error`` is over items.

    The errors are standard errors of the mean over items, each item's answers averaged over seeds.
    ``change`` is after less before; ``not_paired`` says why it or a seed is missing although its readings
    are there.
    """

    task: str
    metric: str
    instrument: str
    num_fewshot: int
    items: int
    seeds: tuple[int, ...]
    before_seeds: SeedMean | None
    after_seeds: SeedMean | None
    before_error: float | None
    after_error: float | None
    change: "AccuracyDifference | None" = None
    not_paired: str | None = None

    @property
    def before(self) -> float | None:
        return self.before_seeds.mean if self.before_seeds else None

    @property
    def after(self) -> float | None:
        return self.after_seeds.mean if self.after_seeds else None


@dataclass(frozen=True, kw_only=True)
class AccuracyDifference:
    """One accuracy less another, of two cells or of one, paired by question, and by seed if several.

    With one seed, ``p_value`` is McNemar's exact one over items. With several, ``difference`` has an interval
    over seeds; where ``methods`` is given it holds for all those methods against the reference at once
    (Dunnett's), and p is adjusted alike. ``gained`` and ``lost`` count answers over all seeds: right where
    the reference is wrong, and the reverse.
    """

    task: str
    seeds: tuple[int, ...]
    items: int
    difference: SeedMean
    gained: int
    lost: int
    items_error: float | None
    p_value: float | None
    methods: int | None = None
    degrees_of_freedom: int | None = None

    @property
    def share(self) -> float:
        return self.difference.mean

    @property
    def significant(self) -> bool:
        """Whether it is beyond chance at ``SIGNIFICANT_P``."""
        return self.p_value is not None and self.p_value < SIGNIFICANT_P


def mean_over_seeds(values: Sequence[float], *, of_shares: bool = False) -> SeedMean:
    """Return the mean of at least one value, and mean ± t(0.975, n - 1) · s / √n; of shares within 0 to 1."""
    mean = statistics.mean(values)  # exact: equal values have themselves as their mean
    if len(values) == 1:
        return SeedMean(values=tuple(values), mean=mean)
    error = statistics.stdev(values) / len(values) ** 0.5
    if not error:
        return SeedMean(values=tuple(values), mean=mean, low=mean, high=mean)
    freedom = len(values) - 1
    width = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error))
    low, high = mean - width, mean + width
    if of_shares:
        low, high = max(0.0, low), min(1.0, high)
    return SeedMean(values=tuple(values), mean=mean, low=low, high=high, p_value=p_value)


def accuracies_of(runs: Sequence[Record]) -> tuple[Accuracy, ...]:
    tasks = dict.fromkeys(task for run in runs for task in evaluated_tasks(run))
    return tuple(_accuracy(runs, task) for task in tasks)


def readings_by_seed(runs: Sequence[Record], task: str, when: Literal["before", "after"]) -> Readings:
    """Return a task's reading that has answers of the first run of each seed, in the order of seeds."""
    found: dict[int, EvaluationReading] = {}
    for run in runs:
        reading = evaluation(run, task, when)
        if reading is not None and reading.items:
            found.setdefault(run.cell.training.seed, reading)
    return dict(sorted(found.items()))


def _accuracy(runs: Sequence[Record], task: str) -> Accuracy:
    """Return a task over seeds; over the first alone where not all were asked the same questions."""
    befores, afters = readings_by_seed(runs, task, "before"), readings_by_seed(runs, task, "after")
    first = next(run for run in runs if task in evaluated_tasks(run))
    seeds, not_alike = [*afters] or [first.cell.training.seed], None
    if len(seeds) > 1:
        try:
            right_answers([*afters.values(), *(befores[seed] for seed in afters if seed in befores)], task)
        except UsageError as error:
            seeds, not_alike = seeds[:1], str(error)
    befores, afters = ({seed: each[seed] for seed in seeds if seed in each} for each in (befores, afters))
    change, why_not = pair(afters, befores, task)
    either = evaluation(first, task, "after") or evaluation(first, task, "before")
    assert either is not None  # noqa: S101 - the task was taken from this run's readings
    return Accuracy(
        task=task,
        metric=either.metric,
        instrument=either.instrument,
        num_fewshot=either.num_fewshot,
        items=len(either.items),
        seeds=tuple(afters or befores or seeds),
        before_seeds=_shares(befores),
        after_seeds=_shares(afters),
        before_error=_error(befores, task),
        after_error=_error(afters, task),
        change=change,
        not_paired=not_alike or why_not,
    )


def _shares(readings: Readings) -> SeedMean | None:
    shares = [share for reading in readings.values() if (share := accuracy(reading)) is not None]
    return mean_over_seeds(shares, of_shares=True) if shares else None


def _error(readings: Readings, task: str) -> float | None:
    """Return the error over items; of one seed it is lm-eval's ``mean_stderr`` (lm_eval/api/metrics.py)."""
    return error_over_items(right_answers(list(readings.values()), task)) if readings else None


def differences(
    readings: Mapping[str, Readings], reference: str, task: str, who: str
) -> dict[str, AccuracyDifference]:
    """Return every other name's difference from the reference over seeds; none without a common seed.

    All that have several seeds are one block design over the seeds that all of these have. One with a single
    seed, or all of them where they have fewer than two in common, is paired with the reference alone and has
    no interval. Raises UsageError where they were asked different questions; ``who`` are they in its message.
    """
    answered = [reading for found in readings.values() for reading in found.values()]
    rows = iter(right_answers(answered, who))
    right = {name: {seed: next(rows) for seed in found} for name, found in readings.items()}
    several = {name: found for name, found in right.items() if len(found) > 1}
    shared = sorted(set.intersection(*map(set, several.values()))) if len(several) > 1 else []
    design, methods = None, None
    if len(shared) > 1:
        shares = np.array([[found[seed].mean() for seed in shared] for found in several.values()])
        design, methods = block_design(shares), len(several)
    found = {}
    for name, ours in right.items():
        theirs, blocked = right[reference], bool(methods) and {name, reference} <= several.keys()
        seeds = tuple(shared if blocked else [seed for seed in ours if seed in theirs])
        if name != reference and seeds:
            change = np.array([ours[seed] - theirs[seed] for seed in seeds])
            found[name] = _difference(task, seeds, change, *((methods, design) if blocked else (None, None)))
    return found


def _difference(
    task: str, seeds: tuple[int, ...], change: Floats, methods: int | None, design: Blocks | None
) -> AccuracyDifference:
    """Return the mean of a change by seed and question; of ``methods`` with its simultaneous interval.

    Where nothing varies the interval has no width, and there is no p-value.
    """
    # Of whole numbers, and an exact mean, so that equal differences are equal.
    values = tuple(float(row.sum() / row.size) for row in change)
    mean = statistics.mean(values)
    width = design.half_width(CONFIDENCE) if design else 0.0
    p_value = design.p_value(mean) if design else None
    low, high = (mean - width, mean + width) if methods else (None, None)
    return AccuracyDifference(
        task=task,
        seeds=seeds,
        items=change.shape[1],
        difference=SeedMean(values=values, mean=mean, low=low, high=high, p_value=p_value),
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
        items_error=error_over_items(change),
        p_value=p_value,
        methods=methods,
        degrees_of_freedom=design.degrees_of_freedom if design else None,
    )


def pair(ours: Readings, theirs: Readings, task: str) -> tuple[AccuracyDifference | None, str | None]:
    """Return the difference of two cells, or None and why; no reason where a reading is missing.

    Two seeds or more in common are compared over seeds, one by McNemar's test over its items.
    """
    if not ours or not theirs:
        return None, None
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        return None, "they have no training seed in common"
    try:
        if len(seeds) > 1:
            both = {
                name: {seed: each[seed] for seed in seeds}
                for name, each in (("ours", ours), ("theirs", theirs))
            }
            return differences(both, "theirs", task, task)["ours"], None
        reference = theirs[seeds[0]]
        paired = pair_items(reference.items, ours[seeds[0]].items, reference.sources or ())
    except UsageError as error:
        return None, str(error)
    one = AccuracyDifference(
        task=task,
        seeds=seeds,
        items=paired.items,
        difference=SeedMean(values=(paired.difference_share,), mean=paired.difference_share),
        gained=paired.gained,
        lost=paired.lost,
        items_error=None,
        p_value=paired.p_value,
    )
    return one, None


def right_answers(readings: Sequence[EvaluationReading], names: str) -> Floats:
    """Return 1 for right and 0 for wrong, a row for each reading, a column for each question.

    Raises UsageError where not all were asked the same questions; ``names`` says who was asked.
    """
    questions = [[(item.doc_id, item.doc_hash) for item in reading.items] for reading in readings]
    if any(one != questions[0] for one in questions[1:]):
        raise UsageError(f"{names}: not all runs were asked the same questions; use one task, data and limit")
    return np.array([[float(item.correct) for item in reading.items] for reading in readings])


def error_over_items(answers: Floats) -> float | None:
    """Return the standard error of the mean over questions (columns), each averaged over seeds (rows)."""
    values = answers.mean(axis=0)
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def text_losses(runs: Sequence[Record]) -> dict[int, float]:
    """Return the loss on ``evaluation.text`` after training of the first run of each seed, in their order."""
    found: dict[int, float] = {}
    for run in runs:
        if run.measurement.text_loss:
            found.setdefault(run.cell.training.seed, run.measurement.text_loss.after_nats)
    return dict(sorted(found.items()))


def losses_above(losses: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, SeedMean]:
    """Return how far every other's loss lies above the reference's, over the seeds that all of them have.

    The reference may be the one that came out lowest: p-values hold for any pair (Tukey's). With one seed in
    common there are none.
    """
    shared = sorted(set.intersection(*map(set, losses.values())))
    if not shared[1:] or not losses.keys() - {reference}:
        return {}
    values = {name: np.array([own[seed] for seed in shared]) for name, own in losses.items()}
    design = block_design(np.array([*values.values()]))
    found = {}
    for name in values.keys() - {reference}:
        above = values[name] - values[reference]
        mean = float(above.mean())
        p_value = design.p_value_of_any_pair(mean) if design else None
        found[name] = SeedMean(values=tuple(map(float, above)), mean=mean, p_value=p_value)
    return found


def from_best(answers: Mapping[str, Readings], best: str, task: str) -> dict[str, AccuracyDifference]:
    """Return the difference of each that answered the same questions from the one that came out best.

    p-values hold for any pair, since the best is picked by its answers: Tukey's over the seeds that all have,
    else McNemar's or Student's of each pair times the number of pairs (Bonferroni).
    """
    paired = {name: pair(own, answers[best], task)[0] for name, own in answers.items() if name != best}
    found = {name: one for name, one in paired.items() if one}
    shared = sorted(set(answers[best]).intersection(*(answers[name] for name in found)))
    if shared[1:]:
        alike = {name: {seed: answers[name][seed] for seed in shared} for name in (best, *found)}
        design = block_design(np.array([[accuracy(own[seed]) for seed in shared] for own in alike.values()]))
        return {
            name: replace(one, p_value=design.p_value_of_any_pair(one.share) if design else None)
            for name, one in differences(alike, best, task, task).items()
        }
    pairs = len(found) * (len(found) + 1) // 2
    return {
        name: replace(one, p_value=None if one.p_value is None else min(1.0, one.p_value * pairs))
        for name, one in found.items()
    }
