"""Finds the polynomials in several variables that whole numbers follow, from their values at a few points.

What a model allocates is nearly always one product, such as four bytes for each token and rank, or a sum of
two, such as a label for each token and one more for each sequence. So the shortest sum is sought that the
values leave no other choice but, and that more values agree on than it has terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from math import lcm, prod

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_Terms = dict[int, Fraction]
"""Coefficients by the number of the monomial."""


@dataclass(frozen=True)
class Polynomials:
    """One polynomial for each of many numbers; equal ones are kept once.

    Polynomial ``p`` is the sum of ``numerators[p]`` times the monomials, by ``denominators[p]``; number
    ``n`` follows polynomial ``which[n]``.
    """

    exponents: Sequence[Sequence[int]]
    numerators: Ints
    denominators: Ints
    which: Ints

    def at(self, point: Sequence[int]) -> Ints | None:
        """Return the numbers at a point; None where one of them would not be whole."""
        monomials = np.array([_power(point, each) for each in self.exponents], dtype=np.int64)
        values, rest = np.divmod(self.numerators @ monomials, self.denominators)
        return None if rest.any() else values[self.which]


def fitted(points: Sequence[Sequence[int]], values: Ints, degrees: Sequence[int]) -> Polynomials | None:
    """Return the polynomials of at most such degrees in each variable; None where the values leave a choice.

    ``values`` has a row for each point and a column for each number.
    """
    exponents = list(product(*(range(degree + 1) for degree in degrees)))
    monomials = [[_power(point, each) for point in points] for each in exponents]
    distinct, which = np.unique(values, axis=1, return_inverse=True)
    found = [_shortest(column, monomials) for column in distinct.T.tolist()]
    numerators = np.zeros((len(found), len(exponents)), dtype=np.int64)
    denominators = np.ones(len(found), dtype=np.int64)
    for index, terms in enumerate(found):
        if terms is None:
            return None
        denominators[index] = lcm(*(each.denominator for each in terms.values()))
        for monomial, coefficient in terms.items():
            numerators[index, monomial] = int(coefficient * int(denominators[index]))
    return Polynomials(exponents, numerators, denominators, which.reshape(-1))


def _shortest(values: Sequence[int], monomials: Sequence[Sequence[int]]) -> _Terms | None:
    """Return the one sum of fewest terms that takes these values; None where there are several or none."""
    if not any(values):
        return {}
    fits: list[_Terms] = [
        {index: Fraction(values[0], one[0])}
        for index, one in enumerate(monomials)
        if all(value * one[0] == values[0] * each for value, each in zip(values, one, strict=True))
    ]
    if not fits and len(values) > 2:  # noqa: PLR2004 - more values than terms
        pairs = combinations(range(len(monomials)), 2)
        fits = [terms for pair in pairs if (terms := _pair(values, monomials, *pair)) is not None]
    return fits[0] if len(fits) == 1 else None


def _pair(
    values: Sequence[int], monomials: Sequence[Sequence[int]], first: int, second: int
) -> _Terms | None:
    """Return the sum of two monomials that takes these values, if there is one."""
    one, other = monomials[first], monomials[second]
    determinant = one[0] * other[1] - one[1] * other[0]
    if not determinant:
        return None
    of_one = values[0] * other[1] - values[1] * other[0]
    of_other = one[0] * values[1] - one[1] * values[0]
    if all(
        value * determinant == of_one * here + of_other * there
        for value, here, there in zip(values, one, other, strict=True)
    ):
        return {first: Fraction(of_one, determinant), second: Fraction(of_other, determinant)}
    return None


def _power(point: Sequence[int], exponents: Sequence[int]) -> int:
    return prod(value**exponent for value, exponent in zip(point, exponents, strict=True))
