"""What the records say: measured cells, contrasts, verdicts. Reads records, never runs anything.

Here is what the rest shares: groups, and cells that are alike but for the loop that trains them.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeVar

from bench.records.readings import Category
from bench.scenario.cell import Cell
from bench.scenario.loop import LIBRARY_LOOPS

LOOP_ALONE = frozenset({"loop.driver"})
"""For ``Cell.comparison_key``: what may differ between cells that are alike but for the loop."""

_ORDER = ("window", *LIBRARY_LOOPS)
_MOST_LEFT = 0.5  # of a difference, once its cause is taken away
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def grouped(items: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    """Return the items by key, both in the order in which they come."""
    found: dict[K, list[V]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


class Reason(NamedTuple):
    """The category of tensors that makes a difference between two peaks, and its bytes in each."""

    category: Category
    bytes_here: int
    bytes_there: int


def reason_of(here: Mapping[Category, int], there: Mapping[Category, int]) -> Reason | None:
    """Return the category without which less than half of the difference of two peaks would be left."""
    changes = {name: here.get(name, 0) - there.get(name, 0) for name in here.keys() | there.keys()}
    total = sum(changes.values())
    name = min(changes, key=lambda name: abs(total - changes[name]), default=None)
    if name is None or abs(total - changes[name]) >= _MOST_LEFT * abs(total):
        return None
    return Reason(name, here.get(name, 0), there.get(name, 0))


def loop_pairs(
    rows: Iterable[V], cell: Callable[[V], Cell], alike: Callable[[V], Hashable]
) -> Iterator[tuple[V, V]]:
    """Yield each row and the one in the loop before its own: the window, then the libraries', then functions.

    ``alike`` is what two rows share that differ in the loop's driver alone.
    """

    def place(row: V) -> tuple[int, str]:
        driver = cell(row).loop.driver
        return (_ORDER.index(driver) if driver in _ORDER else len(_ORDER)), driver

    for same in grouped(rows, alike).values():
        ordered = sorted(same, key=place)
        yield from ((after, before) for before, after in pairwise(ordered) if place(before) != place(after))
