"""What a ledger writes down: storages, when they were allocated and freed, and the moment of most."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.records.readings import Category, ModuleBytes, TracedPhase

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(slots=True)
class Block:
    """One storage: its size, where it was allocated and, once freed, in which phase that was.

    ``owner`` is the module whose weight or gradient it is, where that is not the one that allocated it.
    """

    nbytes: int
    born_phase: TracedPhase
    op: str
    module: str
    recomputed: bool = False
    category: Category | None = None
    died_phase: TracedPhase | None = None
    owner: str = ""


class Entry(NamedTuple):
    """One line of the ledger: a block was allocated (born) or freed."""

    block: int
    born: bool


@dataclass(slots=True)
class Peak:
    """The moment of most live bytes: how many, and after how many entries."""

    live_bytes: int = 0
    entries: int = 0


def by_module(sizes: Iterable[tuple[Block, int]]) -> ModuleBytes:
    """Return the bytes of blocks by module and category; * stands for any number, so that layers are one."""
    found: ModuleBytes = {}
    for block, nbytes in sizes:
        name = _NUMBER.sub("*", (block.owner or block.module).partition(" (")[0])
        own, category = found.setdefault(name, {}), category_of(block)
        own[category] = own.get(category, 0) + nbytes
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def category_of(block: Block) -> Category:
    """Sort what was not entered by name: alive from forward into backward means saved for it."""
    if block.category is not None:
        return block.category
    if block.born_phase == "inputs":
        return "inputs"
    saved = block.born_phase == "forward" and block.died_phase != "forward"
    return "activations" if saved or block.recomputed else "temporary"
