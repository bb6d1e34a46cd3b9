"""Makes the stream of a deep model out of that of a shallow one, where its layers are seen to repeat.

A shallow trace has a first part, two periods of layers in the middle and a last part. If every event of
the second period has its like in the third, then any number of periods can be put between them; if not,
``LayersDifferError`` says so and nothing is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.predict.trace.meta_ledger import NO_LAYER, Mark
from bench.predict.trace.stream import Ints, Stream

FIRST, SECOND, THIRD, LAST = range(4)


class LayersDifferError(Exception):
    """The middle periods of a shallow trace are not alike; the message says where."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over the layers, upwards or downwards: the events [start, middle) and [middle, end)."""

    start: int
    middle: int
    end: int
    upwards: bool

    @property
    def second(self) -> range:
        """The events of the second period."""
        return range(self.start, self.middle) if self.upwards else range(self.middle, self.end)

    @property
    def third(self) -> range:
        """The events of the third period."""
        return range(self.middle, self.end) if self.upwards else range(self.start, self.middle)


@dataclass(frozen=True, slots=True)
class _Template:
    """What is repeated.

    For each event of a period its block's place among the period's births, and in which period that block
    was born, counted from the event's own (-1, 0 or 1); and where each pass ends.
    """

    place: Ints
    step: Ints
    sweep_ends: Sequence[int]


def depth_traced(layers: int, period: int) -> int:
    """Return how many layers a shallow trace needs, or ``layers`` where nothing would be saved."""
    needed = 4 * period + layers % period
    return min(needed, layers)


def deepen(stream: Stream, period: int, added: int) -> Stream:
    """Return the stream with ``added`` more periods of ``period`` layers between the second and the third.

    Raises ``LayersDifferError`` where the two middle periods do not behave alike.
    """
    if added == 0:
        return stream
    groups = _groups(stream.layer_of_entry, period)
    sweeps = list(_all_sweeps(groups, stream.marks))
    births = _births(stream, sweeps)
    template = _template(stream, sweeps, births)
    return _built(stream, sweeps, births, template, period, added)


def _groups(layers: Ints, period: int) -> Ints:
    """Return the part of the model that each event belongs to."""
    return np.where(layers == NO_LAYER, NO_LAYER, np.minimum(layers // period, LAST))


def _all_sweeps(groups: Ints, marks: Sequence[Mark]) -> Iterator[Sweep]:
    """Find the passes over the layers in each phase."""
    starts = [mark.entries for mark in marks]
    for mark, start, end in zip(marks, starts, [*starts[1:], len(groups)], strict=True):
        if mark.phase in {"forward", "backward"}:
            yield from _single_sweep(groups, range(start, end))
        else:
            yield from _sweeps(groups, range(start, end))


def _single_sweep(groups: Ints, part: range) -> Iterator[Sweep]:
    """Find the one pass of a forward or backward phase: a part of the model begins where it is first seen.

    What is read of the layer before, in between, does not matter: it is as far from the cut in each layer.
    """
    seen = groups[part.start : part.stop]
    if not np.isin((SECOND, THIRD), seen).any():
        return
    firsts = [part.start + int(np.argmax(seen == group)) for group in range(LAST + 1)]
    if firsts == sorted(firsts):
        yield Sweep(firsts[SECOND], firsts[THIRD], firsts[LAST], upwards=True)
    elif firsts == sorted(firsts, reverse=True):
        yield Sweep(firsts[THIRD], firsts[SECOND], firsts[FIRST], upwards=False)
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
            yield Sweep(start, middle, end, upwards=order[0] == SECOND)
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


def _births(stream: Stream, sweeps: Sequence[Sweep]) -> _Births:
    numbers = {}
    for period, name in ((SECOND, "second"), (THIRD, "third")):
        positions = np.concatenate([np.array(getattr(sweep, name), dtype=np.int64) for sweep in sweeps])
        numbers[period] = stream.events[positions[stream.born[positions]]]
    second, third = numbers[SECOND], numbers[THIRD]
    if len(second) != len(third) or not np.array_equal(stream.sizes[second], stream.sizes[third]):
        raise LayersDifferError("the layers' blocks differ in number or size")
    place_of = {int(block): (place, SECOND) for place, block in enumerate(second)}
    place_of |= {int(block): (place, THIRD) for place, block in enumerate(third)}
    return _Births(place_of, second, third)


def _template(stream: Stream, sweeps: Sequence[Sweep], births: _Births) -> _Template:
    places: list[int] = []
    steps: list[int] = []
    ends: list[int] = []
    for sweep in sweeps:
        if len(sweep.second) != len(sweep.third):
            raise LayersDifferError(f"a pass has {len(sweep.second)} events, then {len(sweep.third)}")
        for one, other in zip(sweep.second, sweep.third, strict=True):
            if stream.born[one] != stream.born[other]:
                raise LayersDifferError(f"event {one} is a birth or a death, event {other} is not")
            place, step = _common(births, int(stream.events[one]), int(stream.events[other]))
            places.append(place)
            steps.append(step)
        ends.append(len(places))
    return _Template(np.array(places), np.array(steps), ends)


def _common(births: _Births, one: int, other: int) -> tuple[int, int]:
    """Return the place and relative period of the block that two like events of the middle periods name."""
    in_second, in_third = births.place_of.get(one), births.place_of.get(other)
    if in_second and in_third and in_second == (in_third[0], SECOND) and in_third[1] == THIRD:
        return in_third[0], 0
    if in_second is None and in_third and in_third[1] == SECOND:
        return in_third[0], -1
    if in_third is None and in_second and in_second[1] == THIRD:
        return in_second[0], 1
    raise LayersDifferError(f"blocks {one} and {other} are not each other's like")


def _built(  # noqa: PLR0913, PLR0917 - the pieces that the new stream is made of
    stream: Stream, sweeps: Sequence[Sweep], births: _Births, template: _Template, period: int, added: int
) -> Stream:
    """Put the periods in."""
    blocks = len(stream.sizes)

    def number(places: Ints, periods: int) -> Ints:
        """Return the blocks at these places of a period, counted in the deep model."""
        if periods == SECOND:
            return births.second[places]
        if periods == THIRD + added:
            return births.third[places]
        return blocks + (periods - THIRD) * len(births.second) + places

    events = stream.events.copy()
    pieces: list[Ints] = []
    kept = taken = 0
    for sweep, template_end in zip(sweeps, template.sweep_ends, strict=True):
        place, step = template.place[taken:template_end], template.step[taken:template_end]
        taken = template_end
        after, before = step == 1, step == -1
        events[list(sweep.second)] = np.where(after, number(place, THIRD), events[list(sweep.second)])
        events[list(sweep.third)] = np.where(before, number(place, SECOND + added), events[list(sweep.third)])
        pieces.append(events[kept : sweep.middle])
        kept = sweep.middle
        inserted = range(THIRD, THIRD + added)
        for index in inserted if sweep.upwards else reversed(inserted):
            around = [number(place, index + offset) for offset in (-1, 0, 1)]
            pieces.append(np.choose(step + 1, around))
    pieces.append(events[kept:])
    return _described(stream, sweeps, births, np.concatenate(pieces), period, added)


def _described(  # noqa: PLR0913, PLR0917 - the same
    stream: Stream, sweeps: Sequence[Sweep], births: _Births, events: Ints, period: int, added: int
) -> Stream:
    """Return the deep stream with what is known of each block and moment."""
    repeated = np.tile(births.second, added)
    deeper = np.repeat(np.arange(1, added + 1), len(births.second)) * period
    layers = np.where(stream.layers // period >= THIRD, stream.layers + added * period, stream.layers)
    sizes = np.concatenate([stream.sizes, stream.sizes[repeated]])
    _require_alike(events, births, added, len(sizes))
    middles = np.array([sweep.middle for sweep in sweeps])
    lengths = np.array([len(sweep.second) * added for sweep in sweeps])

    def moved(position: int) -> int:
        return position + int(lengths[middles < position].sum())

    return Stream(
        events=events,
        born=_first_appearances(events),
        sizes=sizes,
        kinds=np.concatenate([stream.kinds, stream.kinds[repeated]]),
        layers=np.concatenate(
            [layers, np.where(layers[repeated] == NO_LAYER, NO_LAYER, layers[repeated] + deeper)]
        ),
        blocks=stream.blocks,
        marks=[Mark(mark.phase, mark.step, moved(mark.entries)) for mark in stream.marks],
        cache_emptied_at=[moved(position) for position in stream.cache_emptied_at],
        layer_of_entry=np.zeros(0, dtype=np.int64),
        paged_bytes=stream.paged_bytes,
    )


def _first_appearances(events: Ints) -> NDArray[np.bool_]:
    born = np.zeros(len(events), dtype=np.bool_)
    born[np.unique(events, return_index=True)[1]] = True
    return born


def _require_alike(events: Ints, births: _Births, added: int, blocks: int) -> None:
    """Insist that a block dies in each period or in none."""
    appearances = np.bincount(events, minlength=blocks)
    periods = appearances[-added * len(births.second) :].reshape(added, -1)
    expected = appearances[births.second]
    if not (np.array_equal(appearances[births.third], expected) and (periods == expected).all()):
        raise LayersDifferError("a block dies in one period and lives on in another")
