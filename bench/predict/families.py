"""Cells that differ in batch, length or rank only take the same blocks in the same order, in other sizes.

A few of them are traced; the sizes of the others follow, since each size is a polynomial in the three:
of degree two in the length (attention scores), one in the batch and one in the rank. What is not, such
as a kernel chosen by the number of tokens, is kept apart, and one more cell of each family is traced to
check the rest. A family whose blocks are all among those of an earlier one needs only that check.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.predict.sizes import Point, RepeatedStep, Sizes, same_structure
from bench.predict.trace.depth import depth_of, trace_whole
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.repeat import LayersDifferError, deepen
from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import TRACED_STEPS, Tracer
from bench.records.predictions import Method
from bench.scenario.cell import Cell
from bench.scenario.types import LoraMethod, QloraMethod

_UNPADDED = 128  # flash attention's backward pass rounds lengths up to it
_DEGREES = (1, 2, 1)
_IGNORED = {"micro_batch", "sequence_length", "learning_rate", "schedule", "schedule_warmup_steps", "seed"}
_UNSEEN = {"name", "rank", "alpha", "quantisation"}
"""Of a method: names and factors, and which sixteen values stand for four bits."""
_WINDOW, _POSITIONS = "window", "max_position"
"""In names of a configuration's fields: lengths at which a model turns to other computations."""


@dataclass(frozen=True)
class Family:
    """Cells that share a structure, by their points.

    ``known`` is what its relatives have told of the model's sizes.
    """

    cells: Mapping[Point, Sequence[Cell]]
    known: list[Sizes] = field(default_factory=list)

    def samples(self) -> Iterator[Point]:
        """Yield the points, those first that tell most of the others: both ends, then middles of gaps.

        Of these a point with values that no earlier one has comes before the rest.
        """
        points = sorted(self.cells)
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
        axes = zip(*self.cells, strict=True)
        return [min(degree, len(set(axis)) - 1) for degree, axis in zip(_DEGREES, axes, strict=True)]


def families(cells: Iterable[Cell], config: Any) -> list[Family]:
    """Sort cells of one model and platform into families.

    The largest come first, since the smaller may then need no more than a check at each end.
    """
    known: list[Sizes] = []
    found: dict[object, dict[Point, list[Cell]]] = {}
    for cell in cells:
        found.setdefault(_structure(cell, config), {}).setdefault(_point(cell), []).append(cell)
    members = sorted(found.values(), key=lambda points: sum(map(len, points.values())), reverse=True)
    return [Family(each, known) for each in members]


def streams(family: Family, tracer: Tracer) -> Iterator[tuple[Point, Stream, Method]]:
    """Yield the stream of each point's cells and how it was made; relatives then know what sizes follow.

    Where a model that was cut to fewer layers fails in any way, the whole is traced. Raises what tracing
    raises, at the first cell that is traced.
    """
    told = set()
    cut = any(depth_of(cells[0], tracer.config) for cells in family.cells.values())
    try:
        for one in _streams(family, tracer):
            told.add(one[0])
            yield one
    except Exception:
        if not cut:
            raise
        trace_whole(tracer.config)
        left = {point: cells for point, cells in family.cells.items() if point not in told}
        yield from _streams(replace(family, cells=left, known=[]), replace(tracer, adapted={}))


def _streams(family: Family, tracer: Tracer) -> Iterator[tuple[Point, Stream, Method]]:
    kernels = Kernels(tracer.platform)
    traced: dict[Point, Stream] = {}
    sizes = lent = step = None
    for point in family.samples():
        if traced:
            truth = _truth(family, point, step, tracer)
            alike = all(same_structure(stream, truth) for stream in traced.values())
            if lent is None or not (alike and lent.gives(point, truth)):
                lent = None
                sizes = Sizes.learnt(traced, family.degrees(), kernels) if alike else None
            told = sizes is not None and sizes.gives(point, truth)
        else:  # a relative's sizes are found at one end, and hold if they give the other end too
            truth = _shallow(family.cells[point][0], tracer)
            step = RepeatedStep.seen(truth)
            offered = (one.within(point, truth, family.degrees()) for one in family.known)
            sizes = lent = next((one for one in offered if one is not None), None)
            told = False
        traced[point] = truth
        if told and sizes is not None:
            sizes = sizes.checked(traced, family.degrees())
            if sizes.calls is not None or not tracer.timed:
                break
    else:
        sizes = None
    if sizes is not None and len(traced) > 1:
        family.known.append(sizes)
    yield from _deepened(family, traced, sizes, tracer)


def _truth(family: Family, point: Point, step: RepeatedStep | None, tracer: Tracer) -> Stream:
    """Trace a point's last cell, where the first point's was its first: what they differ in is seen so."""
    cell = family.cells[point][-1]
    whole = step and step.after(_shallow(cell, tracer, 1))
    return whole or _shallow(cell, tracer)


def _deepened(
    family: Family, traced: dict[Point, Stream], sizes: Sizes | None, tracer: Tracer
) -> Iterator[tuple[Point, Stream, Method]]:
    """Yield the family's streams at full depth; what is repeated where is found once for each structure."""
    deep = reference = None
    for point, cells in family.cells.items():
        depth = depth_of(cells[0], tracer.config)
        shallow = traced.get(point) or (sizes.stream_at(point) if sizes else None)
        if shallow is None:
            shallow = _shallow(cells[0], tracer)
        if depth is None:
            yield point, shallow, "full trace"
            continue
        try:
            if deep is None or reference is None or not same_structure(shallow, reference):
                deep, reference = deepen(shallow, depth.period, depth.periods_added), shallow
        except LayersDifferError:
            yield point, tracer.trace(cells[0]), "full trace"
            continue
        its = shallow.sizes[deep.kinds]
        its_own = replace(deep, sizes=its, paged_bytes=shallow.paged_bytes, calls=shallow.calls)
        yield point, its_own, "repeated layers"


def _shallow(cell: Cell, tracer: Tracer, steps: int = TRACED_STEPS) -> Stream:
    return tracer.trace(cell, depth_of(cell, tracer.config), steps)


def _point(cell: Cell) -> Point:
    rank = cell.method.rank if isinstance(cell.method, LoraMethod | QloraMethod) else 0
    return Point(cell.training.micro_batch, cell.training.sequence_length, rank)


def _structure(cell: Cell, config: Any) -> object:
    """Return what cells of one family have in common; what shapes no memory is left out."""
    training = cell.training.model_dump(exclude=_IGNORED)
    method = cell.method.model_dump(mode="json", exclude=_UNSEEN)
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
