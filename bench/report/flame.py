"""What holds a peak: the tree of modules as nested boxes, as wide as the bytes below them; layout only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.records.readings import Category, ModuleBytes
from bench.report.text import MemoryUnit, load_toml, share, words

MOST_FLAMES = 12
_LEAST_PERCENT = 0.05  # narrower boxes would not be seen


@dataclass(frozen=True, kw_only=True)
class Box:
    """A module, or one category of its own bytes with its ``colour``; its place in percent of the peak."""

    name: str
    size: str
    tip: str
    depth: int
    left: float
    width: float
    colour: str = ""


@dataclass(frozen=True, kw_only=True)
class Flame:
    """The boxes of one cell, the peak first. ``anchor`` is where links to it lead."""

    cell: str
    anchor: str
    boxes: Sequence[Box]

    @property
    def depth(self) -> int:
        return 1 + max(box.depth for box in self.boxes)


@dataclass
class _Node:
    own: Mapping[Category, int] = field(default_factory=dict)
    children: dict[str, "_Node"] = field(default_factory=dict)
    size: int = 0


def flame_anchor(row: str) -> str:
    """Return the anchor of a cell's flame, by that of its row."""
    return row.replace("cell", "flame")


def flame_of(cell: str, anchor: str, modules: ModuleBytes, unit: MemoryUnit) -> Flame | None:
    """Return the tree of the modules that hold bytes; None where there are none."""
    root = _Node()
    for path, own in modules.items():
        node = root
        node.size += sum(own.values())
        for name in path.split("."):
            node = node.children.setdefault(name, _Node())
            node.size += sum(own.values())
        node.own = own
    if not root.size:
        return None
    return Flame(cell=cell, anchor=anchor, boxes=list(_Layout(unit, root.size).boxes("peak", root, 0, 0)))


@dataclass(frozen=True)
class _Layout:
    """Puts boxes in their places; the peak is as wide as all of them."""

    unit: MemoryUnit
    peak: int

    def boxes(self, name: str, node: _Node, depth: int, start: int) -> Iterator[Box]:
        """Yield the box of a node, and below it those of what it holds, the largest first."""
        while len(node.children) == 1 and not node.own and depth:  # such as base_model.model.model
            inner, node = next(iter(node.children.items()))
            name = f"{name}.{inner}"
        yield self._box(name, depth, start, node.size)
        parts: list[tuple[str, _Node | int]] = [*node.own.items(), *node.children.items()]
        for part, one in sorted(parts, key=lambda each: -_size(each[1])):
            if 100 * _size(one) / self.peak < _LEAST_PERCENT:
                break
            if isinstance(one, _Node):
                yield from self.boxes(part, one, depth + 1, start)
            else:
                colour = load_toml("charts.toml")["parts"][words(part)]
                yield replace(self._box(words(part), depth + 1, start, one), colour=colour)
            start += _size(one)

    def _box(self, name: str, depth: int, start: int, size: int) -> Box:
        return Box(
            name=name,
            size=self.unit.show(size),
            tip=f"{name}: {self.unit.show(size)}, {share(size / self.peak)} of the peak",
            depth=depth,
            left=100 * start / self.peak,
            width=100 * size / self.peak,
        )


def _size(one: _Node | int) -> int:
    return one.size if isinstance(one, _Node) else one
