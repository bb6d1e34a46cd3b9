"""Paired comparisons: two evaluations of the same questions (McNemar), methods over the same seeds (Dunnett).

McNemar's test covers the questions, not training seeds; Dunnett's intervals say how far differences of means
may lie from what other seeds give, and nothing of other questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import betainc, gammaln, ndtr, ndtri, stdtrit

from bench.errors import UsageError
from bench.records.records import EvaluationItem
from bench.stats.sequential import PASS, REGRESSION, UNDECIDED
from bench.stats.trend import Floats

# Below it a paired difference is called significant; not corrected for the number of methods, hence not 0.05.
SIGNIFICANT_P = 0.01


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How the answers to ``items`` common questions changed: ``gained`` wrong → right, ``lost`` the reverse.

    ``unmatched`` questions were asked on one side only.
    """

    items: int
    unmatched: int
    gained: int
    lost: int

    @property
    def difference_share(self) -> float:
        """The change in accuracy, as a share of the common questions."""
        return (self.gained - self.lost) / self.items

    @property
    def p_value(self) -> float:
        """Two-sided and exact.

        Under no change the gained ones among those that changed follow a binomial distribution with p = 1/2
        (McNemar 1947, Psychometrika 12:153), which is symmetric, so it is twice the smaller tail.
        """
        more, fewer = np.sort(np.array([self.gained, self.lost], dtype=np.float64))[::-1]
        return min(1.0, 2 * float(drop_p_value(more, fewer)))


def pair_items(first: Sequence[EvaluationItem], second: Sequence[EvaluationItem]) -> Paired:
    """Join two evaluations on ``doc_id`` and test whether one answered more questions than the other.

    Raises UsageError when a question's hash differs, when a question is there twice, or when the two have
    none in common.
    """
    before, after = _by_id(first), _by_id(second)
    common = sorted(before.keys() & after.keys())
    if not common:
        raise UsageError("the two evaluations have no question in common; compare the same task and data")
    gained = lost = 0
    for doc_id in common:
        old, new = before[doc_id], after[doc_id]
        if old.doc_hash != new.doc_hash:
            raise UsageError(
                f"question {doc_id} is not the same in both evaluations (its hash differs); "
                "compare runs of the same task, data and seed"
            )
        if new.correct != old.correct:
            gained, lost = gained + new.correct, lost + old.correct
    return Paired(items=len(common), unmatched=len(before.keys() ^ after.keys()), gained=gained, lost=lost)


def drop_p_value(lost: Floats, gained: Floats) -> Floats:
    """Return the one-sided exact p-value of no drop: so many lost or more among those that changed.

    McNemar's test as in ``Paired.p_value``, for arrays of counts; 1 where none was lost. The tail of the
    binomial distribution at 1/2 is an incomplete beta function (Abramowitz and Stegun 26.5.24).
    """
    p_value: Floats = np.where(lost > 0, betainc(np.maximum(lost, 1), gained + 1, 0.5), 1.0)
    return p_value


def drop_bounds(lost: Floats, gained: Floats, items: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Return one-sided bounds of the drop as a share of the questions, each missed with about ``alpha``.

    The adjusted Wald interval of Bonett and Price 2012 (J. Educ. Behav. Stat. 37:479), which stays honest
    with few questions and where none changed.
    """
    fall, rise = (lost + 1) / (items + 2), (gained + 1) / (items + 2)
    width = ndtri(1 - alpha) * np.sqrt((fall + rise - (fall - rise) ** 2) / (items + 2))
    return fall - rise - width, fall - rise + width


def decide_drop(
    lost: Floats,
    gained: Floats,
    items: Floats,
    *,
    family_p_values: Floats,
    alpha: float,
    minimum_drop: float,
    tolerance: Floats | float,
) -> Floats:
    """Return the place in ``sequential.DECISIONS`` of each pair of evaluations.

    A *regression* needs an adjusted p-value of at most alpha and a drop of at least ``minimum_drop``, a
    *pass* an upper bound below ``tolerance``: too few questions are undecided, not passed.
    """
    _, upper = drop_bounds(lost, gained, items, alpha)
    worse = (family_p_values <= alpha) & (lost - gained >= minimum_drop * items)
    return np.select([worse, upper < tolerance], [REGRESSION, PASS], UNDECIDED)


def _by_id(items: Sequence[EvaluationItem]) -> dict[int, EvaluationItem]:
    found = {item.doc_id: item for item in items}
    if len(found) != len(items):
        raise UsageError(
            "an evaluation holds the same question twice; its record is damaged, run the cell again"
        )
    return found


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
