"""What chance alone can do: to the order of runs, over many tests, and over several looks at them.

Nothing here rests on how runs are distributed: only on that, nothing being worse, either side's could as well
have been the other's.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtr

from bench.stats.noise import used_runs
from bench.stats.trend import Floats, Ints

_GROWTH = 1.6
"""Each look has this many times the repeats of the last: 3, 5, 8, 13, 21."""

_MOST_ORDERS = 2**62  # whose numbers are exact in 64 bits

_SHARE_OF_MEDIAN = {False: 0.95, True: 0.5}
"""Of what the first look may spend, by whether runs are compared two by two; of later ones it is a half. The
total has the rest. So few runs or pairs can be ordered in so few ways that less would tell nothing."""

SHARE_OF_A_LOOK = 0.84
"""Of what is left of alpha each look but the last spends: enough for two tests after five runs of each side,
of whose orders one in 252 parts them."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is promised, and after how many repeats the evidence is looked at."""

    alpha: float
    minimum_effect_log: float
    looks: tuple[int, ...]

    def usable(self, tests: int, *, pairs: bool = False) -> tuple[int, ...]:
        """Return the looks that may end in a verdict on one of so many tests."""
        for place, look in enumerate(self.looks):
            share = 1.0 if look == self.looks[-1] else SHARE_OF_A_LOOK
            if tests * chance_of_all(look, pairs=pairs) <= self._part(pairs=pairs) * share:
                return self.looks[place:]
        return ()

    def share_of(self, look: int, tests: int = 1, *, pairs: bool = False) -> float:
        """Return the share of alpha that a look may spend; all of it where there is no verdict anyway."""
        usable = self.usable(tests, pairs=pairs)
        if look not in usable:
            return 1.0
        left = (1 - SHARE_OF_A_LOOK) ** usable.index(look)
        return left if look == usable[-1] else left * SHARE_OF_A_LOOK

    def fewest_repeats(self, tests: int, *, pairs: bool = False) -> int:
        """Return how many repeats it takes for a verdict that does not rest on how runs are distributed.

        Of 2 n runs of the same code all n of one side are the slower ones with a probability of 1 / C(2n, n),
        and of n pairs one side's with 2^-n, whatever the noise; a machine with two speeds gives no other sign
        that it was chance. Over all tests and all looks from that number on, this is to be at most alpha.
        Where no look is late enough, the number is above the last.
        """
        if usable := self.usable(tests, pairs=pairs):
            return usable[0]
        later = itertools.count(self.looks[-1] + 1)
        return next(n for n in later if tests * chance_of_all(n, pairs=pairs) <= self._part(pairs=pairs))

    def share_of_median(self, look: int, tests: int, *, pairs: bool) -> float:
        """Return the part of a look's share that goes to the median step; the total has the rest."""
        return 0.5 if look in self.usable(tests, pairs=pairs)[1:] else _SHARE_OF_MEDIAN[pairs]

    def _part(self, *, pairs: bool) -> float:
        return self.alpha * _SHARE_OF_MEDIAN[pairs]


def chance_of_all(repeats: int, *, pairs: bool) -> float:
    """Return how likely all runs of one side are the slower ones by chance."""
    return 0.5**repeats if pairs else 1 / math.comb(2 * repeats, repeats)


def looks(first: int, last: int) -> tuple[int, ...]:
    """Return the numbers of repeats after which the evidence is looked at, from ``first`` to ``last``."""
    found = [first]
    while found[-1] < last:
        found.append(min(last, round(found[-1] * _GROWTH)))
    return tuple(found)


def holm(p_values: Floats) -> Floats:
    """Return p-values adjusted for all on the last axis (Holm 1979, Scand. J. Stat. 6:65).

    Holds under any dependence between them.
    """
    count = p_values.shape[-1]
    order = np.argsort(p_values, axis=-1)
    steps = np.take_along_axis(p_values, order, axis=-1) * (count - np.arange(count))
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return adjusted


def chance_of_order(lower: Floats, higher: Floats, repeats: Ints) -> Floats:
    """Return how likely chance alone puts so many of the runs of ``higher`` above those of ``lower``.

    Exact for runs that could as well have been of the other arm, whatever their noise (Mann and Whitney 1947,
    Ann. Math. Stat. 18:50); equal runs count against it. Shapes as for ``moments_of_arms``.
    """
    first, second = used_runs(lower, repeats), used_runs(higher, repeats)
    against = lower[..., :, np.newaxis] >= higher[..., np.newaxis, :]
    both = first[..., :, np.newaxis] & second[..., np.newaxis, :]
    score = (against & both).sum(axis=(-2, -1))
    found = np.ones(score.shape)
    sizes = np.stack([first.sum(axis=-1), second.sum(axis=-1)], axis=-1)
    for size in np.unique(sizes.reshape(-1, 2), axis=0).tolist():
        place = (sizes == size).all(axis=-1)
        found[place] = _orders_up_to(*size)[score[place]]
    return found


def chance_of_signs(differences: Floats, repeats: Ints) -> Floats:
    """Return the same of so many and so large differences of pairs above 0.

    Exact where the sides of each pair could be exchanged (Wilcoxon 1945, Biometrics Bulletin 1:80): all of n
    pairs are above 0 with a probability of 2^-n. What is 0 or equal counts against it.
    """
    used, sizes = used_runs(differences, repeats), np.abs(differences)
    ranks = ((sizes[..., :, np.newaxis] >= sizes[..., np.newaxis, :]) & used[..., np.newaxis, :]).sum(axis=-1)
    score = np.where(used & (differences <= 0), ranks, 0).sum(axis=-1)
    found, counts = np.ones(score.shape), used.sum(axis=-1)
    for count in np.unique(counts).tolist():
        place = counts == count
        table = _signs_up_to(count)
        found[place] = table[np.minimum(score[place], len(table) - 1)]
    return found


@cache
def _orders_up_to(first: int, second: int) -> Floats:
    """Return for each score of ``chance_of_order`` how likely it or a lower one is.

    The scores' numbers of orders are the coefficients of a Gaussian binomial. Of more than some
    thirty runs of each side a normal distribution stands for it, whose tails are wider.
    """
    if math.comb(first + second, first) > _MOST_ORDERS:
        scores = np.arange(first * second + 1)
        spread = math.sqrt(first * second * (first + second + 1) / 12)
        normal: Floats = ndtr((scores + 0.5 - first * second / 2) / spread)
        return normal
    orders = np.ones(1, dtype=np.int64)
    for size in range(1, first + 1):
        longer = np.zeros(second * size + size + 1, dtype=np.int64)
        longer[: len(orders)] = orders
        longer[second + size :] -= orders[: len(longer) - second - size]
        for start in range(size):
            longer[start::size] = np.cumsum(longer[start::size])
        orders = longer[: second * size + 1]
    shares: Floats = np.cumsum(orders) / math.comb(first + second, first)
    return shares


@cache
def _signs_up_to(count: int) -> Floats:
    chances = np.ones(1)
    for rank in range(1, count + 1):
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return np.cumsum(chances)
