"""The test for a trend that remains over the measured steps."""

import random

import numpy as np
import pytest
from scipy.stats import kendalltau, theilslopes

from bench.stats import steady
from bench.stats.simulate import NoiseModel, sitting
from bench.stats.steady import Trend, find_trend


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
    monkeypatch.setattr(steady, "_inflation", lambda _: 1.0)
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
    noise = random.Random(0)  # noqa: S311 - a simulation
    alarms = sum(
        find_trend([noise.gauss(100, 3) for _ in range(10)]).verdict == "not steady" for _ in range(1000)
    )
    assert alarms <= 20


def test_steps_that_depend_on_one_another_are_seldom_called_a_trend() -> None:
    """Of 600 steady runs with autocorrelation 0.5 at most 5 % are; most drifts of 8 % are found."""
    settled = NoiseModel(warmup_steps=100)
    runs = sitting(settled, (600,), 1, np.random.default_rng(0))[0].reshape(600, 30)
    verdicts = [find_trend(np.exp(run).tolist()).verdict for run in runs]
    assert verdicts.count("not steady") <= 30
    drifting = np.exp(runs[:100] + np.linspace(0, 0.08, 30))
    assert [find_trend(run.tolist()).verdict for run in drifting].count("not steady") >= 80
