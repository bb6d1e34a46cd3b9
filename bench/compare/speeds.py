"""Predicted speeds set against each other: the fastest settings that fit, and which card is for a job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from bench.compare import grouped
from bench.compare.plans import PlanRow
from bench.records.predictions import CardFit, Plan, Setting, Speed

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
        best = sorted(((max(kind, key=_point), kind) for kind in kinds), key=lambda one: -_point(one[0]))
        found += [
            Ranked(
                setting=one,
                standing=_standing(one.speed, best[0][0].speed),
                from_batch=min(each.micro_batch for each in kind if _overlap(each.speed, one.speed)),
            )
            for one, kind in best
        ]
    return found


def _point(setting: Setting) -> float:
    return setting.speed.point


def _standing(one: Speed, fastest: Speed) -> Standing:
    if one is fastest:
        return "fastest"
    return _ALIKE if _overlap(one, fastest) else "slower"


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
            found.append(replace(one, standing=_priced(one, cheapest)))
    return found


def _priced(one: Choice, cheapest: Choice) -> Price:
    if one is cheapest:
        return "cheapest"
    return _ALIKE if one.cost[0] <= cheapest.cost[2] else "dearer"


def _choices(plan: Plan, row: PlanRow) -> Iterator[Choice]:
    for fit in row.fitting:
        price, speed = plan.prices_an_hour.get(fit.card), row.speed(fit.card)
        if price and speed and row.tokens:
            rates = (speed.high, speed.point, speed.low)
            low, point, high = (row.tokens / rate / _SECONDS_AN_HOUR for rate in rates)
            paid = price * speed.gpus
            cost = low * paid, point * paid, high * paid
            yield Choice(cell=row.cell, fit=fit, speed=speed, hours=(low, point, high), cost=cost)
