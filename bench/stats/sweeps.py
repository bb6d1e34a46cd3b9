"""Sweeps of made-up runs, summarised and judged by the code that judges real ones, and their false alarms."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.stats.chance import Rule
from bench.stats.machines import (
    MACHINES,
    SIMULATED,
    NoiseModel,
    of_runs,
    session,
    session_by_steps,
    within_runs,
)
from bench.stats.sequential import REGRESSION, Arms, Block, follow
from bench.stats.trend import Bools, Floats, settle

ALPHA = 0.01
FIXED = Rule(alpha=ALPHA, minimum_effect_log=math.log1p(0.01), looks=(5,))
SEQUENTIAL = replace(FIXED, looks=(3, 5, 8))
"""What ``GateSpec`` has by default."""

SEQUENTIAL_TO_16 = replace(FIXED, looks=(3, 5, 8, 13, 16))
"""For sweeps by steps in turn, of which eight pairs can tell nothing."""

TOLERANCE = 0.05
CALIBRATION_RUNS = 10
CHUNK_CELLS = 3000
Decisions = npt.NDArray[np.int8]
Summary = tuple[Floats, Floats, Floats | None]
"""One number of each run: both arms, (..., cells, runs), and the differences of runs by steps in turn."""


def summaries_of(baseline: Floats, candidate: Floats, *, by_steps: bool) -> tuple[Summary, Summary]:
    """Return the totals and the medians of log steps."""
    totals = [np.log(np.exp(arm).mean(axis=-1)) for arm in (baseline, candidate)]
    if by_steps:  # the arms only tell how many repeats there are
        in_turn = settle(candidate - baseline).log_medians
        return (totals[0], totals[1], totals[1] - totals[0]), (totals[0], totals[1], in_turn)
    medians = np.split(settle(np.concatenate([baseline, candidate], axis=-2)).log_medians, 2, axis=-1)
    return (totals[0], totals[1], None), (medians[0], medians[1], None)


def calibrated_variances(
    model: NoiseModel, cells: tuple[int, ...], rng: np.random.Generator, *, by_steps: bool
) -> Floats:
    """Return each cell's calibrated variances of the total and of the median, (2, *cells)."""
    make = session_by_steps if by_steps else session
    same = summaries_of(*make(model, cells, CALIBRATION_RUNS // 2, rng), by_steps=by_steps)
    if by_steps:
        return np.stack([np.var(one[2], axis=-1, ddof=1) / 2 for one in same if one[2] is not None])
    return np.stack([np.concatenate(one[:2], axis=-1).var(axis=-1, ddof=1) for one in same])


def judged(summaries: Sequence[Summary], known: Floats, rule: Rule) -> Decisions:
    """Return the decisions on cells; a calibrated variance of 0 says that there is none."""
    total, median = (arms_of(summary, variance) for summary, variance in zip(summaries, known, strict=True))
    tolerance = np.full(known.shape[1:], math.log1p(TOLERANCE))
    return follow([Block(total=total, median=median, tolerance_log=tolerance)], rule).blocks[0].decisions


def arms_of(summary: Summary, variance: Floats) -> Arms:
    """Return what the gate judges, of one number of each run."""
    baseline, candidate, differences = summary
    degrees = CALIBRATION_RUNS - 1 if differences is None else CALIBRATION_RUNS // 2 - 1
    return Arms(
        baseline=baseline,
        candidate=candidate,
        differences=differences,
        calibration_variance=variance,
        calibration_degrees=np.where(variance > 0, float(degrees), 0.0),
    )


CELLS: tuple[int, ...] = tuple(SIMULATED["no_change"]["cells"])
CALIBRATIONS: Mapping[str, tuple[str, float]] = SIMULATED["no_change"]["calibrations"]
NO_CHANGE = tuple((turns, name) for turns in ("runs", "steps") for name in SIMULATED["no_change"][turns])
_CALIBRATED = 2000


def no_change(
    machine: str, replications: int, seed: int, *, by_steps: bool
) -> Iterator[tuple[str, int, int]]:
    """Yield how many sweeps of unchanged code are called a regression, by calibration and cells.

    What whole runs are off is made anew for each; what their steps add is that of one of 24,000 runs, and a
    cell's calibration one of 2,000. The smaller sweeps are the first cells of the largest. What chance cannot
    have ordered so that it comes to a regression is not judged.
    """
    rng, model = np.random.default_rng(seed), MACHINES[machine]
    models = {"own": model, "other": MACHINES["typical" if machine != "typical" else "restless"]}
    known = {
        name: calibrated_variances(each, (_CALIBRATED,), rng, by_steps=by_steps)
        for name, each in models.items()
    }
    rules = {cells: SEQUENTIAL_TO_16 if by_steps and cells > 1 else SEQUENTIAL for cells in CELLS}
    most = max(rule.looks[-1] for rule in rules.values())
    make = session_by_steps if by_steps else session
    within = summaries_of(*make(within_runs(model), (_CALIBRATED,), 6, rng), by_steps=by_steps)
    doubtful: dict[int, list[list[Summary]]] = {cells: [] for cells in CELLS}
    for count in chunks(replications, max(CHUNK_CELLS // CELLS[-1], 1)):
        summaries = _drawn(within, of_runs(model, (count, CELLS[-1]), most, rng, by_steps=by_steps), rng)
        for cells, rule in rules.items():
            few = _picked(summaries, (slice(None), slice(cells)))
            doubtful[cells].append(_picked(few, might_alarm(few, rule, cells)))
    for name, (source, factor) in CALIBRATIONS.items():
        for cells, found in doubtful.items():
            sweeps = [_joined(parts) for parts in zip(*found, strict=True)]
            drawn = rng.integers(_CALIBRATED, size=sweeps[0][0].shape[:-1])
            decisions = judged(sweeps, known[source][:, drawn] * factor**2, rules[cells])
            number = int((decisions == REGRESSION).any(axis=1).sum())
            yield name, cells, number


def _joined(parts: Sequence[Summary]) -> Summary:
    """Return the sweeps of all parts as one summary."""
    baseline, candidate = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    differences = [part[2] for part in parts if part[2] is not None]
    return baseline, candidate, np.concatenate(differences) if differences else None


def _drawn(within: Sequence[Summary], arms: tuple[Floats, Floats], rng: np.random.Generator) -> list[Summary]:
    """Return the summaries of runs that are off by ``arms``, their steps drawn from those of others."""
    shape = arms[0].shape
    places = [rng.integers(within[0][0].size, size=shape) for _ in arms]
    found: list[Summary] = []
    for *sides, differences in within:
        first, second = (
            side.ravel()[place] + arm for side, place, arm in zip(sides, places, arms, strict=True)
        )
        if differences is None:
            found.append((first, second, None))
        else:
            found.append((first, second, differences.ravel()[places[0]] + arms[1] - arms[0]))
    return found


def _picked(summaries: Sequence[Summary], place: Any) -> list[Summary]:
    return [(one[0][place], one[1][place], None if one[2] is None else one[2][place]) for one in summaries]


def might_alarm(summaries: Sequence[Summary], rule: Rule, cells: int) -> Bools:
    """Tell which sweeps have a cell whose runs chance seldom orders so; no others can have a regression.

    It takes a p-value of at most alpha over all tests; that of the order alone is a bound of it from below,
    and above 1 % where the candidate's slower half does not lie beyond the baseline's faster one.
    """
    found = np.zeros(summaries[0][0].shape[:-1], dtype=np.bool_)
    for look in rule.usable(cells, pairs=summaries[0][2] is not None):
        for summary in summaries:
            near = _near(summary, look)
            (few,) = _picked([summary], near)
            chance = arms_of(few, np.zeros(len(few[0]))).chance(np.full(len(few[0]), look))
            found[near] |= chance * cells <= rule.alpha
    return np.asarray(found.any(axis=-1))


def _near(summary: Summary, look: int) -> Bools:
    """Tell which cells' order might be rarer than one in a hundred."""
    baseline, candidate, differences = summary
    half, places = look // 2, look - look // 2
    if differences is not None:
        above: Bools = (differences[..., :look] > 0).sum(axis=-1) >= places
        return above
    fastest = np.sort(candidate[..., :look], axis=-1)[..., half - 1]
    slowest = np.sort(baseline[..., :look], axis=-1)[..., places]
    return fastest > slowest


def chunks(trials: int, size: int) -> list[int]:
    """Return the sizes of the parts in which so many trials fit in memory."""
    return [min(size, trials - start) for start in range(0, trials, size)]
