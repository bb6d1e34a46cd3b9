"""The caching allocator: its rules one by one with sums done by hand, and what holds for any stream."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.predict.allocator import pools
from bench.predict.allocator.replay import EMPTY_CACHE, OutOfMemory, Replay, allocator_of, replay, run
from bench.predict.allocator.settings import AllocatorSettings

KIB, MIB = 1 << 10, 1 << 20
EXPANDABLE = AllocatorSettings(expandable_segments=True)
SPLIT_LIMIT = AllocatorSettings(max_split_bytes=64 * MIB)
SIZES = [1, 700, MIB, 3 * MIB, 9 * MIB, 12 * MIB, 70 * MIB]


def _final(events: list[int], sizes: list[int], **kwargs: object) -> tuple[int, int]:
    """Return allocated and reserved bytes at the end of a stream, in KiB."""
    replayed = replay(events, sizes, **kwargs)  # type: ignore[arg-type]  # passed through
    return int(replayed.allocated_bytes[-1]) // KIB, int(replayed.reserved_bytes[-1]) // KIB


@pytest.mark.parametrize(
    ("size", "allocated_kib", "reserved_kib"),
    [
        (1, 0.5, 2048),
        (MIB, 1024, 2048),
        (MIB + 1, 1024.5, 20 * 1024),
        (10 * MIB - 512, 10 * 1024 - 0.5, 20 * 1024),
        (10 * MIB, 10 * 1024, 10 * 1024),
        (11 * MIB, 12 * 1024, 12 * 1024),
        (20 * MIB + 1, 20 * 1024 + 0.5, 22 * 1024),
    ],
)
def test_segments_are_2_20_or_rounded_to_2_mib(size: int, allocated_kib: float, reserved_kib: int) -> None:
    """The size of a segment follows the request, and a rest up to 1 MiB stays with a large block."""
    replayed = replay([0], [size])
    assert (allocated_kib * KIB, reserved_kib * KIB, size) == (
        replayed.allocated_peak_bytes,
        replayed.reserved_peak_bytes,
        replayed.requested_peak_bytes,
    )


def test_a_rest_of_just_over_a_mebibyte_is_split_off() -> None:
    """A 20 MiB segment serves 19 MiB less 512 bytes with the rest free, and 19 MiB whole."""
    warm = [20 * MIB, 19 * MIB - 512, 19 * MIB]
    assert 19 * MIB - 512 == replay([0, 0, 1], warm).allocated_bytes[-1]
    assert 20 * MIB == replay([0, 0, 2], warm).allocated_bytes[-1]


def test_the_smallest_block_that_fits_is_taken() -> None:
    """Of free blocks of 30 and 12 MiB, a request of 11 MiB leaves the larger one for 30 MiB."""
    sizes = [30 * MIB, 12 * MIB, 11 * MIB, 30 * MIB]
    assert (42 * 1024, 42 * 1024) == _final([0, 1, 0, 1, 2, 3], sizes)


@pytest.mark.parametrize(("ascending", "older"), [(True, 0), (False, 1)])
def test_of_equal_blocks_the_lower_address_is_taken(older: int, *, ascending: bool) -> None:
    """Of two free segments of one size it is the older one where the driver gives rising addresses."""
    events, sizes = np.array([0, 1, 0, 1, 2]), np.full(3, 20 * MIB)
    allocator, held = allocator_of(blocks=3, ascending=ascending), np.zeros((2, 3), dtype=np.int64)
    run(allocator, events, sizes, sizes, held, np.empty((3, 5), dtype=np.int64))
    assert int(held[0, older]) == int(held[0, 2])


def test_neighbours_merge_when_freed() -> None:
    """Three blocks cut from one segment are one free block again, whatever the order of their deaths."""
    sizes = [30 * MIB, 10 * MIB, 10 * MIB, 10 * MIB, 30 * MIB]
    for order in ([1, 2, 3], [3, 1, 2], [2, 3, 1]):
        replayed = replay([0, 0, 1, 2, 3, *order, 4], sizes)
        assert (30 * MIB, 1) == (replayed.reserved_peak_bytes, replayed.segments_acquired)


def test_blocks_of_different_segments_never_merge() -> None:
    """Two free segments of 10 MiB do not serve 20 MiB."""
    assert (20 * 1024, 40 * 1024) == _final([0, 1, 0, 1, 2], [10 * MIB, 10 * MIB, 20 * MIB])


def test_small_and_large_requests_have_pools_of_their_own() -> None:
    """A free large block does not serve a small request, nor the other way about."""
    assert (4, (20 + 2) * 1024) == _final([0, 0, 1], [20 * MIB, 4 * KIB])
    assert (3 * 1024, (2 + 20) * 1024) == _final([0, 0, 1], [KIB, 3 * MIB])


def test_blocks_without_bytes_take_nothing() -> None:
    """A block of 0 bytes is born and dies without trace."""
    replayed = replay([0, 1, 0, 1], [0, 512])
    assert [0, 512, 512, 0] == replayed.allocated_bytes.tolist()
    assert [0, 2 * MIB, 2 * MIB, 2 * MIB] == replayed.reserved_bytes.tolist()


def test_emptying_the_cache_gives_back_whole_segments_only() -> None:
    """A segment with one live block stays; an untouched one goes."""
    sizes = [30 * MIB, 10 * MIB, 30 * MIB]
    assert (10 * 1024, 30 * 1024) == _final([0, 2, 0, 2, 1, EMPTY_CACHE], sizes)
    assert (0, 0) == _final([0, 0, EMPTY_CACHE], sizes)


def test_memory_out_releases_the_cache_and_tries_again() -> None:
    """With room for 40 MiB, 30 cached ones are given back for a request of 40, with one retry."""
    replayed = replay([0, 0, 1], [30 * MIB, 40 * MIB], capacity_bytes=40 * MIB)
    assert (1, None, 40 * MIB) == (
        replayed.retries,
        replayed.out_of_memory,
        replayed.reserved_peak_bytes,
    )


def test_an_out_of_memory_error_ends_the_replay() -> None:
    """The failed request, what was allocated and what was reserved are told; nothing after it happens."""
    replayed = replay([0, 1, 2, 0], [30 * MIB, 8 * MIB, 25 * MIB + 1], capacity_bytes=60 * MIB)
    expected = OutOfMemory(
        event=2, requested_bytes=25 * MIB + 1, allocated_bytes=38 * MIB, reserved_bytes=50 * MIB
    )
    assert expected == replayed.out_of_memory
    assert 2 == len(replayed.allocated_bytes)


def test_a_share_of_the_card_limits_as_its_size_does() -> None:
    """Half of a card of 100 MiB holds 50 MiB, though the driver has more."""
    half = AllocatorSettings(per_process_memory_fraction=0.5)
    assert replay([0], [50 * MIB], half, total_bytes=100 * MIB).out_of_memory is None
    assert replay([0], [52 * MIB], half, total_bytes=100 * MIB).out_of_memory is not None


def test_oversize_blocks_are_not_split_nor_given_to_smaller_requests() -> None:
    """With a limit of 64 MiB a free block of 100 serves neither 30 MiB nor 80, but 81 MiB whole."""
    sizes = [100 * MIB, 30 * MIB, 80 * MIB, 81 * MIB]
    assert (30 * 1024, 130 * 1024) == _final([0, 0, 1], sizes, settings=SPLIT_LIMIT)
    assert (80 * 1024, 180 * 1024) == _final([0, 0, 2], sizes, settings=SPLIT_LIMIT)
    assert (100 * 1024, 100 * 1024) == _final([0, 0, 3], sizes, settings=SPLIT_LIMIT)


def test_oversize_blocks_are_released_one_by_one_before_the_cache_is() -> None:
    """Where memory is out, the oversize block that suffices goes, and the rest of the cache stays."""
    sizes = [100 * MIB, 70 * MIB, 30 * MIB, 40 * MIB]
    replayed = replay([0, 1, 2, 0, 1, 2, 3], sizes, SPLIT_LIMIT, capacity_bytes=200 * MIB)
    assert (0, 170 * MIB) == (replayed.retries, int(replayed.reserved_bytes[-1]))


def test_garbage_is_collected_above_the_threshold_oldest_first() -> None:
    """Above half of 100 MiB the block that was free for longest is released, a fresh one is kept."""
    collecting = AllocatorSettings(garbage_collection_threshold=0.5, per_process_memory_fraction=0.99)
    sizes = [30 * MIB, 24 * MIB, 40 * MIB, 2 * MIB, 2 * MIB]
    # 0 dies early, 1 late; block 2 fits neither, and 54 + 20 MiB are above 49.5.
    events = [0, 1, 3, 0, 4, 1, 2]
    kept = replay(events, sizes, AllocatorSettings(), total_bytes=100 * MIB)
    collected = replay(events, sizes, collecting, total_bytes=100 * MIB, capacity_bytes=100 * MIB)
    assert (114 * MIB, 84 * MIB) == (int(kept.reserved_bytes[-1]), int(collected.reserved_bytes[-1]))


def test_garbage_is_not_collected_without_a_share_of_the_card() -> None:
    """As in torch, a threshold alone does nothing."""
    alone = AllocatorSettings(garbage_collection_threshold=0.1)
    replayed = replay([0, 0, 1], [30 * MIB, 40 * MIB], alone, capacity_bytes=100 * MIB)
    assert 70 * MIB == replayed.reserved_peak_bytes


@st.composite
def _streams(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1))
    events: list[int] = []
    live: list[int] = []
    for block in range(len(sizes)):
        events.append(block)
        live.append(block)
        while draw(st.booleans()) and live:
            events.append(live.pop(draw(st.integers(0, len(live) - 1))))
        if draw(st.integers(0, 5)) == 0:
            events.append(EMPTY_CACHE)
    return events, sizes


@settings(max_examples=60, deadline=None)
@given(stream=_streams(), kind=st.sampled_from([AllocatorSettings(), EXPANDABLE, SPLIT_LIMIT]))
def test_memory_is_neither_lost_nor_given_twice(
    stream: tuple[list[int], list[int]], kind: AllocatorSettings
) -> None:
    """After every event live and free blocks tile what is reserved, and no two free ones touch."""
    events, sizes = (np.array(each, dtype=np.int64) for each in stream)
    rounded = np.array([kind.rounded(int(size)) for size in sizes], dtype=np.int64)
    allocator, held = allocator_of(kind, len(sizes)), np.zeros((2, len(sizes)), dtype=np.int64)
    for event in events:
        run(allocator, np.array([event]), sizes, rounded, held, np.empty((3, 1), dtype=np.int64))
        total = 0
        for pool, its in ((allocator.small, rounded <= MIB), (allocator.large, rounded > MIB)):
            count = int(pool[pools.COUNTS, pools.FREE])
            free = sorted(
                zip(pool[pools.STARTS, :count].tolist(), pool[pools.SIZES, :count].tolist(), strict=True)
            )
            live = held[:, its & (held[1] > 0)].T.tolist()
            assert all(
                size >= least for (_, size), least in zip(live, rounded[its & (held[1] > 0)], strict=True)
            )
            placed = sorted([*free, *map(tuple, live)])
            assert all(start + size <= following for (start, size), (following, _) in pairwise(placed))
            assert all(start + size < following for (start, size), (following, _) in pairwise(free))
            total += sum(size for _, size in placed)
        assert int(allocator.device[pools.RESERVED]) == total


@settings(max_examples=40, deadline=None)
@given(stream=_streams(), kind=st.sampled_from([AllocatorSettings(), EXPANDABLE, SPLIT_LIMIT]))
def test_counters_keep_their_order(stream: tuple[list[int], list[int]], kind: AllocatorSettings) -> None:
    """Requested is at most allocated, allocated at most reserved; a longer stream has no lower peak."""
    events, sizes = stream
    whole = replay(events, sizes, kind)
    assert (whole.requested_bytes <= whole.allocated_bytes).all()
    assert (whole.allocated_bytes <= whole.reserved_bytes).all()
    part: Replay = replay(events[: len(events) // 2], sizes, kind)
    assert part.reserved_peak_bytes <= whole.reserved_peak_bytes
    assert part.allocated_bytes.tolist() == whole.allocated_bytes[: len(events) // 2].tolist()


@settings(max_examples=30, deadline=None)
@given(stream=_streams(), kind=st.sampled_from([AllocatorSettings(), EXPANDABLE, SPLIT_LIMIT]))
def test_a_card_of_the_size_of_the_peak_holds_the_stream(
    stream: tuple[list[int], list[int]], kind: AllocatorSettings
) -> None:
    """What was reserved without a limit suffices as the limit."""
    free = replay(*stream, kind)
    limited = replay(*stream, kind, capacity_bytes=free.reserved_peak_bytes)
    assert limited.out_of_memory is None
    assert free.reserved_bytes.tolist() == limited.reserved_bytes.tolist()
