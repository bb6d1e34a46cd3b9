"""The gates' error rates on made-up measurements, next to what is promised: ``bench gate --self-check``.

Every number comes out of the code that judges real runs, from step times on, with fixed seeds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.io import read_json
from bench.records.stored import Positive, Stored
from bench.stats.paired import decide_drop, drop_p_value
from bench.stats.sequential import DECISIONS, Block, decide, follow, holm
from bench.stats.settling import Floats, settle
from bench.stats.simulate import NoiseModel, answers, sitting, sitting_by_steps
from bench.stats.simulation_cases import (
    ACCURACY,
    ALPHA,
    CALIBRATION_RUNS,
    DAY_NOISE,
    FALSE_ALARMS,
    FIXED,
    SITUATIONS,
    TOLERANCE,
    TYPICAL,
    AccuracySituation,
    Bounds,
    Event,
    Situation,
)
from bench.stats.sittings import FEWEST_RUNS, FEWEST_SITTINGS, predict

_CHUNK_CELLS = 3000


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """How often something happened in ``trials``, with a 95 % Wilson interval, and the bound it is held to.

    ``holds`` is False only where the whole interval lies on the wrong side of the bound. A row without a
    bound is there for information.
    """

    situation: str
    event: Event
    trials: int
    rate: float
    low: float
    high: float
    side: Literal["at most", "at least"] | None
    bound: float | None

    @property
    def holds(self) -> bool:
        """Whether the simulation is in keeping with the bound."""
        if self.bound is None:
            return True
        return self.low <= self.bound if self.side == "at most" else self.high >= self.bound


class SelfCheck(Stored):
    """A self-check as stored, so that a page can show it: what was simulated how often."""

    self_check_version: Literal[1] = 1
    replications: Positive
    rows: tuple[CheckRow, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return all(row.holds for row in self.rows)


def read_self_check(path: Path) -> SelfCheck:
    """Read what ``bench gate --self-check -o`` wrote. Raises ``UsageError`` where there is none."""
    return read_json(path, SelfCheck, "a self-check", f"make one with bench gate --self-check -o {path}")


def self_check(replications: int) -> Iterator[CheckRow]:
    """Yield the rows of every situation; sweeps of 24 cells are made up a quarter as often."""
    for seed, situation in enumerate(SITUATIONS):
        trials = replications if situation.cells == 1 else max(replications // 4, 1)
        yield from _rows(situation.name, situation.bounds, simulate(situation, trials, seed))
    for seed, slowdown in enumerate((0.0, TOLERANCE), start=100):
        name = f"{FEWEST_SITTINGS} stored sittings of {FEWEST_RUNS} runs, {_change(slowdown)}"
        bounds: Bounds = {"regression": None, "pass": ("at most", ALPHA)} if slowdown else FALSE_ALARMS
        yield from _rows(name, bounds, simulate_stored(slowdown, replications, seed))
    for seed, accuracy in enumerate(ACCURACY, start=200):
        change = f"{100 * accuracy.drop:.0f} points lost" if accuracy.drop else "no change"
        among = f", one of {accuracy.tests} tests" if accuracy.tests > 1 else ""
        name = f"accuracy on {accuracy.questions} questions, 5 % churn, {change}{among}"
        yield from _rows(name, accuracy.bounds, simulate_accuracy(accuracy, replications, seed))


def simulate(situation: Situation, trials: int, seed: int) -> npt.NDArray[np.int8]:
    """Return the decisions of ``trials`` sittings, (trials, cells)."""
    rng = np.random.default_rng(seed)
    size = max(_CHUNK_CELLS // situation.cells, 1)
    chunks = [min(size, trials - start) for start in range(0, trials, size)]
    return np.concatenate([_decisions(situation, count, rng) for count in chunks])


def _decisions(situation: Situation, count: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    shape, repeats = (count, situation.cells), situation.rule.looks[-1]
    slowdowns = np.zeros(situation.cells)
    slowdowns[0] = situation.slowdown
    baseline, candidate = _sitting(situation, situation.model, count, repeats, rng)
    arms = baseline, candidate + np.log1p(slowdowns)[:, np.newaxis, np.newaxis]
    variance, degrees = np.zeros(shape), np.zeros(shape)
    if situation.calibration_factor is not None:
        variance, degrees = _calibration(situation, situation.calibration_factor, count, rng)
    medians = settle(np.concatenate(arms, axis=-2)).log_medians
    block = Block(
        baseline=medians[..., :repeats],
        candidate=medians[..., repeats:],
        differences=settle(arms[1] - arms[0]).log_medians if situation.by_steps else None,
        calibration_variance=variance,
        calibration_degrees=degrees,
        tolerance_log=np.full(shape, math.log1p(TOLERANCE)),
    )
    return follow([block], situation.rule).blocks[0].decisions


def _calibration(
    situation: Situation, factor: float, count: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return each cell's calibrated variance, off by the factor's square, and its degrees of freedom."""
    machine = situation.calibration_model or situation.model
    same = _sitting(situation, machine, count, CALIBRATION_RUNS // 2, rng)
    if situation.by_steps:
        variance = settle(same[1] - same[0]).log_medians.var(axis=-1, ddof=1) / 2
    else:
        variance = settle(np.concatenate(same, axis=-2)).log_medians.var(axis=-1, ddof=1)
    known = CALIBRATION_RUNS // 2 if situation.by_steps else CALIBRATION_RUNS
    return variance * factor**2, np.full(variance.shape, known - 1.0)


def _sitting(
    situation: Situation, model: NoiseModel, count: int, repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return both arms' log steps without a slowdown; cells of another noise stand last."""
    make = sitting_by_steps if situation.by_steps else sitting
    quiet = make(model, (count, situation.cells - situation.noisy_cells), repeats, rng)
    if not situation.noisy_cells:
        return quiet
    noisy = make(situation.noisy_model, (count, situation.noisy_cells), repeats, rng)
    return np.concatenate([quiet[0], noisy[0]], axis=1), np.concatenate([quiet[1], noisy[1]], axis=1)


def simulate_stored(slowdown: float, trials: int, seed: int) -> npt.NDArray[np.int8]:
    """Return decisions on one cell against as few past sittings as are allowed, (trials, 1)."""
    rng = np.random.default_rng(seed)
    chunks = [min(_CHUNK_CELLS // 10, trials - start) for start in range(0, trials, _CHUNK_CELLS // 10)]
    decisions = []
    for count in chunks:
        shape = (count, 1, FEWEST_SITTINGS + 1)
        steps, _ = sitting(TYPICAL, shape, FEWEST_RUNS, rng)
        means = np.median(steps, axis=-1).mean(axis=-1) + rng.normal(0, DAY_NOISE, shape)
        evidence = predict(means[..., 1:], means[..., 0] + math.log1p(slowdown))
        tolerance = np.full((count, 1), math.log1p(TOLERANCE))
        decisions.append(decide(evidence, holm(evidence.p_value()), FIXED, tolerance))
    return np.concatenate(decisions)


def simulate_accuracy(situation: AccuracySituation, trials: int, seed: int) -> npt.NDArray[np.int8]:
    """Return decisions on accuracy where half the answers were right, (trials, 1)."""
    rng = np.random.default_rng(seed)
    shape = (trials, situation.questions)
    lost, gained = answers(shape, accuracy=0.5, drop=situation.drop, churn=0.05, rng=rng)
    decisions = decide_drop(
        lost,
        gained,
        np.full(trials, float(situation.questions)),
        family_p_values=drop_p_value(lost, gained) * situation.tests,
        alpha=ALPHA,
        minimum_drop=0.01,
        tolerance=TOLERANCE,
    )
    return decisions[:, np.newaxis].astype(np.int8)


def _change(slowdown: float) -> str:
    return f"{100 * slowdown:.0f} % slower" if slowdown else "no change"


def _rows(name: str, bounds: Bounds, decisions: npt.NDArray[np.int8]) -> Iterator[CheckRow]:
    """Yield a row for each event; all but *any regression* are of the first cell."""
    for event, bound in bounds.items():
        if event == "any regression":
            happened = (decisions == DECISIONS.index("regression")).any(axis=1)
        else:
            happened = decisions[:, 0] == DECISIONS.index(event)
        low, high = wilson(int(happened.sum()), len(happened))
        side, limit = bound or (None, None)
        yield CheckRow(
            situation=name,
            event=event,
            trials=len(happened),
            rate=float(happened.mean()),
            low=low,
            high=high,
            side=side,
            bound=limit,
        )


def wilson(count: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    z, share = 1.959964, count / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    width = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(middle - width, 0.0), min(middle + width, 1.0)
