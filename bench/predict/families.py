"""Cells that differ in batch, length or rank only take the same blocks in the same order, in other sizes.

A few of them are traced; the sizes of the others follow, since each size is a polynomial in the three:
of degree two in the length (attention scores), one in the batch and one in the rank. What is not, such
as a kernel chosen by the number of tokens, is kept apart, and one more cell of each family is traced to
check the rest. A family whose blocks are all among those of an earlier one needs only that check.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.predict.sizes import Point, Sizes, same_structure
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.repeat import LayersDifferError, deepen, depth_of
from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import trace
from bench.records.predictions import Method
from bench.scenario.cell import Cell
from bench.scenario.types import LoraMethod, Platform, QloraMethod

_UNPADDED = 128  # flash attention's backward pass rounds lengths up to it
_DEGREES = (1, 2, 1)
_IGNORED = {"micro_batch", "sequence_length", "learning_rate", "schedule", "schedule_warmup_steps", "seed"}
_WINDOW, _POSITIONS = "window", "max_position"
"""In names of a configuration's fields: lengths at which a model turns to other computations."""


@dataclass(frozen=True)
class Family:
    """Cells that share a structure, each at its point; ``known`` is what a model's families have told."""

    cells: Sequence[tuple[Point, Cell]]
    known: list[Sizes] = field(default_factory=list)

    def samples(self) -> Iterator[Point]:
        """Yield the points, those first that tell most of the others: both ends, then middles of gaps.

        Of these a point with values that no earlier one has comes before the rest.
        """
        points = sorted({point for point, _ in self.cells})
        order = [0, len(points) - 1]
        gaps = [(0, len(points) - 1)]
        while gaps:
            low, high = gaps.pop(0)
            middle = (low + high) // 2
            if low < middle:
                order.append(middle)
                gaps += [(low, middle), (middle, high)]
        left = [points[index] for index in dict.fromkeys(order)]
        seen: set[tuple[int, int]] = set()  # axis, value
        while left:
            point = max(left, key=lambda each: len(set(enumerate(each)) - seen))
            left.remove(point)
            seen |= set(enumerate(point))
            yield point

    def degrees(self) -> list[int]:
        """Return the highest power of batch, length and rank that matters among the points."""
        axes = zip(*(point for point, _ in self.cells), strict=True)
        return [min(degree, len(set(axis)) - 1) for degree, axis in zip(_DEGREES, axes, strict=True)]


def families(cells: Iterable[Cell], config: Any) -> list[Family]:
    """Sort cells of one model and platform into families.

    The largest come first, since the smaller may then need no more than a check at each end.
    """
    known: list[Sizes] = []
    found: dict[object, list[tuple[Point, Cell]]] = {}
    for cell in cells:
        found.setdefault(_structure(cell, config), []).append((_point(cell), cell))
    return [Family(members, known) for members in sorted(found.values(), key=len, reverse=True)]


def streams(family: Family, platform: Platform, config: Any) -> Iterator[tuple[Cell, Stream, Method]]:
    """Yield each cell's stream and how it was made; what sizes follow is then known to its relatives.

    Raises what tracing raises, at the first cell that is traced.
    """
    kernels = Kernels(platform)
    example = family.cells[0][1]
    traced: dict[Point, Stream] = {}
    sizes = lent = None
    for point in family.samples():
        truth = _shallow(_at(example, point), platform, config)
        if traced:
            alike = all(same_structure(stream, truth) for stream in traced.values())
            if lent is None or not (alike and lent.gives(point, truth)):
                lent = None
                sizes = Sizes.learnt(traced, family.degrees(), kernels) if alike else None
            told = sizes is not None and sizes.gives(point, truth)
        else:  # a relative's sizes are found at one end, and hold if they give the other end too
            offered = (one.within(point, truth, family.degrees()) for one in family.known)
            sizes = lent = next((one for one in offered if one is not None), None)
            told = False
        traced[point] = truth
        if told:
            break
    else:
        sizes = None
    if sizes is not None and len(traced) > 1:
        family.known.append(sizes)
    yield from _deepened(family, traced, sizes, kernels, config)


def _deepened(
    family: Family, traced: dict[Point, Stream], sizes: Sizes | None, kernels: Kernels, config: Any
) -> Iterator[tuple[Cell, Stream, Method]]:
    """Yield the family's streams at full depth; what is repeated where is found once for each structure."""
    deep = reference = None
    for point, cell in family.cells:
        depth = depth_of(cell, config)
        shallow = traced.get(point) or (sizes.stream_at(point) if sizes else None)
        if shallow is None:
            shallow = _shallow(cell, kernels.platform, config)
        if depth is None:
            yield cell, shallow, "full trace"
            continue
        try:
            if deep is None or reference is None or not same_structure(shallow, reference):
                deep, reference = deepen(shallow, depth.period, depth.periods_added), shallow
        except LayersDifferError:
            yield cell, trace(cell, kernels.platform, config), "full trace"
            continue
        its = shallow.sizes[deep.kinds]
        yield cell, replace(deep, sizes=its, paged_bytes=shallow.paged_bytes), "repeated layers"


def _shallow(cell: Cell, platform: Platform, config: Any) -> Stream:
    return trace(cell, platform, config, depth_of(cell, config))


def _point(cell: Cell) -> Point:
    rank = cell.method.rank if isinstance(cell.method, LoraMethod | QloraMethod) else 0
    return Point(cell.training.micro_batch, cell.training.sequence_length, rank)


def _at(cell: Cell, point: Point) -> Cell:
    shape = {"micro_batch": point.micro_batch, "sequence_length": point.sequence_length}
    method = cell.method
    if isinstance(method, LoraMethod | QloraMethod):
        method = method.model_copy(update={"rank": point.rank})
    return cell.model_copy(update={"training": cell.training.model_copy(update=shape), "method": method})


def _structure(cell: Cell, config: Any) -> object:
    """Return what cells of one family have in common; what shapes no memory is left out."""
    training = cell.training.model_dump(exclude=_IGNORED)
    method = cell.method.model_dump(mode="json", exclude={"name", "rank", "alpha"})
    point = _point(cell)
    # bitsandbytes keeps small states in fp32 and rounds blocks up: not polynomial in the rank.
    rank = point.rank if "adamw-" not in cell.training.optimizer or "bit" in cell.training.optimizer else None
    data, loop = cell.data.model_dump(mode="json"), cell.loop.model_dump(mode="json")
    parts = (training, method, data, loop, rank, _regime(point, config))
    return repr(parts)


def _regime(point: Point, config: Any) -> tuple[object, ...]:
    """Return on which side of every threshold a point lies."""
    text = config.get_text_config()
    length = point.sequence_length
    numbers = {name: value for name, value in vars(text).items() if type(value) is int and value > 0}
    windows = [value for name, value in numbers.items() if _WINDOW in name]
    borders: list[Any] = [value for name, value in numbers.items() if _POSITIONS in name or _WINDOW in name]
    borders += [(getattr(text, "rope_parameters", None) or {}).get("original_max_position_embeddings")]
    return (
        length if length % _UNPADDED else 0,
        *(length > border for border in borders if border),
        *(length >= window for window in windows),  # from there on a mask cuts off what lies before it
        *(length % value for name, value in numbers.items() if "chunk_size" in name),
        point.micro_batch == 1,
    )
