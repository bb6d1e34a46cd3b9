"""What a ledger writes down: storages, when they were allocated and freed, and the moment of most."""

from dataclasses import dataclass
from typing import NamedTuple

from bench.records.readings import Category, TracedPhase


@dataclass(slots=True)
class Block:
    """One storage: its size, where it was allocated and, once freed, in which phase that was."""

    nbytes: int
    born_phase: TracedPhase
    op: str
    module: str
    recomputed: bool = False
    category: Category | None = None
    died_phase: TracedPhase | None = None


class Entry(NamedTuple):
    """One line of the ledger: a block was allocated (born) or freed."""

    block: int
    born: bool


@dataclass(slots=True)
class Peak:
    """The moment of most live bytes: how many, and after how many entries."""

    live_bytes: int = 0
    entries: int = 0


def category_of(block: Block) -> Category:
    """Sort what was not entered by name: alive from forward into backward means saved for it."""
    if block.category is not None:
        return block.category
    if block.born_phase == "inputs":
        return "inputs"
    saved = block.born_phase == "forward" and block.died_phase != "forward"
    return "activations" if saved or block.recomputed else "temporary"
