"""Paired comparisons: two evaluations of the same questions (McNemar), methods over the same seeds (Dunnett).

Questions about one passage stand or fall together, so they are tested as one (``swings``). McNemar's test
covers the questions, not training seeds; Dunnett's intervals say how far differences of means
may lie from what other seeds give, and nothing of other questions.
"""

import math
from collections import Counter
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
    """How the answers to ``items`` questions changed: ``gained`` wrong → right, ``lost`` the reverse.

    ``swings`` are lost less gained of each source (a passage, an article) that several questions ask about,
    without those of 0; None where each question is its own. ``source_items`` is how many questions ask about
    the source of a question, in the mean over questions.
    """

    items: int
    gained: int
    lost: int
    swings: tuple[int, ...] | None = None
    source_items: float = 1.0

    @property
    def difference_share(self) -> float:
        """The change in accuracy, as a share of the common questions."""
        return (self.gained - self.lost) / self.items

    @property
    def squares(self) -> int:
        """Return the sum of squares of the swings, of single questions the number of those that changed."""
        return self.gained + self.lost if self.swings is None else sum(swing**2 for swing in self.swings)

    def worse_p_value(self, sign: int = 1) -> float:
        """Return the one-sided exact p-value of no drop, or with ``sign`` -1 of no rise."""
        if self.swings is not None:
            return swings_p_value([sign * swing for swing in self.swings])
        worse, better = np.array([self.lost, self.gained], dtype=np.float64)[::sign]
        return float(drop_p_value(worse, better))

    @property
    def p_value(self) -> float:
        """Two-sided and exact.

        Under no change the gained ones among those that changed follow a binomial distribution with p = 1/2
        (McNemar 1947, Psychometrika 12:153), which is symmetric, so it is twice the smaller tail.
        """
        return min(1.0, 2 * min(self.worse_p_value(1), self.worse_p_value(-1)))


def pair_items(
    first: Sequence[EvaluationItem], second: Sequence[EvaluationItem], sources: Sequence[int] = ()
) -> Paired:
    """Join two evaluations on ``doc_id`` and test whether one answered more questions than the other.

    ``sources`` number what the questions of the first ask about; none where each is its own. Raises
    UsageError unless both hold the same questions: on fewer, a side may leave out what it got wrong.
    """
    before, after = _by_id(first), _by_id(second)
    common = sorted(before.keys() & after.keys())
    unlike = {
        "missing": len(before) - len(common),
        "added": len(after) - len(common),
        "changed": sum(before[doc_id].doc_hash != after[doc_id].doc_hash for doc_id in common),
    }
    if not common or any(unlike.values()):
        counts = ", ".join(f"{number} {what}" for what, number in unlike.items() if number) or "none asked"
        raise UsageError(
            f"not the same questions: {counts} of {len(before)}; compare runs of one task, data and limit"
        )
    source_of = dict(zip((item.doc_id for item in first), sources, strict=True)) if sources else {}
    asked, swings = Counter[int](), Counter[int]()
    gained = lost = 0
    for doc_id in common:
        old, new = before[doc_id], after[doc_id]
        if new.correct != old.correct:
            gained, lost = gained + new.correct, lost + old.correct
        if source_of:
            asked[source_of[doc_id]] += 1
            swings[source_of[doc_id]] += old.correct - new.correct
    return Paired(
        items=len(common),
        gained=gained,
        lost=lost,
        swings=tuple(filter(None, swings.values())) if source_of else None,
        source_items=sum(number**2 for number in asked.values()) / len(common) if source_of else 1.0,
    )


def swings_p_value(swings: Sequence[int]) -> float:
    """Return the one-sided exact p-value of no drop, sources being as likely to swing up as down.

    The sign-flip test (Fisher 1935, Design of Experiments, § 21): how often random signs add up to as much.
    Where each source has one question it is McNemar's.
    """
    reach = sum(map(abs, swings))
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for size in map(abs, swings):
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    return min(1.0, float(chance[reach + sum(swings) :].sum()))


def drop_p_value(lost: Floats, gained: Floats) -> Floats:
    """Return the one-sided exact p-value of no drop: so many lost or more among those that changed.

    McNemar's test as in ``Paired.p_value``, for arrays of counts; 1 where none was lost. The tail of the
    binomial distribution at 1/2 is an incomplete beta function (Abramowitz and Stegun 26.5.24).
    """
    p_value: Floats = np.where(lost > 0, betainc(np.maximum(lost, 1), gained + 1, 0.5), 1.0)
    return p_value


def drop_bounds(  # noqa: PLR0917 - counts of questions, and how they hang together
    lost: Floats,
    gained: Floats,
    items: Floats,
    alpha: float,
    squares: Floats | None = None,
    source_items: Floats | float = 1.0,
) -> tuple[Floats, Floats]:
    """Return one-sided bounds of the drop as a share of the questions, each missed with about ``alpha``.

    The adjusted Wald interval of Bonett and Price 2012 (J. Educ. Behav. Stat. 37:479), which stays honest
    with few questions and where none changed. Of questions that share sources it adds a source each way, not
    a question, counts swings (``Paired``), and takes Student's t of so many sources; it is never narrower.
    """
    added = np.broadcast_to(np.asarray(source_items, dtype=np.float64), items.shape)
    squares = lost + gained if squares is None else squares
    all_items = items + 2 * added
    fall, rise = (lost + added) / all_items, (gained + added) / all_items
    together = np.maximum((squares + 2 * added**2) / (lost + gained + 2 * added), 1.0)
    degrees = np.maximum(items / added - 1, 1.0)
    quantile = np.where(added > 1, stdtrit(degrees, 1 - alpha), ndtri(1 - alpha))
    width = quantile * np.sqrt(together * (fall + rise - (fall - rise) ** 2) / all_items)
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
    squares: Floats | None = None,
    source_items: Floats | float = 1.0,
) -> Floats:
    """Return the place in ``sequential.DECISIONS`` of each pair of evaluations.

    A *regression* needs an adjusted p-value of at most alpha and a drop of at least ``minimum_drop``, a
    *pass* an upper bound below ``tolerance``: too few questions are undecided, not passed.
    """
    _, upper = drop_bounds(lost, gained, items, alpha, squares, source_items)
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

    def p_value_of_any_pair(self, difference: float) -> float:
        """Return Tukey's p-value, adjusted for all pairs: it holds where a pair is picked by its values.

        As ``scipy.stats.tukey_hsd``, whose groups are independent, by the same studentised range; here the
        variance is of seeds as blocks. Of two methods it is Student's.
        """
        from scipy.stats import studentized_range

        ranges = abs(difference) / self.error * math.sqrt(2)
        return float(studentized_range.sf(ranges, self.methods, self.degrees_of_freedom))


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
