"""Memory that is too little for a stream of allocations, though the allocator gives back what it caches."""

from bench.predict.allocator.pools import Numbers
from bench.predict.allocator.replay import replay
from bench.predict.allocator.settings import AllocatorSettings

_TRIES = 6
_WORTH_TRYING = 0.02  # of what is allocated: a smaller gap to what is reserved tells nothing


def insufficient_bytes(
    events: Numbers, sizes: Numbers, settings: AllocatorSettings, allocated_bytes: int, reserved_bytes: int
) -> int | None:
    """Return a limit under which a replay runs out of memory; None where that is not tried or none was found.

    It lies between what is allocated at the peak and what is reserved without any limit: pieces of cached
    segments that are in use cannot be given back.
    """
    if reserved_bytes - allocated_bytes < allocated_bytes * _WORTH_TRYING:
        return None
    low, high, found = allocated_bytes, reserved_bytes, None
    for _ in range(_TRIES):
        limit = (low + high) // 2
        if replay(events, sizes, settings, capacity_bytes=limit).out_of_memory is None:
            high = limit
        else:
            low = found = limit
    return found
