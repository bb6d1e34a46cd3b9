"""The noise of one cell and metric as a calibration has it."""

from bench.analysis.moderated import Noise, calibrate
from bench.analysis.settling import settle_cells
from bench.results.calibrations import Calibration


def noise_of(calibration: Calibration, digest: str, metric: str) -> Noise:
    """Return the noise of a metric of the cell with this digest; 0 degrees of freedom if it is not known.

    Both sides of a sitting are one group, since they were the same: what differs between two processes that
    workers are forked from is noise too.
    """
    sittings = calibration.runs(digest, metric)
    return calibrate([settled.log_medians for settled in settle_cells(sittings)])
