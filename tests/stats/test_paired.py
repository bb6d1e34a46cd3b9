"""The same questions before and after, and methods over the same seeds."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import binomtest

from bench.errors import UsageError
from bench.records.records import EvaluationItem
from bench.stats.paired import (
    Blocks,
    Paired,
    block_design,
    decide_drop,
    difference_errors,
    drop_bounds,
    drop_p_value,
    dunnett_critical,
    pair_items,
)
from bench.stats.sequential import DECISIONS
from bench.stats.trend import Floats
from records_factory import make_evaluation


def _items(answers: list[bool]) -> tuple[EvaluationItem, ...]:
    """Return questions with the given answers."""
    return make_evaluation("after", answers).items


def test_the_counts_and_the_exact_p_value() -> None:
    """Nine gained and one lost: p = 2 (C(10,0) + C(10,1)) / 2**10 = 22/1024."""
    before = [False] * 9 + [True] + [True] * 5 + [False] * 5
    after = [True] * 9 + [False] + [True] * 5 + [False] * 5
    actual = pair_items(_items(before), _items(after))
    assert Paired(items=20, gained=9, lost=1) == actual
    assert pytest.approx((0.4, 22 / 1024)) == (actual.difference_share, actual.p_value)


def test_no_change_is_no_evidence() -> None:
    """The same answers give p = 1."""
    assert pair_items(_items([True, False]), _items([True, False])).p_value == 1.0


def test_order_does_not_matter() -> None:
    """Questions are joined by id."""
    paired = pair_items(_items([True, False, True])[::-1], _items([True, True, True]))
    assert (3, 1, 0) == (paired.items, paired.gained, paired.lost)


@pytest.mark.parametrize(
    ("keep", "counts"),
    [
        (lambda items: items[:4], "6 missing of 10"),
        (lambda items: [item for item in items if item.correct], "5 missing of 10"),
        (lambda items: [*items[3:], *_items([True] * 12)[10:]], "3 missing, 2 added of 10"),
        (lambda items: [*items[:9], EvaluationItem(9, "0" * 64, correct=True)], "1 changed of 10"),
        (
            lambda items: [EvaluationItem(i.doc_id + 10, i.doc_hash, i.correct) for i in items],
            "10 missing, 10 added of 10",
        ),
        (lambda _: make_evaluation("after", [True] * 10, task="other").items, "10 changed of 10"),
        (lambda _: [], "10 missing of 10"),
    ],
)
def test_other_questions_are_refused_with_their_number(
    keep: Callable[[Sequence[EvaluationItem]], Sequence[EvaluationItem]], counts: str
) -> None:
    """Whoever leaves out what it got wrong, or asks something else, is not compared on the rest."""
    items = _items([True, False] * 5)
    with pytest.raises(UsageError, match=f"not the same questions: {counts}"):
        pair_items(items, keep(items))


def test_a_question_twice_is_refused() -> None:
    """Counting one question twice would make the evidence look stronger."""
    item = _items([True])
    with pytest.raises(UsageError, match="twice"):
        pair_items(item + item, item)


def test_questions_about_one_passage_count_as_one() -> None:
    """Forty answers lost on four passages are four coins: p = 1/16, not 2**-40, and no narrow interval."""
    before, after = _items([True] * 40 + [False] * 360), _items([False] * 400)
    sources = [number // 10 for number in range(400)]
    paired = pair_items(before, after, sources)
    assert ((10, 10, 10, 10), 10.0) == (paired.swings, paired.source_items)
    assert pytest.approx(1 / 16) == paired.worse_p_value()
    assert (1.0, 1 / 8) == (paired.worse_p_value(-1), paired.p_value)
    lost, gained, items = (np.array([float(count)]) for count in (40, 0, 400))
    squares = np.array([float(paired.squares)])
    low, high = drop_bounds(lost, gained, items, 0.01, squares, paired.source_items)
    alone_low, alone_high = drop_bounds(lost, gained, items, 0.01)
    assert low < 0 < alone_low < alone_high < high


def test_answers_that_swing_back_within_a_passage_are_no_drop() -> None:
    """One lost and one gained about the same passage cancel; two lost about it swing twice as far."""
    paired = pair_items(_items([True, False, True, True]), _items([False, True, False, False]), [0, 0, 1, 1])
    assert ((2,), 1, 3, 4) == (paired.swings, paired.gained, paired.lost, paired.squares)
    assert paired.worse_p_value() == 0.5


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_sources_of_one_question_each_change_nothing(answers: list[tuple[bool, bool]]) -> None:
    """The test by signs is then McNemar's, and the interval the same."""
    first, second = _items([a for a, _ in answers]), _items([b for _, b in answers])
    alone, own = pair_items(first, second), pair_items(first, second, range(len(answers)))
    assert pytest.approx(alone.worse_p_value()) == own.worse_p_value()
    lost, gained, items = (np.array([float(count)]) for count in (alone.lost, alone.gained, alone.items))
    bounds = drop_bounds(lost, gained, items, 0.01, np.array([float(own.squares)]), own.source_items)
    assert drop_bounds(lost, gained, items, 0.01) == bounds


def test_false_alarms_on_passages_stay_rare() -> None:
    """Five questions a passage that change together: McNemar's test cries wolf, that by passage does not."""
    rng = np.random.default_rng(5)
    alone, own = [], []
    for _ in range(2000):
        swings = rng.choice([-5, 0, 5], size=80, p=[0.1, 0.8, 0.1])
        lost, gained = int(swings[swings > 0].sum()), -int(swings[swings < 0].sum())
        paired = Paired(
            items=400, gained=gained, lost=lost, swings=tuple(swings[swings != 0]), source_items=5
        )
        own.append(paired.worse_p_value() <= 0.01)
        alone.append(Paired(items=400, gained=gained, lost=lost).worse_p_value() <= 0.01)
    assert np.mean(own) <= 0.015
    assert np.mean(alone) > 0.1


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_swapping_the_two_mirrors_the_result(answers: list[tuple[bool, bool]]) -> None:
    """Gained and lost change places, and the two-sided p-value stays."""
    first, second = _items([a for a, _ in answers]), _items([b for _, b in answers])
    there, back = pair_items(first, second), pair_items(second, first)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert pytest.approx(there.p_value) == back.p_value
    assert 0 < there.p_value <= 1


def test_the_one_sided_p_value_is_the_binomial_tail() -> None:
    """As scipy's exact test one by one; without a loss there is no evidence."""
    lost, gained = np.array([9.0, 3.0, 0.0, 0.0]), np.array([1.0, 3.0, 5.0, 0.0])
    expected = [binomtest(9, 10, alternative="greater").pvalue, binomtest(3, 6, alternative="greater").pvalue]
    assert pytest.approx([*expected, 1.0, 1.0]) == list(drop_p_value(lost, gained))


def test_the_interval_of_a_drop() -> None:
    """Bonett and Price by hand: 30 lost and 10 gained of 198 are 31/200 and 11/200 after adjustment."""
    lower, upper = drop_bounds(np.array([30.0]), np.array([10.0]), np.array([198.0]), 0.01)
    width = 2.326348 * ((42 / 200 - 0.1**2) / 200) ** 0.5
    assert pytest.approx((0.1 - width, 0.1 + width)) == (float(lower[0]), float(upper[0]))


@pytest.mark.parametrize(
    ("lost", "gained", "items", "expected"),
    [
        (0, 0, 1000, "pass"),  # the same answers, and enough of them
        (0, 0, 10, "inconclusive"),  # the same answers, but too few to rule out 5 points
        (75, 25, 1000, "regression"),
        (9, 0, 1000, "pass"),  # significant, but less than a point
        (5, 0, 100, "inconclusive"),  # a drop of 5 points that may be chance
        (25, 75, 1000, "pass"),
    ],
)
def test_a_drop_needs_evidence_and_size_and_a_pass_enough_questions(
    lost: int, gained: int, items: int, expected: str
) -> None:
    """Neither luck nor too few questions decide."""
    counts = [np.array([float(count)]) for count in (lost, gained, items)]
    p_values = drop_p_value(*counts[:2])
    (decision,) = decide_drop(
        *counts, family_p_values=p_values, alpha=0.01, minimum_drop=0.01, tolerance=0.05
    )
    assert expected == DECISIONS[int(decision)]


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


@pytest.mark.parametrize(("methods", "seeds", "expected"), [(3, 6, 3.877), (4, 3, 4.896), (6, 3, 4.912)])
def test_any_pair_is_tested_by_the_studentised_range(methods: int, seeds: int, expected: float) -> None:
    """Its upper 5 % points as in Tukey's table; of two methods the p-value is Student's, as Dunnett's is."""
    design = Blocks(methods=methods, seeds=seeds, error=2**0.5)
    assert pytest.approx(0.05, abs=1e-4) == design.p_value_of_any_pair(-expected)
    two = Blocks(methods=2, seeds=seeds, error=1.0)
    assert pytest.approx(two.p_value(2.5), abs=1e-6) == two.p_value_of_any_pair(2.5)


def test_a_best_that_is_picked_is_seldom_better_by_chance_alone() -> None:
    """Of six methods that are alike, one in 20 studies shows one worse than the best; Dunnett's test more."""
    values = simulate(0.0)
    means = values.mean(axis=-1)
    farthest = (means.max(axis=-1) - means.min(axis=-1)) / difference_errors(values)
    design = Blocks(methods=6, seeds=3, error=1.0)
    found = [
        brentq(lambda t, test=test: test(t) - 0.05, 1, 20)
        for test in (design.p_value_of_any_pair, design.p_value)
    ]
    tukey, dunnett = (float((farthest > critical).mean()) for critical in found)
    assert 0.03 < tukey < 0.06
    assert dunnett > 0.08


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
