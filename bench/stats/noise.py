"""What is known of noise: the moderated t statistic, calibrations, and what past sessions differ by.

Everything is in natural logarithms, signed so that *positive is worse*, and vectorised: the last axis holds
the cells of one session. Nothing is decided here; ``sequential.py`` does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit

from bench.errors import counted
from bench.records.run_summary import BY_STEP
from bench.records.sessions import Calibration
from bench.stats.trend import Bools, Floats, Ints, settle_cells, step_ratios

MOST_PRIOR_DEGREES = 8.0
"""What a prior may weigh at most, in degrees of freedom: noise changes from day to day and cell to cell."""

SPREAD_SIGNIFICANCE = 0.025
MODES_SIGNIFICANCE = 0.01
"""A calibration is dropped where runs like it would spread, or fall apart, so with this probability."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of a run's log summary, and the degrees of freedom it was learnt with (0: nothing known).

    ``of_pairs`` says that runs are compared two by two, made step by step in turn: then it is half the
    variance of a difference.
    """

    log_variance: float
    degrees_of_freedom: int
    of_pairs: bool = False


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean log difference of each cell, the variance of one run, and what makes it that of the mean.

    The variance of ``difference`` is ``variance * scale``; ``scale`` is infinite where an arm has no run.
    ``gap`` is the widest between neighbouring runs of one arm.
    """

    difference: Floats
    variance: Floats
    degrees_of_freedom: Floats
    scale: Floats
    gap: Floats


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A difference with its standard error; ``calibration_held`` is False where it was dropped."""

    difference: Floats
    standard_error: Floats
    degrees_of_freedom: Floats
    calibration_held: Bools

    def where(self, chosen: Bools, other: "Evidence") -> "Evidence":
        """Return this evidence where chosen, and the other's elsewhere."""
        names = [field.name for field in fields(Evidence)]
        return Evidence(
            **{name: np.where(chosen, getattr(self, name), getattr(other, name)) for name in names}
        )

    def p_value(self) -> Floats:
        """Return the one-sided p-value of the cell not being worse at all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = self.difference / self.standard_error
        known = self.degrees_of_freedom > 0
        p_value = stdtr(np.where(known, self.degrees_of_freedom, 1.0), -np.nan_to_num(statistic))
        return np.where(known, p_value, 1.0)

    def bounds(self, alpha: Floats | float) -> tuple[Floats, Floats]:
        """Return the one-sided lower and upper bounds, each missed with probability ``alpha``."""
        known = self.degrees_of_freedom > 0
        quantile = stdtrit(np.where(known, self.degrees_of_freedom, 1.0), 1 - np.asarray(alpha))
        width = np.where(known, quantile * self.standard_error, np.inf)
        return self.difference - width, self.difference + width


def calibrate(groups: Sequence[Sequence[float]]) -> Noise:
    """Return the noise of runs of unchanged code: one group of log summaries for each session of a cell.

    Only the spread within groups counts. Raises nothing: without two runs in a group nothing is known.
    """
    degrees = sum(len(group) - 1 for group in groups if group)
    squares = sum(float(np.var(group)) * len(group) for group in groups if group)
    return Noise(log_variance=squares / degrees if degrees else 0.0, degrees_of_freedom=degrees)


def moments_of_arms(baseline: Floats, candidate: Floats, repeats: Ints) -> Moments:
    """Return the moments of each cell's first ``repeats`` runs, which alternated in ABBA order.

    Both arms are (..., cells, runs), ``NaN`` where a run is missing. The order cancels a linear drift in the
    difference, and what drift adds to the variance only makes the test more careful. Pairing the runs
    instead would halve the degrees of freedom.
    """
    first, first_mean, first_squares = _moments(baseline, repeats)
    second, second_mean, second_squares = _moments(candidate, repeats)
    complete = (first > 0) & (second > 0)
    degrees = np.where(complete, first + second - 2, 0.0)
    return Moments(
        difference=np.where(complete, second_mean - first_mean, 0.0),
        variance=(first_squares + second_squares) / np.maximum(degrees, 1.0),
        degrees_of_freedom=degrees,
        scale=np.where(complete, 1 / np.maximum(first, 1) + 1 / np.maximum(second, 1), np.inf),
        gap=np.maximum(_widest_gap(baseline, repeats), _widest_gap(candidate, repeats)),
    )


def moments_of_pairs(differences: Floats, repeats: Ints) -> Moments:
    """Return the moments of each cell's first ``repeats`` differences between runs made step by step in turn.

    (..., cells, repeats), ``NaN`` where there is none. The variance is given as one run's, half that of a
    difference, so that it means the same as that of arms.
    """
    count, mean, squares = _moments(differences, repeats)
    degrees = np.maximum(count - 1, 0.0)
    return Moments(
        difference=mean,
        variance=squares / np.maximum(degrees, 1.0) / 2,
        degrees_of_freedom=degrees,
        scale=np.where(count > 0, 2 / np.maximum(count, 1), np.inf),
        gap=_widest_gap(differences, repeats) / math.sqrt(2),
    )


def _moments(runs: Floats, repeats: Ints) -> tuple[Floats, Floats, Floats]:
    """Return number, mean and sum of squared deviations of each cell's runs."""
    used = used_runs(runs, repeats)
    count = used.sum(axis=-1).astype(np.float64)
    there = np.where(used, runs, 0.0)
    mean = there.sum(axis=-1) / np.maximum(count, 1.0)
    deviations = np.where(used, there - mean[..., np.newaxis], 0.0)
    return count, mean, (deviations**2).sum(axis=-1)


def used_runs(runs: Floats, repeats: Ints) -> Bools:
    """Tell which are there and among the first so many."""
    return ~np.isnan(runs) & (np.arange(runs.shape[-1]) < repeats[..., np.newaxis])


def _widest_gap(runs: Floats, repeats: Ints) -> Floats:
    in_order = np.sort(np.where(used_runs(runs, repeats), runs, np.nan), axis=-1)  # NaN come last
    gaps: Floats = np.nan_to_num(np.diff(in_order, axis=-1)).max(axis=-1, initial=0.0)
    return gaps


def pad(cells: Sequence[Sequence[float]]) -> Floats:
    """Return one row for each cell's runs, as long as the longest, ``NaN`` after a row's end."""
    rows = np.full((len(cells), max(map(len, cells), default=0)), np.nan)
    for row, runs in zip(rows, cells, strict=True):
        row[: len(runs)] = runs
    return rows


def centre(runs: Floats) -> Floats:
    """Return the mean of each row of runs; ``NaN`` where there is none."""
    count = (~np.isnan(runs)).sum(axis=-1)
    return np.where(count > 0, np.nansum(runs, axis=-1) / np.maximum(count, 1), np.nan)


def weigh(moments: Moments, calibration_variance: Floats, calibration_degrees: Floats) -> Evidence:
    """Return the evidence of one session's cells, all of one metric.

    Each variance is averaged with the calibration's, weighted by degrees of freedom, of which that counts for
    eight at most, and not at all where today's runs are not like it (``unlike``).
    """
    own, degrees = moments.variance, moments.degrees_of_freedom
    weight = np.minimum(calibration_degrees, MOST_PRIOR_DEGREES)
    held = ~unlike(moments, calibration_variance, weight)
    weight = np.where(held, weight, 0.0)
    total = degrees + weight
    complete = np.isfinite(moments.scale)
    variance = (degrees * own + weight * calibration_variance) / np.maximum(total, 1.0)
    return Evidence(
        difference=moments.difference,
        standard_error=np.where(complete, np.sqrt(variance * np.where(complete, moments.scale, 1.0)), np.inf),
        degrees_of_freedom=np.where(complete, total, 0.0),
        calibration_held=held,
    )


def unlike(moments: Moments, prior: Floats, weight: Floats) -> Bools:
    """Tell which cells' runs are not like the calibration's.

    A cell's are not where they spread more (F-test). None of the session's are on a day on which all cells
    together do, or where the runs of one fall into two heaps: a gap between neighbours that two runs of the
    calibrated noise would not leave. It has the t distribution as a bound, for all runs of all cells.
    """
    degrees = moments.degrees_of_freedom
    known = (degrees > 0) & (weight > 0) & (prior > 0)
    weights, priors = np.where(known, weight, 1.0), np.where(known, prior, 1.0)
    spread = known & (
        fdtrc(np.where(known, degrees, 1.0), weights, moments.variance / priors) < SPREAD_SIGNIFICANCE
    )
    sums = [
        np.where(known, each, 0.0).sum(axis=-1, keepdims=True)
        for each in (degrees, weight, degrees * moments.variance, degrees * prior, 1.0)
    ]
    of_day, of_priors, own, expected, cells = sums
    there = cells > 0
    day = there & (
        fdtrc(
            np.where(there, of_day, 1.0),
            np.where(there, of_priors, 1.0),
            own / np.where(there, expected, 1.0),
        )
        < SPREAD_SIGNIFICANCE
    )
    runs = np.maximum(degrees + 2, 2.0) * np.maximum(cells, 1.0)
    reach = stdtrit(weights, 1 - MODES_SIGNIFICANCE / (2 * runs)) * np.sqrt(2 * priors)
    heaps = known & (moments.gap > reach)
    found: Bools = spread | day | heaps.any(axis=-1, keepdims=True)
    return found


def noise_of(calibration: Calibration, digest: str, metric: str, *, total: bool = False) -> Noise:
    """Return the noise of a metric of the cell with this digest; 0 degrees of freedom if it is not known.

    Of its median over steps, or with ``total`` of all steps together. Both sides of a session are one group,
    since they were the same: what differs between two processes that workers are forked from is noise too. Of
    runs made step by step in turn it is half the variance of their differences.
    """
    if calibration.interleave == "steps" and metric in BY_STEP:
        repeats = [step_ratios(*sides) for sides in calibration.pairs(digest, metric, total=total)]
        noise = calibrate([settled.log_medians.tolist() for settled in settle_cells(repeats)])
        return replace(noise, log_variance=noise.log_variance / 2, of_pairs=True)
    sessions = calibration.runs(digest, metric, total=total)
    return calibrate([settled.log_medians.tolist() for settled in settle_cells(sessions)])


FEWEST_SESSIONS = 10
FEWEST_RUNS = 3
"""Fewer than ten sessions of three runs do not tell how much days differ; then speed is inconclusive."""


def against_sessions(baseline: Floats, candidate: Floats) -> Evidence:
    """Return the evidence of cells: a new session's mean against a prediction interval from past ones.

    Runs of one session share that day's state of the machine, so the session is the unit of analysis here.
    ``baseline`` holds the means of each session's log summaries, (..., cells, sessions), positive being worse
    and ``NaN`` a session that a cell lacks; ``candidate`` is the new session's, (..., cells). The standard
    error is s * sqrt(1 + 1/k) over k sessions (Hahn and Meeker 1991, Statistical Intervals, section 4.7),
    with k - 1 degrees of freedom. Nothing is borrowed from other cells: a bad day slows them all.
    """
    count, mean, squares = _moments(baseline, np.full(candidate.shape, baseline.shape[-1]))
    degrees = np.maximum(count - 1, 0.0)
    usable = (degrees > 0) & ~np.isnan(candidate)
    variance = squares / np.maximum(degrees, 1) * (1 + 1 / np.maximum(count, 1))
    return Evidence(
        difference=np.where(usable, candidate - mean, 0.0),
        standard_error=np.where(usable, np.sqrt(variance), np.inf),
        degrees_of_freedom=np.where(usable, degrees, 0.0),
        calibration_held=np.ones(count.shape, dtype=np.bool_),
    )


def too_few_runs(baseline: Sequence[Sequence[float]], candidate: Sequence[float]) -> str | None:
    """Return in one sentence why speed cannot be judged against these sessions; None if it can."""
    sessions = sum(len(runs) >= FEWEST_RUNS for runs in baseline)
    if sessions < FEWEST_SESSIONS:
        return (
            f"the baseline has {counted(sessions, 'session')} of at least {FEWEST_RUNS} runs, and "
            f"{FEWEST_SESSIONS} are needed to tell a slower program from a slower day; accept more, or "
            "compare in one session"
        )
    if len(candidate) < FEWEST_RUNS:
        return (
            f"the candidate has {counted(len(candidate), 'run')}, and {FEWEST_RUNS} are needed; "
            f"run it with --repeats {FEWEST_RUNS}"
        )
    return None
