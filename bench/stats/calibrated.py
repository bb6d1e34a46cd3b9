"""The noise of one cell and metric as a calibration has it."""

from dataclasses import replace

from bench.records.calibrations import Calibration
from bench.records.run_facts import BY_STEP
from bench.stats.moderated import Noise, calibrate
from bench.stats.settling import settle_cells, step_ratios


def noise_of(calibration: Calibration, digest: str, metric: str) -> Noise:
    """Return the noise of a metric of the cell with this digest; 0 degrees of freedom if it is not known.

    Both sides of a sitting are one group, since they were the same: what differs between two processes that
    workers are forked from is noise too.
    """
    if calibration.interleave == "steps" and metric in BY_STEP:
        return _noise_by_steps(calibration, digest, metric)
    sittings = calibration.runs(digest, metric)
    return calibrate([settled.log_medians for settled in settle_cells(sittings)])


def _noise_by_steps(calibration: Calibration, digest: str, metric: str) -> Noise:
    """Return the noise of runs made step by step in turn: half the variance of their differences."""
    repeats = [step_ratios(*sides) for sides in calibration.pairs(digest, metric)]
    noise = calibrate([settled.log_medians for settled in settle_cells(repeats)])
    return replace(noise, log_variance=noise.log_variance / 2, of_pairs=True)
