"""Small, made-up calibrations for tests."""

import math

from bench.records.sessions import CalibratedCell, CalibratedGroup, Calibration
from records_factory import make_record


def make_calibration(spread: float, digest: str = "d") -> Calibration:
    """Return two sittings of two runs a side, one ``spread`` above the sitting's log speed, one below."""
    groups = tuple(
        CalibratedGroup(
            sitting=sitting,
            side=side,
            runs=tuple({"tokens_per_second": (speed * math.exp(sign * spread),) * 8} for sign in (1, -1)),
        )
        for sitting, speed in ((1, 1000.0), (2, 500.0))
        for side in ("base", "candidate")
    )
    return Calibration(
        scenario="s",
        made_at="now",
        environment=make_record().environment,
        cells=(CalibratedCell(cell="c", digest=digest, groups=groups),),
    )
