"""Predicted speeds set against each other: the fastest settings that fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.compare import grouped
from bench.records.predictions import Setting, Speed

Standing = Literal["fastest", "not distinguishable (ranges overlap)", "slower"]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A batch of a method with or without checkpointing, beside the fastest setting at its length.

    ``from_batch`` is the smallest of its batches whose range overlaps its own.
    """

    setting: Setting
    standing: Standing
    from_batch: int


def rank_settings(settings: Sequence[Setting]) -> list[Ranked]:
    """Return the fastest batch of each method and checkpointing at each length, the fastest first."""
    told = [one for one in settings if not one.speed.refused]
    found = []
    for at_length in grouped(told, lambda one: one.sequence_length).values():
        kinds = grouped(at_length, lambda one: (one.method, one.gradient_checkpointing)).values()
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
    return "not distinguishable (ranges overlap)" if _overlap(one, fastest) else "slower"


def _overlap(one: Speed, other: Speed) -> bool:
    return one.low <= other.high and other.low <= one.high
