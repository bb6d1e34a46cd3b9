"""What a sitting tells whoever watches it."""

from collections.abc import Collection
from typing import Protocol

from bench.gate.sides import Side
from bench.records.records import Record
from bench.records.sittings import SideName, SittingRun
from bench.scenario.types import Cell


class GateObserver(Protocol):
    """Is told as things happen. Must return soon: the sitting waits for it."""

    def understood(self, side: Side) -> None:
        """Say what a side's REF was taken for."""

    def run_started(self, cell: Cell, side: SideName, repeat: int) -> None:
        """Say that a side begins a run; ``repeat`` 0 is a warm-up, which does not count."""

    def run_ended(self, run: SittingRun, record: Record) -> None:
        """Say that a record was written."""

    def looked(self, repeats: int, undecided: Collection[str]) -> None:
        """Say which cells are left after a look."""

    def note(self, text: str) -> None:
        """Say something the user has to know, in one sentence."""


class NullGateObserver:
    """Watches nothing."""

    def understood(self, side: Side) -> None:
        """Ignore it."""

    def run_started(self, cell: Cell, side: SideName, repeat: int) -> None:
        """Ignore it."""

    def run_ended(self, run: SittingRun, record: Record) -> None:
        """Ignore it."""

    def looked(self, repeats: int, undecided: Collection[str]) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
