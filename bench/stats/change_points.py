"""Where in a history of sittings a metric changed its level. Needs ruptures, an extra; judges nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import UnavailableError

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
