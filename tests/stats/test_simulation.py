"""The error rates of the gates, by simulation; in full with BENCH_SELF_CHECK_REPLICATIONS=10000."""

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from bench.stats import machines
from bench.stats.chance import Rule
from bench.stats.machines import MACHINES, NoiseModel, Shape, no_change, session, session_by_steps, slowed
from bench.stats.simulation import CASES, CheckRow, self_check, simulate, simulate_stored, wilson
from bench.stats.trend import settle

REPLICATIONS = int(os.environ.get("BENCH_SELF_CHECK_REPLICATIONS", "60"))


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


def _share_of_alarms(machine: str, cells: int, sweeps: int = 40) -> float:
    """Return the highest share of sweeps of unchanged code with a false alarm, over all calibrations."""
    counts = no_change(machine, sweeps, 0, by_steps=False)
    return max(number / sweeps for _, size, number in counts if size == cells)


def test_the_simulation_can_fail_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep on a machine of two speeds alarms often once nothing asks how chance orders runs."""
    machine = "two speeds, half of the runs"
    assert _share_of_alarms(machine, 96) < 0.1
    monkeypatch.setattr("bench.stats.sequential.chance_of_order", lambda runs, *_: np.zeros(runs.shape[:-1]))
    monkeypatch.setattr(Rule, "usable", lambda self, *_, **__: self.looks)
    assert _share_of_alarms(machine, 96) > 0.4


def test_what_is_not_judged_could_not_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same alarms come of judging every sweep, at an error rate that gives some."""
    monkeypatch.setattr(machines, "SEQUENTIAL", replace(machines.SEQUENTIAL, alpha=0.05))
    found = [_unknown(no_change("two speeds by run", 100, 0, by_steps=False))]
    monkeypatch.setattr(machines, "might_alarm", lambda runs, *_: np.ones(len(runs[0][0]), dtype=np.bool_))
    found.append(_unknown(no_change("two speeds by run", 100, 0, by_steps=False)))
    assert found[0] == found[1]
    assert any(found[0])


def _unknown(counts: Iterable[tuple[str, int, int]]) -> list[int]:
    """Return the alarms of sweeps without a calibration, which is drawn for those that are judged."""
    return [number for name, _, number in counts if name == "no calibration"]


@pytest.mark.parametrize("shape", ["constant", "late", "periodic", "bursts"])
def test_a_slowdown_of_any_shape_costs_the_throughput_it_says(shape: Shape) -> None:
    """A tenth of the tokens per second, over many windows of thirty steps; only a constant one is in all."""
    logs = slowed(shape, 0.1, (20_000, 30), np.random.default_rng(0))
    assert pytest.approx(0.9, abs=0.002) == 1 / np.exp(logs).mean()
    assert (shape == "constant") == bool((np.median(logs, axis=-1) > 0).all())


def test_what_strikes_the_machine_strikes_both_sides_of_a_step() -> None:
    """Two speeds by run cancel in pairs of steps, and two speeds by worker do not."""
    spreads = []
    for name in ("two speeds by run", "two speeds by worker"):
        model = replace(MACHINES[name], run_noise=0.0)
        first, second = session_by_steps(model, (200,), 5, np.random.default_rng(0))
        spreads.append(float(np.median(second - first, axis=-1).std()))
    assert spreads[0] < 0.01
    assert spreads[1] > 0.05


def test_bursts_cover_a_quarter_of_the_time_and_outlast_runs() -> None:
    """Of 20 to 60 s with two minutes between: a quarter of all steps, most of a run's or none."""
    model = replace(
        MACHINES["bursts of 20 to 60 s"], run_noise=0, step_noise=0, spike_share=0, warmup_steps=999
    )
    first, second = session(model, (500,), 8, np.random.default_rng(0))
    slow = np.concatenate([first, second], axis=-2) > 0.1
    assert pytest.approx(0.25, abs=0.02) == slow.mean()
    assert ((slow.mean(axis=-1) == 0) | (slow.mean(axis=-1) == 1)).mean() > 0.8


def test_a_bad_day_in_twenty_is_no_regression() -> None:
    """Against stored sittings, whatever the t-test says: the slowest of eleven days is no proof."""
    decisions = simulate_stored(0.0, 400, 0, bad_days=0.05)
    assert 0 == (decisions == 2).sum()


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
    assert pytest.approx((0.0, 0.2775), abs=1e-4) == wilson(0, 10, 1.959964)
    assert pytest.approx((0.2366, 0.7634), abs=1e-4) == wilson(5, 10, 1.959964)
