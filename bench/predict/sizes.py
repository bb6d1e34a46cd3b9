"""The sizes of a family's blocks as polynomials of batch, length and rank, learnt from a few traces."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate, chain, combinations, pairwise, product
from math import lcm, prod
from operator import le
from typing import NamedTuple

import numpy as np

from bench.predict.trace.kernels import Kernels, ScratchCall, rebuilt
from bench.predict.trace.stream import Ints, Stream


class Point(NamedTuple):
    """Where in its family a cell lies."""

    micro_batch: int
    sequence_length: int
    rank: int


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


@dataclass(frozen=True)
class Sizes:
    """The sizes of a family's blocks as polynomials of batch, length and rank.

    What kernels take besides follows from their arguments by rules with roundings and thresholds, so
    there the arguments are polynomials and the rules are asked again.
    """

    reference: Stream
    numbers: Polynomials
    kernels: Kernels
    calls: Polynomials | None = None  # the sizes in calls of operators, where they follow
    asked: dict[object, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def learnt(cls, traced: dict[Point, Stream], degrees: Sequence[int], kernels: Kernels) -> "Sizes | None":
        """Return what traces of one structure imply; None where they do not decide it."""
        if len(traced) < 2:  # noqa: PLR2004 - one value agrees with everything
            return None
        numbers = fitted(list(traced), np.stack([_numbers(stream) for stream in traced.values()]), degrees)
        if numbers is None:
            return None
        return cls(next(iter(traced.values())), numbers, kernels, _of_calls(traced, degrees))

    def stream_at(self, point: Point) -> Stream | None:
        """Return the stream at a point; None where that would not be in whole numbers."""
        numbers = self.numbers.at(point)
        if numbers is None:
            return None
        count = len(self.reference.sizes)
        sizes = numbers[:count]
        for call, part in zip(self.reference.scratch_calls, _arguments(self.reference).values(), strict=True):
            blocks = self._scratch_blocks(call, numbers[part.start : part.stop])
            if len(blocks) != call.count:
                return None
            sizes[call.first : call.first + call.count] = blocks
        called = None if self.calls is None else self.calls.at(point)
        calls = [self.reference.calls[-1].resized(called)] if called is not None else []
        return replace(
            self.reference, sizes=sizes, paged_bytes=int(numbers[count]), flops_known=False, calls=calls
        )

    def within(self, point: Point, truth: Stream, degrees: Sequence[int]) -> "Sizes | None":
        """Return these sizes for a family of another structure; None where they do not give its trace.

        That may have fewer blocks, as where a batch of 1 needs no copies, but each must be found here: in the
        same order, made alike and as large.
        """
        mine = self.stream_at(point) if all(map(le, degrees, self.numbers.exponents[-1])) else None
        if mine is None:
            return None
        places = _places(_makings(truth), _makings(mine))
        arguments = _arguments(mine)
        calls = [arguments.get(places[call.first], ()) for call in truth.scratch_calls]
        if -1 in places or [*map(len, calls)] != [len(call.numbers) for call in truth.scratch_calls]:
            return None
        which = self.numbers.which[[*places, len(mine.sizes), *chain(*calls)]]
        at = truth.calls[-1].places_in(mine.calls[-1]) if truth.calls and mine.calls else None
        own = None if at is None or self.calls is None else replace(self.calls, which=self.calls.which[at])
        numbers = replace(self.numbers, which=which)
        found = replace(self, reference=truth, numbers=numbers, calls=own)
        return found if found.gives(point, truth) else None

    def gives(self, point: Point, truth: Stream) -> bool:
        """Tell whether what was learnt is what a trace of the point gave."""
        made = self.stream_at(point)
        if made is None or made.paged_bytes != truth.paged_bytes:
            return False
        return np.array_equal(made.sizes, truth.sizes)

    def checked(self, traced: dict[Point, Stream], degrees: Sequence[int]) -> "Sizes":
        """Return these sizes, those in calls anew by all traces where they are not the last trace's."""
        point, truth = next(reversed(traced.items()))
        called = None if self.calls is None else self.calls.at(point)
        told = truth.calls and called is not None and np.array_equal(called, truth.calls[-1].numbers)
        return self if told else replace(self, calls=_of_calls(traced, degrees))

    def _scratch_blocks(self, call: ScratchCall, numbers: Ints) -> Sequence[int]:
        key = call.func, call.form, numbers.tobytes()
        if key not in self.asked:
            self.asked[key] = self.kernels.scratch_blocks(call.func, rebuilt(call, numbers))
        return self.asked[key]


@dataclass(frozen=True)
class RepeatedStep:
    """A second step each of whose blocks has its like in the first, in the same order.

    So what such a step takes at another point follows from the first step there. ``begun`` events and
    ``blocks`` of ``whole`` are from before it; ``likes`` are the places of its blocks' likes among these.
    """

    whole: Stream
    begun: int
    blocks: int
    likes: Sequence[int]

    @classmethod
    def seen(cls, whole: Stream) -> "RepeatedStep | None":
        """Return the second step of a stream; None where it does not repeat the first."""
        begun = next(mark.entries for mark in whole.marks if mark.step)
        blocks = int(whole.born[:begun].sum())
        makings = list(_makings(whole))
        likes = _places(makings[blocks:], makings[:blocks])
        calls = {call.first: (call.func, call.count, call.form) for call in whole.scratch_calls}
        repeated = (calls[first] == calls.get(likes[first - blocks]) for first in calls if first >= blocks)
        return cls(whole, begun, blocks, likes) if -1 not in likes and all(repeated) else None

    def after(self, first: Stream) -> Stream | None:
        """Return a stream of one step with the second behind it; None where the first is not alike."""
        mine, its = (
            replace(stream, events=stream.events[: self.begun], blocks=stream.blocks[: self.blocks])
            for stream in (self.whole, first)
        )
        if not same_structure(mine, its):
            return None
        numbers = {call.first: call.numbers for call in first.scratch_calls}
        numbers |= {self.blocks + at: numbers[like] for at, like in enumerate(self.likes) if like in numbers}
        steps = self.whole.calls
        at = steps[1].places_in(steps[0]) if len(steps) > 1 and first.calls else None
        known = at is not None and steps[0].of.forms == first.calls[0].of.forms
        return replace(
            self.whole,
            calls=[steps[1].resized(first.calls[0].numbers[at])] if known else [],
            sizes=first.sizes[[*range(self.blocks), *self.likes]],
            scratch_calls=[replace(call, numbers=numbers[call.first]) for call in self.whole.scratch_calls],
            paged_bytes=first.paged_bytes,
            flops_known=False,
        )


def _of_calls(traced: dict[Point, Stream], degrees: Sequence[int]) -> Polynomials | None:
    """Return the sizes in calls of operators; None where the traces call others, or leave a choice."""
    last = [stream.calls[-1] for stream in traced.values() if stream.calls]
    if len(last) < len(traced) or any(calls.of.forms != last[0].of.forms for calls in last):
        return None
    return fitted(list(traced), np.stack([calls.numbers for calls in last]), degrees)


def _numbers(stream: Stream) -> Ints:
    """Return all that differs within a family: sizes but those of scratch blocks, paged bytes, arguments."""
    sizes = stream.sizes.copy()
    for call in stream.scratch_calls:
        sizes[call.first : call.first + call.count] = 0
    return np.concatenate([sizes, [stream.paged_bytes], *(call.numbers for call in stream.scratch_calls)])


def _arguments(stream: Stream) -> dict[int, range]:
    """Return where among a stream's numbers each scratch call's arguments are, by its first block."""
    ends = accumulate((len(call.numbers) for call in stream.scratch_calls), initial=len(stream.sizes) + 1)
    return {call.first: range(*part) for call, part in zip(stream.scratch_calls, pairwise(ends), strict=True)}


def _makings(stream: Stream) -> Iterator[tuple[object, ...]]:
    for block, size in zip(stream.blocks, stream.sizes.tolist(), strict=True):
        yield block.op, block.module, block.born_phase, block.recomputed, block.category, size


def _places(wanted: Iterable[object], offered: Iterable[object]) -> list[int]:
    """Return where each thing that is wanted is found among those offered, in their order; -1 where not."""
    left = enumerate(offered)
    return [next((place for place, one in left if one == each), -1) for each in wanted]


def same_structure(one: Stream, other: Stream) -> bool:
    """Tell whether two streams allocate and free by the same operators, in the same order."""
    return np.array_equal(one.events, other.events) and all(
        mine.op == its.op for mine, its in zip(one.blocks, other.blocks, strict=True)
    )
