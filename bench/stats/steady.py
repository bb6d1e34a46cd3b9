"""Whether the measured steps had settled, or their speed was still going somewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from bench.stats.settling import Floats

SIGNIFICANCE = 0.01
SMALLEST_DRIFT_SHARE = 0.02
# The least number of values whose perfect order (p = 2/n!) is significant at 0.01.
FEWEST_VALUES = 6
_FEWEST_FOR_CORRELATION = 12
_MOST_CORRELATION = 0.95
_MOST_FOR_EXACT = 33
_ROUNDING = 1e-12

Places = npt.NDArray[np.int64]
Verdict = Literal["steady", "no clear trend", "not steady", "too few steps to tell"]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The drift from the first to the last value as a share of the median, and its significance."""

    verdict: Verdict
    drift_share: float | None
    p_value: float | None


def find_trend(values: Sequence[float]) -> Trend:
    """Test positive values, in the order measured, for a trend that remains.

    Mann-Kendall test (Mann 1945, Econometrica 13:245), as Kendall's tau against the index, two-sided, with
    as many independent values as the steps are worth (see ``_inflation``); size by the Theil-Sen slope (Sen
    1968, JASA 63:1379). *Not steady* needs both p < 0.01 and a drift above 2 % of the median over the window:
    a small drift that is merely significant does no harm. A larger drift without significance is *no clear
    trend*: noise, or too few steps to know better.
    """
    if len(values) < FEWEST_VALUES:
        return Trend(verdict="too few steps to tell", drift_share=None, p_value=None)
    if len(set(values)) == 1:
        return Trend(verdict="steady", drift_share=0.0, p_value=1.0)
    observed = np.asarray(values, dtype=np.float64)
    later, earlier = _pairs(len(values))
    rises = observed[later] - observed[earlier]
    slope = float(np.median(rises / (later - earlier)))
    as_if_independent = _kendall_p_value(int(np.sign(rises).sum()), observed)
    inflation = _inflation(observed - slope * np.arange(len(values)))
    deviations = -ndtri(as_if_independent / 2) / math.sqrt(inflation)
    p_value = as_if_independent if inflation == 1 else float(2 * ndtr(-deviations))
    middle = sorted(values)[len(values) // 2]
    drift_share = slope * (len(values) - 1) / middle
    verdict: Verdict = "steady"
    if abs(drift_share) > SMALLEST_DRIFT_SHARE:
        verdict = "not steady" if p_value < SIGNIFICANCE else "no clear trend"
    return Trend(verdict=verdict, drift_share=drift_share, p_value=p_value)


@cache
def _pairs(count: int) -> tuple[Places, ...]:
    """Return the places of the later and of the earlier of each two of so many values."""
    return np.tril_indices(count, -1)


def _kendall_p_value(score: int, values: Floats) -> float:
    """Return the two-sided p-value of Kendall's S of values against their order, as if independent.

    Exact without ties for up to 33 values, else by the normal approximation, its variance corrected for ties
    (Kendall 1970, Rank Correlation Methods, 4th edition, chapters 4 and 5): the values of
    ``scipy.stats.kendalltau``, which takes a second to import and a millisecond for each call.
    """
    count = len(values)
    _, alike = np.unique(values, return_counts=True)
    if len(alike) == count <= _MOST_FOR_EXACT:
        inversions = (count * (count - 1) // 2 - abs(score)) // 2
        return min(1.0, 2 * _orders_within(count)[inversions] / math.factorial(count))
    spread = (count * (count - 1) * (2 * count + 5) - (alike * (alike - 1) * (2 * alike + 5)).sum()) / 18
    return float(2 * ndtr(-abs(score) / math.sqrt(spread)))


@cache
def _orders_within(count: int) -> tuple[int, ...]:
    """Return how many orders of so many different values have at most 0, 1, 2 … inversions."""
    orders = [1]
    for size in range(2, count + 1):
        # The value added last stands before 0 to size - 1 of the others.
        within = [*accumulate(orders), *[sum(orders)] * (size - 1)]
        orders = [now - before for now, before in zip(within, [0] * size + within, strict=False)]
    return tuple(accumulate(orders))


def _inflation(residuals: Floats) -> float:
    """Return by how much correlation between neighbours widens the variance of Kendall's S; at least 1.

    Hamed and Rao 1998 (J. Hydrol. 204:182, equation 8) on the ranks of what the trend leaves, their
    correlations taken to fall off geometrically from that of neighbours, which is freed of most of its bias
    (Marriott and Pope 1954, Biometrika 41:390). Of simulated steady runs of 20 to 30 steps with correlation
    0.5, 10 % are called a trend without it and 3 to 4 % with it; of 8 steps 4 % are anyway, and they tell
    too little of their correlation, so fewer than 12 are taken as they are.
    """
    count = len(residuals)
    if count < _FEWEST_FOR_CORRELATION or np.ptp(residuals) <= _ROUNDING * np.abs(residuals).max():
        return 1.0
    ranks = np.sign(residuals[:, np.newaxis] - residuals).sum(axis=1) / 2  # less their mean; ties share one
    neighbours = float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum())
    correlation = min(max((count * neighbours + 1) / (count - 4), 0.0), _MOST_CORRELATION)
    lags = np.arange(1, count - 2)
    weights = (count - lags) * (count - lags - 1) * (count - lags - 2)
    return 1 + float(2 / (count * (count - 1) * (count - 2)) * (weights * correlation**lags).sum())
