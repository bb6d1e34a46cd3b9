"""A new sitting against past ones."""

import numpy as np
import pytest
from scipy import stats

from bench.stats.sittings import predict, too_little


def test_the_interval_is_that_of_one_more_sitting() -> None:
    """With ten sittings the upper bound is x + t(0.99, 9) s sqrt(1.1) away; NaN is a sitting not held."""
    means = np.random.default_rng(0).normal(0, 0.01, 10)
    evidence = predict(np.array([[*means, np.nan]]), np.array([0.05]))
    width = stats.t.ppf(0.99, 9) * means.std(ddof=1) * np.sqrt(1.1)
    lower, upper = evidence.bounds(0.01)
    assert pytest.approx((0.05 - means.mean() - width, 0.05 - means.mean() + width)) == (lower[0], upper[0])


def test_one_sitting_or_no_run_says_nothing() -> None:
    """Without a spread between sittings, or without a candidate, p is 1."""
    evidence = predict(np.array([[0.0, np.nan], [0.0, 0.1]]), np.array([5.0, np.nan]))
    assert [1.0, 1.0] == list(evidence.p_value())


def test_too_little_is_said() -> None:
    """Ten sittings of three runs and three runs of the candidate are enough; fewer of either is said."""
    enough = [[0.0] * 3] * 10
    assert too_little(enough, [0.0] * 3) is None
    assert "has 9 sittings" in str(too_little([*enough[:9], [0.0] * 2], [0.0] * 3))
    assert "--repeats 3" in str(too_little(enough, [0.0] * 2))
