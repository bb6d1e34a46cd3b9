"""Stored results against an accepted baseline of several sittings, within what days differ by.

Runs of one sitting share that day's state of the machine, so the sitting is the unit of analysis here.
"""

from collections.abc import Sequence

import numpy as np

from bench.stats.moderated import Evidence
from bench.stats.settling import Floats

FEWEST_SITTINGS = 10
FEWEST_RUNS = 3
"""Fewer than ten sittings of three runs do not tell how much days differ; then speed is inconclusive."""


def predict(baseline: Floats, candidate: Floats) -> Evidence:
    """Return the evidence of cells: a new sitting's mean against a prediction interval from past ones.

    ``baseline`` holds the means of each sitting's log summaries, (..., cells, sittings), positive being worse
    and ``NaN`` a sitting that a cell has not; ``candidate`` is the new sitting's, (..., cells). The standard
    error is s * sqrt(1 + 1/k) over k sittings (Hahn and Meeker 1991, Statistical Intervals, section 4.7),
    with k - 1 degrees of freedom. Nothing is borrowed from other cells: a bad day slows them all.
    """
    there = ~np.isnan(baseline)
    count = there.sum(axis=-1).astype(np.float64)
    mean = np.where(there, baseline, 0.0).sum(axis=-1) / np.maximum(count, 1)
    squares = np.where(there, baseline - mean[..., np.newaxis], 0.0) ** 2
    degrees = np.maximum(count - 1, 0.0)
    usable = (degrees > 0) & ~np.isnan(candidate)
    variance = squares.sum(axis=-1) / np.maximum(degrees, 1) * (1 + 1 / np.maximum(count, 1))
    return Evidence(
        difference=np.where(usable, candidate - mean, 0.0),
        standard_error=np.where(usable, np.sqrt(variance), np.inf),
        degrees_of_freedom=np.where(usable, degrees, 0.0),
        calibration_held=np.ones(count.shape, dtype=np.bool_),
    )


def too_little(baseline: Sequence[Sequence[float]], candidate: Sequence[float]) -> str | None:
    """Return in one sentence why speed cannot be judged against these sittings; None if it can."""
    sittings = sum(len(runs) >= FEWEST_RUNS for runs in baseline)
    if sittings < FEWEST_SITTINGS:
        return (
            f"the baseline has {sittings} sittings of at least {FEWEST_RUNS} runs, and {FEWEST_SITTINGS} are "
            "needed to tell a slower program from a slower day; accept more, or compare in one sitting"
        )
    if len(candidate) < FEWEST_RUNS:
        return (
            f"the candidate has {len(candidate)} runs, and {FEWEST_RUNS} are needed; "
            f"run it with --repeats {FEWEST_RUNS}"
        )
    return None
