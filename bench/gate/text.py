"""A sitting and a calibration as plain lines. Computes nothing."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from bench.gate.sides import Side
from bench.records.records import Record
from bench.records.sittings import SideName, SittingRun
from bench.scenario.types import Cell

if TYPE_CHECKING:
    from bench.stats.power import NoiseRow

_NS_PER_SECOND = 1e9


class GateLines:
    """A line for each side, each run as it ends, and each look."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Take what a line is given to."""
        self._say = say

    def understood(self, side: Side) -> None:
        """Say what it was taken for, and what has to be known of it."""
        self._say(f"{side.name}: {side.facts.understood}")
        for caveat in side.caveats:
            self._say(f"{side.name}: {caveat.message}")

    def run_started(self, cell: Cell, side: SideName, repeat: int) -> None:
        """Say nothing: its end is near enough."""

    def run_ended(self, run: SittingRun, record: Record) -> None:
        """Say how it ended, and why if not well."""
        what = "warm-up" if run.purpose == "warm-up" else f"repeat {run.repeat}"
        why = f": {record.failure.message}" if record.failure else ""
        self._say(
            f"{run.cell} {what} {run.side}: {run.outcome} after {run.total_ns / _NS_PER_SECOND:.1f} s{why}"
        )

    def looked(self, repeats: int, undecided: Collection[str]) -> None:
        """Say what is left, if anything."""
        if undecided:
            self._say(f"undecided after repeat {repeats}: {', '.join(sorted(undecided))}")

    def note(self, text: str) -> None:
        """Say it."""
        self._say(text)


def noise_lines(rows: "Sequence[NoiseRow]") -> Iterator[str]:
    """Yield a line for each row: the spread, and what is found after how many repeats."""
    for row in rows:
        found = ", ".join(
            f"{share:.1%} with {look} repeats"
            for look, share in zip(row.looks, row.detectable_shares, strict=True)
        )
        needed = (
            "more than a hundred repeats" if row.repeats_needed is None else f"{row.repeats_needed} repeats"
        )
        yield (
            f"{row.cell} {row.metric}: spread {row.spread_share:.1%} from run to run "
            f"({row.degrees_of_freedom} degrees of freedom); finds a change of {found}; "
            f"{row.tolerance_share:.1%} takes {needed}"
        )
