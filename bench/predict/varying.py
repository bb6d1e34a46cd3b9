"""What is reserved where batches differ in length: steps over several lengths, replayed in several orders.

A block that a short batch leaves behind is too small for the next longer one, and one of a long batch is
cut up by shorter ones, so more is reserved than any single batch needs. A step of each length is traced once;
as its blocks take the place of the last step's in the same order, steps can then follow each other in any.
"""

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.errors import UntraceableError
from bench.predict.allocator.pools import Numbers
from bench.predict.allocator.replay import EMPTY_CACHE, replay
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.trace.depth import depth_of
from bench.predict.trace.repeat import LayersDifferError, deepen
from bench.predict.trace.stream import Ints, Stream
from bench.predict.trace.trace import Tracer
from bench.records.predictions import Prediction
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.scenario.types import ScriptData, SyntheticData
from bench.training.rows.data import spread_lengths

TRACED_LENGTHS = 8
SHUFFLES = 6
MOST_STEPS = 64  # replayed in each shuffled order
_LIMITS = 9  # of memory, tried between what equal batches and what varied ones reserve


def lengths_vary(cell: Cell) -> bool:
    if isinstance(cell.data, SyntheticData):
        return cell.data.lengths == "vary"
    return cell.training.batching == "pad-to-longest" and not isinstance(cell.data, ScriptData)


def steps_that_matter(cell: Cell) -> int:
    """Return after how many steps nothing new comes: those between two empty_cache(), or the window's."""
    window = 1 + cell.window.warmup_steps + cell.window.measured_steps
    return min(cell.training.empty_cache_steps or window, MOST_STEPS)


_LENGTHS_NOT_REPLAYED = Caveat(
    code="lengths-not-replayed",
    message="Batches differ in length, but the reserved band is replayed from equal ones: the allocator may "
    "keep more in reserve than it says.",
)


def widened(prediction: Prediction, cell: Cell, tracer: Tracer, settings: AllocatorSettings) -> Prediction:
    """Return a prediction whose band covers batches of several lengths, where the cell has such."""
    low, high = prediction.reserved_low_bytes, prediction.reserved_high_bytes
    if low is None or high is None or not lengths_vary(cell):
        return prediction
    varied = varied_range(cell, tracer, settings, high) if cell.loop.driver == "window" else None
    if varied is None:
        return _with(prediction, _LENGTHS_NOT_REPLAYED)
    emptied, steps = cell.training.empty_cache_steps, steps_that_matter(cell)
    longer = f"the cache is emptied every {emptied}." if emptied else "in more steps more may be reserved."
    caveat = Caveat(
        code="lengths-vary",
        message="Batches differ in length: the reserved band reaches from the tensors of the longest to the "
        f"highest of replays of lengths from a quarter of it to the whole, rising and in {SHUFFLES} other "
        f"orders of {steps} steps; {longer}",
    )
    changed = {
        "reserved_low_bytes": min(low, prediction.allocated_peak_bytes, varied.low_bytes),
        "reserved_high_bytes": max(high, varied.high_bytes),
        "sufficient_bytes": max(high, varied.sufficient_bytes),
    }
    return _with(prediction, caveat, **changed)


def _with(prediction: Prediction, caveat: Caveat, **changed: int | None) -> Prediction:
    return prediction.model_copy(update={"caveats": (*prediction.caveats, caveat), **changed})


@dataclass(frozen=True, kw_only=True)
class VariedRange:
    """The least that is allocated at the longest batch, and the most that is reserved in any order.

    ``sufficient_bytes`` is a limit within which all orders run, by giving back what is only cached.
    """

    low_bytes: int
    high_bytes: int
    sufficient_bytes: int


def varied_range(
    cell: Cell, tracer: Tracer, settings: AllocatorSettings, equal_bytes: int
) -> VariedRange | None:
    """Return what steps over several lengths reserve; None where they fit in no other order than traced.

    ``equal_bytes`` is what steps over the longest alone do: no less suffices.
    """
    longest = cell.training.sequence_length
    lengths = sorted({*spread_lengths(longest, TRACED_LENGTHS)})
    try:
        steps = _steps(_deep(cell, tracer, [lengths[0], *lengths, lengths[0]]))
    except UntraceableError:  # at one of the lengths
        steps = None
    if steps is None:
        return None
    before, *of_lengths = steps
    orders = [
        _in_order(before, [of_lengths[index] for index in order])
        for order in _orders(lengths, longest, steps_that_matter(cell))
    ]
    replays = [replay(*order, settings) for order in orders]
    high = max(one.reserved_peak_bytes for one in replays)

    def runs(limit_bytes: int) -> bool:
        limited = (replay(*order, settings, capacity_bytes=limit_bytes) for order in orders)
        return all(one.out_of_memory is None for one in limited)

    tried = np.linspace(min(equal_bytes, high), high, _LIMITS, dtype=np.int64).tolist()
    return VariedRange(
        low_bytes=min(one.allocated_peak_bytes for one in replays),
        high_bytes=high,
        sufficient_bytes=tried[bisect_left(tried, x=True, hi=_LIMITS - 1, key=runs)],
    )


def _deep(cell: Cell, tracer: Tracer, lengths: Sequence[int]) -> Stream:
    """Trace a step of each length at full depth."""
    depth = depth_of(cell, tracer.config)
    if depth is not None:
        try:
            shallow = tracer.trace_lengths(cell, lengths, depth)
            return deepen(shallow, depth.period, depth.periods_added)
        except LayersDifferError:
            pass
    return tracer.trace_lengths(cell, lengths)


def _orders(lengths: Sequence[int], longest: int, steps: int) -> Iterator[list[int]]:
    """Yield which of the rising lengths each step has: all of them rising, then even spreads in any order.

    Rising is the worst that is known: nothing that a step leaves is large enough for the next.
    """
    yield list(range(len(lengths)))
    drawn = np.searchsorted(lengths, spread_lengths(longest, steps)).tolist()
    for seed in range(SHUFFLES):
        order = list(drawn)
        random.Random(seed).shuffle(order)
        yield order


@dataclass(frozen=True)
class _Step:
    """The events of one step, or of all before the second.

    A number from 0 on is a block of its own, by its place in ``sizes``; -1 is the first block that the step
    before left, -2 the next. ``left`` are its own that the next step ends.
    """

    events: Ints
    sizes: Ints
    left: Ints


def _steps(stream: Stream) -> list[_Step] | None:
    """Cut a stream into all until its first step is over, and each later step; None where they are not alike.

    They are where each ends what the last one left, and all leave as many blocks, made by the same operators.
    What a step leaves is what the next one ends, so the last is left out.
    """
    last = stream.marks[-1].step
    starts = [next(mark.entries for mark in stream.marks if mark.step == step) for step in range(1, last + 1)]
    bounds = [0, *starts, len(stream.events)]
    born_at = np.zeros(len(stream.sizes), dtype=np.int64)
    born_at[stream.events[stream.born]] = np.flatnonzero(stream.born)
    parts: list[tuple[Ints, Ints, Ints]] = []  # events, its own blocks, those of the step before
    for start, stop in pairwise(bounds):
        events = stream.events[start:stop]
        blocks = np.unique(events)
        blocks = blocks[np.argsort(born_at[blocks])]
        fresh = born_at[blocks] >= start
        parts.append((events, blocks[fresh], blocks[~fresh]))
    ended = [inherited for _, _, inherited in parts[1:]]
    found: list[_Step] = []
    for (events, own, inherited), left in zip(parts[:-1], ended, strict=True):
        if not np.isin(left, own).all() or _operators(stream, left) != _operators(stream, ended[0]):
            return None
        local = np.zeros(len(stream.sizes), dtype=np.int64)
        local[own], local[inherited] = np.arange(len(own)), -1 - np.arange(len(inherited))
        numbers = local[events]
        if not found:
            emptied = np.array([at for at in stream.cache_emptied_at if at < len(events)], dtype=np.int64)
            numbers = np.insert(numbers, emptied, _EMPTIED)
        found.append(_Step(numbers, stream.sizes[own], local[left]))
    return found


_EMPTIED = np.iinfo(np.int64).min


def _operators(stream: Stream, blocks: Ints) -> list[str]:
    return [stream.blocks[kind].op for kind in stream.kinds[blocks].tolist()]


def _in_order(before: _Step, steps: Sequence[_Step]) -> tuple[Ints, Ints]:
    """Return events and sizes, as a replay takes them, of steps that follow each other."""
    events = [np.where(before.events == _EMPTIED, EMPTY_CACHE, before.events)]
    sizes, left, count = [before.sizes], before.left, len(before.sizes)
    for step in steps:
        inherited = left[-1 - np.minimum(step.events, -1)] if len(left) else step.events
        events.append(np.where(step.events >= 0, step.events + count, inherited))
        sizes.append(step.sizes)
        left = step.left + count
        count += len(step.sizes)
    return np.concatenate(events), np.concatenate(sizes)


_TRIES = 6
_WORTH_TRYING = 0.02  # of what is allocated: a smaller gap to what is reserved tells nothing


def insufficient_bytes(
    events: Numbers, sizes: Numbers, settings: AllocatorSettings, allocated_bytes: int, reserved_bytes: int
) -> int | None:
    """Return a limit under which a replay runs out of memory; None where that is not tried or none was found.

    It lies between what is allocated at the peak and what is reserved without any limit: pieces of cached
    segments that are in use cannot be given back.
    """
    if reserved_bytes - allocated_bytes < allocated_bytes * _WORTH_TRYING:
        return None
    low, high, found = allocated_bytes, reserved_bytes, None
    for _ in range(_TRIES):
        limit = (low + high) // 2
        if replay(events, sizes, settings, capacity_bytes=limit).out_of_memory is None:
            high = limit
        else:
            low = found = limit
    return found
