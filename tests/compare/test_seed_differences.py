"""Differences over seeds: paired by seed, in blocks of complete seeds, adjusted for one another."""

import pytest

from bench.compare.comparison import differences_over_seeds
from bench.errors import UsageError
from bench.stats.paired import dunnett_critical
from records_factory import make_environment
from seeds_factory import make_run, one_measured, right


def test_two_methods_are_paired_by_seed() -> None:
    """Both rise with the seed: apart their intervals overlap, paired the difference is 1, 1 and 2 of 20."""
    group = one_measured([make_run(seed, right(count)) for seed, count in enumerate((11, 15, 20))])
    reference = one_measured(
        [make_run(seed, right(count), method="base") for seed, count in enumerate((10, 14, 18, 4))]
    )
    (found,) = differences_over_seeds([group, reference], reference, "held-out").values()
    assert ((0, 1, 2), (0.05, 0.05, 0.1), 4, 0) == (
        found.seeds,
        found.difference.values,
        found.gained,
        found.lost,
    )
    width = 4.302653 * (0.05 / 3**0.5) / 3**0.5  # s of 0.05, 0.05, 0.10 is 0.05 / √3
    assert pytest.approx((0.2 / 3 - width, 0.2 / 3 + width)) == (found.difference.low, found.difference.high)
    assert (2, 2) == (found.methods, found.degrees_of_freedom)


def test_the_spread_is_that_of_all_methods_over_complete_seeds() -> None:
    """A seed that one method lacks is left out for all; one with a single seed takes no part in the rest.

    Over seeds 0 and 1: 10, 10; 14, 16; 12, 12 of 20. Residuals of ±1/3, ±2/3 and ±1/3 are squares of 4/3
    items over 2 degrees of freedom, so that a difference of two means has a variance of 2/3 items.
    """
    counts = {"base": (10, 10, 2), "one": (14, 16), "two": (12, 12, 19), "alone": (5,)}
    reference, *groups = (
        one_measured([make_run(seed, right(count), method=name) for seed, count in enumerate(values)])
        for name, values in counts.items()
    )
    one, two, alone = differences_over_seeds([reference, *groups], reference, "held-out").values()
    half = dunnett_critical(2, 2, 0.95) * (2 / 3) ** 0.5 / 20
    assert ((0, 1), (0, 1), 3) == (one.seeds, two.seeds, one.methods)
    assert pytest.approx((0.25 - half, 0.25 + half)) == (one.difference.low, one.difference.high)
    assert pytest.approx((0.10 - half, 0.10 + half)) == (two.difference.low, two.difference.high)
    assert ((0,), -0.25, None, None) == (
        alone.seeds,
        alone.difference.mean,
        alone.difference.low,
        alone.methods,
    )


def test_without_a_spread_nothing_is_claimed() -> None:
    """Where every method is as far ahead in every seed there is neither a p-value nor a finding."""
    reference, group = (
        one_measured([make_run(seed, right(count + seed), method=name) for seed in range(3)])
        for name, count in (("base", 10), ("one", 12))
    )
    (found,) = differences_over_seeds([reference, group], reference, "held-out").values()
    assert (0.1, None, False) == (
        found.difference.low,
        found.difference.p_value,
        found.difference.excludes_zero,
    )


def test_what_cannot_be_compared_is_refused() -> None:
    """Other questions, another setting: a sentence; no common seed, or nothing to compare: nothing."""
    group = one_measured([make_run(seed, right(15)) for seed in range(2)])
    short = one_measured([make_run(0, right(10, items=19), method="base")])
    with pytest.raises(UsageError, match="not all runs were asked the same questions"):
        differences_over_seeds([group], short, "held-out")
    elsewhere = one_measured([make_run(0, right(15), environment=make_environment(threads={"torch": 8}))])
    with pytest.raises(UsageError, match="differ in more than the method"):
        differences_over_seeds([group], elsewhere, "held-out")
    later = one_measured([make_run(5, right(15), method="base")])
    assert {} == differences_over_seeds([group], later, "held-out")
    assert {} == differences_over_seeds([group], group, "held-out")
