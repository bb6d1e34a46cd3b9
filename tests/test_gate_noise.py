"""What a calibration says of a cell: its spread from run to run, and what follows from it."""

import math

import pytest

from bench.gate.noise import noise_of, noise_rows
from bench.results.calibrations import CalibratedCell, CalibratedGroup, Calibration
from bench.spec.gate import GateSpec
from records_factory import make_record


def calibration(spread: float) -> Calibration:
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
        cells=(CalibratedCell(cell="c", digest="d", groups=groups),),
    )


def test_noise_is_the_spread_within_sittings() -> None:
    """Days may differ by a factor of two: that is not noise. Four runs of a sitting are three degrees."""
    found = noise_of(calibration(0.02), "d", "tokens_per_second")
    assert found.degrees_of_freedom == 6
    assert found.log_variance == pytest.approx(8 * 0.02**2 / 6)
    assert noise_of(calibration(0.02), "other", "tokens_per_second").degrees_of_freedom == 0


def test_quieter_machines_find_smaller_changes() -> None:
    """Only gated metrics that vary have a row; more repeats find less."""
    (quiet,), (loud,) = (noise_rows(calibration(spread), GateSpec()) for spread in (0.005, 0.05))
    assert ("c", "tokens_per_second", (3, 5, 8), 0.05) == (
        quiet.cell,
        quiet.metric,
        quiet.looks,
        quiet.tolerance_share,
    )
    assert all(
        less < more for less, more in zip(quiet.detectable_shares, loud.detectable_shares, strict=True)
    )
    assert sorted(quiet.detectable_shares, reverse=True) == list(quiet.detectable_shares)
    assert (quiet.repeats_needed or 99) < (loud.repeats_needed or 999)
