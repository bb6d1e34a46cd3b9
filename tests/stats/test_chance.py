"""What chance alone does to the order of runs, against scipy's exact tests and against counting."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bench.stats.chance import Rule, chance_of_order, chance_of_signs

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("first", "second"), [(5, 5), (8, 8), (3, 7), (1, 200), (20, 21)])
def test_the_order_of_two_arms_is_the_exact_rank_test(first: int, second: int) -> None:
    """Mann and Whitney's, one-sided; runs beyond the repeats and missing ones do not count."""
    lower, higher = RNG.normal(0, 1, first), RNG.normal(0.5, 1, second)
    longest = max(first, second) + 2
    rows = np.full((2, 1, longest), np.nan)
    rows[0, 0, :first], rows[1, 0, :second], rows[:, 0, -1] = lower, higher, 9.0
    found = chance_of_order(rows[0], rows[1], np.array([longest - 1]))
    expected = stats.mannwhitneyu(higher, lower, alternative="greater", method="exact").pvalue
    assert pytest.approx(expected) == float(found[0])


def test_thousands_of_runs_are_told_by_a_normal_distribution() -> None:
    """Where exact numbers would take more than 64 bits; it errs to the careful side in the tail."""
    lower = np.linspace(0, 1, 40)[np.newaxis]
    found = chance_of_order(lower, lower + 2.0, np.array([40]))
    assert 1 / math.comb(80, 40) < float(found[0]) < 1e-10


@pytest.mark.parametrize("count", [1, 5, 8, 13])
def test_the_signs_of_pairs_are_the_exact_signed_rank_test(count: int) -> None:
    """Wilcoxon's, one-sided; all above 0 once in 2^n, and a difference of 0 counts against it."""
    differences = RNG.normal(0.3, 1, count)
    found = chance_of_signs(differences[np.newaxis], np.array([count]))
    expected = stats.wilcoxon(differences, alternative="greater", method="exact").pvalue
    assert pytest.approx(expected) == float(found[0])
    positive = np.abs(differences)[np.newaxis]
    assert 0.5**count == float(chance_of_signs(positive, np.array([count]))[0])
    positive[0, 0] = 0.0
    assert float(chance_of_signs(positive, np.array([count]))[0]) >= 0.5 ** (count - 1)


def test_no_noise_orders_runs_more_often_than_it_says() -> None:
    """Of all ways to share out any eight speeds between two sides, no more than p come out at p or below."""
    speeds = [0.0, 0.0, 0.12, 0.121, 0.5, 0.5, 0.5, 9.0]
    ways = [
        (list(own), [one for one in range(8) if one not in own])
        for own in itertools.combinations(range(8), 4)
    ]
    arms = np.array([[[speeds[place] for place in side] for side in way] for way in ways])
    found = chance_of_order(arms[:, 0], arms[:, 1], np.full(len(ways), 4))
    for level in np.unique(found):
        assert (found <= level).mean() <= level + 1e-12


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("tests", [1, 2, 24])
def test_looks_share_out_no_more_than_alpha(tests: int, *, pairs: bool) -> None:
    """Over all looks that may end in a verdict, of which the first is the earliest that chance allows."""
    rule = Rule(alpha=0.01, minimum_effect_log=0.01, looks=(3, 5, 8, 13, 21))
    usable = rule.usable(tests, pairs=pairs)
    assert rule.fewest_repeats(tests, pairs=pairs) == usable[0]
    assert pytest.approx(1.0) == sum(rule.share_of(look, tests, pairs=pairs) for look in usable)
    assert 1.0 == rule.share_of(3, tests, pairs=pairs)
