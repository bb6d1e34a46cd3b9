"""What a gate and one of its sides say to each other: one JSON object a line, each way on a pipe of its own.

History (``PROTOCOL_VERSION``):
- 2 (2026-11-22): an assignment can be run step by step in turn with the other side's.
- 1 (2026-11-22): first.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from bench.records.messages import StepTurns
from bench.records.readings import Positive, Stored
from bench.records.records import Environment, Record

PROTOCOL_VERSION: Final = 2
MAX_ANSWER_BYTES = 64 * 1024**2


class Opening(Stored):
    """The first line: what the side needs to know once.

    ``stamped`` are packages that this side imports from sources, whose version is then ``VERSION+label``;
    ``located`` are those of either side, whose place is wanted.
    """

    trust_remote_code: bool = False
    stamped: tuple[str, ...] = ()
    label: str = ""
    located: tuple[str, ...] = ()


class Assignment(Stored):
    """Run a cell once, as its run number so and so; alone, or in turn with the other side."""

    cell_json: str
    run: Positive
    turns: StepTurns | None = None


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


class Note(Stored):
    """Something the user has to know, in one sentence."""

    type: Literal["note"] = "note"
    text: str


class Made(Stored):
    """An assignment is done."""

    type: Literal["made"] = "made"
    record: Record


class Broken(Stored):
    """The side cannot go on; it ends after this."""

    type: Literal["broken"] = "broken"
    message: str


Answer = Annotated[Greeting | Ready | Note | Made | Broken, Field(discriminator="type")]
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
