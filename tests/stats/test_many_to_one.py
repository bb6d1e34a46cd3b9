"""Dunnett's intervals in blocks: against tables, by hand, and by simulated studies of accuracy."""

import numpy as np
import pytest
from scipy.special import stdtrit

from bench.stats.many_to_one import block_design, difference_errors, dunnett_critical
from bench.stats.settling import Floats


@pytest.mark.parametrize(
    ("comparisons", "degrees", "expected"),
    [(1, 2, 4.30), (2, 10, 2.57), (3, 6, 3.10), (4, 10, 2.89), (5, 10, 2.99), (4, 20, 2.65), (5, 60, 2.58)],
)
def test_critical_values_are_those_of_the_tables(comparisons: int, degrees: int, expected: float) -> None:
    """Two-sided 5 % points as in Dunnett's table; of one comparison Student's t."""
    assert pytest.approx(expected, abs=0.006) == dunnett_critical(comparisons, degrees, 0.95)


def test_a_block_design_by_hand() -> None:
    """Methods 0, 1, 5 and seeds 0, 1: residuals of ±1/6 and ±1/3, squares of 1/3 over 2 degrees of freedom.

    Rows (0, 2), (1, 2), (5, 6) have means 1, 1.5, 5.5, columns 2 and 10/3, all 8/3: the first row leaves
    -1 + 2/3, the others -1/2 + 2/3; each is there twice with either sign.
    """
    found = block_design(np.array([[0.0, 2.0], [1.0, 2.0], [5.0, 6.0]]))
    assert found is not None
    variance = 2 * (1 / 3**2 + 1 / 6**2 + 1 / 6**2) / 2
    assert (3, 2, 2) == (found.methods, found.seeds, found.degrees_of_freedom)
    assert pytest.approx((2 * variance / 2) ** 0.5) == found.error
    width = found.half_width(0.95)
    assert pytest.approx(dunnett_critical(2, 2, 0.95) * found.error) == width
    assert pytest.approx(0.05, abs=1e-5) == found.p_value(width) == found.p_value(-width)
    assert 1 == found.p_value(0)


def test_of_two_methods_it_is_the_paired_t_interval() -> None:
    """Differences 1, 2, 6: s = √7, so that the half width is 4.303 · √7 / √3."""
    found = block_design(np.array([[1.0, 3.0, 8.0], [0.0, 1.0, 2.0]]))
    assert found is not None
    assert pytest.approx(4.302653 * (7 / 3) ** 0.5, rel=1e-6) == found.half_width(0.95)


def test_without_a_residual_there_is_no_design() -> None:
    """One seed, one method, or values that method and seed explain, tell nothing of chance."""
    assert block_design(np.array([[0.5], [0.7]])) is None
    assert block_design(np.array([[0.5, 0.7]])) is None
    assert block_design(np.array([[0.5, 0.7], [0.6, 0.8]])) is None


def simulate(effect: float, studies: int = 4_000) -> Floats:
    """Return accuracies of studies of 6 methods and 3 seeds on 200 questions that all are asked.

    Questions are of their own difficulty, the same for all; a run answers each by chance. The last method's
    chance is higher by ``effect``.
    """
    random = np.random.default_rng(7)
    chance = random.beta(6, 4, size=(studies, 1, 1, 200))
    above = np.zeros((6, 1, 1))
    above[-1] = effect
    seed = random.normal(0, 0.02, size=(studies, 1, 3, 1))
    right = random.random((studies, 6, 3, 200), dtype=np.float32) < np.clip(chance + above + seed, 0, 1)
    accuracy: Floats = right.mean(axis=-1)
    return accuracy


def found_by_blocks(values: Floats) -> Floats:
    """Tell, for each study and method, whether it is shown to differ from the first one."""
    differences = values.mean(axis=-1)[:, 1:] - values.mean(axis=-1)[:, :1]
    reach = dunnett_critical(5, 10, 0.95) * difference_errors(values)
    told: Floats = np.abs(differences) > reach[:, None]
    return told


def found_by_pairs(values: Floats) -> Floats:
    """Tell the same by an interval of each pair's own spread, by Bonferroni's bound for five of them."""
    differences = values[:, 1:] - values[:, :1]
    errors = differences.std(axis=-1, ddof=1) / 3**0.5
    told: Floats = np.abs(differences.mean(axis=-1)) > -stdtrit(2, 0.025 / 5) * errors
    return told


def test_of_studies_without_a_difference_one_in_twenty_finds_one() -> None:
    """Any false finding, of five comparisons: 5 % within four standard errors of the simulation."""
    false_alarms = found_by_blocks(simulate(0.0)).any(axis=1).mean()
    assert pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 4_000) ** 0.5) == false_alarms


def test_a_difference_is_found_more_often_than_by_pairs() -> None:
    """Ten points on 200 questions with three seeds: found mostly in blocks, seldom pair by pair."""
    values = simulate(0.1, studies=1_000)
    blocks, pairs = (found(values)[:, -1].mean() for found in (found_by_blocks, found_by_pairs))
    assert 0.7 < blocks
    assert pairs < 0.3
