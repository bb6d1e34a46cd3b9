"""One number for each run once its steps have settled, and whether they had."""

import random

import numpy as np
import pytest
from scipy.stats import kendalltau, theilslopes

from bench.stats.machines import NoiseModel, session
from bench.stats.trend import Trend, find_trend, settle, settle_cells, step_ratios

QUIET = NoiseModel(warmup_steps=1000)


def test_the_summary_is_the_log_of_the_median() -> None:
    """One slow step among five moves nothing; longer runs are cut to the shortest; cells keep their order."""
    first, second, empty = settle_cells(
        [
            [[2.0, 1.0, 9.0, 2.0, 2.0], [4.0, 4.0, 4.0, 4.0, 4.0, 100.0]],
            [[1.0, 1.0, 1.0, 1.0, 5.0], [3.0] * 5],
            [],
        ]
    )
    assert pytest.approx((np.log(2), np.log(4))) == first.log_medians
    assert pytest.approx((0.0, np.log(3))) == second.log_medians
    assert (0, 0, True) == (len(empty.log_medians), int(first.dropped_steps), bool(first.steady))


def test_one_sample_is_its_own_summary_and_none_is_refused() -> None:
    """Load times have one sample a run; a run without any has to be left out."""
    (cell,) = settle_cells([[[1], [1], [3]]])
    assert pytest.approx((0.0, 0.0, np.log(3))) == cell.log_medians
    with pytest.raises(ValueError, match="without samples"):
        settle_cells([[[1.0], []]])


def test_a_shared_trend_extends_the_warm_up_until_it_is_gone() -> None:
    """The first quarter of every run is 20 % slower: it is left out, in all runs."""
    (steps, _) = session(QUIET, (), 8, np.random.default_rng(0))
    steps[:, :8] += 0.2
    settled = settle(steps)
    assert (8, True) == (int(settled.dropped_steps), bool(settled.steady))
    assert pytest.approx(np.median(steps[:, 8:], axis=-1)) == settled.log_medians


def test_a_trend_that_stays_is_said() -> None:
    """Steps that get slower to the end are not steady, by about the drift between the halves."""
    (steps, _) = session(QUIET, (), 8, np.random.default_rng(0))
    settled = settle(steps + np.linspace(0, 0.2, steps.shape[-1]))
    assert not settled.steady
    assert pytest.approx(0.05, abs=0.02) == float(settled.drift_log)


def test_autocorrelated_steps_seldom_look_like_a_trend() -> None:
    """Runs that wander by themselves are taken for a trend in 1 % of cells, not in every tenth."""
    steps, _ = session(QUIET, (2000,), 6, np.random.default_rng(1))
    assert settle(steps).dropped_steps.astype(bool).mean() < 0.02


def test_steps_are_held_against_those_beside_them() -> None:
    """A machine that is half as fast for a while slows both; what only one side has is left out."""
    machine = [1.0, 1.0, 2.0, 2.0, 1.0]
    slower = [[1.1 * step for step in machine], [5.0, 5.0]]
    assert [pytest.approx([1.1] * 5), [2.5]] == step_ratios([machine, [2.0]], slower)
    assert [] == step_ratios([machine], [])


def test_a_constant_speed_is_steady() -> None:
    """Equal values have no trend."""
    assert Trend(verdict="steady", drift_share=0.0, p_value=1.0) == find_trend([100.0] * 8)


def test_a_steady_climb_is_found_with_its_size() -> None:
    """Eight values from 100 to 107 drift by 7 of the median 104, and p = 2/8!."""
    trend = find_trend([100.0 + step for step in range(8)])
    assert trend.verdict == "not steady"
    assert pytest.approx((7 / 104, 2 / 40320)) == (trend.drift_share, trend.p_value)


def test_a_fall_counts_as_much_as_a_climb() -> None:
    """A machine that gets slower is not steady either."""
    assert find_trend([100.0 - step for step in range(8)]).verdict == "not steady"


def test_a_tiny_drift_does_no_harm() -> None:
    """A perfect order over 0.7 % of the speed is significant and too small to matter."""
    trend = find_trend([100.0 + step / 10 for step in range(8)])
    assert trend.p_value is not None
    assert (True, "steady") == (trend.p_value < 0.01, trend.verdict)


def test_a_drift_that_may_be_noise_is_neither() -> None:
    """A slope of 8 % among swings as large is not called steady, nor a trend."""
    trend = find_trend([100.0, 104, 98, 107, 101, 109, 99, 108])
    assert (True, "no clear trend") == (
        trend.drift_share is not None and trend.drift_share > 0.02,
        trend.verdict,
    )


@pytest.mark.parametrize("count", [6, 11, 33, 34, 60])
@pytest.mark.parametrize("rounded_to", [None, 0])
def test_slope_and_significance_are_those_of_scipy(
    monkeypatch: pytest.MonkeyPatch, count: int, rounded_to: int | None
) -> None:
    """With ties and without, exact and approximate, as if the values were independent."""
    monkeypatch.setattr("bench.stats.trend._inflation", lambda _: 1.0)
    noise = np.random.default_rng(count)
    for _ in range(20):
        values = np.sort(noise.normal(100, 2, count)) + noise.normal(0, 2, count)
        if rounded_to is not None:
            values = np.round(values, rounded_to)
        trend, p_value = find_trend(values.tolist()), kendalltau(np.arange(count), values).pvalue
        drift = theilslopes(values).slope * (count - 1) / np.sort(values)[count // 2]
        assert pytest.approx(drift) == trend.drift_share
        assert trend.p_value is not None
        assert pytest.approx(p_value) == trend.p_value


def test_few_values_cannot_tell() -> None:
    """Five values in perfect order reach only p = 2/5! = 0.017."""
    assert find_trend([1.0, 2.0, 3.0, 4.0, 5.0]).verdict == "too few steps to tell"
    assert find_trend([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).verdict == "not steady"


def test_noise_alone_is_seldom_called_a_trend() -> None:
    """Of 1000 windows of pure 3 % noise, at most 2 % are called not steady."""
    noise = random.Random(0)
    alarms = sum(
        find_trend([noise.gauss(100, 3) for _ in range(10)]).verdict == "not steady" for _ in range(1000)
    )
    assert alarms <= 20


def test_steps_that_depend_on_one_another_are_seldom_called_a_trend() -> None:
    """Of 600 steady runs with autocorrelation 0.5 at most 5 % are; most drifts of 8 % are found."""
    settled = NoiseModel(warmup_steps=100)
    runs = session(settled, (600,), 1, np.random.default_rng(0))[0].reshape(600, 30)
    verdicts = [find_trend(np.exp(run).tolist()).verdict for run in runs]
    assert verdicts.count("not steady") <= 30
    drifting = np.exp(runs[:100] + np.linspace(0, 0.08, 30))
    assert [find_trend(run.tolist()).verdict for run in drifting].count("not steady") >= 80
