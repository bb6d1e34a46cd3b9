"""One pool of CUDA's caching allocator: free blocks chosen, split and merged; segments added and released.

Addresses are numbers of our own: each segment lies beyond the last one, with a gap, so that blocks of
different segments never touch. The pool that grows by pages is in ``expandable.py``. A plan of many cells
replays tens of millions of events, so all this is compiled; a pool is one array, its rows named below.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.metrics import MIB
from bench.predict.allocator.compiled import compiled
from bench.predict.allocator.settings import LARGE_REQUEST_BYTES, AllocatorSettings

SMALL_REQUEST_BYTES = MIB  # kSmallSize: up to here a request goes to the small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
UNLIMITED = 1 << 62
"""More bytes than there are: where a limit is not set."""
HIGHEST_ADDRESS = (1 << 48) - 1
_GRAIN_BYTES = 2 * MIB  # kRoundLarge
_MINIMUM_BYTES = 512  # kMinBlockSize

Numbers = NDArray[np.int64]
Table = NDArray[np.int64]
Block = tuple[int, int]
"""Address and bytes; 0 bytes where there is none."""

STARTS, SIZES, FREED_AT, RANGE_STARTS, RANGE_ENDS, COUNTS = range(6)
"""Rows of a pool.

Its free blocks in no order: start, size, and the number of requests when it became free. Its ranges: the
segments in order of age. Below these rows, from ``GAPS`` on, an expandable pool has a second such table, of
addresses without memory, which are split and merged as free blocks are.
"""
GAPS = COUNTS + 1
FREE, RANGES, FRONTIER, REQUESTS = range(4)
"""Columns of the last row: free blocks, ranges, the end of the addresses given out, requests so far."""
LIMIT, ASCENDING, RESERVED, ACQUIRED, RETRIES = range(5)
"""Columns of the device: bytes it can give, whether new segments get rising addresses, bytes it has given,
how often, and how often only after all that was cached had been released."""


class Rules(NamedTuple):
    """The settings as far as they concern one pool; bytes, ``UNLIMITED`` where there is no limit."""

    small: bool
    expandable: bool
    segment_bytes: int
    max_split_bytes: int
    non_split_rounding_bytes: int


def rules_of(settings: AllocatorSettings, *, small: bool) -> Rules:
    """Return what the settings say of the pool of small or of large requests."""
    largest = settings.max_split_bytes
    return Rules(
        small=small,
        expandable=settings.expandable_segments,
        segment_bytes=SMALL_SEGMENT_BYTES if small else settings.large_segment_bytes,
        max_split_bytes=UNLIMITED if largest is None else largest,
        non_split_rounding_bytes=settings.non_split_rounding_bytes,
    )


def device_of(limit_bytes: int | None, *, ascending: bool = True) -> Numbers:
    """Return a driver that has given nothing yet and can give so much; None for any amount."""
    return np.array([UNLIMITED if limit_bytes is None else limit_bytes, ascending, 0, 0, 0], dtype=np.int64)


def pool_of(rules: Rules, blocks: int) -> Table:
    """Return a pool without memory, with room for what so many blocks can leave free.

    Free blocks lie between live ones: in each segment at most one more than there are live blocks.
    """
    pool = np.empty((GAPS * (1 + rules.expandable), 2 * blocks + 4), dtype=np.int64)
    pool[COUNTS, [FREE, RANGES, FRONTIER, REQUESTS]] = 0, 0, HIGHEST_ADDRESS // 2 + 1, 0
    if rules.expandable:
        pool[GAPS + COUNTS, [FREE, REQUESTS]] = 1, 0
        pool[[GAPS + STARTS, GAPS + SIZES], 0] = 0, HIGHEST_ADDRESS
    return pool


@compiled
def acquire(device: Numbers, size: int) -> bool:
    """Take memory from the driver; False where there is not enough."""
    if device[RESERVED] + size > device[LIMIT]:
        return False
    device[RESERVED] += size
    device[ACQUIRED] += 1
    return True


@compiled
def starting_at(pool: Table, address: int) -> int:
    """Return the index of the free block that starts at an address; -1 where none does."""
    found = -1
    for index in range(pool[COUNTS, FREE]):  # to the end: without an exit many are compared at once
        found = max(found, index if pool[STARTS, index] == address else -1)
    return found


@compiled
def ending_at(pool: Table, address: int) -> int:
    """Return the index of the free block that ends at an address; -1 where none does."""
    found = -1
    for index in range(pool[COUNTS, FREE]):
        found = max(found, index if pool[STARTS, index] + pool[SIZES, index] == address else -1)
    return found


@compiled
def best_fit(pool: Table, size: int) -> int:
    """Return the index of the lowest of the smallest free blocks that hold a request; -1 where none does.

    A few hundred blocks are free, and these loops pass over them faster than an order of them is kept.
    """
    least = lowest = UNLIMITED
    for index in range(pool[COUNTS, FREE]):
        found = pool[SIZES, index]
        least = min(least, found if found >= size else UNLIMITED)
    for index in range(pool[COUNTS, FREE]):
        lowest = min(lowest, pool[STARTS, index] if pool[SIZES, index] == least else UNLIMITED)
    return starting_at(pool, lowest)


@compiled
def add(pool: Table, start: int, size: int) -> None:
    """Put in a free block that has no free neighbour."""
    index = pool[COUNTS, FREE]
    pool[STARTS, index], pool[SIZES, index], pool[FREED_AT, index] = start, size, pool[COUNTS, REQUESTS]
    pool[COUNTS, FREE] += 1


@compiled
def remove(pool: Table, index: int) -> None:
    """Take a free block out; the last one takes its index."""
    pool[COUNTS, FREE] -= 1
    last = pool[COUNTS, FREE]
    pool[STARTS, index], pool[SIZES, index] = pool[STARTS, last], pool[SIZES, last]
    pool[FREED_AT, index] = pool[FREED_AT, last]


@compiled
def give(pool: Table, start: int, size: int) -> None:
    """Take back a block, merged with its free neighbours: free_block()."""
    after = starting_at(pool, start + size)
    if after >= 0:
        size += pool[SIZES, after]
        remove(pool, after)
    before = ending_at(pool, start)
    if before >= 0:
        start = pool[STARTS, before]
        size += pool[SIZES, before]
        remove(pool, before)
    add(pool, start, size)


@compiled
def may_serve(rules: Rules, found: int, size: int) -> bool:
    """Keep oversize blocks for oversize requests, and only for those nearly as large."""
    if size < rules.max_split_bytes:
        return found < rules.max_split_bytes
    return found < size + rules.non_split_rounding_bytes


@compiled
def _is_split(rules: Rules, size: int, rest: int) -> bool:
    """Tell whether the rest that a request leaves of a block is cut off: should_split()."""
    if rules.small:
        return rest >= _MINIMUM_BYTES
    return rest > SMALL_REQUEST_BYTES and size < rules.max_split_bytes


@compiled
def take_from_segments(pool: Table, rules: Rules, size: int) -> Block:
    """Best fit by (size, address), the rest split off: get_free_block()."""
    index = best_fit(pool, size)
    if index < 0 or not may_serve(rules, pool[SIZES, index], size):
        return 0, 0
    start, found = pool[STARTS, index], pool[SIZES, index]
    if _is_split(rules, size, found - size):
        pool[STARTS, index] += size
        pool[SIZES, index] -= size
        return start, size
    remove(pool, index)
    return start, found


@compiled
def add_segment(pool: Table, rules: Rules, device: Numbers, size: int) -> Block:
    """Allocate a segment: 2 MiB, 20 MiB, or the request rounded to 2 MiB (get_allocation_size())."""
    segment = rules.segment_bytes if size < LARGE_REQUEST_BYTES else _up(size, _GRAIN_BYTES)
    if not acquire(device, segment):
        return 0, 0
    start = _start_of_segment(pool, device, _up(segment, _GRAIN_BYTES))
    index = pool[COUNTS, RANGES]
    pool[RANGE_STARTS, index], pool[RANGE_ENDS, index] = start, start + segment
    pool[COUNTS, RANGES] += 1
    if _is_split(rules, size, segment - size):
        add(pool, start + size, segment - size)
        return start, size
    return start, segment


@compiled
def _start_of_segment(pool: Table, device: Numbers, extent: int) -> int:
    """Return the address of a new segment, with a gap to the last one."""
    frontier = pool[COUNTS, FRONTIER]
    if device[ASCENDING]:
        pool[COUNTS, FRONTIER] += extent + _GRAIN_BYTES
        return int(frontier)
    pool[COUNTS, FRONTIER] -= extent + _GRAIN_BYTES
    return int(frontier - extent)


@compiled
def _up(size: int, grain: int) -> int:
    return -(-size // grain) * grain


@compiled
def release_segments(pool: Table, device: Numbers) -> None:
    """Free every segment that is one free block: release_blocks()."""
    for segment in range(pool[COUNTS, RANGES] - 1, -1, -1):
        if _index_if_whole(pool, segment) >= 0:
            _release(pool, device, segment)


@compiled
def release_oversize(pool: Table, rules: Rules, device: Numbers, size: int) -> bool:
    """Free the smallest oversize block that suffices, or several from the largest down; tell whether it did.

    release_available_cached_blocks(); no part of an oversize block is ever split off. torch releases pages,
    never an oversize block, of an expandable segment.
    """
    if rules.max_split_bytes == UNLIMITED or rules.expandable:
        return False
    needed = max(size, rules.max_split_bytes)
    index = best_fit(pool, needed)
    if index >= 0:
        _release(pool, device, _segment_at(pool, pool[STARTS, index]))
        return True
    released = 0
    while released < needed:
        index = _largest(pool)
        if index < 0 or pool[SIZES, index] < rules.max_split_bytes:
            break
        released += _release(pool, device, _segment_at(pool, pool[STARTS, index]))
    return released >= needed


@compiled
def _largest(pool: Table) -> int:
    """Return the index of the largest free block, of several the highest; -1 where none is free."""
    largest = -1
    for index in range(pool[COUNTS, FREE]):
        if largest < 0 or (pool[SIZES, index], pool[STARTS, index]) > (
            pool[SIZES, largest],
            pool[STARTS, largest],
        ):
            largest = index
    return largest


@compiled
def collect(pool: Table, rules: Rules, device: Numbers, excess: int) -> None:
    """Free whole blocks older than the average one, until so many bytes are back.

    garbage_collect_cached_blocks(). Only whole segments are collected, and an expandable one is never whole.
    """
    reclaimed = 0
    while reclaimed < excess and not rules.expandable:
        ages = whole = 0
        for segment in range(pool[COUNTS, RANGES]):
            index = _index_if_whole(pool, segment)
            if index >= 0:
                ages += pool[COUNTS, REQUESTS] - pool[FREED_AT, index]
                whole += 1
        if not whole:
            return
        for segment in range(pool[COUNTS, RANGES] - 1, -1, -1):
            index = _index_if_whole(pool, segment)
            if index >= 0 and (pool[COUNTS, REQUESTS] - pool[FREED_AT, index]) * whole >= ages:
                reclaimed += _release(pool, device, segment)


@compiled
def _index_if_whole(pool: Table, segment: int) -> int:
    """Return the index of the free block that is all of a segment; -1 where some of it is live."""
    start, end = pool[RANGE_STARTS, segment], pool[RANGE_ENDS, segment]
    index = starting_at(pool, start)
    return index if index >= 0 and start + pool[SIZES, index] == end else -1


@compiled
def _segment_at(pool: Table, start: int) -> int:
    segment = 0
    while pool[RANGE_STARTS, segment] != start:
        segment += 1
    return segment


@compiled
def _release(pool: Table, device: Numbers, segment: int) -> int:
    """Give one whole segment back; return its bytes."""
    start = pool[RANGE_STARTS, segment]
    size = pool[RANGE_ENDS, segment] - start
    remove(pool, starting_at(pool, start))
    device[RESERVED] -= size
    pool[COUNTS, RANGES] -= 1
    for index in range(segment, pool[COUNTS, RANGES]):
        pool[RANGE_STARTS, index] = pool[RANGE_STARTS, index + 1]
        pool[RANGE_ENDS, index] = pool[RANGE_ENDS, index + 1]
    return int(size)
