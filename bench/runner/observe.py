"""What a sweep tells whoever watches it; the live table and the plain lines are two that do."""

from typing import Protocol

from bench.records.messages import Message
from bench.records.plans import Plan
from bench.records.records import Record
from bench.scenario.types import Cell


class Observer(Protocol):
    """Is told as things happen. Must return soon: the supervisor waits for it."""

    def sweep_started(self, *, runs_to_do: int, runs_on_disk: int) -> None:
        """Say how much there is to do; ``runs_on_disk`` are not done again."""

    def preparing(self, what: str) -> None:
        """Say that something before or between cells takes its time: the libraries, the weights."""

    def predicted(self, plan: Plan) -> None:
        """Say what the cells that are to run will take."""

    def run_started(self, cell: Cell, run: int) -> None:
        """Say that a cell's worker is asked for."""

    def message(self, message: Message) -> None:
        """Pass on what the current worker says."""

    def run_added(self) -> None:
        """Say that the run that ends next is to be run again, so that there is one more to do."""

    def run_ended(self, record: Record) -> None:
        """Say that a record was written."""

    def note(self, text: str) -> None:
        """Say something the user has to know, in one sentence."""


class NullObserver:
    """Watches nothing."""

    def sweep_started(self, *, runs_to_do: int, runs_on_disk: int) -> None:
        """Ignore it."""

    def preparing(self, what: str) -> None:
        """Ignore it."""

    def predicted(self, plan: Plan) -> None:
        """Ignore it."""

    def run_started(self, cell: Cell, run: int) -> None:
        """Ignore it."""

    def message(self, message: Message) -> None:
        """Ignore it."""

    def run_added(self) -> None:
        """Ignore it."""

    def run_ended(self, record: Record) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
