"""Expandable segments: pages mapped, split and unmapped, with sums done by hand."""

import pytest

from bench.predict.allocator.replay import EMPTY_CACHE, replay
from bench.predict.allocator.settings import AllocatorSettings

MIB = 1 << 20
EXPANDABLE = AllocatorSettings(expandable_segments=True)


def _reserved_mib(events: list[int], sizes: list[int]) -> list[float]:
    return [int(held) / MIB for held in replay(events, sizes, EXPANDABLE).reserved_bytes]


def test_memory_comes_in_pages_of_20_or_2_mib() -> None:
    """25 MiB take two large pages, and 513 bytes a small one."""
    assert [40, 42] == _reserved_mib([0, 1], [25 * MIB, 513])


def test_the_segment_grows_by_what_its_last_free_block_lacks() -> None:
    """15 MiB are free behind the first block, so 30 MiB more take one page and not two."""
    assert [40, 60] == _reserved_mib([0, 1], [25 * MIB, 30 * MIB])


def test_blocks_that_plain_segments_could_not_join_are_used_together() -> None:
    """After two blocks of 20 MiB died, 40 MiB need nothing new."""
    assert 40 == _reserved_mib([0, 1, 0, 1, 2], [20 * MIB, 20 * MIB, 40 * MIB])[-1]


def test_a_large_rest_is_always_split_off() -> None:
    """Of 20 MiB, 19.5 leave half a mebibyte free rather than allocated."""
    assert 19.5 * MIB == replay([0], [39 * MIB // 2], EXPANDABLE).allocated_peak_bytes


def test_a_block_inside_is_preferred_to_the_one_that_can_grow() -> None:
    """Of 80 MiB, 30 are free at the start and 15 at the end: 12 go to the start, so 16 and 15 fit as well."""
    sizes = [30 * MIB, 35 * MIB, 12 * MIB, 16 * MIB, 15 * MIB]
    assert [40, 80, 80, 80, 80, 80] == _reserved_mib([0, 1, 0, 2, 3, 4], sizes)


def test_emptying_the_cache_unmaps_whole_free_pages() -> None:
    """Of 60 MiB with 5 live at 20 MiB, the first and the last page go; the next growth fills the first."""
    sizes = [20 * MIB, 5 * MIB, 30 * MIB, 25 * MIB]
    events = [0, 1, 2, 0, 2, EMPTY_CACHE, 3]
    assert [20, 40, 60, 60, 60, 20, 40] == _reserved_mib(events, sizes)


def test_unmapped_pages_in_a_gap_are_mapped_again() -> None:
    """A request as large as the gap is mapped there, at the lowest address."""
    sizes = [20 * MIB, 20 * MIB, 20 * MIB]
    assert [20, 40, 40, 20, 40] == _reserved_mib([0, 1, 0, EMPTY_CACHE, 2], sizes)


@pytest.mark.parametrize(("capacity_mib", "fails"), [(59, True), (60, False)])
def test_memory_out_is_found_by_pages(capacity_mib: int, *, fails: bool) -> None:
    """41 MiB need three pages."""
    replayed = replay([0], [41 * MIB], EXPANDABLE, capacity_bytes=capacity_mib * MIB)
    assert fails is (replayed.out_of_memory is not None)
