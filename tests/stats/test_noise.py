"""What is known of noise: moderated t, calibrations, and past sessions."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from bench.stats.noise import (
    Evidence,
    Moments,
    Noise,
    against_sessions,
    calibrate,
    moments_of_arms,
    moments_of_pairs,
    noise_of,
    pad,
    too_few_runs,
    weigh,
)
from bench.stats.trend import Floats
from calibrations_factory import make_calibration

RNG = np.random.default_rng(0)


def _unknown(cells: int) -> tuple[Floats, Floats]:
    """Return a calibration that says nothing."""
    return np.zeros(cells), np.zeros(cells)


def _repeats(*counts: int) -> npt.NDArray[np.int64]:
    return np.array(counts, dtype=np.int64)


def test_without_priors_it_is_the_t_test() -> None:
    """p-value and interval are scipy's, one-sided, with equal variances and arms of unequal length."""
    baseline, candidate = RNG.normal(0, 1, 5), RNG.normal(0.5, 1, 4)
    evidence = weigh(
        moments_of_arms(pad([list(baseline)]), pad([list(candidate)]), _repeats(5)), *_unknown(1)
    )
    expected = stats.ttest_ind(candidate, baseline, alternative="greater")
    assert pytest.approx(expected.pvalue) == float(evidence.p_value()[0])
    two_sided = stats.ttest_ind(candidate, baseline).confidence_interval(0.98)
    assert pytest.approx((two_sided.low, two_sided.high)) == tuple(
        float(bound[0]) for bound in evidence.bounds(0.01)
    )


def test_runs_made_in_pairs_are_a_paired_t_test() -> None:
    """Scipy's p-value, whatever both runs of a pair share; a pair that is missing says nothing."""
    shared, own = RNG.normal(0, 1, 6), RNG.normal(0.02, 0.01, 6)
    differences = [*own, np.nan]
    evidence = weigh(moments_of_pairs(pad([differences]), _repeats(7)), *_unknown(1))
    expected = stats.ttest_rel(shared + own, shared, alternative="greater")
    assert pytest.approx(expected.pvalue) == float(evidence.p_value()[0])
    one = moments_of_pairs(pad([[0.1], []]), _repeats(1, 1))
    assert ([0.0, 0.0], [2.0, np.inf]) == (list(one.degrees_of_freedom), list(one.scale))


def test_only_the_first_repeats_count_and_missing_runs_do_not() -> None:
    """Runs after the look and NaN leave mean, variance and degrees of freedom as they are."""
    long = moments_of_arms(pad([[1.0, 3.0, 99.0]]), pad([[2.0, np.nan, 99.0]]), _repeats(2))
    assert (0.0, 2.0, 1.0, 1.5) == (
        float(long.difference[0]),
        float(long.variance[0]),
        float(long.degrees_of_freedom[0]),
        float(long.scale[0]),
    )


def test_a_side_without_runs_says_nothing() -> None:
    """No run on one side: p = 1 and an interval without ends, never a verdict."""
    moments = moments_of_arms(pad([[1.0, 2.0]]), pad([[]]), _repeats(2))
    evidence = weigh(moments, np.ones(1), np.full(1, 8.0))
    assert ([1.0], [-np.inf], [np.inf]) == (list(evidence.p_value()), *map(list, evidence.bounds(0.01)))


def test_calibration_pools_the_spread_within_groups() -> None:
    """Two sittings of different speed count by their own spread: squares 2 and 2 over degrees 2 and 1."""
    noise = calibrate([[1.0, 2.0, 3.0], [11.0, 13.0], [5.0]])
    assert 3 == noise.degrees_of_freedom
    assert pytest.approx(4 / 3) == noise.log_variance
    assert Noise(log_variance=0.0, degrees_of_freedom=0) == calibrate([[1.0], []])


def _weighed(own: float, *, calibrated: float, degrees: float) -> Evidence:
    """Return the evidence of one cell with eight degrees of freedom of its own."""
    moments = Moments(
        difference=np.zeros(1),
        variance=np.array([own]),
        degrees_of_freedom=np.full(1, 8.0),
        scale=np.ones(1),
        gap=np.zeros(1),
    )
    return weigh(moments, np.array([calibrated]), np.array([degrees]))


def test_a_calibration_counts_for_eight_degrees_of_freedom_at_most() -> None:
    """Variances 1 and 3 in equal parts make 2, however many runs the calibration had."""
    evidence = _weighed(1.0, calibrated=3.0, degrees=1000.0)
    assert 16.0 == float(evidence.degrees_of_freedom[0])
    assert pytest.approx(2.0) == float(evidence.standard_error[0]) ** 2


def test_a_calibration_that_was_too_quiet_is_dropped_and_said() -> None:
    """Ten times the calibrated variance fails the F-test; the runs then stand alone."""
    evidence = _weighed(10.0, calibrated=1.0, degrees=8.0)
    assert (8.0, False) == (float(evidence.degrees_of_freedom[0]), bool(evidence.calibration_held[0]))
    assert bool(_weighed(1.0, calibrated=10.0, degrees=8.0).calibration_held[0])


def test_a_day_on_which_all_cells_spread_more_drops_the_calibration_of_all() -> None:
    """Half as much again in each of 24 cells is nothing in one, and not the calibrated machine in all."""
    cells = np.ones(24)
    moments = Moments(
        difference=cells, variance=1.5 * cells, degrees_of_freedom=8 * cells, scale=cells, gap=0 * cells
    )
    assert not weigh(moments, cells, 8 * cells).calibration_held.any()
    assert weigh(replace(moments, variance=cells), cells, 8 * cells).calibration_held.all()


def test_runs_that_fall_into_two_heaps_drop_the_calibration_of_all() -> None:
    """One run of one cell far from the rest is a second speed of the machine, however little that spreads."""
    baseline = pad([[0.0, 0.01, -0.01, 0.005, 0.2], [0.0, 0.01, -0.01, 0.005, 0.0]])
    moments = moments_of_arms(baseline, baseline, _repeats(5, 5))
    assert [pytest.approx(0.19), pytest.approx(0.01)] == list(moments.gap)
    assert not weigh(moments, np.full(2, 1e-3), np.full(2, 8.0)).calibration_held.any()
    assert weigh(moments, np.full(2, 1e-2), np.full(2, 8.0)).calibration_held.all()


def test_runs_without_any_spread_are_judged_by_their_difference() -> None:
    """A clock that always says the same leaves no doubt either way, and raises nothing."""
    same = moments_of_arms(np.zeros((2, 3)), np.array([[0.0] * 3, [1.0] * 3]), _repeats(3, 3))
    evidence = weigh(same, *_unknown(2))
    assert ([0.5, 0.0], [0.0, 1.0]) == (list(evidence.p_value()), list(evidence.bounds(0.01)[1]))


def test_noise_is_the_spread_within_sittings() -> None:
    """Days may differ by a factor of two: that is not noise. Four runs of a sitting are three degrees."""
    found = noise_of(make_calibration(0.02), "d", "tokens_per_second")
    assert found.degrees_of_freedom == 6
    assert found.log_variance == pytest.approx(8 * 0.02**2 / 6)
    assert noise_of(make_calibration(0.02), "other", "tokens_per_second").degrees_of_freedom == 0


def test_runs_made_step_by_step_in_turn_have_the_noise_of_their_differences() -> None:
    """What both share is none: here the first runs are 4 % apart from the second, on either side alike."""
    shared = make_calibration(0.02).model_copy(update={"interleave": "steps"})
    found = noise_of(shared, "d", "tokens_per_second")
    assert (2, True) == (found.degrees_of_freedom, found.of_pairs)
    assert found.log_variance == pytest.approx(0.0)
    (cell,) = shared.cells
    groups = tuple(
        group.model_copy(update={"runs": group.runs[:: 1 if group.side == "base" else -1]})
        for group in cell.groups
    )
    apart = shared.model_copy(update={"cells": (cell.model_copy(update={"groups": groups}),)})
    found = noise_of(apart, "d", "tokens_per_second")
    assert found.log_variance == pytest.approx(2 * 0.04**2 / 2)


def test_the_interval_is_that_of_one_more_sitting() -> None:
    """With ten sittings the upper bound is x + t(0.99, 9) s sqrt(1.1) away; NaN is a sitting not held."""
    means = np.random.default_rng(0).normal(0, 0.01, 10)
    evidence = against_sessions(np.array([[*means, np.nan]]), np.array([0.05]))
    width = stats.t.ppf(0.99, 9) * means.std(ddof=1) * np.sqrt(1.1)
    lower, upper = evidence.bounds(0.01)
    assert pytest.approx((0.05 - means.mean() - width, 0.05 - means.mean() + width)) == (lower[0], upper[0])


def test_one_sitting_or_no_run_says_nothing() -> None:
    """Without a spread between sittings, or without a candidate, p is 1."""
    evidence = against_sessions(np.array([[0.0, np.nan], [0.0, 0.1]]), np.array([5.0, np.nan]))
    assert [1.0, 1.0] == list(evidence.p_value())


def test_too_little_is_said() -> None:
    """Ten sittings of three runs and three runs of the candidate are enough; fewer of either is said."""
    enough = [[0.0] * 3] * 10
    assert too_few_runs(enough, [0.0] * 3) is None
    assert "has 9 sessions" in str(too_few_runs([*enough[:9], [0.0] * 2], [0.0] * 3))
    assert "--repeats 3" in str(too_few_runs(enough, [0.0] * 2))
