"""Cells that differ in batch, length or rank only take the same blocks in the same order, in other sizes.

A few of them are traced; the sizes of the others follow, since each size is a polynomial in the three:
of degree two in the length (attention scores), one in the batch and one in the rank. What is not, such
as a kernel chosen by the number of tokens, is kept apart, and one more cell of each family is traced to
check the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.memory.calls import rebuilt
from bench.memory.depth import depth_of
from bench.memory.kernels import Kernels
from bench.memory.repeat import LayersDifferError, deepen
from bench.memory.stream import Ints, Stream
from bench.memory.trace import trace
from bench.results.predictions import Method
from bench.spec.platforms import Platform
from bench.spec.types import Cell, LoraMethod, QloraMethod

_UNPADDED = 128  # flash attention's backward pass rounds lengths up to it
_DEGREES = (1, 2, 1)
_BORDERS = ("window", "max_position")
"""In names of a configuration's fields: lengths at which a model turns to other computations."""


class Point(NamedTuple):
    """Where in its family a cell lies."""

    micro_batch: int
    sequence_length: int
    rank: int


@dataclass(frozen=True)
class Family:
    """Cells that share a structure, each at its point."""

    cells: Sequence[tuple[Point, Cell]]

    def samples(self, structure_of: Callable[[Point], object] = lambda _point: None) -> list[Point]:
        """Return the points from which all others follow; all points where that saves nothing.

        A sample need not be one of the family's points, but must have its structure.
        """
        points = [point for point, _ in self.cells]
        axes = [
            _spread(sorted(set(values)), degree + 1)
            for values, degree in zip(zip(*points, strict=True), _DEGREES, strict=True)
        ]
        grid = [Point(*values) for values in product(*axes)]
        alike = {structure_of(point) for point in (*grid, points[0])}
        return grid if len(alike) == 1 and len(grid) + 1 < len(set(points)) else sorted(set(points))


def families(cells: Iterable[Cell], config: Any) -> list[Family]:  # noqa: ANN401 - transformers ships no types
    """Sort cells of one model into families, in order of first appearance."""
    found: dict[object, list[tuple[Point, Cell]]] = {}
    for cell in cells:
        found.setdefault(_structure(cell, config), []).append((_point(cell), cell))
    return [Family(members) for members in found.values()]


def streams(family: Family, platform: Platform, config: Any) -> Iterator[tuple[Cell, Stream, Method]]:  # noqa: ANN401 - the same
    """Yield each cell's stream and how it was made.

    Raises what tracing raises, at the first cell that is traced.
    """
    kernels = Kernels(platform)
    example = family.cells[0][1]
    samples = family.samples(lambda point: _structure(_at(example, point), config))
    traced = {point: _shallow(_at(example, point), platform, config) for point in samples}
    others = [point for point, _ in family.cells if point not in traced]
    if others:
        checked = others[len(others) // 2]
        truth = _shallow(_at(example, checked), platform, config)
        if not _follows(traced, checked, truth, kernels):
            traced |= {point: _shallow(_at(example, point), platform, config) for point in others}
    yield from _deepened(family, traced, kernels, config)


def _deepened(
    family: Family,
    traced: dict[Point, Stream],
    kernels: Kernels,
    config: Any,  # noqa: ANN401 - the same
) -> Iterator[tuple[Cell, Stream, Method]]:
    """Yield the family's streams at full depth; what is repeated where is found once for each structure."""
    deep = reference = None
    for point, cell in family.cells:
        depth = depth_of(cell, config)
        shallow = traced.get(point) or _interpolated(traced, point, kernels)
        if shallow is None:
            shallow = _shallow(cell, kernels.platform, config)
        if depth is None:
            yield cell, shallow, "full trace"
            continue
        try:
            if deep is None or reference is None or not _same_structure(shallow, reference):
                deep, reference = deepen(shallow, depth.period, depth.periods_added), shallow
        except LayersDifferError:
            yield cell, trace(cell, kernels.platform, config), "full trace"
            continue
        sizes = shallow.sizes[deep.kinds]
        yield cell, replace(deep, sizes=sizes, paged_bytes=shallow.paged_bytes), "repeated layers"


def _shallow(cell: Cell, platform: Platform, config: Any) -> Stream:  # noqa: ANN401 - the same
    return trace(cell, platform, config, depth_of(cell, config))


def _follows(traced: dict[Point, Stream], point: Point, truth: Stream, kernels: Kernels) -> bool:
    """Tell whether the samples give what a trace of the point gave."""
    reference = next(iter(traced.values()))
    if not all(_same_structure(stream, reference) for stream in (*traced.values(), truth)):
        return False
    made = _interpolated(traced, point, kernels)
    return made is not None and np.array_equal(made.sizes, truth.sizes)


def _same_structure(one: Stream, other: Stream) -> bool:
    return np.array_equal(one.events, other.events) and all(
        mine.op == its.op for mine, its in zip(one.blocks, other.blocks, strict=True)
    )


def _interpolated(traced: dict[Point, Stream], point: Point, kernels: Kernels) -> Stream | None:
    """Return the stream that the samples imply; None where they imply no whole numbers.

    What kernels take besides follows from their arguments by rules with roundings and thresholds, so
    there the arguments are interpolated and the rules asked again.
    """
    weights = _weights(traced, point)
    sizes, whole = _weighted([stream.sizes for stream in traced.values()], weights)
    calls = list(zip(*(stream.scratch_calls for stream in traced.values()), strict=True))
    for alike in calls:
        numbers, sound = _weighted([call.numbers for call in alike], weights)
        args, kwargs, result = rebuilt(alike[0], numbers)
        blocks = kernels.scratch_blocks(alike[0].func, args, kwargs, result)
        its = slice(alike[0].first, alike[0].first + alike[0].count)
        if not sound.all() or len(blocks) != alike[0].count:
            return None
        sizes[its], whole[its] = blocks, True
    reference = next(iter(traced.values()))
    paged, _ = _weighted([np.array([stream.paged_bytes]) for stream in traced.values()], weights)
    return replace(reference, sizes=sizes, paged_bytes=int(paged[0])) if whole.all() else None


def _weights(traced: dict[Point, Stream], point: Point) -> list[Fraction]:
    """Return what each sample counts for at a point, by Lagrange's formula."""
    axes = [sorted(set(values)) for values in zip(*traced, strict=True)]
    return [
        _product(_lagrange(axis, x, at) for axis, x, at in zip(axes, sample, point, strict=True))
        for sample in traced
    ]


def _weighted(values: Sequence[Ints], weights: Sequence[Fraction]) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the weighted sum, and where it is a whole number."""
    divisor = int(np.lcm.reduce([weight.denominator for weight in weights]))
    total = np.zeros_like(values[0])
    for weight, each in zip(weights, values, strict=True):
        total = total + each * int(weight * divisor)
    quotient: Ints = total // divisor
    return quotient, quotient * divisor == total


def _lagrange(axis: Sequence[int], of: int, at: int) -> Fraction:
    """Return the value at ``at`` of the polynomial that is 1 at ``of`` and 0 elsewhere on the axis."""
    return _product(Fraction(at - other, of - other) for other in axis if other != of)


def _product(factors: Iterable[Fraction]) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _spread(values: Sequence[int], count: int) -> Sequence[int]:
    """Return ``count`` of the values, the outermost among them."""
    if len(values) <= count:
        return values
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _point(cell: Cell) -> Point:
    rank = cell.method.rank if isinstance(cell.method, LoraMethod | QloraMethod) else 0
    return Point(cell.training.micro_batch, cell.training.sequence_length, rank)


def _at(cell: Cell, point: Point) -> Cell:
    """Return the cell with another batch, length and rank."""
    shape = {"micro_batch": point.micro_batch, "sequence_length": point.sequence_length}
    method = cell.method
    if isinstance(method, LoraMethod | QloraMethod):
        method = method.model_copy(update={"rank": point.rank})
    return cell.model_copy(update={"training": cell.training.model_copy(update=shape), "method": method})


def _structure(cell: Cell, config: Any) -> object:  # noqa: ANN401 - the same
    """Return what cells of one family have in common; what shapes no memory is left out."""
    training = cell.training.model_dump(
        exclude={
            "micro_batch",
            "sequence_length",
            "learning_rate",
            "schedule",
            "schedule_warmup_steps",
            "seed",
        }
    )
    method = cell.method.model_dump(mode="json", exclude={"name", "rank", "alpha"})
    point = _point(cell)
    # bitsandbytes keeps small states in fp32 and rounds blocks up: not polynomial in the rank.
    rank = point.rank if "adamw-" not in cell.training.optimizer or "bit" in cell.training.optimizer else None
    parts = (training, method, cell.data.model_dump(mode="json"), rank, _regime(point, config))
    return repr(parts)


def _regime(point: Point, config: Any) -> tuple[object, ...]:  # noqa: ANN401 - the same
    """Return on which side of every threshold a point lies."""
    text = config.get_text_config()
    length = point.sequence_length
    numbers = {name: value for name, value in vars(text).items() if type(value) is int and value > 0}
    borders: list[Any] = [value for name, value in numbers.items() if any(word in name for word in _BORDERS)]
    borders += [(getattr(text, "rope_parameters", None) or {}).get("original_max_position_embeddings")]
    return (
        length if length % _UNPADDED else 0,
        *(length > border for border in borders if border),
        *(length % value for name, value in numbers.items() if "chunk_size" in name),
        point.micro_batch == 1,
    )
