"""A worker on a GPU that stands still for a moment, so that the parent can hold NVML to what torch holds.

On a CPU nothing happens. None of it falls into a phase or a timed step, and no block outlives its test.
"""

import time
from typing import Literal

from bench.metrics import MIB
from bench.probes.allocator import Allocator, AllocatorUse
from bench.probes.phases import Send
from bench.records.messages import Mark

HOLD_NS = 400_000_000  # several of the parent's samples
BLOCK_BYTES = 256 * MIB
LEAST_BLOCK_BYTES = 16 * MIB
FREE_BLOCKS = 4  # a block is at most so large a part of what is free
GRANULE_BYTES = 2 * MIB  # c10/cuda/CUDACachingAllocator.h rounds segments of more than 10 MiB to 2 MiB


def mark_block(send: Send, allocator: Allocator) -> None:
    """Allocate a known block and free it again, standing still before, meanwhile and afterwards.

    Which of NVML's readings moves along tells what they are worth on this machine. Where hardly any memory
    is free, nothing is allocated and no mark is sent.
    """
    allocator.synchronise()
    allocator.empty_cache()
    use = allocator.use()
    if use is None:
        return
    block_bytes = min(BLOCK_BYTES, use.free_bytes // FREE_BLOCKS) // GRANULE_BYTES * GRANULE_BYTES
    if block_bytes < LEAST_BLOCK_BYTES:
        return
    _hold(send, "idle", use, block_bytes)
    block = allocator.take(block_bytes)
    _hold(send, "block_held", allocator.use(), block_bytes)
    del block
    allocator.empty_cache()
    _hold(send, "block_freed", allocator.use(), block_bytes)


def mark_quiescent(send: Send, allocator: Allocator) -> None:
    """Stand still with nothing queued and say what torch holds; NVML sees the rest of the process too."""
    allocator.synchronise()
    _hold(send, "quiescent", allocator.use())


def _hold(
    send: Send,
    instant: Literal["idle", "block_held", "block_freed", "quiescent"],
    use: AllocatorUse | None,
    block_bytes: int | None = None,
) -> None:
    if use is None:
        return
    mark = Mark(
        instant=instant,
        at_ns=time.monotonic_ns(),
        holds_ns=HOLD_NS,
        block_bytes=block_bytes,
        allocated_bytes=use.allocated_bytes,
        reserved_bytes=use.reserved_bytes,
    )
    send(mark)
    time.sleep(HOLD_NS / 1e9)
