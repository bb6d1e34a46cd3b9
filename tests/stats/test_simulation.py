"""The error rates of the gates, by simulation; in full with BENCH_SELF_CHECK_REPLICATIONS=20000."""

import os
from dataclasses import replace

import numpy as np
import pytest

from bench.stats.simulation import (
    CASES,
    PROMISES,
    CheckRow,
    NoiseModel,
    SimulationCase,
    self_check,
    session,
    simulate,
    wilson,
)
from bench.stats.trend import settle

REPLICATIONS = int(os.environ.get("BENCH_SELF_CHECK_REPLICATIONS", "160"))


@pytest.mark.timeout(3600)
def test_every_promise_is_kept() -> None:
    """No rate lies on the wrong side of its bound by more than chance explains."""
    rows = list(self_check(REPLICATIONS))
    assert [] == [row for row in rows if not row.holds]
    bounded = [row for row in rows if row.bound is not None]
    assert len(CASES) < len(bounded)


def test_a_broken_promise_would_be_seen() -> None:
    """A gate with an error rate of 20 % that promises 1 % is found out, and so is one that finds nothing."""
    row = CheckRow(
        situation="",
        event="regression",
        trials=100,
        rate=0.2,
        low=0.13,
        high=0.29,
        side="at most",
        bound=0.01,
    )
    assert (False, True) == (row.holds, replace(row, bound=0.15).holds)
    assert (False, True) == (
        replace(row, side="at least", bound=0.95).holds,
        replace(row, bound=None).holds,
    )


def test_the_simulation_can_fail_the_gate() -> None:
    """Noise that a wrong calibration hides gives many false alarms once nothing guards against it."""
    hidden = SimulationCase(
        name="",
        bounds=PROMISES["no false alarm"],
        slowdown=0.01,
        calibration_factor=0.1,
        rule=replace(CASES[0].rule, alpha=0.2),
    )
    assert 0.1 < (simulate(hidden, 500, seed=0) == 2).mean() < 0.35


def test_the_same_seed_makes_the_same_measurements() -> None:
    """So that a figure can be checked by others."""
    first, second = (simulate(CASES[2], 50, seed=3) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_noise_is_what_the_model_says() -> None:
    """Autocorrelation, run noise and drift come out as put in; the arms alternate A B B A."""
    model = NoiseModel(spike_share=0.0, warmup_steps=1000, drift=0.3, run_noise=0.0)
    baseline, candidate = session(model, (500,), 3, np.random.default_rng(0))
    steps = baseline[:, 0]
    product = (steps[:, 1:] * steps[:, :-1]).mean() / (steps**2).mean()
    assert pytest.approx((0.5, 0.015), abs=0.02) == (product, steps.std())
    assert pytest.approx([0.0, 0.18, 0.24], abs=0.005) == list(baseline.mean(axis=(0, 2)))
    assert pytest.approx([0.06, 0.12, 0.3], abs=0.005) == list(candidate.mean(axis=(0, 2)))
    noisy, _ = session(replace(model, drift=0.0, run_noise=0.012), (500,), 4, np.random.default_rng(0))
    assert pytest.approx(0.0133, abs=0.001) == settle(noisy).log_medians.std()


def test_the_interval_of_a_rate() -> None:
    """Wilson by hand: 0 of 10 is at most 28 %, 5 of 10 lies between 24 % and 76 %."""
    assert pytest.approx((0.0, 0.2775), abs=1e-4) == wilson(0, 10)
    assert pytest.approx((0.2366, 0.7634), abs=1e-4) == wilson(5, 10)
