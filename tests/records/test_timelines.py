"""Timelines: bounded, and no peak is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.records.readings import MOST_POINTS, PhaseStart, Timeline, checked, decimated


def test_few_points_are_kept_as_they_are() -> None:
    """What a figure can show is not touched."""
    phases = (PhaseStart(phase="forward", entry=0), PhaseStart(phase="backward", entry=2))
    expected = Timeline(entries=(1, 2, 3), live_bytes=(5, 9, 2), phases=phases, last_entry=3)
    assert expected == decimated([5, 9, 2], phases)


def test_no_point_at_all() -> None:
    """An empty ledger has an empty timeline."""
    assert Timeline(entries=(), live_bytes=(), phases=(), last_entry=0) == decimated([], ())


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=3 * MOST_POINTS + 7))
def test_points_are_bounded_real_and_hold_the_peak(live_bytes: list[int]) -> None:
    """At most 512 points, in order, each of them a reading, the first highest one among them."""
    timeline = decimated(live_bytes, ())
    assert min(len(live_bytes), MOST_POINTS) == len(timeline.entries)
    assert sorted(set(timeline.entries)) == list(timeline.entries)
    assert [live_bytes[entry - 1] for entry in timeline.entries] == list(timeline.live_bytes)
    assert live_bytes.index(max(live_bytes)) + 1 in timeline.entries


def test_a_strangers_timeline_is_bounded_and_whole() -> None:
    """Neither a million points nor points without bytes are read."""
    many = tuple(range(MOST_POINTS + 1))
    with pytest.raises(ValueError, match="length <= 512"):
        checked(Timeline, {"entries": many, "live_bytes": many, "phases": (), "last_entry": 513})
    with pytest.raises(ValueError, match="the same length"):
        checked(Timeline, {"entries": (1, 2), "live_bytes": (1,), "phases": (), "last_entry": 2})
