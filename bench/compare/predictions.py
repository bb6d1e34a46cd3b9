"""Predictions set against each other and against published measurements.

The fastest settings that fit, which card is for a job, and how far predictions are off, in groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, median, quantiles
from typing import Any, Final, Literal

from bench.compare import grouped
from bench.compare.plans import PlanRow
from bench.records.predictions import CardFit, Plan, Setting, Speed
from bench.records.published.score import ScoredRow, ScoredSpeed

_ALIKE: Final = "not distinguishable (ranges overlap)"
Standing = Literal["fastest", "not distinguishable (ranges overlap)", "slower"]
Price = Literal["cheapest", "not distinguishable (ranges overlap)", "dearer"]
Span = tuple[float, float, float]
"""The low end, the point and the high end."""
_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A batch of a method with or without checkpointing, beside the fastest setting at its length.

    ``from_batch`` is the smallest of its batches whose range overlaps its own.
    """

    setting: Setting
    standing: Standing
    from_batch: int


def rank_settings(settings: Sequence[Setting]) -> list[Ranked]:
    """Return the fastest batch of each method, checkpointing and number of GPUs at each length, in order."""
    told = [one for one in settings if not one.speed.refused]
    found = []
    for at_length in grouped(told, lambda one: one.sequence_length).values():
        kinds = grouped(at_length, lambda one: (one.method, one.gradient_checkpointing, one.gpus)).values()
        best = [(max(kind, key=lambda one: one.speed.point), kind) for kind in kinds]
        best.sort(key=lambda one: -one[0].speed.point)
        fastest = best[0][0]
        for one, kind in best:
            slower: Standing = _ALIKE if _overlap(one.speed, fastest.speed) else "slower"
            standing: Standing = "fastest" if one is fastest else slower
            from_batch = min(each.micro_batch for each in kind if _overlap(each.speed, one.speed))
            found.append(Ranked(setting=one, standing=standing, from_batch=from_batch))
    return found


def _overlap(one: Speed, other: Speed) -> bool:
    return one.low <= other.high and other.low <= one.high


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A card that a cell fits, and what the job takes there, in hours and money."""

    cell: str
    fit: CardFit
    speed: Speed
    hours: Span
    cost: Span
    standing: Price = "cheapest"


def card_choices(plan: Plan, rows: Sequence[PlanRow]) -> list[Choice]:
    """Return for each cell the cards that it fits by what the job costs, but none both slower and dearer.

    That goes by the points; only cards with a price, and of which a speed is told, are looked at.
    """
    found = []
    for row in rows:
        cheapest, fastest = None, 0.0
        for one in sorted(_choices(plan, row), key=lambda one: (one.cost[1], one.hours[1])):
            if one.speed.point <= fastest:
                continue
            fastest, cheapest = one.speed.point, cheapest or one
            dearer: Price = _ALIKE if one.cost[0] <= cheapest.cost[2] else "dearer"
            found.append(one if one is cheapest else replace(one, standing=dearer))
    return found


def _choices(plan: Plan, row: PlanRow) -> Iterator[Choice]:
    for fit in row.fitting:
        price, speed = plan.prices_an_hour.get(fit.card), row.speed(fit.card)
        if price and speed and row.tokens:
            rates = (speed.high, speed.point, speed.low)
            low, point, high = (row.tokens / rate / _SECONDS_AN_HOUR for rate in rates)
            paid = price * speed.gpus
            cost = low * paid, point * paid, high * paid
            yield Choice(cell=row.cell, fit=fit, speed=speed, hours=(low, point, high), cost=cost)


def summarise(rows: Iterable[ScoredRow]) -> list[Any]:
    """Sum up errors of memory, as shares of the measured value, by source, loop, tier, metric and moment."""
    import pandas as pd

    by = ["source", "loop", "tier", "metric", "moment"]
    told = [
        (row.source, row.loop, row.tier, one.measured.metric, one.measured.moment, one.error, one.in_band)
        for row in rows
        for one in row.measurements
        if one.error is not None
    ]
    frame = pd.DataFrame(told, columns=[*by, "error", "in_band"])
    frame = frame.astype({"error": "float64", "in_band": "boolean"})
    groups = frame.assign(size=frame["error"].abs()).groupby(by, sort=False, as_index=False)
    found = groups.agg(
        count=("error", "size"),
        median_error=("size", "median"),
        mean_error=("size", "mean"),
        largest_error=("size", "max"),
        signed_error=("error", "mean"),
        in_band=("in_band", "sum"),
        with_band=("in_band", "count"),
    )
    return [*found.itertuples(index=False)]


def loops_beside(rows: Sequence[ScoredRow]) -> list[Any]:
    """Set the peaks that both loops predict beside each other, by source, loop and counter.

    ``apart`` is the library's own loop over the window's imitation of it, less one; ``nearer`` is how many
    measurements the own loop comes nearer to, or as near.
    """
    import pandas as pd

    imitated = {(row.source, row.name): row.measurements for row in rows if row.loop == "window"}
    told = [
        (row.source, row.loop, one.measured.metric, other.error, one.error)
        for row in rows
        if row.loop != "window"
        for other, one in zip(imitated[row.source, row.name], row.measurements, strict=True)
        if other.error is not None and one.error is not None
    ]
    by, errors = ["source", "loop", "metric"], ["imitated", "real"]
    frame = pd.DataFrame(told, columns=[*by, *errors]).astype(dict.fromkeys(errors, "float64"))
    frame["apart"] = (1 + frame["real"]) / (1 + frame["imitated"]) - 1
    sizes = frame[[*errors, "apart"]].abs()
    pairs = frame[by].join(sizes).assign(nearer=sizes["real"] <= sizes["imitated"])
    found = pairs.groupby(by, sort=False, as_index=False).agg(
        count=("nearer", "size"),
        **{f"{name}_{what}": (name, what) for name in sizes for what in ("median", "max")},
        nearer=("nearer", "sum"),
    )
    return [*found.itertuples(index=False)]


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


def summarise_speeds(rows: Iterable[ScoredRow]) -> tuple[SpeedSummary, ...]:
    """Sum up predicted speeds: of one GPU, those that it bounds, of several; then by source and by method."""
    of_one, of_several = "all of one GPU", "several GPUs"
    bound, not_fitted = "bound by the GPU, warm", "without a part in the factors"
    groups: dict[str, list[ScoredSpeed]] = {name: [] for name in (of_one, bound, not_fitted, of_several)}
    pairs = [(row, one) for row in rows for one in row.speeds]
    for row, one in pairs:
        if (told := one.told) is None:
            continue
        several = told.gpus > 1
        groups[of_several if several else of_one].append(one)
        if not several and told.bound_by != "host" and not one.measured.cold:
            groups[bound].append(one)
        if not several and not told.calibrated_on:
            groups[not_fitted].append(one)
        for name in (f"{row.source}, {told.card}", f"method {row.method}{f', {of_several}' * several}"):
            groups.setdefault(name, []).append(one)
    return tuple(_speed_summary(name, group) for name, group in groups.items() if group)


_APART = 1.1
"""Of two speeds, over the other: closer ones are not asked to come out in order."""


def _speed_summary(name: str, group: Sequence[ScoredSpeed]) -> SpeedSummary:
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
