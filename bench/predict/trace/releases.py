"""What a pool of segments gives back to the driver, when memory is short or garbage is collected."""

from bench.predict.allocator.compiled import compiled
from bench.predict.allocator.pools import (
    COUNTS,
    FREE,
    FREED_AT,
    RANGE_ENDS,
    RANGE_STARTS,
    RANGES,
    REQUESTS,
    RESERVED,
    SIZES,
    STARTS,
    UNLIMITED,
    Numbers,
    Rules,
    Table,
    best_fit,
    remove,
    starting_at,
)


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
