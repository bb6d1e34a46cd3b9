"""Sweeps of made-up runs, summarised and judged by the code that judges real ones, and their false alarms."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

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


def summaries_of(baseline: Floats, candidate: Floats, *, by_steps: bool) -> Floats:
    """Return total and median of the log steps of each run, (2, sides, ..., cells, runs).

    Sides are both arms and, of runs by steps in turn, their differences; of such the arms only tell how many
    repeats there are.
    """
    totals = np.log(np.exp(np.stack([baseline, candidate])).mean(axis=-1))
    if by_steps:
        in_turn = settle(candidate - baseline).log_medians
        return np.stack([[*totals, totals[1] - totals[0]], [*totals, in_turn]])
    medians = np.split(settle(np.concatenate([baseline, candidate], axis=-2)).log_medians, 2, axis=-1)
    return np.stack([totals, np.stack(medians)])


def calibrated_variances(
    model: NoiseModel, cells: tuple[int, ...], rng: np.random.Generator, *, by_steps: bool
) -> Floats:
    """Return each cell's calibrated variances of the total and of the median, (2, *cells)."""
    make = session_by_steps if by_steps else session
    same = summaries_of(*make(model, cells, CALIBRATION_RUNS // 2, rng), by_steps=by_steps)
    if by_steps:
        return np.asarray(same[:, 2].var(axis=-1, ddof=1) / 2)
    return np.asarray(np.concatenate([same[:, 0], same[:, 1]], axis=-1).var(axis=-1, ddof=1))


def judged(summaries: Floats, known: Floats, rule: Rule) -> Decisions:
    """Return the decisions on cells; a calibrated variance of 0 says that there is none."""
    total, median = (arms_of(summary, variance) for summary, variance in zip(summaries, known, strict=True))
    tolerance = np.full(known.shape[1:], math.log1p(TOLERANCE))
    return follow([Block(total=total, median=median, tolerance_log=tolerance)], rule).blocks[0].decisions


def arms_of(summary: Floats, variance: Floats) -> Arms:
    """Return what the gate judges, of the sides of one summary."""
    baseline, candidate, *in_turn = summary
    degrees = (CALIBRATION_RUNS // 2 if in_turn else CALIBRATION_RUNS) - 1
    return Arms(
        baseline=baseline,
        candidate=candidate,
        differences=in_turn[0] if in_turn else None,
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
    doubtful: dict[int, list[Floats]] = {cells: [] for cells in CELLS}
    for count in chunks(replications, max(CHUNK_CELLS // CELLS[-1], 1)):
        summaries = _drawn(within, of_runs(model, (count, CELLS[-1]), most, rng, by_steps=by_steps), rng)
        for cells, rule in rules.items():
            few = summaries[:, :, :, :cells]
            doubtful[cells].append(few[:, :, might_alarm(few, rule, cells)])
    for name, (source, factor) in CALIBRATIONS.items():
        for cells, found in doubtful.items():
            sweeps = np.concatenate(found, axis=2)
            drawn = rng.integers(_CALIBRATED, size=sweeps.shape[2:-1])
            decisions = judged(sweeps, known[source][:, drawn] * factor**2, rules[cells])
            number = int((decisions == REGRESSION).any(axis=1).sum())
            yield name, cells, number


def _drawn(within: Floats, arms: tuple[Floats, Floats], rng: np.random.Generator) -> Floats:
    """Return the summaries of runs that are off by ``arms``, their steps drawn from those of others."""
    places = [rng.integers(within[0, 0].size, size=arm.shape) for arm in arms]
    first, second, *in_turn = within.reshape(*within.shape[:2], -1).swapaxes(0, 1)
    sides = [first[:, places[0]] + arms[0], second[:, places[1]] + arms[1]]
    sides += [differences[:, places[0]] + arms[1] - arms[0] for differences in in_turn]
    return np.stack(sides, axis=1)


def might_alarm(summaries: Floats, rule: Rule, cells: int) -> Bools:
    """Tell which sweeps have a cell whose runs chance seldom orders so; no others can have a regression.

    It takes a p-value of at most alpha over all tests; that of the order alone is a bound of it from below,
    and above 1 % where the candidate's slower half does not lie beyond the baseline's faster one.
    """
    found = np.zeros(summaries.shape[2:-1], dtype=np.bool_)
    for look in rule.usable(cells, pairs=summaries.shape[1] > 2):  # noqa: PLR2004 - beside both arms
        for summary in summaries:
            near = _near(summary, look)
            few = summary[:, near]
            chance = arms_of(few, np.zeros(few.shape[1])).chance(np.full(few.shape[1], look))
            found[near] |= chance * cells <= rule.alpha
    return np.asarray(found.any(axis=-1))


def _near(summary: Floats, look: int) -> Bools:
    """Tell which cells' order might be rarer than one in a hundred."""
    baseline, candidate, *in_turn = summary[..., :look]
    half, places = look // 2, look - look // 2
    if in_turn:
        above: Bools = (in_turn[0] > 0).sum(axis=-1) >= places
        return above
    return np.sort(candidate, axis=-1)[..., half - 1] > np.sort(baseline, axis=-1)[..., places]


def chunks(trials: int, size: int) -> list[int]:
    """Return the sizes of the parts in which so many trials fit in memory."""
    return [min(size, trials - start) for start in range(0, trials, size)]
