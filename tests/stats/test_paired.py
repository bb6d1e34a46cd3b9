"""The exact McNemar test on questions joined by id and hash."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bench.errors import UsageError
from bench.records.records import EvaluationItem
from bench.stats.paired import Paired, decide_drop, drop_bounds, drop_p_value, pair_items, try_pair
from bench.stats.sequential import DECISIONS
from records_factory import make_evaluation


def _items(answers: list[bool]) -> tuple[EvaluationItem, ...]:
    """Return questions with the given answers."""
    return make_evaluation("after", answers).items


def test_the_counts_and_the_exact_p_value() -> None:
    """Nine gained and one lost: p = 2 (C(10,0) + C(10,1)) / 2**10 = 22/1024."""
    before = [False] * 9 + [True] + [True] * 5 + [False] * 5
    after = [True] * 9 + [False] + [True] * 5 + [False] * 5
    actual = pair_items(_items(before), _items(after))
    assert Paired(items=20, unmatched=0, gained=9, lost=1) == actual
    assert pytest.approx((0.4, 22 / 1024)) == (actual.difference_share, actual.p_value)


def test_no_change_is_no_evidence() -> None:
    """The same answers give p = 1."""
    assert pair_items(_items([True, False]), _items([True, False])).p_value == 1.0


def test_order_does_not_matter_and_unmatched_are_counted() -> None:
    """Questions are joined by id, whatever their order; those in one evaluation only are said."""
    paired = pair_items(_items([True, False, True])[::-1], _items([True, True]))
    assert (2, 1, 1, 0) == (paired.items, paired.unmatched, paired.gained, paired.lost)


def test_another_question_under_the_same_id_is_refused() -> None:
    """An unequal hash means another question, whose answer may not be compared."""
    other = make_evaluation("after", [True], task="another").items
    with pytest.raises(UsageError, match="question 0 is not the same"):
        pair_items(_items([True]), other)


def test_a_question_twice_is_refused() -> None:
    """Counting one question twice would make the evidence look stronger."""
    item = _items([True])
    with pytest.raises(UsageError, match="twice"):
        pair_items(item + item, item)


def test_nothing_in_common_is_refused() -> None:
    """Two sets of different ids cannot be paired."""
    with pytest.raises(UsageError, match="no question in common"):
        pair_items(_items([True])[:0], _items([True]))


def test_a_refusal_can_be_kept_as_a_sentence() -> None:
    """A report shows the reason instead of ending."""
    first, second = make_evaluation("before", [True]), make_evaluation("after", [True], task="another")
    paired, reason = try_pair(first, second)
    assert (None, True) == (paired, str(reason).startswith("question 0 is not the same"))
    assert (None, None) == try_pair(None, second)


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
        (0, 0, 10, "undecided"),  # the same answers, but too few to rule out 5 points
        (75, 25, 1000, "regression"),
        (9, 0, 1000, "pass"),  # significant, but less than a point
        (5, 0, 100, "undecided"),  # a drop of 5 points that may be chance
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
