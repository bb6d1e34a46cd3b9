"""Replays births and deaths of blocks through the rules of CUDA's caching allocator, on one stream.

The rules are those of c10/cuda/CUDACachingAllocator.cpp, torch 2.6 to 2.13. One thing is the driver's
and not torch's: where new segments lie, which decides among free blocks of equal size; here their
addresses rise, or fall. Nothing is known here of tensors, phases or cards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.memory.expandable import ExpandablePool
from bench.memory.pools import SMALL_REQUEST_BYTES, Block, CollectedPool, Device, Pool, SegmentPool
from bench.memory.settings import AllocatorSettings

DEFAULT_SETTINGS = AllocatorSettings()
EMPTY_CACHE = -1
"""In a stream of events: a call of torch.cuda.empty_cache()."""


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The allocation that no memory was left for, and the state in which it failed; bytes."""

    event: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """What torch.cuda's counters would have said after each event of a stream; arrays of bytes.

    After an out-of-memory error nothing more is replayed, and the arrays end with the event before it.
    """

    allocated_bytes: NDArray[np.int64]
    requested_bytes: NDArray[np.int64]
    reserved_bytes: NDArray[np.int64]
    segments_acquired: int
    retries: int
    out_of_memory: OutOfMemory | None

    @property
    def allocated_peak_bytes(self) -> int:
        """Most bytes in live blocks, each counted whole: torch.cuda.max_memory_allocated()."""
        return _most(self.allocated_bytes)

    @property
    def allocated_peak_event(self) -> int:
        """Index of the event after which most was allocated, the first of them."""
        return int(self.allocated_bytes.argmax()) if self.allocated_bytes.size else 0

    @property
    def requested_peak_bytes(self) -> int:
        """Most bytes asked for by live blocks, before rounding."""
        return _most(self.requested_bytes)

    @property
    def reserved_peak_bytes(self) -> int:
        """Most bytes held from the driver: torch.cuda.max_memory_reserved()."""
        return _most(self.reserved_bytes)


def _most(values: NDArray[np.int64]) -> int:
    return int(values.max(initial=0))


def replay(  # noqa: PLR0913 - a stream, and what may differ between two replays of it, by keyword
    events: Sequence[int],
    sizes: Sequence[int],
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    *,
    capacity_bytes: int | None = None,
    total_bytes: int | None = None,
    ascending: bool = True,
) -> Replay:
    """Return the counters of the allocator along a stream of events.

    ``events`` holds a block's number at its birth and again at its death, and a negative number for
    empty_cache(); ``sizes`` holds the bytes asked for by each block, by its number. Blocks of 0 bytes take
    no memory. ``capacity_bytes`` is what the driver can give; None for any amount. ``total_bytes`` is the
    memory of the card, which settings.per_process_memory_fraction is a share of (default: the capacity).
    Garbage collection happens only where that fraction is set, as in torch. ``ascending`` says whether the
    driver gives new segments rising or falling addresses.
    """
    allocator = CachingAllocator(settings, capacity_bytes, total_bytes, ascending=ascending)
    small, large, device = allocator.small, allocator.large, allocator.device
    rounded = _rounded(sizes, settings)
    live: list[Block | None] = [None] * len(rounded)
    changes: list[int] = []  # of allocated bytes, by event
    reserved = [(0, 0)]  # (event, bytes held from then on)
    failed = None
    for event, block in enumerate(events):
        if block < 0:
            allocator.empty_cache()
            reserved.append((event, device.reserved_bytes))
            changes.append(0)
            continue
        size = rounded[block]
        pool = small if size <= SMALL_REQUEST_BYTES else large
        held = live[block]
        if held is not None:
            live[block] = None
            pool.give(*held)
            changes.append(-held[1])
            continue
        born = pool.take(size) if size else (0, 0)
        if born is None:
            born = allocator.grow(pool, size)
            reserved.append((event, device.reserved_bytes))
            if born is None:
                failed = block
                break
        if size:
            live[block] = born
        changes.append(born[1])
    return _summary(allocator, events, sizes, changes, reserved, failed)


def _rounded(sizes: Sequence[int], settings: AllocatorSettings) -> list[int]:
    """Round every block's size; a stream has few distinct sizes."""
    known = {size: settings.rounded(size) if size else 0 for size in set(sizes)}
    return [known[size] for size in sizes]


def _summary(  # noqa: PLR0913, PLR0917 - the parts of one result, put together in one place
    allocator: "CachingAllocator",
    events: Sequence[int],
    sizes: Sequence[int],
    changes: list[int],
    reserved: list[tuple[int, int]],
    failed: int | None,
) -> Replay:
    replayed = len(changes)
    allocated = np.asarray(changes, dtype=np.int64)
    numbers = np.maximum(np.asarray(events[:replayed], dtype=np.int64), EMPTY_CACHE)
    asked = np.append(np.asarray(sizes, dtype=np.int64), 0)[numbers]  # empty_cache, -1, asks for the 0
    starts, held = np.asarray(reserved, dtype=np.int64).T
    totals = allocated.cumsum()
    return Replay(
        allocated_bytes=totals,
        requested_bytes=(np.sign(allocated) * asked).cumsum(),
        reserved_bytes=np.repeat(held, np.diff(np.append(starts, max(replayed, starts[-1])))),
        segments_acquired=allocator.device.segments_acquired,
        retries=allocator.retries,
        out_of_memory=None
        if failed is None
        else OutOfMemory(
            event=replayed,
            requested_bytes=sizes[failed],
            allocated_bytes=int(totals[-1]) if replayed else 0,
            reserved_bytes=allocator.device.reserved_bytes,
        ),
    )


class CachingAllocator:
    """Two pools of free blocks over one device: requests up to 1 MiB, and larger ones."""

    def __init__(
        self,
        settings: AllocatorSettings = DEFAULT_SETTINGS,
        capacity_bytes: int | None = None,
        total_bytes: int | None = None,
        *,
        ascending: bool = True,
    ) -> None:
        """Start empty; see ``replay`` for the arguments."""
        total = total_bytes if total_bytes is not None else capacity_bytes
        fraction = settings.per_process_memory_fraction
        allowed = None if total is None or fraction == 1 else int(fraction * total)
        limits = [limit for limit in (capacity_bytes, allowed) if limit is not None]
        self.device = Device(min(limits, default=None), ascending=ascending)
        self.retries = 0
        threshold = settings.garbage_collection_threshold
        self._collect_above_bytes = int(threshold * allowed) if allowed and threshold else None
        segments = SegmentPool if self._collect_above_bytes is None else CollectedPool
        kind = ExpandablePool if settings.expandable_segments else segments
        self.small: Pool = kind(self.device, settings, small=True)
        self.large: Pool = kind(self.device, settings, small=False)

    def empty_cache(self) -> None:
        """Give back to the driver what is whole and free."""
        self.large.release()
        self.small.release()

    def grow(self, pool: Pool, size: int) -> Block | None:
        """Ask the driver for a pool that has no block; where memory is out, release cached blocks first.

        Returns None where even that does not help.
        """
        if self._collect_above_bytes is not None:
            self.large.collect(self.device.reserved_bytes - self._collect_above_bytes)
        block = pool.grow(size)
        if block is None and pool.release_oversize(size):
            block = pool.grow(size)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = pool.grow(size)
        return block
