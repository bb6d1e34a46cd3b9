"""What a worker on a GPU says of itself as it stands still, with an allocator that only counts."""

import time

import pytest
import torch

from bench.metrics import GIB, MIB
from bench.probes import phases
from bench.probes.machine import Allocator, AllocatorUse, allocator_of
from bench.records.messages import Mark, Message


class CountingAllocator(Allocator):
    """Counts the bytes of blocks that are alive, keeps freed ones cached, and has ``free_bytes`` at first."""

    def __init__(self, free_bytes: int) -> None:
        """Hold nothing."""
        self.free_bytes, self.allocated, self.cached = free_bytes, 0, 0

    def use(self) -> AllocatorUse:
        """Return the counters."""
        reserved = self.allocated + self.cached
        return AllocatorUse(self.allocated, reserved, self.free_bytes - reserved)

    def take(self, size_bytes: int) -> object:
        """Count a block until it dies."""
        return _Block(self, size_bytes)

    def empty_cache(self) -> None:
        """Give freed blocks back."""
        self.cached = 0


class _Block:
    def __init__(self, owner: CountingAllocator, size_bytes: int) -> None:
        self._owner, self._size_bytes = owner, size_bytes
        owner.allocated += size_bytes

    def __del__(self) -> None:
        self._owner.allocated -= self._size_bytes
        self._owner.cached += self._size_bytes


@pytest.fixture(autouse=True)
def _short_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "HOLD_NS", 1_000_000)


def sent_by_block_test(free_bytes: int) -> list[Mark]:
    """Return the marks of a block test on a device with so much free."""
    sent: list[Message] = []
    phases.mark_block(sent.append, CountingAllocator(free_bytes))
    return [message for message in sent if isinstance(message, Mark)]


def test_a_block_is_held_and_given_back_and_each_state_stands_still() -> None:
    """Reserved bytes go up by the block and down again, and no hold overlaps the next."""
    idle, held, freed = sent_by_block_test(24 * GIB)
    assert ["idle", "block_held", "block_freed"] == [idle.instant, held.instant, freed.instant]
    assert [0, 256 * MIB, 0] == [idle.reserved_bytes, held.reserved_bytes, freed.reserved_bytes]
    assert {256 * MIB} == {mark.block_bytes for mark in (idle, held, freed)}
    assert idle.at_ns + idle.holds_ns <= held.at_ns
    assert held.at_ns + held.holds_ns <= freed.at_ns
    assert freed.at_ns + freed.holds_ns <= time.monotonic_ns()


def test_little_free_memory_means_a_small_block_or_none() -> None:
    """A quarter of what is free, in whole 2 MiB; nothing where noise could be as large."""
    assert [100 * MIB] * 3 == [mark.block_bytes for mark in sent_by_block_test(401 * MIB)]
    assert [] == sent_by_block_test(60 * MIB)


def test_the_quiescent_mark_says_what_torch_holds() -> None:
    """Allocated and reserved apart, and no block."""
    allocator = CountingAllocator(GIB)
    allocator.allocated, allocator.cached = 300, 50
    sent: list[Message] = []
    phases.mark_quiescent(sent.append, allocator)
    (mark,) = sent
    assert isinstance(mark, Mark)
    assert ("quiescent", 300, 350) == (mark.instant, mark.allocated_bytes, mark.reserved_bytes)
    assert mark.block_bytes is None


def test_on_a_cpu_nothing_is_said_and_no_time_is_lost() -> None:
    """Neither a mark nor a hold."""
    sent: list[Message] = []
    allocator = allocator_of(torch.device("cpu"))
    phases.mark_block(sent.append, allocator)
    phases.mark_quiescent(sent.append, allocator)
    assert [] == sent
