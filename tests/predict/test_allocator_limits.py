"""Memory that is not enough although the allocator gives back what it caches."""

import numpy as np
import pytest

from bench.metrics import MIB
from bench.predict.allocator.replay import replay
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.varying import insufficient_bytes

SETTINGS = AllocatorSettings()


@pytest.mark.parametrize(
    ("sizes_mib", "needs_all"),
    [((100, 60, 80), True), ((100, 120), False)],
    ids=["the rest of a segment in use", "a whole segment"],
)
def test_only_whole_segments_can_be_given_back(sizes_mib: tuple[int, ...], needs_all: bool) -> None:  # noqa: FBT001 - a case
    """A first block is freed; of what it leaves only what lies in no segment in use frees memory."""
    sizes = np.array(sizes_mib) * MIB
    events = np.array([0, 0, *range(1, len(sizes))])
    free = replay(events, sizes, SETTINGS)
    allocated, reserved = free.allocated_peak_bytes, free.reserved_peak_bytes
    assert reserved > allocated
    found = insufficient_bytes(events, sizes, SETTINGS, allocated, reserved)
    if needs_all:
        assert found is not None
        assert reserved - 2 * MIB < found < reserved
        assert replay(events, sizes, SETTINGS, capacity_bytes=found).out_of_memory is not None
    else:
        assert found is None or found < allocated + 4 * MIB


def test_a_small_gap_is_not_searched() -> None:
    """Where hardly more is reserved than allocated there is nothing to find out."""
    one = np.array([0]), np.array([100 * MIB])
    assert insufficient_bytes(*one, SETTINGS, 100 * MIB, 101 * MIB) is None
