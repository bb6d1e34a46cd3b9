"""The band of reserved memory: what is perturbed, and that nothing else is."""

from bench.predict.allocator.replay import ReplayVariability, reserved_range

MIB = 1 << 20
WEIGHTS = [40, 60, 50, 70]
"""Sizes in MiB; each is preceded by a staging block of twice its size."""


def _loading() -> tuple[list[int], list[int], ReplayVariability]:
    """Return a stream that warms up, loads four weights and takes two steps of one large block each."""
    sizes, events, ranges = [sum(WEIGHTS) * MIB], [0, 0], []
    for weight in WEIGHTS:
        staged, kept = len(sizes), len(sizes) + 1
        sizes += [2 * weight * MIB, weight * MIB]
        ranges.append((len(events), len(events) + 3))
        events += [staged, kept, staged]
    first, second = len(sizes), len(sizes) + 1
    sizes += [300 * MIB, 300 * MIB]
    events += [first, first, second, second]
    return events, sizes, ReplayVariability(weights=ranges, warm_up=0)


def test_a_stream_that_leaves_nothing_open_has_no_width() -> None:
    """Without variability only the driver's addresses vary, and they do not matter to one block."""
    found = reserved_range([0, 0], [30 * MIB])
    assert (30 * MIB, 30 * MIB, 30 * MIB) == (found.traced_bytes, found.low_bytes, found.high_bytes)


def test_the_order_of_loading_moves_what_is_reserved() -> None:
    """Weights that overtake each other leave other gaps: the band has a width and holds the traced stream."""
    events, sizes, variability = _loading()
    found = reserved_range(events, sizes, variability=ReplayVariability(weights=variability.weights))
    assert found.low_bytes <= found.traced_bytes <= found.high_bytes
    assert found.low_bytes < found.high_bytes


def test_a_warm_up_of_another_size_moves_it_too() -> None:
    """Two MiB more or less to begin with change what is reserved."""
    events, sizes, variability = _loading()
    found = reserved_range(events, sizes, variability=ReplayVariability(warm_up=variability.warm_up))
    assert found.low_bytes < found.traced_bytes < found.high_bytes


def test_the_same_stream_has_the_same_range() -> None:
    """Nothing is drawn at random, and the arguments stay as they were."""
    events, sizes, variability = _loading()
    before = (list(events), list(sizes))
    assert reserved_range(events, sizes, variability=variability) == reserved_range(
        events, sizes, variability=variability
    )
    assert before == (events, sizes)
