"""One pool of CUDA's caching allocator: how free blocks are chosen, split, merged and released.

Addresses are numbers of our own: each segment lies beyond the last one, with a gap, so that blocks of
different segments never touch. The pool that grows by pages is in ``expandable.py``.
"""

from bisect import bisect_left, insort
from typing import Protocol

from bench.memory.settings import LARGE_REQUEST_BYTES, AllocatorSettings
from bench.metrics import MIB

SMALL_REQUEST_BYTES = MIB  # kSmallSize: up to here a request goes to the small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
_GRAIN_BYTES = 2 * MIB  # kRoundLarge
_MINIMUM_BYTES = 512  # kMinBlockSize

ADDRESS_BITS = 48
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1
_MIDDLE = 1 << ADDRESS_BITS - 1

Block = tuple[int, int]
"""Address and bytes."""


class Device:
    """The driver: how much memory it has given and how much more it can give, in bytes."""

    def __init__(self, limit_bytes: int | None, *, ascending: bool = True) -> None:
        """Take the most it can give (None: any amount), and whether new segments get rising addresses."""
        self.limit_bytes = limit_bytes
        self.ascending = ascending
        self.reserved_bytes = 0
        self.segments_acquired = 0

    def acquire(self, size_bytes: int) -> bool:
        """Take memory; False where there is not enough."""
        if self.limit_bytes is not None and self.reserved_bytes + size_bytes > self.limit_bytes:
            return False
        self.reserved_bytes += size_bytes
        self.segments_acquired += 1
        return True


class Pool(Protocol):
    """What the allocator asks of a pool; sizes are rounded already."""

    def take(self, size: int) -> Block | None:
        """Return a cached block for a request, or None."""

    def grow(self, size: int) -> Block | None:
        """Return a block of memory newly taken from the driver, or None."""

    def give(self, address: int, size: int) -> None:
        """Take back a block."""

    def release(self) -> None:
        """Return to the driver what is free and whole."""

    def release_oversize(self, size: int) -> bool:
        """Release just enough oversize blocks for a request; False where that is not possible."""

    def collect(self, excess_bytes: int) -> None:
        """Release blocks that have long been free, until so many bytes are back."""


class FreeBlocks:
    """The free blocks of a pool, by size and by place.

    ``by_size`` holds each as the number size << 48 | address: numbers sort as torch's set of blocks does.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.by_size: list[int] = []
        self.size_at: dict[int, int] = {}
        self.start_before: dict[int, int] = {}  # end of a free block → its start

    def add(self, address: int, size: int) -> None:
        """Put in a block that has no free neighbour."""
        insort(self.by_size, size << ADDRESS_BITS | address)
        self.size_at[address] = size
        self.start_before[address + size] = address

    def remove(self, address: int) -> int:
        """Take out the free block at an address; return its size."""
        size = self.size_at.pop(address)
        del self.start_before[address + size]
        del self.by_size[bisect_left(self.by_size, size << ADDRESS_BITS | address)]
        return size

    def give(self, address: int, size: int) -> None:
        """Put in a block, merged with its free neighbours: free_block().

        Half of all events come here, so it does at once what ``remove`` and ``add`` do one by one.
        """
        by_size, size_at, start_before = self.by_size, self.size_at, self.start_before
        end = address + size
        after = size_at.pop(end, 0)
        if after:
            del by_size[bisect_left(by_size, after << ADDRESS_BITS | end)]
            end += after
        before = start_before.pop(address, address)
        if before != address:
            del by_size[bisect_left(by_size, (address - before) << ADDRESS_BITS | before)]
        size = end - before
        insort(by_size, size << ADDRESS_BITS | before)
        size_at[before] = size
        start_before[end] = before


def may_serve(settings: AllocatorSettings, found: int, size: int) -> bool:
    """Keep oversize blocks for oversize requests, and only for those nearly as large."""
    largest = settings.max_split_bytes
    if largest is None:
        return True
    if size < largest:
        return found < largest
    return found < size + settings.non_split_rounding_bytes


class SegmentPool(FreeBlocks):
    """A pool whose segments are single allocations of the driver's (cudaMalloc)."""

    def __init__(self, device: Device, settings: AllocatorSettings, *, small: bool) -> None:
        """Start without segments; ``small`` is the pool of requests up to 1 MiB."""
        super().__init__()
        self._device = device
        self._settings = settings
        self._small = small
        self._largest_rest = _MINIMUM_BYTES - 1 if small else SMALL_REQUEST_BYTES
        self._largest_split = settings.max_split_bytes
        self._segments: dict[int, int] = {}
        self._frontier = _MIDDLE  # beyond it no address has been given out yet

    def take(self, size: int) -> Block | None:
        """Best fit by (size, address), the rest split off: get_free_block(), should_split()."""
        by_size = self.by_size
        index = bisect_left(by_size, size << ADDRESS_BITS)
        if index == len(by_size):
            return None
        found, address = by_size[index] >> ADDRESS_BITS, by_size[index] & ADDRESS_MASK
        if self._largest_split is not None and not may_serve(self._settings, found, size):
            return None
        del by_size[index]
        del self.size_at[address]
        end, rest = address + found, found - size
        if rest > self._largest_rest and (self._largest_split is None or self._splits(size)):
            start = address + size
            insort(by_size, rest << ADDRESS_BITS | start)
            self.size_at[start] = rest
            self.start_before[end] = start
            return address, size
        del self.start_before[end]
        return address, found

    def _splits(self, size: int) -> bool:
        """Whether a block is split for such a request, where splitting is limited."""
        return self._small or self._largest_split is None or size < self._largest_split

    def grow(self, size: int) -> Block | None:
        """Allocate a segment: 2 MiB, 20 MiB, or the request rounded to 2 MiB (get_allocation_size())."""
        if self._small:
            segment = SMALL_SEGMENT_BYTES
        elif size < LARGE_REQUEST_BYTES:
            segment = self._settings.large_segment_bytes
        else:
            segment = -(-size // _GRAIN_BYTES) * _GRAIN_BYTES
        if not self._device.acquire(segment):
            return None
        address = self._place(-(-segment // _GRAIN_BYTES) * _GRAIN_BYTES)
        self._segments[address] = segment
        if segment - size > self._largest_rest and self._splits(size):
            self.add(address + size, segment - size)
            return address, size
        return address, segment

    def _place(self, extent: int) -> int:
        """Return the address of a new segment, with a gap to the last one."""
        address = self._frontier if self._device.ascending else self._frontier - extent
        self._frontier = address + extent + _GRAIN_BYTES if self._device.ascending else address - _GRAIN_BYTES
        return address

    def release(self) -> None:
        """Free every segment that is one free block: release_blocks()."""
        for address in self._whole():
            self._release(address)

    def release_oversize(self, size: int) -> bool:
        """Free the smallest oversize block that suffices, or several from the largest down.

        release_available_cached_blocks(); no part of an oversize block is ever split off.
        """
        if self._largest_split is None:
            return False
        needed = max(size, self._largest_split)
        index = bisect_left(self.by_size, needed << ADDRESS_BITS)
        if index < len(self.by_size):
            self._release(self.by_size[index] & ADDRESS_MASK)
            return True
        released = 0
        while self.by_size and released < needed and self.by_size[-1] >> ADDRESS_BITS >= self._largest_split:
            released += self._release(self.by_size[-1] & ADDRESS_MASK)
        return released >= needed

    def collect(self, excess_bytes: int) -> None:
        """Nothing: without garbage collection no ages are kept."""

    def _whole(self) -> list[int]:
        """Return the addresses of the segments that are one free block."""
        return [start for start, size in self._segments.items() if self.size_at.get(start) == size]

    def _release(self, address: int) -> int:
        """Give one whole segment back; return its bytes."""
        size = self.remove(address)
        del self._segments[address]
        self._device.reserved_bytes -= size
        return size


class CollectedPool(SegmentPool):
    """A pool whose whole blocks are released when they have long been free."""

    def __init__(self, device: Device, settings: AllocatorSettings, *, small: bool) -> None:
        """Start without segments, at age 0."""
        super().__init__(device, settings, small=small)
        self._requests = 0
        self._freed_at: dict[int, int] = {}  # address of a free block → requests seen when it became free

    def take(self, size: int) -> Block | None:
        """Count the request, then as any pool."""
        self._requests += 1
        return super().take(size)

    def give(self, address: int, size: int) -> None:
        """Note when the block became free, then as any pool; what was merged counts as new."""
        self._freed_at[self.start_before.get(address, address)] = self._requests
        super().give(address, size)

    def collect(self, excess_bytes: int) -> None:
        """Free whole blocks older than the average one: garbage_collect_cached_blocks()."""
        ages = {address: self._requests - self._freed_at[address] for address in self._whole()}
        reclaimed = 0
        while ages and reclaimed < excess_bytes:
            average = sum(ages.values()) / len(ages)
            for address in [address for address, age in ages.items() if age >= average]:
                del ages[address]
                reclaimed += self._release(address)
