"""What happens during a sweep, one frozen event each, for the callable that watches it."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.records.messages import Message
from bench.records.predictions import Plan
from bench.records.records import Record
from bench.scenario.cell import Cell


@dataclass(frozen=True)
class Preparing:
    """Something before or between cells takes its time: the libraries, the weights."""

    what: str


@dataclass(frozen=True)
class Note:
    """Something the user has to know, in one sentence."""

    text: str


@dataclass(frozen=True)
class SweepStarted:
    """How much there is to do; runs on disk are not done again."""

    runs_to_do: int
    runs_on_disk: int


@dataclass(frozen=True)
class Predicted:
    """What the cells that are to run will take."""

    plan: Plan


@dataclass(frozen=True)
class RunStarted:
    """A cell's workers are asked for."""

    cell: Cell
    run: int


@dataclass(frozen=True)
class Heard:
    """A worker of the current run said something."""

    message: Message


@dataclass(frozen=True)
class RunAdded:
    """The run that ends next is to be run again, so there is one more to do."""


@dataclass(frozen=True)
class RunEnded:
    """A record was written."""

    record: Record


Event = Preparing | Note | SweepStarted | Predicted | RunStarted | Heard | RunAdded | RunEnded
Observe = Callable[[Event], None]
"""Gets each event. Must return soon: the supervisor waits for it."""


def ignore(_event: Event) -> None:
    """Watch nothing."""
