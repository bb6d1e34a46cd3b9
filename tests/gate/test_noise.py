"""What a calibration says of a cell: its spread from run to run, and what follows from it."""

from bench.gate.noise import noise_rows
from bench.scenario.gate import GateSpec
from calibrations_factory import make_calibration


def test_quieter_machines_find_smaller_changes() -> None:
    """Only gated metrics that vary have a row; more repeats find less."""
    (quiet,), (loud,) = (noise_rows(make_calibration(spread), GateSpec()) for spread in (0.005, 0.05))
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
