"""One number for each run, and the warm-up that is extended for all runs alike."""

import numpy as np
import pytest

from bench.stats.settling import settle, settle_cells, step_ratios
from bench.stats.simulate import NoiseModel, sitting

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
    assert ((), 0, True) == (empty.log_medians, first.dropped_steps, first.steady)


def test_one_sample_is_its_own_summary_and_none_is_refused() -> None:
    """Load times have one sample a run; a run without any has to be left out."""
    (cell,) = settle_cells([[[1], [1], [3]]])
    assert pytest.approx((0.0, 0.0, np.log(3))) == cell.log_medians
    with pytest.raises(ValueError, match="without samples"):
        settle_cells([[[1.0], []]])


def test_a_shared_trend_extends_the_warm_up_until_it_is_gone() -> None:
    """The first quarter of every run is 20 % slower: it is left out, in all runs."""
    (steps, _) = sitting(QUIET, (), 8, np.random.default_rng(0))
    steps[:, :8] += 0.2
    settled = settle(steps)
    assert (8, True) == (int(settled.dropped_steps), bool(settled.steady))
    assert pytest.approx(np.median(steps[:, 8:], axis=-1)) == settled.log_medians


def test_a_trend_that_stays_is_said() -> None:
    """Steps that get slower to the end are not steady, by about the drift between the halves."""
    (steps, _) = sitting(QUIET, (), 8, np.random.default_rng(0))
    settled = settle(steps + np.linspace(0, 0.2, steps.shape[-1]))
    assert not settled.steady
    assert pytest.approx(0.05, abs=0.02) == float(settled.drift_log)


def test_autocorrelated_steps_seldom_look_like_a_trend() -> None:
    """Runs that wander by themselves are taken for a trend in 1 % of cells, not in every tenth."""
    steps, _ = sitting(QUIET, (2000,), 6, np.random.default_rng(1))
    assert settle(steps).dropped_steps.astype(bool).mean() < 0.02


def test_steps_are_held_against_those_beside_them() -> None:
    """A machine that is half as fast for a while slows both; what only one side has is left out."""
    machine = [1.0, 1.0, 2.0, 2.0, 1.0]
    slower = [[1.1 * step for step in machine], [5.0, 5.0]]
    assert [pytest.approx([1.1] * 5), [2.5]] == step_ratios([machine, [2.0]], slower)
    assert [] == step_ratios([machine], [])
