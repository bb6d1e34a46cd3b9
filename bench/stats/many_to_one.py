"""Methods against one of them over the same seeds: a randomised block design, with Dunnett's intervals.

Says how far the differences of means may lie from what other seeds give; nothing of other questions.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import gammaln, ndtr, stdtrit

from bench.stats.settling import Floats

_NODES = 64
_FAR = 8.0  # standard deviations: beyond lies less than 1e-14 of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """What ``methods`` x ``seeds`` values say of differences of two methods' means.

    Model: value = method + seed + residual, the residuals independent and of one variance for all methods,
    estimated with (methods - 1)(seeds - 1) degrees of freedom (Montgomery, Design and Analysis of
    Experiments, ch. 4). ``error`` is the standard error of a difference of two means.
    """

    methods: int
    seeds: int
    error: float

    @property
    def degrees_of_freedom(self) -> int:
        """Return how many independent residuals the variance is from."""
        return (self.methods - 1) * (self.seeds - 1)

    def half_width(self, confidence: float) -> float:
        """Return how far simultaneous intervals of all differences from one method reach to each side."""
        return dunnett_critical(self.methods - 1, self.degrees_of_freedom, confidence) * self.error

    def p_value(self, difference: float) -> float:
        """Return Dunnett's two-sided p-value, adjusted for all other methods being set against the same."""
        t = abs(difference) / self.error
        return max(0.0, 1.0 - _within(t, self.methods - 1, self.degrees_of_freedom))


def block_design(values: Floats) -> Blocks | None:
    """Return the design of values in a row for each method and a column for each seed, none missing.

    None with fewer than two of either, and where nothing is left that method and seed do not explain.
    """
    methods, seeds = values.shape
    if min(methods, seeds) < 2:  # noqa: PLR2004 - a residual takes two of both
        return None
    error = float(difference_errors(values))
    # Accuracies are fractions of small whole numbers, so that what rounding leaves is far below one item.
    return Blocks(methods=methods, seeds=seeds, error=error) if error > 1e-9 else None  # noqa: PLR2004


def difference_errors(values: Floats) -> Floats:
    """Return the standard error of a difference of two means, for each stack of methods x seeds."""
    methods, seeds = values.shape[-2:]
    by_method, by_seed = values.mean(axis=-1, keepdims=True), values.mean(axis=-2, keepdims=True)
    residuals = values - by_method - by_seed + values.mean(axis=(-2, -1), keepdims=True)
    variance = (residuals**2).sum(axis=(-2, -1)) / ((methods - 1) * (seeds - 1))
    errors: Floats = np.sqrt(2 * variance / seeds)
    return errors


@cache
def dunnett_critical(comparisons: int, degrees_of_freedom: int, confidence: float) -> float:
    """Return the two-sided critical value of Dunnett's test, to six digits; of one comparison Student's t.

    C. W. Dunnett, "A multiple comparison procedure for comparing several treatments with a control", J. Am.
    Stat. Assoc. 50 (1955): 1096-1121.
    """
    # It lies between the critical values of one comparison and of Bonferroni's bound on them all.
    shares = [(1 - confidence) / 2, (1 - confidence) / (2 * comparisons)]
    low, high = (-float(stdtrit(degrees_of_freedom, share)) for share in shares)
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        if _within(middle, comparisons, degrees_of_freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, comparisons: int, degrees_of_freedom: int) -> float:
    """Return the probability that no difference is beyond ``t`` of its errors, in truth all being nought.

    All differences share the reference's mean and the estimated deviation. Over both, z of a normal and s of
    a chi distribution over its root of degrees, what is left is a product of independent normal integrals.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    z = _FAR * nodes
    z_weights = _FAR * weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    half = degrees_of_freedom / 2
    spread = _FAR / math.sqrt(2 * degrees_of_freedom)
    least, most = max(0.0, 1 - spread), 1 + spread
    s = (nodes + 1) * (most - least) / 2 + least
    logs = half * math.log(half) - gammaln(half) + (degrees_of_freedom - 1) * np.log(s) - half * s**2
    s_weights = (most - least) * weights * np.exp(logs)
    reach = math.sqrt(2) * t * s[:, None]
    alone = ndtr(z + reach) - ndtr(z - reach)
    # Summed, not multiplied as matrices: for so few numbers the threads of a BLAS cost more than they bring.
    return float((s_weights * (alone**comparisons * z_weights).sum(axis=1)).sum())
