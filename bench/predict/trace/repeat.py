"""Makes the stream of a deep model out of that of a shallow one, where its layers are seen to repeat.

A shallow trace has a first part, two periods of layers in the middle and a last part. If every event of
the second period has its like in the third, then any number of periods can be put between them; if not,
``LayersDifferError`` says so and nothing is made.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from bench.predict.trace.meta_ledger import NO_LAYER, Mark
from bench.predict.trace.stream import Ints, Stream, spans

FIRST, SECOND, THIRD, LAST = range(4)


class LayersDifferError(Exception):
    """The middle periods of a shallow trace are not alike; the message says where."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over the layers, upwards or downwards: the events of the second and of the third period."""

    second: range
    third: range

    @property
    def upwards(self) -> bool:
        """Whether the second period comes first."""
        return self.second.start < self.third.start

    @property
    def middle(self) -> int:
        """The event before which more periods are put in."""
        return min(self.second.stop, self.third.stop)


def deepen(stream: Stream, period: int, added: int) -> Stream:
    """Return the stream with ``added`` more periods of ``period`` layers between the second and the third.

    Raises ``LayersDifferError`` where the two middle periods do not behave alike.
    """
    if added == 0:
        return stream
    layers = stream.layer_of_entry
    groups = np.where(layers == NO_LAYER, NO_LAYER, np.minimum(layers // period, LAST))
    sweeps = list(_all_sweeps(groups, stream.marks))
    births = _Births.of(stream, sweeps)
    sweeps = sorted([*sweeps, *_freed_late(stream, sweeps, births)], key=lambda sweep: sweep.middle)
    events = _with_periods(stream, sweeps, births, added)
    return _described(stream, sweeps, births, events, period, added)


def _all_sweeps(groups: Ints, marks: Sequence[Mark]) -> Iterator[Sweep]:
    """Find the passes over the layers in each phase, given the part of the model each event belongs to."""
    for mark, part in spans(marks, len(groups)):
        if mark.phase in {"forward", "backward"}:
            yield from _single_sweep(groups, part)
        else:
            yield from _sweeps(groups, part)


def _single_sweep(groups: Ints, part: range) -> Iterator[Sweep]:
    """Find the one pass of a forward or backward phase: a part of the model begins where it is first seen.

    What is read of the layer before, in between, does not matter: it is as far from the cut in each layer.
    """
    seen = groups[part.start : part.stop]
    if not np.isin((SECOND, THIRD), seen).any():
        return
    firsts = [part.start + int(np.argmax(seen == group)) for group in range(LAST + 1)]
    first, second, third, last = firsts
    if firsts == sorted(firsts):
        yield Sweep(range(second, third), range(third, last))
    elif firsts == sorted(firsts, reverse=True):
        yield Sweep(range(second, first), range(third, second))
    else:
        raise LayersDifferError("the layers are not run one after the other")


def _sweeps(groups: Ints, part: range) -> Iterator[Sweep]:
    """Find the passes over lists of parameters, one after the other, upwards and downwards."""
    runs: list[tuple[int, int]] = []
    for position in part:
        group = int(groups[position])
        if group != NO_LAYER and (not runs or runs[-1][0] != group):
            runs.append((group, position))
    covered = 0
    for index in range(len(runs) - 2):
        order = [group for group, _ in runs[index : index + 3]]
        start, middle, end = (position for _, position in runs[index : index + 3])
        if order in ([SECOND, THIRD, LAST], [THIRD, SECOND, FIRST]):
            covered += 2
            passed = range(start, middle), range(middle, end)
            yield Sweep(*passed) if order[0] == SECOND else Sweep(*reversed(passed))
    if covered != sum(group in {SECOND, THIRD} for group, _ in runs):
        raise LayersDifferError(
            f"a list in events {part.start} to {part.stop} is not in the order of the layers"
        )


@dataclass(frozen=True, slots=True)
class _Births:
    """The births of the middle periods: of each block its place and period; of each place its two blocks."""

    place_of: dict[int, tuple[int, int]]
    second: Ints
    third: Ints

    @classmethod
    def of(cls, stream: Stream, sweeps: Sequence[Sweep]) -> "_Births":
        periods = [sweep.second for sweep in sweeps], [sweep.third for sweep in sweeps]
        places = (np.concatenate([np.array(part, dtype=np.int64) for part in parts]) for parts in periods)
        second, third = (stream.events[each[stream.born[each]]] for each in places)
        if len(second) != len(third) or not np.array_equal(stream.sizes[second], stream.sizes[third]):
            raise LayersDifferError("the layers' blocks differ in number or size")
        place_of = {int(block): (place, SECOND) for place, block in enumerate(second)}
        place_of |= {int(block): (place, THIRD) for place, block in enumerate(third)}
        return cls(place_of, second, third)

    def common(self, one: int, other: int) -> tuple[int, int]:
        """Return place and period of the block that two like events of the middle periods name.

        The period counts from the event's own: -1, 0 or 1.
        """
        in_second, in_third = self.place_of.get(one), self.place_of.get(other)
        if in_second and in_third and in_second == (in_third[0], SECOND) and in_third[1] == THIRD:
            return in_third[0], 0
        if in_second is None and in_third and in_third[1] == SECOND:
            return in_third[0], -1
        if in_third is None and in_second and in_second[1] == THIRD:
            return in_second[0], 1
        raise LayersDifferError(f"blocks {one} and {other} are not each other's like")


def _freed_late(stream: Stream, sweeps: Sequence[Sweep], births: _Births) -> Iterator[Sweep]:
    """Find where, in a pass, what the middle periods made is freed all at once, in their order.

    So end the casts that autocast keeps through a forward pass, and the inputs that int8 products keep.
    """
    parts = spans(stream.marks, len(stream.events))
    passed = {index for sweep in sweeps for index in (*sweep.second, *sweep.third)}
    within = [index for mark, part in parts if mark.phase in {"forward", "backward"} for index in part]
    freed = {i: births.place_of.get(int(stream.events[i])) for i in within if i not in passed}
    both = Counter(born[0] for born in freed.values() if born)  # places whose two blocks are
    periods = {index: born[1] for index, born in freed.items() if born and both[born[0]] > 1}
    for start in [index for index in periods if index - 1 not in periods]:
        stop = next(index for index in count(start) if index not in periods)
        middle = next((index for index in range(start, stop) if periods[index] != periods[start]), stop)
        two = range(start, middle), range(middle, stop)
        yield Sweep(*two) if periods[start] == SECOND else Sweep(*reversed(two))


def _repeated(stream: Stream, sweep: Sweep, births: _Births) -> Ints:
    """Return each event's block as its place among its period's births, and period (see ``common``)."""
    if len(sweep.second) != len(sweep.third):
        raise LayersDifferError(f"a pass has {len(sweep.second)} events, then {len(sweep.third)}")
    found = []
    for one, other in zip(sweep.second, sweep.third, strict=True):
        if stream.born[one] != stream.born[other]:
            raise LayersDifferError(f"event {one} is a birth or a death, event {other} is not")
        found.append(births.common(int(stream.events[one]), int(stream.events[other])))
    return np.array(found, dtype=np.int64).reshape(-1, 2).T


def _with_periods(stream: Stream, sweeps: Sequence[Sweep], births: _Births, added: int) -> Ints:
    def number(places: Ints, periods: int) -> Ints:
        """Return the blocks at these places of a period, counted in the deep model."""
        if periods == SECOND:
            return births.second[places]
        if periods == THIRD + added:
            return births.third[places]
        return len(stream.sizes) + (periods - THIRD) * len(births.second) + places

    events = stream.events.copy()
    pieces: list[Ints] = []
    kept = 0
    templates = [_repeated(stream, sweep, births) for sweep in sweeps]
    for sweep, (place, step) in zip(sweeps, templates, strict=True):
        second, third = list(sweep.second), list(sweep.third)
        events[second] = np.where(step == 1, number(place, THIRD), events[second])
        events[third] = np.where(step == -1, number(place, SECOND + added), events[third])
        pieces.append(events[kept : sweep.middle])
        kept = sweep.middle
        inserted = range(THIRD, THIRD + added)
        for index in inserted if sweep.upwards else reversed(inserted):
            around = [number(place, index + offset) for offset in (-1, 0, 1)]
            pieces.append(np.choose(step + 1, around))
    return np.concatenate([*pieces, events[kept:]])


def _described(  # noqa: PLR0917 - the pieces that the new stream is made of
    stream: Stream, sweeps: Sequence[Sweep], births: _Births, events: Ints, period: int, added: int
) -> Stream:
    """Return the deep stream with what is known of each block and moment."""
    repeated = np.tile(births.second, added)
    deeper = np.repeat(np.arange(1, added + 1), len(births.second)) * period
    layers = np.where(stream.layers // period >= THIRD, stream.layers + added * period, stream.layers)
    copied, sizes = layers[repeated], np.concatenate([stream.sizes, stream.sizes[repeated]])
    _require_alike(events, births, added, len(sizes))
    born = np.zeros(len(events), dtype=np.bool_)
    born[np.unique(events, return_index=True)[1]] = True
    middles = np.array([sweep.middle for sweep in sweeps])
    lengths = np.array([len(sweep.second) * added for sweep in sweeps])

    def moved(position: int) -> int:
        return position + int(lengths[middles < position].sum())

    return Stream(
        events=events,
        born=born,
        sizes=sizes,
        kinds=np.concatenate([stream.kinds, stream.kinds[repeated]]),
        layers=np.concatenate([layers, np.where(copied == NO_LAYER, NO_LAYER, copied + deeper)]),
        blocks=stream.blocks,
        marks=[Mark(mark.phase, mark.step, moved(mark.entries)) for mark in stream.marks],
        cache_emptied_at=[moved(position) for position in stream.cache_emptied_at],
        layer_of_entry=np.zeros(0, dtype=np.int64),
        paged_bytes=stream.paged_bytes,
        reached=stream.reached,
        computed=_computed(stream, sweeps, added),
        flops_known=stream.flops_known,
        calls=stream.calls,
    )


def _computed(stream: Stream, sweeps: Sequence[Sweep], added: int) -> Ints:
    """Return what the deep stream computes before each event: each period as much as the second."""
    steps = np.diff(stream.computed, axis=0, prepend=0)
    pieces, kept = [], 0
    for sweep in sweeps:
        # Between a period's events, and from its last to the next one's first.
        one = slice(sweep.second.start + 1, sweep.second.stop + 1)
        pieces += [steps[kept : sweep.middle + 1], np.tile(steps[one], (added, 1))]
        kept = sweep.middle + 1
    whole: Ints = np.concatenate([*pieces, steps[kept:]]).cumsum(axis=0)
    return whole


def _require_alike(events: Ints, births: _Births, added: int, blocks: int) -> None:
    """Insist that a block dies in each period or in none."""
    appearances = np.bincount(events, minlength=blocks)
    periods = appearances[-added * len(births.second) :].reshape(added, -1)
    expected = appearances[births.second]
    if not (np.array_equal(appearances[births.third], expected) and (periods == expected).all()):
        raise LayersDifferError("a block dies in one period and lives on in another")
