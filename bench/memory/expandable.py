"""One pool of CUDA's caching allocator under expandable_segments:True: a segment that grows by pages.

torch bounds the segment's addresses at 9/8 of the card's memory and starts another beyond; here they are
unbounded. The rules are those of c10/cuda/CUDACachingAllocator.cpp.
"""

from bisect import bisect_left

from bench.memory.pools import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    SMALL_SEGMENT_BYTES,
    Block,
    Device,
    FreeBlocks,
    may_serve,
)
from bench.memory.settings import AllocatorSettings


class ExpandablePool(FreeBlocks):
    """Free blocks, and the ranges of addresses that have no memory, in one segment."""

    def __init__(self, device: Device, settings: AllocatorSettings, *, small: bool) -> None:
        """Start with a segment that has no memory yet."""
        super().__init__()
        self._device = device
        self._settings = settings
        self._page = SMALL_SEGMENT_BYTES if small else settings.large_segment_bytes
        self._unmapped = {0: ADDRESS_MASK}  # start → end of a range without memory

    def take(self, size: int) -> Block | None:
        """Best fit, where a block before unmapped addresses counts as all it could grow to."""
        by_size = self.by_size
        index = bisect_left(by_size, size << ADDRESS_BITS)
        if index == len(by_size):
            return None
        while index + 1 < len(by_size) and self._room(by_size[index + 1]) < self._room(by_size[index]):
            index += 1
        if not may_serve(self._settings, by_size[index] >> ADDRESS_BITS, size):
            return None
        return self._split(by_size[index] & ADDRESS_MASK, size)

    def _room(self, key: int) -> int:
        """Return a free block's bytes with the unmapped addresses after it."""
        size = key >> ADDRESS_BITS
        end = (key & ADDRESS_MASK) + size
        return size + self._unmapped.get(end, end) - end

    def _split(self, address: int, size: int) -> Block:
        """Cut the request off a free block; here any rest is worth keeping: should_split()."""
        rest = self.remove(address) - size
        if rest:
            self.add(address + size, rest)
        return address, size

    def grow(self, size: int) -> Block | None:
        """Map pages at the lowest address with room: try_allocate_expandable_block().

        Pages that were mapped before the driver ran out stay mapped and free, as in torch.
        """
        address = self._lowest_with_room(size)
        have = self.size_at.get(address, 0)
        while have < size:
            gap = address + have
            wanted = min(size - have, self._unmapped[gap] - gap)
            mapped = -(-wanted // self._page) * self._page
            if not self._device.acquire(mapped):
                return None
            end = self._unmapped.pop(gap)
            if gap + mapped < end:
                self._unmapped[gap + mapped] = end
            self.give(gap, mapped)
            have = self.size_at[address]
        return self._split(address, size)

    def _lowest_with_room(self, size: int) -> int:
        """Return where free and unmapped ranges in a row hold the request: find_expandable_block()."""
        for start in sorted(self._unmapped):
            first = self.start_before.get(start, start)
            end = first
            while end - first < size:
                beyond = self._unmapped.get(end) or end + self.size_at.get(end, 0)
                if beyond == end:
                    break
                end = beyond
            else:
                return first
        raise AssertionError("the last unmapped range is without end")

    def release(self) -> None:
        """Unmap every page that is free: unmap_block()."""
        for address, size in list(self.size_at.items()):
            start = -(-address // self._page) * self._page
            end = (address + size) // self._page * self._page
            if start >= end:
                continue
            self.remove(address)
            if address < start:
                self.add(address, start - address)
            if end < address + size:
                self.add(end, address + size - end)
            self._unmap(start, end)

    def _unmap(self, start: int, end: int) -> None:
        self._device.reserved_bytes -= end - start
        before = next((low for low, high in self._unmapped.items() if high == start), start)
        self._unmapped[before] = self._unmapped.pop(end, end)

    def release_oversize(self, size: int) -> bool:
        """Refuse: torch releases pages, never an oversize block, of such a segment."""
        del size
        return False

    def collect(self, excess_bytes: int) -> None:
        """Nothing: only whole segments are collected, and this one is never whole."""
