"""One number for each run: the logarithm of its median step time, once the steps have settled.

The process run is the unit of analysis. Steps of one run depend on one another, and tests that pool them
see differences where there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

Floats = npt.NDArray[np.float64]

SIGNIFICANCE = 0.01
SMALLEST_DRIFT_LOG = 0.01
"""Between the medians of the two halves: about 2 % over the window, as in ``steady.py``."""

FEWEST_RUNS = 3
FEWEST_STEPS = 6
_SHARES_DROPPED = (0.0, 0.25, 0.5)


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Logs of the runs' medians (..., runs), the leading steps left out of all, and whether a trend stayed.

    ``drift_log`` is the mean over runs of log(median of the second half / median of the first).
    """

    log_medians: Floats
    dropped_steps: npt.NDArray[np.int64]
    steady: npt.NDArray[np.bool_]
    drift_log: Floats


def settle(log_steps: Floats) -> Settled:
    """Summarise the runs of one cell, both sides together; shape (..., runs, steps), natural logarithms.

    The warm-up is extended by a quarter and then by half of the steps while the runs share a trend, for all
    runs alike, so that neither side can gain by it. A trend is a mean drift over runs of at least 1 % between
    the halves, with p < 0.01 by a t-test over runs: inside a run autocorrelated steps wander too often for a
    test. With fewer than three runs or six steps nothing is tested, and the runs count as steady.
    """
    runs, steps = log_steps.shape[-2:]
    log_medians = np.median(log_steps, axis=-1)
    outer = log_steps.shape[:-2]
    dropped, trending = np.zeros(outer, dtype=np.int64), np.zeros(outer, dtype=np.bool_)
    drift = np.zeros(outer)
    if runs < FEWEST_RUNS:
        return Settled(log_medians=log_medians, dropped_steps=dropped, steady=~trending, drift_log=drift)
    undecided = np.ones(outer, dtype=np.bool_)
    for share in _SHARES_DROPPED:
        cut = round(share * steps)
        if steps - cut < FEWEST_STEPS or not undecided.any():
            break
        rest = log_steps[undecided][..., cut:]
        log_medians[undecided] = np.median(rest, axis=-1)
        dropped[undecided] = cut
        drift[undecided], trending[undecided] = _shared_trend(rest)
        undecided = trending.copy()
    return Settled(log_medians=log_medians, dropped_steps=dropped, steady=~trending, drift_log=drift)


@dataclass(frozen=True, kw_only=True)
class SettledCell:
    """``Settled`` for one cell: the log summary of each run, in the order given."""

    log_medians: tuple[float, ...]
    dropped_steps: int
    steady: bool
    drift_log: float


def settle_cells(cells: Sequence[Sequence[Sequence[float]]]) -> tuple[SettledCell, ...]:
    """Summarise cells, each given as its runs of positive samples in the order measured, both sides together.

    Longer runs are cut to the cell's shortest; a run of one sample is that sample. Cells of the same shape go
    together, which is quick for thousands. Raises ValueError for a run without samples.
    """
    shapes = [(len(runs), min(map(len, runs), default=0)) for runs in cells]
    if any(runs and not steps for runs, steps in shapes):
        raise ValueError("a run without samples has no summary; leave it out")
    found: list[SettledCell] = [
        SettledCell(log_medians=(), dropped_steps=0, steady=True, drift_log=0.0)
    ] * len(cells)
    for shape in {shape for shape in shapes if shape[0]}:
        places = [place for place, own in enumerate(shapes) if own == shape]
        settled = settle(np.log([[run[: shape[1]] for run in cells[place]] for place in places]))
        for row, place in enumerate(places):
            found[place] = SettledCell(
                log_medians=tuple(settled.log_medians[row].tolist()),
                dropped_steps=int(settled.dropped_steps[row]),
                steady=bool(settled.steady[row]),
                drift_log=float(settled.drift_log[row]),
            )
    return tuple(found)


def step_ratios(
    baseline: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Return for each repeat the ratio of each of the candidate's steps to the baseline's beside it.

    For runs that took turns at steps: what slows the machine down for longer than a step is in both, and not
    in the ratio. A repeat that lacks a side is left out, and steps that only one of them has.
    """
    return [
        [after / before for before, after in zip(*runs, strict=False)]
        for runs in zip(baseline, candidate, strict=False)
    ]


def _shared_trend(log_steps: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the mean drift over runs, and whether it is both large and significant."""
    runs, steps = log_steps.shape[-2:]
    half = steps // 2
    drifts = np.median(log_steps[..., -half:], axis=-1) - np.median(log_steps[..., :half], axis=-1)
    mean = drifts.mean(axis=-1)
    error = np.maximum(drifts.std(axis=-1, ddof=1) / np.sqrt(runs), np.finfo(float).tiny)
    p_value = 2 * stdtr(runs - 1, -np.abs(mean) / error)
    return mean, (p_value < SIGNIFICANCE) & (np.abs(mean) >= SMALLEST_DRIFT_LOG)
