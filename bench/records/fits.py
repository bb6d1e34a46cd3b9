"""What ``bench fit`` found: for each method the largest batch, length and rank that fit on a card."""

from typing import Literal

from pydantic import Field

from bench.records.plans import CardVerdict, Change
from bench.records.readings import Caveat, Count, Positive, Stored
from bench.scenario.catalogue import Card

Axis = Literal["micro_batch", "sequence_length", "rank"]


class Tried(Stored):
    """One value with its verdict."""

    value: Positive
    verdict: CardVerdict


class Bound(Stored):
    """Where a method stops fitting along one axis, the others held.

    ``fits`` is the largest value found to fit and ``next`` the next larger, which does not fit or is too
    close to call; None where the first value does not, and where ``limit`` was reached.
    """

    method: str
    axis: Axis
    micro_batch: Positive
    sequence_length: Positive
    rank: Positive | None
    step: Positive = Field(description="Only multiples of it were tried.")
    limit: Positive = Field(description="The largest value that the model, or good sense, allows.")
    fits: Tried | None = None
    next: Tried | None = None
    refusal: str | None = None
    predictions: Count = 0
    caveats: tuple[Caveat, ...] = ()
    changes: tuple[Change, ...] | None = Field(
        None, description="Each makes the first value fit, where it does not; None where none was tried."
    )


class Fit(Stored):
    """All bounds of a model on a card; the batch at several lengths is its frontier."""

    fit_version: Literal[1] = 1
    model: str
    card: Card
    torch: str
    allocator: str = ""
    window: str = Field(description="What all methods share: dtype, checkpointing, data and so on.")
    assumptions: tuple[str, ...] = Field((), description="What was taken for granted of the model.")
    bounds: tuple[Bound, ...]
