"""Whether the measured steps had settled, or their speed was still going somewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import kendalltau, theilslopes

SIGNIFICANCE = 0.01
SMALLEST_DRIFT_SHARE = 0.02
# The least number of values whose perfect order (p = 2/n!) is significant at 0.01.
FEWEST_VALUES = 6


Verdict = Literal["steady", "no clear trend", "not steady", "too few steps to tell"]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The drift from the first to the last value as a share of the median, and its significance."""

    verdict: Verdict
    drift_share: float | None
    p_value: float | None


def find_trend(values: Sequence[float]) -> Trend:
    """Test positive values, in the order measured, for a trend that remains.

    Mann-Kendall test (Mann 1945, Econometrica 13:245), as Kendall's tau against the index, two-sided;
    size by the Theil-Sen slope (Sen 1968, JASA 63:1379). *Not steady* needs both p < 0.01 and a drift
    above 2 % of the median over the window: a small drift that is merely significant does no harm. A
    larger drift without significance is *no clear trend*: noise, or too few steps to know better.
    """
    if len(values) < FEWEST_VALUES:
        return Trend(verdict="too few steps to tell", drift_share=None, p_value=None)
    if len(set(values)) == 1:
        return Trend(verdict="steady", drift_share=0.0, p_value=1.0)
    index = range(len(values))
    p_value = float(kendalltau(index, values).pvalue)
    middle = sorted(values)[len(values) // 2]
    drift_share = float(theilslopes(values, index).slope) * (len(values) - 1) / middle
    verdict: Verdict = "steady"
    if abs(drift_share) > SMALLEST_DRIFT_SHARE:
        verdict = "not steady" if p_value < SIGNIFICANCE else "no clear trend"
    return Trend(verdict=verdict, drift_share=drift_share, p_value=p_value)
