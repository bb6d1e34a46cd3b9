"""The noise of a cell, from a calibration."""

import pytest

from bench.analysis.calibrated import noise_of
from calibrations_factory import make_calibration


def test_noise_is_the_spread_within_sittings() -> None:
    """Days may differ by a factor of two: that is not noise. Four runs of a sitting are three degrees."""
    found = noise_of(make_calibration(0.02), "d", "tokens_per_second")
    assert found.degrees_of_freedom == 6
    assert found.log_variance == pytest.approx(8 * 0.02**2 / 6)
    assert noise_of(make_calibration(0.02), "other", "tokens_per_second").degrees_of_freedom == 0
