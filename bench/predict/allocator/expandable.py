"""One pool of CUDA's caching allocator under expandable_segments:True: a segment that grows by pages.

torch bounds the segment's addresses at 9/8 of the card's memory and starts another beyond; here they are
unbounded. The rules are those of c10/cuda/CUDACachingAllocator.cpp.
"""

from bench.predict.allocator.compiled import compiled
from bench.predict.allocator.pools import (
    COUNTS,
    FREE,
    GAPS,
    RESERVED,
    SIZES,
    STARTS,
    UNLIMITED,
    Block,
    Numbers,
    Rules,
    Table,
    acquire,
    add,
    best_fit,
    ending_at,
    give,
    may_serve,
    remove,
    starting_at,
)


@compiled
def take_from_pages(pool: Table, rules: Rules, size: int) -> Block:
    """Best fit, where a block before unmapped addresses counts as all it could grow to."""
    index = best_fit(pool, size)
    if index < 0:
        return 0, 0
    following = _next_fit(pool, index)
    while following >= 0 and _room(pool, following) < _room(pool, index):
        index, following = following, _next_fit(pool, following)
    if not may_serve(rules, pool[SIZES, index], size):
        return 0, 0
    return _split(pool, index, size)


@compiled
def _next_fit(pool: Table, index: int) -> int:
    """Return the index of the free block next in order of size and start; -1 for the last one."""
    size, start = pool[SIZES, index], pool[STARTS, index]
    found = -1
    for other in range(pool[COUNTS, FREE]):
        its_size, its_start = pool[SIZES, other], pool[STARTS, other]
        if its_size < size or (its_size == size and its_start <= start):
            continue
        if (
            found < 0
            or its_size < pool[SIZES, found]
            or (its_size == pool[SIZES, found] and its_start < pool[STARTS, found])
        ):
            found = other
    return found


@compiled
def _room(pool: Table, index: int) -> int:
    """Return a free block's bytes with the unmapped addresses after it."""
    end = pool[STARTS, index] + pool[SIZES, index]
    return int(max(_end_of(pool[GAPS:], end), end) - pool[STARTS, index])


@compiled
def map_pages(pool: Table, rules: Rules, device: Numbers, size: int) -> Block:
    """Map pages at the lowest address with room: try_allocate_expandable_block().

    Pages that were mapped before the driver ran out stay mapped and free, as in torch.
    """
    gaps = pool[GAPS:]
    start = _lowest_with_room(pool, size)
    end = max(_end_of(pool, start), start)
    while end - start < size:
        index = starting_at(gaps, end)
        wanted = min(start + size - end, gaps[SIZES, index])
        mapped = -(-wanted // rules.segment_bytes) * rules.segment_bytes
        if not acquire(device, mapped):
            return 0, 0
        gaps[STARTS, index] += mapped
        gaps[SIZES, index] -= mapped
        if gaps[SIZES, index] <= 0:
            remove(gaps, index)
        give(pool, end, mapped)
        end = _end_of(pool, start)
    return _split(pool, starting_at(pool, start), size)


@compiled
def _lowest_with_room(pool: Table, size: int) -> int:
    """Return where free and unmapped ranges in a row hold the request: find_expandable_block().

    The last unmapped range is as good as without end, so there is such a place.
    """
    gaps, lowest = pool[GAPS:], UNLIMITED
    for index in range(gaps[COUNTS, FREE]):
        start = gaps[STARTS, index]
        before = ending_at(pool, start)
        if before >= 0:
            start = pool[STARTS, before]
        end = start
        while end - start < size:
            beyond = max(_end_of(gaps, end), _end_of(pool, end))
            if not beyond:
                break
            end = beyond
        if end - start >= size:
            lowest = min(lowest, start)
    return lowest


@compiled
def _split(pool: Table, index: int, size: int) -> Block:
    """Cut the request off a free block; here any rest is worth keeping: should_split()."""
    start = pool[STARTS, index]
    if pool[SIZES, index] == size:
        remove(pool, index)
    else:
        pool[STARTS, index] += size
        pool[SIZES, index] -= size
    return start, size


@compiled
def release_pages(pool: Table, rules: Rules, device: Numbers) -> None:
    """Unmap every page that is free: unmap_block()."""
    page = rules.segment_bytes
    for index in range(pool[COUNTS, FREE] - 1, -1, -1):
        start, end = pool[STARTS, index], pool[STARTS, index] + pool[SIZES, index]
        first, last = -(-start // page) * page, end // page * page
        if first >= last:
            continue
        remove(pool, index)
        if start < first:
            add(pool, start, first - start)
        if last < end:
            add(pool, last, end - last)
        device[RESERVED] -= last - first
        give(pool[GAPS:], first, last - first)


@compiled
def _end_of(table: Table, address: int) -> int:
    """Return the end of the free block or gap that begins at an address; 0 where none does."""
    index = starting_at(table, address)
    return address + table[SIZES, index] if index >= 0 else 0
