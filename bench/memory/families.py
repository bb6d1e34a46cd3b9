"""Cells that differ in batch, length or rank only take the same blocks in the same order, in other sizes.

A few of them are traced; the sizes of the others follow, since each size is a polynomial in the three:
of degree two in the length (attention scores), one in the batch and one in the rank. What is not, such
as a kernel chosen by the number of tokens, is kept apart, and one more cell of each family is traced to
check the rest.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from bench.memory.depth import depth_of
from bench.memory.repeat import LayersDifferError, deepen
from bench.memory.stream import Ints, Stream
from bench.memory.trace import trace
from bench.results.predictions import Method
from bench.spec.platforms import Platform
from bench.spec.types import Cell, LoraMethod, QloraMethod

_UNPADDED = 128  # flash attention's backward pass rounds lengths up to it
_THRESHOLDS_TOKENS = (1536, 3072)  # bitsandbytes' gemm_4bit and torch's embedding backward change kernels
_DEGREES = (1, 2, 1)


class Point(NamedTuple):
    """Where in its family a cell lies."""

    micro_batch: int
    sequence_length: int
    rank: int


@dataclass(frozen=True)
class Family:
    """Cells that share a structure, each at its point."""

    cells: Sequence[tuple[Point, Cell]]

    def samples(self) -> list[Point]:
        """Return the points from which all others follow; all points where that saves nothing."""
        points = [point for point, _ in self.cells]
        axes = [
            _spread(sorted(set(values)), degree + 1)
            for values, degree in zip(zip(*points, strict=True), _DEGREES, strict=True)
        ]
        grid = [Point(*values) for values in product(*axes)]
        return grid if len(grid) + 1 < len(set(points)) else sorted(set(points))


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
    samples = family.samples()
    example = family.cells[0][1]
    traced = {point: _shallow(_at(example, point), platform, config) for point in samples}
    others = [point for point, _ in family.cells if point not in traced]
    if others:
        checked = others[len(others) // 2]
        truth = _shallow(_at(example, checked), platform, config)
        if not _follows(traced, checked, truth):
            traced |= {point: _shallow(_at(example, point), platform, config) for point in others}
    yield from _deepened(family, traced, platform, config)


def _deepened(
    family: Family,
    traced: dict[Point, Stream],
    platform: Platform,
    config: Any,  # noqa: ANN401 - the same
) -> Iterator[tuple[Cell, Stream, Method]]:
    """Yield the family's streams at full depth; what is repeated where is found once for each structure."""
    deep = reference = None
    for point, cell in family.cells:
        depth = depth_of(cell, config)
        shallow = traced.get(point) or _interpolated(traced, point)
        if depth is None:
            yield cell, shallow, "full trace"
            continue
        try:
            if deep is None or reference is None or not _same_structure(shallow, reference):
                deep, reference = deepen(shallow, depth.period, depth.periods_added), shallow
        except LayersDifferError:
            yield cell, trace(cell, platform, config), "full trace"
            continue
        sizes = shallow.sizes[deep.kinds]
        yield cell, replace(deep, sizes=sizes, paged_bytes=shallow.paged_bytes), "repeated layers"


def _shallow(cell: Cell, platform: Platform, config: Any) -> Stream:  # noqa: ANN401 - the same
    return trace(cell, platform, config, depth_of(cell, config))


def _follows(traced: dict[Point, Stream], point: Point, truth: Stream) -> bool:
    """Tell whether the samples give what a trace of the point gave."""
    reference = next(iter(traced.values()))
    if not all(_same_structure(stream, reference) for stream in (*traced.values(), truth)):
        return False
    sizes = _sizes_at(traced, point)
    return sizes is not None and np.array_equal(sizes, truth.sizes)


def _same_structure(one: Stream, other: Stream) -> bool:
    return np.array_equal(one.events, other.events) and all(
        mine.op == its.op for mine, its in zip(one.blocks, other.blocks, strict=True)
    )


def _interpolated(traced: dict[Point, Stream], point: Point) -> Stream:
    sizes = _sizes_at(traced, point)
    if sizes is None:
        raise AssertionError("a family's sizes are checked before they are used")
    return replace(next(iter(traced.values())), sizes=sizes)


def _sizes_at(traced: dict[Point, Stream], point: Point) -> Ints | None:
    """Return the sizes that the samples imply, by Lagrange's formula; None if they are not whole numbers."""
    axes = [sorted(set(values)) for values in zip(*traced, strict=True)]
    total: Any = 0
    weights = {
        sample: _product(_lagrange(axis, x, at) for axis, x, at in zip(axes, sample, point, strict=True))
        for sample in traced
    }
    divisor = int(np.lcm.reduce([weight.denominator for weight in weights.values()]))
    for sample, stream in traced.items():
        total = total + stream.sizes * int(weights[sample] * divisor)
    sizes: Ints = total // divisor
    return sizes if np.array_equal(sizes * divisor, total) and (sizes >= 0).all() else None


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
    length, tokens = point.sequence_length, point.micro_batch * point.sequence_length
    borders = [getattr(text, name, None) for name in ("sliding_window", "original_max_position_embeddings")]
    borders += [(getattr(text, "rope_parameters", None) or {}).get("original_max_position_embeddings")]
    return (
        length if length % _UNPADDED else 0,
        *(length > border for border in borders if border),
        *(tokens > threshold for threshold in _THRESHOLDS_TOKENS),
        point.micro_batch == 1,
    )
