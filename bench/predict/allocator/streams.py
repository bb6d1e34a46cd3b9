"""The caching allocator over several CUDA streams: a free block serves the stream that it was made on alone.

Source: c10/cuda/CUDACachingAllocator.cpp, get_free_block, which passes over blocks of other streams.
"""

from collections.abc import Sequence

import numpy as np

from bench.predict.allocator.pools import Numbers
from bench.predict.allocator.replay import EMPTY_CACHE, Replay, replay
from bench.predict.allocator.settings import AllocatorSettings


def replay_streams(
    events: Sequence[int] | Numbers,
    sizes: Sequence[int] | Numbers,
    settings: AllocatorSettings,
    *,
    streams: Numbers,
    ascending: bool = True,
) -> Replay:
    """Return what ``replay`` does where block ``b`` is made on stream ``streams[b]``; memory is unlimited."""
    numbers, asked = np.asarray(events, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    counters = np.zeros((3, len(numbers)), dtype=np.int64)
    segments = 0
    for stream in np.unique(streams):
        its = streams == stream
        own = np.flatnonzero((numbers == EMPTY_CACHE) | its[numbers])
        renumbered = np.where(numbers[own] == EMPTY_CACHE, EMPTY_CACHE, (its.cumsum() - 1)[numbers[own]])
        one = replay(renumbered, asked[its], settings, ascending=ascending)
        changes = np.zeros_like(counters)
        values = one.allocated_bytes, one.requested_bytes, one.reserved_bytes
        changes[:, own] = np.diff(np.stack(values), prepend=0)
        counters += changes.cumsum(axis=1)
        segments += one.segments_acquired
    allocated, requested, reserved = counters
    return Replay(
        allocated_bytes=allocated,
        requested_bytes=requested,
        reserved_bytes=reserved,
        segments_acquired=segments,
        retries=0,
        out_of_memory=None,
    )
