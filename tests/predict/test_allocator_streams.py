"""The caching allocator over several streams: a pool for each."""

import numpy as np

from bench.predict.allocator.replay import EMPTY_CACHE, replay
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.summary import replay_streams

MIB = 1 << 20
SETTINGS = AllocatorSettings()


def test_a_stream_does_not_take_what_another_freed() -> None:
    """Two blocks one after the other take one segment on one stream, and a segment each on two."""
    events, sizes = [0, 0, 1, 1], [32 * MIB, 32 * MIB]
    one = replay_streams(events, sizes, SETTINGS, streams=np.array([0, 0]))
    two = replay_streams(events, sizes, SETTINGS, streams=np.array([0, 1]))
    assert one.reserved_bytes.tolist() == replay(events, sizes).reserved_bytes.tolist()
    assert [value // MIB for value in two.reserved_bytes.tolist()] == [32, 32, 64, 64]
    assert [value // MIB for value in two.allocated_bytes.tolist()] == [32, 0, 32, 0]


def test_emptying_the_cache_empties_every_pool() -> None:
    """torch.cuda.empty_cache() is for all streams of a device."""
    events, sizes = [0, 1, 0, 1, EMPTY_CACHE], [32 * MIB, 64 * MIB]
    found = replay_streams(events, sizes, SETTINGS, streams=np.array([3, 1]))
    assert [value // MIB for value in found.reserved_bytes.tolist()] == [32, 96, 96, 96, 0]
