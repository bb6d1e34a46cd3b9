"""What ``bench plan`` found: every cell's prediction, the verdict for each card, what changes would do.

Written as JSON and read back to render pages; what is shown follows from it without predicting anew.
"""

import json
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field

from bench.io import read_json
from bench.records.card_fit import Answer, judge
from bench.records.predictions import Prediction, Refusal
from bench.records.readings import Count, Positive, Stored
from bench.scenario.catalogue import Card
from bench.scenario.types import Cell

PLAN_VERSION: Final = 1


class CardVerdict(Stored):
    """The answer for one card; ``needed_bytes`` is the top of the reserved band and the card's context."""

    card: str
    answer: Answer
    needed_bytes: Count
    usable_bytes: Positive

    @classmethod
    def of(cls, prediction: Prediction, card: Card) -> Self:
        """Judge a prediction for CUDA."""
        verdict = judge(prediction, card)
        return cls(
            card=card.name,
            answer=verdict.answer,
            needed_bytes=verdict.needed_bytes,
            usable_bytes=verdict.usable_bytes,
        )


class Change(Stored):
    """What a cell would take after one change; only changes that free memory are kept."""

    what: str
    prediction: Prediction
    verdicts: tuple[CardVerdict, ...]


class PlannedCell(Stored):
    """One cell on one platform. ``changes`` is None where none was tried."""

    cell: Cell
    answer: Prediction | Refusal
    verdicts: tuple[CardVerdict, ...] = ()
    changes: tuple[Change, ...] | None = None


class Plan(Stored):
    """All that one ``bench plan`` found. On a ``ladder`` the smallest card that fits is of interest."""

    plan_version: Literal[1] = PLAN_VERSION
    scenario: str
    title: str
    allocator: str = Field("", description="PYTORCH_CUDA_ALLOC_CONF as replayed.")
    cards: tuple[Card, ...] = Field(description="What was judged for, smallest first; none for the CPU.")
    ladder: bool = False
    cells: tuple[PlannedCell, ...]

    @property
    def any_predicted(self) -> bool:
        """Whether any cell could be predicted."""
        return any(isinstance(planned.answer, Prediction) for planned in self.cells)


def needed_bytes(prediction: Prediction) -> int:
    """Return what decides whether it fits, less the context: the top of the band; on the CPU the peak."""
    high = prediction.reserved_high_bytes or prediction.reserved_peak_bytes
    return high or prediction.allocated_peak_bytes


def read_plan(path: Path) -> Plan:
    """Read a plan as ``bench plan --json`` writes it; raise ``UsageError`` where it is none."""
    return read_json(path, Plan, "a plan", "write one with bench plan --json")


def plan_json(plan: Plan) -> str:
    """Return a plan as JSON, one line for each member, so that a change shows in a diff."""
    return json.dumps(plan.model_dump(mode="json"), indent=1) + "\n"
