"""Whether steps had settled, what a run comes to once they have, and where a history changed its level.

The process run is the unit of analysis: steps of one run depend on one another, and tests that pool them see
differences where there are none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtr

from bench.errors import UnavailableError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SIGNIFICANCE = 0.01
SMALLEST_DRIFT_LOG = 0.01
"""Between the medians of the two halves: about 2 % over the window, as ``SMALLEST_DRIFT_SHARE``."""

FEWEST_RUNS = 3
FEWEST_STEPS = 6
_SHARES_DROPPED = (0.0, 0.25, 0.5)


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Logs of the runs' medians (..., runs), the leading steps left out of all, and whether a trend stayed.

    ``drift_log`` is the mean over runs of log(median of the second half / median of the first).
    """

    log_medians: Floats
    dropped_steps: Ints
    steady: Bools
    drift_log: Floats


def settle(log_steps: Floats) -> Settled:
    """Summarise the runs of one cell, both sides together; shape (..., runs, steps), natural logarithms.

    The warm-up is extended by a quarter and then by half of the steps while the runs share a trend, for all
    runs alike, so that neither side can gain by it. A trend is a mean drift over runs of at least 1 % between
    the halves, with p < 0.01 by a t-test over runs: inside a run autocorrelated steps wander too often for a
    test. With fewer than three runs or six steps nothing is tested, and the runs count as steady.
    """
    runs, steps = log_steps.shape[-2:]
    log_medians = _medians(log_steps)
    outer = log_steps.shape[:-2]
    dropped, trending = np.zeros(outer, dtype=np.int64), np.zeros(outer, dtype=np.bool_)
    drift = np.zeros(outer)
    if runs < FEWEST_RUNS:
        return Settled(log_medians=log_medians, dropped_steps=dropped, steady=~trending, drift_log=drift)
    undecided = np.ones(outer, dtype=np.bool_)
    for share in _SHARES_DROPPED:
        cut = round(share * steps)
        if steps - cut < FEWEST_STEPS or not undecided.any():
            break
        rest = log_steps[undecided][..., cut:]
        log_medians[undecided] = _medians(rest)
        dropped[undecided] = cut
        drift[undecided], trending[undecided] = _shared_trend(rest)
        undecided = trending.copy()
    return Settled(log_medians=log_medians, dropped_steps=dropped, steady=~trending, drift_log=drift)


def settle_cells(cells: Sequence[Sequence[Sequence[float]]]) -> tuple[Settled, ...]:
    """Summarise cells, each given as its runs of positive samples in the order measured, both sides together.

    Longer runs are cut to the cell's shortest; a run of one sample is that sample. Cells of the same shape go
    together, which is quick for thousands. Raises ValueError for a run without samples.
    """
    shapes = [(len(runs), min(map(len, runs), default=0)) for runs in cells]
    if any(runs and not steps for runs, steps in shapes):
        raise ValueError("a run without samples has no summary; leave it out")
    nothing = settle(np.zeros((0, FEWEST_STEPS)))
    found = [nothing] * len(cells)
    for shape in {shape for shape in shapes if shape[0]}:
        places = [place for place, own in enumerate(shapes) if own == shape]
        settled = settle(np.log([[run[: shape[1]] for run in cells[place]] for place in places]))
        for row, place in enumerate(places):
            found[place] = Settled(**{name: values[row] for name, values in vars(settled).items()})
    return tuple(found)


def step_ratios(
    baseline: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Return for each repeat the ratio of each of the candidate's steps to the baseline's beside it.

    For runs that took turns at steps: what slows the machine down for longer than a step is in both, and not
    in the ratio. A repeat that lacks a side is left out, and steps that only one of them has.
    """
    return [
        [after / before for before, after in zip(*runs, strict=False)]
        for runs in zip(baseline, candidate, strict=False)
    ]


def _medians(values: Floats) -> Floats:
    """Return the median of each row, as ``np.median`` does in three times the time."""
    in_order, count = np.sort(values, axis=-1), values.shape[-1]
    middle: Floats = (in_order[..., (count - 1) // 2] + in_order[..., count // 2]) / 2
    return middle


def _shared_trend(log_steps: Floats) -> tuple[Floats, Bools]:
    """Return the mean drift over runs, and whether it is both large and significant."""
    runs, steps = log_steps.shape[-2:]
    half = steps // 2
    drifts = _medians(log_steps[..., -half:]) - _medians(log_steps[..., :half])
    mean = drifts.mean(axis=-1)
    error = np.maximum(drifts.std(axis=-1, ddof=1) / np.sqrt(runs), np.finfo(float).tiny)
    p_value = 2 * stdtr(runs - 1, -np.abs(mean) / error)
    return mean, (p_value < SIGNIFICANCE) & (np.abs(mean) >= SMALLEST_DRIFT_LOG)


SMALLEST_DRIFT_SHARE = 0.02
# The least number of values whose perfect order (p = 2/n!) is significant at 0.01.
FEWEST_VALUES = 6
_FEWEST_FOR_CORRELATION = 12
_MOST_CORRELATION = 0.95
_MOST_FOR_EXACT = 33
_ROUNDING = 1e-12
TrendVerdict = Literal["steady", "no clear trend", "not steady", "too few steps to tell"]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The drift from the first to the last value as a share of the median, and its significance."""

    verdict: TrendVerdict
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
    verdict: TrendVerdict = "steady"
    if abs(drift_share) > SMALLEST_DRIFT_SHARE:
        verdict = "not steady" if p_value < SIGNIFICANCE else "no clear trend"
    return Trend(verdict=verdict, drift_share=drift_share, p_value=p_value)


@cache
def _pairs(count: int) -> tuple[Ints, ...]:
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


FEWEST_SITTINGS = 6
"""Fewer values do not tell a change of level from noise."""

SMALLEST_CHANGE_LOG = math.log1p(0.01)
"""As the gate's minimum effect: smaller changes of level are not worth naming."""


@dataclass(frozen=True, kw_only=True)
class ChangePoint:
    """From sitting ``number`` on, a metric of a cell lies elsewhere; means before and after in its unit."""

    cell: str
    metric: str
    number: int
    before: float
    after: float

    @property
    def ratio(self) -> float | None:
        """After / before."""
        return self.after / self.before if self.before else None


def exact_changes(
    cell: str, metric: str, numbers: Sequence[int], values: Sequence[float]
) -> list[ChangePoint]:
    """Return every change of a metric that does not vary between runs."""
    return [
        ChangePoint(cell=cell, metric=metric, number=number, before=before, after=after)
        for number, before, after in zip(numbers[1:], values, values[1:], strict=False)
        if before != after
    ]


def level_changes(
    cell: str, metric: str, numbers: Sequence[int], values: Sequence[float]
) -> list[ChangePoint]:
    """Return the changes of level in positive values that vary, one for each sitting.

    PELT with squared error (Killick, Fearnhead and Eckley 2012, J. Am. Stat. Assoc. 107:1590) on logarithms.
    The noise is the median absolute difference of neighbours, and a change has to gain 3 ln n times its
    variance (Zhang and Siegmund 2007, Biometrics 63:22, as a rule of thumb).
    Raises ``UnavailableError`` without ruptures.
    """
    if len(values) < FEWEST_SITTINGS:
        return []
    try:
        import ruptures
    except ImportError:
        raise UnavailableError(
            "where a history changed is found by ruptures, which is not installed; "
            "pip install 'finetune-bench[changepoint]'"
        ) from None
    logs = np.log(values)
    # 1.4826 makes a median absolute deviation a standard deviation; differences have twice the variance.
    variance = (1.4826 * float(np.median(np.abs(np.diff(logs))))) ** 2 / 2
    penalty = 3 * math.log(len(logs)) * max(variance, 1e-12)
    ends = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(logs.reshape(-1, 1)).predict(pen=penalty)
    starts = [0, *ends[:-1]]
    means = [float(logs[start:end].mean()) for start, end in zip(starts, ends, strict=True)]
    return [
        ChangePoint(
            cell=cell, metric=metric, number=numbers[start], before=math.exp(before), after=math.exp(after)
        )
        for start, before, after in zip(starts[1:], means, means[1:], strict=False)
        if abs(after - before) >= SMALLEST_CHANGE_LOG
    ]
