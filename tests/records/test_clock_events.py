"""What the bits of clock event reasons mean."""

import pytest

from bench.records.readings import INVALIDATING, NOTED, name_events


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (0x00, ()),
        (0x01 | 0x02 | 0x10 | 0x100, ()),
        (0x04, ("power limit",)),
        (0x08, ("hardware slowdown",)),
        (0x20, ("thermal slowdown by the driver",)),
        (0x40, ("thermal slowdown by the hardware",)),
        (0x80, ("power brake of the supply",)),
        (0x44, ("power limit", "thermal slowdown by the hardware")),
    ],
)
def test_events_that_slow_a_card_are_named(reasons: int, expected: tuple[str, ...]) -> None:
    """Settings and idling are no events worth a word."""
    assert expected == name_events(reasons)


def test_a_power_limit_is_noted_and_all_else_invalidates() -> None:
    """The two sets share nothing, and asking for one leaves out the other."""
    assert (0xE8, 0x04) == (INVALIDATING, NOTED)
    assert ("thermal slowdown by the hardware",) == name_events(0x44, INVALIDATING)
