"""What a gate and a side's process say to each other: one JSON object a line, each way on its own pipe.

History (``PROTOCOL_VERSION``):
- 2 (2026-11-22): an assignment can be run step by step in turn with the other side's.
- 1 (2026-11-22): first.

Later fields are told only where they were asked for, so that revisions of bench can still be compared.
"""

import operator
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from bench.records.messages import StepTurns
from bench.records.predictions import Plan
from bench.records.readings import Positive, Stored
from bench.records.records import Environment, Record
from bench.scenario.catalogue import Card

PROTOCOL_VERSION: Final = 2


class Opening(Stored):
    """The first line: what the side needs to know once.

    ``stamped`` are packages that this side imports from sources, whose version is then ``VERSION+label``;
    ``located`` are those of either side, whose place is wanted. ``allow_code`` are functions that a loop may
    be, imported from ``code_folder``. ``judge`` is the version of this bench where the side is lent it, and
    ``installed`` asks for all of its environment; ``evaluates`` says that accuracy is asked for.
    What is empty is not told: an older side does not know it.
    """

    trust_remote_code: bool = False
    allow_code: tuple[str, ...] = Field((), exclude_if=operator.not_)
    code_folder: str = Field("", exclude_if=operator.not_)
    stamped: tuple[str, ...] = ()
    label: str = ""
    located: tuple[str, ...] = ()
    predicts: bool = Field(default=False, exclude_if=operator.not_, description="Nothing is to be run.")
    judge: str = Field("", exclude_if=operator.not_)
    installed: bool = Field(default=False, exclude_if=operator.not_)
    evaluates: bool = Field(default=False, exclude_if=operator.not_)


class Assignment(Stored):
    """Run a cell once, as its run number so and so; alone, or in turn with the other side."""

    cell_json: str
    run: Positive
    turns: StepTurns | None = None


class PlanAssignment(Stored):
    """Predict cells, or a script as ``bench watch --predict`` does, on cards or on the ladder of plans."""

    scenario: str
    title: str
    cells_json: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    steps: Positive = 3
    cards: tuple[Card, ...] = ()
    allocator: str = ""


class Greeting(Stored):
    """Who answers; sent before anything heavy is imported, so it is read by every later version."""

    type: Literal["greeting"] = "greeting"
    protocol: int
    record_schema: int
    python: str


class Ready(Stored):
    """The libraries are imported, and a worker has looked at the machine."""

    type: Literal["ready"] = "ready"
    environment: Environment
    cuda_name: str | None = None
    locations: dict[str, str | None] = Field(description="By package; None where it is not found.")
    installed: dict[str, str] = Field(
        {}, description="Digests by name, where they were asked for.", exclude_if=operator.not_
    )


class Note(Stored):
    """Something the user has to know, in one sentence."""

    type: Literal["note"] = "note"
    text: str


class Made(Stored):
    """A run is done; ``project`` are files that its worker loaded, told if ``PROJECT_VARIABLE`` asks.

    If ``JUDGE_VARIABLE`` asks, ``imported`` are its top-level modules, ``altered`` what it replaced in bench.
    """

    type: Literal["made"] = "made"
    record: Record
    project: tuple[str, ...] | None = Field(None, exclude_if=lambda project: project is None)
    imported: tuple[str, ...] = Field((), exclude_if=operator.not_)
    altered: tuple[str, ...] = Field((), exclude_if=operator.not_)


class Planned(Stored):
    """A side is predicted; ``project`` are files of the project that its workers loaded."""

    type: Literal["planned"] = "planned"
    plan: Plan
    project: tuple[str, ...] = ()


class Broken(Stored):
    """The side cannot go on; it ends after this."""

    type: Literal["broken"] = "broken"
    message: str


Answer = Annotated[Greeting | Ready | Note | Made | Planned | Broken, Field(discriminator="type")]
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
