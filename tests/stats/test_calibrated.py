"""The noise of a cell, from a calibration."""

import pytest

from bench.stats.calibrated import noise_of
from calibrations_factory import make_calibration


def test_noise_is_the_spread_within_sittings() -> None:
    """Days may differ by a factor of two: that is not noise. Four runs of a sitting are three degrees."""
    found = noise_of(make_calibration(0.02), "d", "tokens_per_second")
    assert found.degrees_of_freedom == 6
    assert found.log_variance == pytest.approx(8 * 0.02**2 / 6)
    assert noise_of(make_calibration(0.02), "other", "tokens_per_second").degrees_of_freedom == 0


def test_runs_made_step_by_step_in_turn_have_the_noise_of_their_differences() -> None:
    """What both share is none: here the first runs are 4 % apart from the second, on either side alike."""
    shared = make_calibration(0.02).model_copy(update={"interleave": "steps"})
    found = noise_of(shared, "d", "tokens_per_second")
    assert (2, True) == (found.degrees_of_freedom, found.of_pairs)
    assert found.log_variance == pytest.approx(0.0)
    (cell,) = shared.cells
    groups = tuple(
        group.model_copy(update={"runs": group.runs[:: 1 if group.side == "base" else -1]})
        for group in cell.groups
    )
    apart = shared.model_copy(update={"cells": (cell.model_copy(update={"groups": groups}),)})
    found = noise_of(apart, "d", "tokens_per_second")
    assert found.log_variance == pytest.approx(2 * 0.04**2 / 2)
