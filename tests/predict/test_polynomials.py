"""Polynomials found from values: short sums are recognised, and what is not decided is not guessed."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bench.predict.sizes import Polynomials, fitted

POINTS = [(2, 128, 8), (8, 512, 64), (4, 384, 24), (2, 256, 16)]
"""Batch, length, rank."""
DEGREES = (1, 2, 1)
NUMBERS: list[Callable[[int, int, int], int]] = [
    lambda _batch, _length, _rank: 0,
    lambda _batch, _length, _rank: 4096,
    lambda _batch, _length, rank: 4096 * rank,
    lambda batch, length, _rank: 8 * batch * (length + 1),
    lambda batch, length, _rank: 4 * batch * length * length,
    lambda batch, length, rank: 2 * batch * length * rank // 4,
    lambda _batch, length, _rank: 3 * length - 7,
]


def values(
    numbers: Sequence[Callable[[int, int, int], int]], points: Sequence[tuple[int, int, int]]
) -> object:
    """Return a row for each point and a column for each number."""
    return np.array([[number(*point) for number in numbers] for point in points], dtype=np.int64)


def fit(numbers: Sequence[Callable[[int, int, int], int]], count: int) -> Polynomials | None:
    """Fit the values at the first so many points."""
    points = POINTS[:count]
    return fitted(points, values(numbers, points), DEGREES)  # type: ignore[arg-type]  # an array


def test_sums_of_one_and_two_terms_are_found_and_go_on_elsewhere() -> None:
    """Four values decide each of them, also with a fraction or a negative coefficient."""
    found = fit(NUMBERS, 4)
    assert found is not None
    elsewhere = (6, 640, 12)
    expected = [number(*elsewhere) for number in NUMBERS]
    result = found.at(elsewhere)
    assert result is not None
    assert expected == result.tolist()


def test_two_values_do_not_decide_a_sum_of_two_terms() -> None:
    """Any two values lie on some sum of two terms, so none is believed."""
    assert fit([lambda batch, length, _rank: 8 * batch * (length + 1)], 2) is None


@pytest.mark.parametrize("exponent", [0, 1])
def test_where_two_terms_explain_the_values_neither_is_believed(exponent: int) -> None:
    """Length and rank both grow eightfold between two points: a third must tell which it was."""
    points = [(2, 128, 8), (8, 1024, 64), (4, 1024, 8)]
    number = [[point[1 + exponent] for point in points]]
    column = np.array(number, dtype=np.int64).T
    assert fitted(points[:2], column[:2], DEGREES) is None
    assert fitted(points, column, DEGREES) is not None


def test_what_is_no_short_sum_is_not_fitted() -> None:
    """A rounded number follows no sum of two terms."""
    assert fit([lambda batch, length, rank: -(-batch * length * rank // 1000) * 1000], 4) is None


def test_a_number_that_would_not_be_whole_is_not_given() -> None:
    """A quarter of the rank is known at multiples of four only."""
    found = fit([lambda _batch, _length, rank: rank // 4], 3)
    assert found is not None
    assert found.at((2, 128, 7)) is None


def test_an_axis_without_choice_takes_no_part() -> None:
    """With one batch and one rank all is a polynomial of the length."""
    points = [(1, 128, 0), (1, 512, 0)]
    found = fitted(points, np.array([[1024, 128], [4096, 128]], dtype=np.int64), (0, 2, 0))
    assert found is not None
    result = found.at((1, 256, 0))
    assert result is not None
    assert [2048, 128] == result.tolist()
