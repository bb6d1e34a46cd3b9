"""Predicted speeds held against published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median, quantiles

from bench.records.predictions import Speed
from bench.records.published import MeasuredSpeed
from bench.records.readings import Stored


class ScoredSpeed(Stored):
    """One measured speed and what was predicted; None where the row is refused."""

    measured: MeasuredSpeed
    predicted: Speed | None = None

    @property
    def told(self) -> Speed | None:
        """The prediction, if it holds a figure."""
        return self.predicted if self.predicted and not self.predicted.refused else None

    @property
    def measured_rate(self) -> float | None:
        """Tokens a second as measured, of all GPUs; None where no speed was told."""
        if self.told is None:
            return None
        if self.measured.metric == "tokens_per_second":
            return self.measured.value * self.told.gpus
        return self.told.point * self.told.step_s / self.measured.value

    @property
    def error(self) -> float | None:
        """Seconds of a step, predicted over measured, less one: positive where it was faster than said."""
        return self.measured_rate / self.told.point - 1 if self.told and self.measured_rate else None

    @property
    def held_out_error(self) -> float | None:
        """The same by factors in which its source had no part."""
        if self.told is None or not self.told.held_out or not self.measured_rate:
            return None
        return self.measured_rate / self.told.held_out - 1

    @property
    def in_band(self) -> bool | None:
        """Whether the measurement, rounding considered, lies within the band; None without a prediction."""
        if self.told is None or self.measured_rate is None:
            return None
        ends = self.measured.low / self.measured.value, self.measured.high / self.measured.value
        if self.measured.metric == "step_time_s":
            ends = 1 / ends[1], 1 / ends[0]
        return (
            self.told.low <= self.measured_rate * ends[1] and self.measured_rate * ends[0] <= self.told.high
        )


@dataclass(frozen=True, kw_only=True)
class SpeedSummary:
    """Errors of predicted step times of some rows, as shares of the measured ones; pairs are on one card."""

    name: str
    count: int
    median_error: float
    high_error: float
    largest_error: float
    signed_error: float
    held_out_median: float | None
    held_out_high: float | None
    in_band: int
    median_width: float
    ordered: int
    pairs: int


_APART = 1.1
"""Of two speeds, over the other: closer ones are not asked to come out in order."""


def speed_summary(name: str, group: Sequence[ScoredSpeed]) -> SpeedSummary:
    """Sum up the speeds of a group."""
    errors = [one.error for one in group if one.error is not None]
    sizes = sorted(map(abs, errors))
    held_out = [abs(one.held_out_error) for one in group if one.held_out_error is not None]
    known = [(one.told, one.measured_rate) for one in group if one.told and one.measured_rate]
    apart = [
        (mine.point < its.point) == (rate < other)
        for (mine, rate), (its, other) in combinations(known, 2)
        if mine.card == its.card and max(rate, other) / min(rate, other) > _APART
    ]
    return SpeedSummary(
        name=name,
        count=len(group),
        median_error=median(sizes),
        high_error=_high(sizes),
        largest_error=sizes[-1],
        signed_error=fmean(errors),
        held_out_median=median(held_out) if held_out else None,
        held_out_high=_high(held_out) if held_out else None,
        in_band=sum(one.in_band is True for one in group),
        median_width=median(told.high / told.low for told, _ in known),
        ordered=sum(apart),
        pairs=len(apart),
    )


def _high(sizes: Sequence[float]) -> float:
    """Return the 90th percentile."""
    return quantiles(sizes, n=10, method="inclusive")[-1] if len(sizes) > 1 else sizes[0]
