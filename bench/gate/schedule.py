"""In which order the runs of a sitting are made. Pure.

A *repeat* is one run of each side; every other repeat begins with the other side, so that a cell's runs go
A B B A A B B A. A drift that is linear in time then adds to both sides alike after every second repeat.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.records.sittings import SideName, SittingRun
from bench.scenario.types import Cell

_FORTH: tuple[SideName, SideName] = ("base", "candidate")
_BACK: tuple[SideName, SideName] = ("candidate", "base")


def order_of(repeat: int) -> tuple[SideName, SideName]:
    """Return which side runs first in a repeat, counted from 1, and which second."""
    return _FORTH if repeat % 2 else _BACK


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One run to make: which cell, which side, as part of which repeat."""

    cell: Cell
    side: SideName
    repeat: int


def turns(cell: Cell, repeats: Iterable[int], made: Sequence[SittingRun]) -> Iterator[tuple[Turn, ...]]:
    """Yield what is left to run of each repeat of a cell, in order; ``made`` are the runs so far."""
    there = {
        (run.side, run.repeat)
        for run in made
        if run.cell == cell.id and run.purpose == "measured" and run.outcome != "contaminated"
    }
    for repeat in repeats:
        left = [side for side in order_of(repeat) if (side, repeat) not in there]
        if left:
            yield tuple(Turn(cell=cell, side=side, repeat=repeat) for side in left)


def warm_ups(cells: Sequence[Cell]) -> tuple[Turn, ...]:
    """Return one run of each side for the first cell of each model and device, to be discarded.

    The first run after a start reads libraries and weights from the disk that later ones find in memory.
    """
    first = {(cell.device, cell.model.model_dump_json()): cell for cell in reversed(cells)}
    return tuple(
        Turn(cell=cell, side=side, repeat=0)
        for cell in sorted(first.values(), key=cells.index)
        for side in _FORTH
    )
