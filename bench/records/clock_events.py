"""Why a GPU clocked lower than it could: the bits of NVML's clock event (throttle) reasons.

Which of them make a measurement worthless, and which are only said. Idle, application clocks, sync boost and
display clocks are settings and are neither.
"""

# nvmlClocksEventReasons, https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
SW_POWER_CAP = 0x04
HW_SLOWDOWN = 0x08
SW_THERMAL_SLOWDOWN = 0x20
HW_THERMAL_SLOWDOWN = 0x40
HW_POWER_BRAKE_SLOWDOWN = 0x80

# The card was too hot or its supply too weak: the clock is not what this card runs at.
INVALIDATING = HW_SLOWDOWN | SW_THERMAL_SLOWDOWN | HW_THERMAL_SLOWDOWN | HW_POWER_BRAKE_SLOWDOWN
# A card that works hard runs into its power limit; that is how fast it is, at that limit.
NOTED = SW_POWER_CAP

_WORDS = {
    SW_POWER_CAP: "power limit",
    HW_SLOWDOWN: "hardware slowdown",
    SW_THERMAL_SLOWDOWN: "thermal slowdown by the driver",
    HW_THERMAL_SLOWDOWN: "thermal slowdown by the hardware",
    HW_POWER_BRAKE_SLOWDOWN: "power brake of the supply",
}


def name_events(reasons: int, among: int = INVALIDATING | NOTED) -> tuple[str, ...]:
    """Return in words the events that are set in ``reasons``, of those in ``among``."""
    return tuple(words for bit, words in _WORDS.items() if reasons & among & bit)
