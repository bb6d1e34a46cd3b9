"""Live bytes over a window, cut down to as many points as a figure can show; no highest point is lost."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bench.records.stored import Count, Stored

MOST_POINTS = 512
TracedPhase = Literal["load", "adapt", "inputs", "forward", "backward", "optimizer_step"]


class PhaseStart(Stored):
    """A phase began after so many births and deaths of storages."""

    phase: TracedPhase
    entry: Count


class Timeline(Stored):
    """Bytes alive after a birth or death of a storage; ``entries`` counts those, and is no measure of time.

    Where there were more than ``MOST_POINTS``, each point is the highest of a stretch of them, all stretches
    being equally long, so that the highest of all is exact and lows within a stretch are not shown.
    """

    entries: Annotated[tuple[Count, ...], Field(max_length=MOST_POINTS)]
    live_bytes: Annotated[tuple[Count, ...], Field(max_length=MOST_POINTS)]
    phases: Annotated[tuple[PhaseStart, ...], Field(max_length=MOST_POINTS)]
    last_entry: Count

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len(self.entries) != len(self.live_bytes):
            raise ValueError("entries and live_bytes must have the same length")
        return self


def decimated(live_bytes: Sequence[int], phases: Sequence[PhaseStart]) -> Timeline:
    """Return the timeline of the bytes alive after each entry, the first of which is entry 1."""
    count = len(live_bytes)
    points = min(count, MOST_POINTS)
    edges = [count * index // points for index in range(points + 1)] if points else [0]
    highest = [max(range(start, end), key=live_bytes.__getitem__) for start, end in pairwise(edges)]
    return Timeline(
        entries=tuple(index + 1 for index in highest),
        live_bytes=tuple(live_bytes[index] for index in highest),
        phases=tuple(phases[:MOST_POINTS]),
        last_entry=count,
    )
