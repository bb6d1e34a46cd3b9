"""Cells that differ in batch, length or rank only take the same blocks in the same order, in other sizes.

A few of them are traced; the sizes of the others follow, since each size is a polynomial in the three:
of degree two in the length (attention scores), one in the batch and one in the rank. What is not, such
as a kernel chosen by the number of tokens, is kept apart, and one more cell of each family is traced to
check the rest.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, product
from math import lcm, prod
from typing import Any, NamedTuple

import numpy as np

from bench.predict.trace.kernels import Kernels, ScratchCall, rebuilt
from bench.predict.trace.repeat import LayersDifferError, deepen, depth_of
from bench.predict.trace.stream import Ints, Stream
from bench.predict.trace.trace import trace
from bench.records.predictions import Method
from bench.scenario.cell import Cell
from bench.scenario.types import LoraMethod, Platform, QloraMethod

_UNPADDED = 128  # flash attention's backward pass rounds lengths up to it
_DEGREES = (1, 2, 1)
_IGNORED = {"micro_batch", "sequence_length", "learning_rate", "schedule", "schedule_warmup_steps", "seed"}
_WINDOW, _POSITIONS = "window", "max_position"
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

    def samples(self) -> list[Point]:
        """Return the points, those first that tell most of the others: both ends, then middles of gaps."""
        points = sorted({point for point, _ in self.cells})
        order = [0, len(points) - 1]
        gaps = [(0, len(points) - 1)]
        while gaps:
            low, high = gaps.pop(0)
            middle = (low + high) // 2
            if low < middle:
                order.append(middle)
                gaps += [(low, middle), (middle, high)]
        return [points[index] for index in dict.fromkeys(order)]

    def degrees(self) -> list[int]:
        """Return the highest power of batch, length and rank that matters among the points."""
        axes = zip(*(point for point, _ in self.cells), strict=True)
        return [min(degree, len(set(axis)) - 1) for degree, axis in zip(_DEGREES, axes, strict=True)]


def families(cells: Iterable[Cell], config: Any) -> list[Family]:
    """Sort cells of one model into families, in order of first appearance."""
    found: dict[object, list[tuple[Point, Cell]]] = {}
    for cell in cells:
        found.setdefault(_structure(cell, config), []).append((_point(cell), cell))
    return [Family(members) for members in found.values()]


def streams(family: Family, platform: Platform, config: Any) -> Iterator[tuple[Cell, Stream, Method]]:
    """Yield each cell's stream and how it was made.

    Raises what tracing raises, at the first cell that is traced.
    """
    kernels = Kernels(platform)
    example = family.cells[0][1]
    traced: dict[Point, Stream] = {}
    sizes = None
    for point in family.samples():
        truth = _shallow(_at(example, point), platform, config)
        alike = all(_same_structure(stream, truth) for stream in traced.values())
        sizes = _Sizes.learnt(traced, family.degrees(), kernels) if alike else None
        traced[point] = truth
        if sizes is not None and sizes.gives(point, truth):
            break
    else:
        sizes = None
    yield from _deepened(family, traced, sizes, kernels, config)


def _deepened(
    family: Family, traced: dict[Point, Stream], sizes: "_Sizes | None", kernels: Kernels, config: Any
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
            if deep is None or reference is None or not _same_structure(shallow, reference):
                deep, reference = deepen(shallow, depth.period, depth.periods_added), shallow
        except LayersDifferError:
            yield cell, trace(cell, kernels.platform, config), "full trace"
            continue
        its = shallow.sizes[deep.kinds]
        yield cell, replace(deep, sizes=its, paged_bytes=shallow.paged_bytes), "repeated layers"


def _shallow(cell: Cell, platform: Platform, config: Any) -> Stream:
    return trace(cell, platform, config, depth_of(cell, config))


def _same_structure(one: Stream, other: Stream) -> bool:
    return np.array_equal(one.events, other.events) and all(
        mine.op == its.op for mine, its in zip(one.blocks, other.blocks, strict=True)
    )


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a family's blocks as polynomials of batch, length and rank.

    What kernels take besides follows from their arguments by rules with roundings and thresholds, so
    there the arguments are polynomials and the rules are asked again.
    """

    reference: Stream
    numbers: "Polynomials"
    kernels: Kernels
    forms: Sequence[str]  # of the reference's scratch calls, which repeat by layer and step
    asked: dict[object, Sequence[int]]

    @classmethod
    def learnt(cls, traced: dict[Point, Stream], degrees: Sequence[int], kernels: Kernels) -> "_Sizes | None":
        """Return what traces of one structure imply; None where they do not decide it."""
        if len(traced) < 2:  # noqa: PLR2004 - one value agrees with everything
            return None
        values = np.stack([_numbers(stream) for stream in traced.values()])
        numbers = fitted(list(traced), values, degrees)
        reference = next(iter(traced.values()))
        forms = [f"{call.func} {call.form}" for call in reference.scratch_calls]
        return None if numbers is None else cls(reference, numbers, kernels, forms, {})

    def stream_at(self, point: Point) -> Stream | None:
        """Return the stream at a point; None where that would not be in whole numbers."""
        numbers = self.numbers.at(point)
        if numbers is None:
            return None
        count = len(self.reference.sizes)
        sizes, paged_bytes, position = numbers[:count], int(numbers[count]), count + 1
        for call, form in zip(self.reference.scratch_calls, self.forms, strict=True):
            its = numbers[position : position + len(call.numbers)]
            position += len(its)
            blocks = self._scratch_blocks(call, form, its)
            if len(blocks) != call.count:
                return None
            sizes[call.first : call.first + call.count] = blocks
        return replace(self.reference, sizes=sizes, paged_bytes=paged_bytes)

    def _scratch_blocks(self, call: ScratchCall, form: str, numbers: Ints) -> Sequence[int]:
        key = form, numbers.tobytes()
        if key not in self.asked:
            args, kwargs, result = rebuilt(call, numbers)
            self.asked[key] = self.kernels.scratch_blocks(call.func, args, kwargs, result)
        return self.asked[key]

    def gives(self, point: Point, truth: Stream) -> bool:
        """Tell whether what was learnt is what a trace of the point gave."""
        made = self.stream_at(point)
        if made is None or made.paged_bytes != truth.paged_bytes:
            return False
        return np.array_equal(made.sizes, truth.sizes)


def _numbers(stream: Stream) -> Ints:
    """Return all that differs within a family: sizes but those of scratch blocks, paged bytes, arguments."""
    sizes = stream.sizes.copy()
    for call in stream.scratch_calls:
        sizes[call.first : call.first + call.count] = 0
    return np.concatenate([sizes, [stream.paged_bytes], *(call.numbers for call in stream.scratch_calls)])


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
    parts = (training, method, cell.data.model_dump(mode="json"), rank, _regime(point, config))
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


_Terms = dict[int, Fraction]
"""Coefficients by the number of the monomial."""


@dataclass(frozen=True)
class Polynomials:
    """One polynomial for each of many numbers; equal ones are kept once.

    Polynomial ``p`` is the sum of ``numerators[p]`` times the monomials, by ``denominators[p]``; number
    ``n`` follows polynomial ``which[n]``.
    """

    exponents: Sequence[Sequence[int]]
    numerators: Ints
    denominators: Ints
    which: Ints

    def at(self, point: Sequence[int]) -> Ints | None:
        """Return the numbers at a point; None where one of them would not be whole."""
        monomials = np.array([_power(point, each) for each in self.exponents], dtype=np.int64)
        values, rest = np.divmod(self.numerators @ monomials, self.denominators)
        return None if rest.any() else values[self.which]


def fitted(points: Sequence[Sequence[int]], values: Ints, degrees: Sequence[int]) -> Polynomials | None:
    """Return the polynomials of at most such degrees in each variable; None where the values leave a choice.

    What a model allocates is nearly always one product, such as four bytes for each token and rank, or a
    sum of two, such as a label for each token and one more for each sequence. So the shortest sum is sought
    that the values leave no other choice but, and that more values agree on than it has terms.
    ``values`` has a row for each point and a column for each number.
    """
    exponents = list(product(*(range(degree + 1) for degree in degrees)))
    monomials = [[_power(point, each) for point in points] for each in exponents]
    distinct, which = np.unique(values, axis=1, return_inverse=True)
    found = [_shortest(column, monomials) for column in distinct.T.tolist()]
    numerators = np.zeros((len(found), len(exponents)), dtype=np.int64)
    denominators = np.ones(len(found), dtype=np.int64)
    for index, terms in enumerate(found):
        if terms is None:
            return None
        denominators[index] = lcm(*(each.denominator for each in terms.values()))
        for monomial, coefficient in terms.items():
            numerators[index, monomial] = int(coefficient * int(denominators[index]))
    return Polynomials(exponents, numerators, denominators, which.reshape(-1))


def _shortest(values: Sequence[int], monomials: Sequence[Sequence[int]]) -> _Terms | None:
    """Return the one sum of fewest terms that takes these values; None where there are several or none."""
    if not any(values):
        return {}
    fits: list[_Terms] = [
        {index: Fraction(values[0], one[0])}
        for index, one in enumerate(monomials)
        if all(value * one[0] == values[0] * each for value, each in zip(values, one, strict=True))
    ]
    if not fits and len(values) > 2:  # noqa: PLR2004 - more values than terms
        pairs = combinations(range(len(monomials)), 2)
        fits = [terms for pair in pairs if (terms := _pair(values, monomials, *pair)) is not None]
    return fits[0] if len(fits) == 1 else None


def _pair(
    values: Sequence[int], monomials: Sequence[Sequence[int]], first: int, second: int
) -> _Terms | None:
    """Return the sum of two monomials that takes these values, if there is one."""
    one, other = monomials[first], monomials[second]
    determinant = one[0] * other[1] - one[1] * other[0]
    if not determinant:
        return None
    of_one = values[0] * other[1] - values[1] * other[0]
    of_other = one[0] * values[1] - one[1] * values[0]
    if all(
        value * determinant == of_one * here + of_other * there
        for value, here, there in zip(values, one, other, strict=True)
    ):
        return {first: Fraction(of_one, determinant), second: Fraction(of_other, determinant)}
    return None


def _power(point: Sequence[int], exponents: Sequence[int]) -> int:
    return prod(value**exponent for value, exponent in zip(point, exponents, strict=True))
