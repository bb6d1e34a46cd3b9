"""Differences of accuracy over training seeds: a study's methods set against one of them, all at once.

Each difference is taken seed by seed. Its interval is for other training runs on the same questions, not for
other questions.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.compare.seeds import (
    CONFIDENCE,
    SeedGroup,
    SeedMean,
    answers_by_seed,
    error_over_items,
    right_answers,
)
from bench.errors import UsageError
from bench.stats.paired import Blocks, block_design
from bench.stats.trend import Floats


@dataclass(frozen=True, kw_only=True)
class SeedDifference:
    """One group's accuracy after training less a reference's, paired by seed; shares.

    Where ``methods`` is given, the interval of ``difference`` holds for all those methods against the
    reference at once, its p-value is adjusted for them, and its residual variance is theirs together
    (``bench.stats.paired``); else it has no interval. ``gained`` and ``lost`` count answers over all
    seeds: right where the reference is wrong, and the reverse. A question counts once a seed, so that they
    show the churn and are not tested. ``items_error`` is as in ``SeedAccuracy``.
    """

    task: str
    reference: str
    seeds: tuple[int, ...]
    items: int
    difference: SeedMean
    gained: int
    lost: int
    items_error: float | None
    methods: int | None = None
    degrees_of_freedom: int | None = None


@dataclass(frozen=True, kw_only=True)
class SeedBlocks:
    """The methods of a study and the seeds that all of them have; ``blocks`` is None where nothing varies."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    blocks: Blocks | None

    @property
    def degrees_of_freedom(self) -> int | None:
        """Return those of the residual variance; None without one."""
        return self.blocks.degrees_of_freedom if self.blocks else None


def differences_over_seeds(
    groups: Sequence[SeedGroup], reference: SeedGroup, task: str
) -> dict[str, SeedDifference]:
    """Return every other group's difference from the reference, by name; none without a common seed.

    All groups with several seeds are one block design over the seeds that all of these have. A group with one
    seed, or all of them where they have fewer than two in common, is paired with the reference alone and has
    no interval. Raises UsageError where groups were asked different questions, or are not of one setting.
    """
    everyone = [group for group in groups if group is not reference]
    right = _right_by_seed([reference, *everyone], task)
    accuracies = {
        name: {seed: float(row.mean()) for seed, row in found.items()} for name, found in right.items()
    }
    design = seed_blocks(accuracies)
    found = {}
    for group in everyone:
        shared = design if design and {group.name, reference.name} <= set(design.methods) else None
        one = _difference(right[group.name], right[reference.name], shared, (task, reference.name))
        if one is not None:
            found[group.name] = one
    return found


def _difference(
    ours: Mapping[int, Floats],
    theirs: Mapping[int, Floats],
    design: SeedBlocks | None,
    of: tuple[str, str],
) -> SeedDifference | None:
    seeds = design.seeds if design else tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        return None
    change = np.array([ours[seed] - theirs[seed] for seed in seeds])
    # Of whole numbers, so that equal differences are equal.
    by_seed = [float(row.sum() / row.size) for row in change]
    return SeedDifference(
        task=of[0],
        reference=of[1],
        seeds=seeds,
        items=change.shape[1],
        difference=difference_in_blocks(by_seed, design),
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
        items_error=error_over_items(change.mean(axis=0)),
        methods=len(design.methods) if design else None,
        degrees_of_freedom=design.degrees_of_freedom if design else None,
    )


def seed_blocks(accuracies: Mapping[str, Mapping[int, float]]) -> SeedBlocks | None:
    """Return the block design of accuracies by method and seed; methods with one seed take no part.

    None where fewer than two methods have several seeds, or these have fewer than two in common.
    """
    told = {method: found for method, found in accuracies.items() if len(found) > 1}
    if len(told) < 2:  # noqa: PLR2004 - a comparison takes two
        return None
    seeds = tuple(sorted(set.intersection(*(set(found) for found in told.values()))))
    if len(seeds) < 2:  # noqa: PLR2004 - a spread takes two
        return None
    values = np.array([[found[seed] for seed in seeds] for found in told.values()])
    return SeedBlocks(methods=tuple(told), seeds=seeds, blocks=block_design(values))


def difference_in_blocks(differences: Sequence[float], design: SeedBlocks | None) -> SeedMean:
    """Return the mean of differences over the design's seeds, with its simultaneous 95 % interval.

    Without a design there is no interval; where nothing varies it has no width, and there is no p-value.
    """
    mean = statistics.mean(differences)  # exact: equal values have themselves as their mean
    values = tuple(differences)
    if design is None:
        return SeedMean(values=values, mean=mean)
    if design.blocks is None:
        return SeedMean(values=values, mean=mean, low=mean, high=mean)
    width, p_value = design.blocks.half_width(CONFIDENCE), design.blocks.p_value(mean)
    return SeedMean(values=values, mean=mean, low=mean - width, high=mean + width, p_value=p_value)


def _right_by_seed(groups: Sequence[SeedGroup], task: str) -> dict[str, dict[int, Floats]]:
    """Return, by group and seed, 1 for each question answered right after training and 0 for the others."""
    reference = groups[0]
    for group in groups:
        if group.setting != reference.setting:
            raise UsageError(
                f"{group.name} and {reference.name} differ in more than the method (model, data, training or "
                "machine); set methods of one setting against each other"
            )
    answered = {group.name: answers_by_seed(group, task, "after") for group in groups}
    readings = [reading for found in answered.values() for reading in found.values()]
    rows = iter(right_answers(readings, ", ".join(answered)))
    return {name: {seed: next(rows) for seed in found} for name, found in answered.items()}
