"""Accuracy over training seeds: means, and what their errors do and do not cover.

Two errors are kept apart and named. *Over seeds*: how far another training run on the same questions may
lie (Student's t). *Over items*: how far the same runs may lie on other questions. Neither holds the other.
"""

import json
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.compare.environments import EnvironmentGroup, label_of, place
from bench.errors import UsageError
from bench.records.derived_metrics import evaluated_tasks, evaluation
from bench.records.records import EvaluationReading, Record
from bench.scenario.types import Cell
from bench.stats.trend import Floats

CONFIDENCE = 0.95
_SEED_TOKEN = re.compile(r"-seed=\d+(?=[-/]|$)")
_NOT_COMPARED: Any = {"id": True, "scenario": True, "limits": True, "training": {"seed"}}
# What a method may have its own value of and still be set against another: how it is made to learn.
_TUNED = {"seed", "learning_rate", "weight_decay", "schedule", "schedule_warmup_steps"}


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """A mean over seeds with its 95 % t-interval, and the two-sided p-value of a mean of nought.

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
        """Return how far the interval reaches to each side; None without a spread."""
        return None if self.high is None or self.p_value is None else self.high - self.mean

    @property
    def excludes_nought(self) -> bool:
        """Tell whether the interval lies on one side of nought; never without a spread."""
        return self.p_value is not None and self.p_value < 1 - CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs that differ in ``training.seed`` alone: by seed the first good run, and the seeds without one.

    ``name`` is the id of their cells without the seed. ``setting`` is what groups must share to be set
    against one another: device, model, data, training but for how it learns, steps and environment.
    """

    name: str
    cell: Cell
    runs: Mapping[int, Record]
    failed_seeds: tuple[int, ...]
    setting: tuple[Hashable, ...]

    @property
    def method(self) -> str:
        """Return the method's part of the name."""
        return self.cell.labels.method

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the evaluation tasks of its runs, each once."""
        return tuple(dict.fromkeys(task for run in self.runs.values() for task in evaluated_tasks(run)))


@dataclass(frozen=True, kw_only=True)
class SeedAccuracy:
    """One task's accuracy after training, and its change against before, over seeds; shares, 0 to 1.

    ``items_error`` is one standard error of the mean over items, each item's answers averaged over seeds.
    """

    task: str
    seeds: tuple[int, ...]
    items: int
    before: SeedMean | None
    after: SeedMean
    change: SeedMean | None
    items_error: float | None


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """One task of a group of several seeds; ``why_not`` says why it has no accuracy."""

    name: str
    environment: str
    task: str
    accuracy: SeedAccuracy | None
    why_not: str | None = None


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Return the mean of at least one value, and mean ± t(0.975, n - 1) · s / √n."""
    mean = statistics.mean(values)  # exact: equal values have themselves as their mean
    if len(values) == 1:
        return SeedMean(values=tuple(values), mean=mean)
    error = statistics.stdev(values) / len(values) ** 0.5
    if not error:
        return SeedMean(values=tuple(values), mean=mean, low=mean, high=mean)
    freedom = len(values) - 1
    width = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error))
    return SeedMean(values=tuple(values), mean=mean, low=mean - width, high=mean + width, p_value=p_value)


def without_seed(name: str) -> str:
    """Return an id, or its last part, without the seed that a list of seeds puts into it."""
    return _SEED_TOKEN.sub("", name)


def group_by_seed(records: Sequence[Record]) -> tuple[SeedGroup, ...]:
    """Return the records grouped by all but the seed, in the order they appear; one seed is a group too.

    Records of other machines or versions are other groups.
    """
    found: dict[tuple[Hashable, ...], list[Record]] = {}
    for record in records:
        cell = record.cell.model_dump_json(exclude=_NOT_COMPARED)
        found.setdefault((cell, *_where(record)), []).append(record)
    return tuple(_group(runs) for runs in found.values())


def accuracy_over_seeds(group: SeedGroup, task: str) -> SeedAccuracy | None:
    """Return one task's accuracy over the group's seeds; None if no run has it after training.

    Raises UsageError where two seeds were asked different questions.
    """
    afters = answers_by_seed(group, task, "after")
    if not afters:
        return None
    befores = {
        seed: found for seed, found in answers_by_seed(group, task, "before").items() if seed in afters
    }
    right = right_answers([*afters.values(), *befores.values()], group.name)
    after = dict(zip(afters, right, strict=False))
    before = dict(zip(befores, right[len(afters) :], strict=True))
    changes = [float((after[seed].sum() - found.sum()) / found.size) for seed, found in before.items()]
    return SeedAccuracy(
        task=task,
        seeds=tuple(after),
        items=right.shape[1],
        before=mean_over_seeds([float(one.mean()) for one in before.values()]) if before else None,
        after=mean_over_seeds([float(one.mean()) for one in after.values()]),
        change=mean_over_seeds(changes) if changes else None,
        items_error=error_over_items(right[: len(afters)].mean(axis=0)),
    )


def over_seeds(records: Sequence[Record], places: Sequence[EnvironmentGroup]) -> tuple[OverSeeds, ...]:
    """Return every task of every group that has several seeds; none where all records share a seed."""
    if len({record.cell.training.seed for record in records}) == 1:
        return ()
    found = []
    for group in group_by_seed(records):
        for task in group.tasks if len(group.runs) > 1 else ():
            accuracy, why_not = None, None
            try:
                accuracy = accuracy_over_seeds(group, task)
            except UsageError as error:
                why_not = str(error)
            where = label_of(next(iter(group.runs.values())), places)
            found.append(
                OverSeeds(name=group.name, environment=where, task=task, accuracy=accuracy, why_not=why_not)
            )
    return tuple(found)


def _group(runs: Sequence[Record]) -> SeedGroup:
    good: dict[int, Record] = {}
    for record in sorted(runs, key=lambda record: (record.cell.training.seed, record.run)):
        if record.outcome == "ok":
            good.setdefault(record.cell.training.seed, record)
    cell = runs[0].cell
    seeds = {record.cell.training.seed for record in runs}
    return SeedGroup(
        name=without_seed(cell.id),
        cell=cell,
        runs=good,
        failed_seeds=tuple(sorted(seeds - good.keys())),
        setting=(
            cell.device,
            cell.model.model_dump_json(),
            cell.data.model_dump_json(),
            cell.training.model_dump_json(exclude=_TUNED),
            cell.window.warmup_steps + cell.window.measured_steps,
            cell.evaluation.limit,
            cell.evaluation.num_fewshot,
            *_where(runs[0]),
        ),
    )


def _where(record: Record) -> tuple[Hashable, ...]:
    return json.dumps(place(record.environment)), record.inputs_digest


def answers_by_seed(
    group: SeedGroup, task: str, when: Literal["before", "after"]
) -> dict[int, EvaluationReading]:
    """Return the group's readings of a task that have answers, by seed."""
    found = {seed: evaluation(run, task, when) for seed, run in group.runs.items()}
    return {seed: reading for seed, reading in found.items() if reading is not None and reading.items}


def right_answers(readings: Sequence[EvaluationReading], names: str) -> Floats:
    """Return 1 for right and 0 for wrong, a row for each reading, a column for each question.

    Raises UsageError where not all were asked the same questions; ``names`` says who was asked.
    """
    questions = [[(item.doc_id, item.doc_hash) for item in reading.items] for reading in readings]
    if any(one != questions[0] for one in questions[1:]):
        raise UsageError(f"{names}: not all runs were asked the same questions; use one task, data and limit")
    return np.array([[float(item.correct) for item in reading.items] for reading in readings])


def error_over_items(values: Floats) -> float | None:
    """Return the standard error of the mean: sample deviation over the root of n, as lm-eval's."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
