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
from bench.records.readings import Positive, Stored
from bench.stats.noise import FEWEST_RUNS, FEWEST_SESSIONS, against_sessions
from bench.stats.paired import decide_drop, drop_p_value
from bench.stats.sequential import REGRESSION, Block, decide, follow, holm
from bench.stats.simulation_cases import (
    ACCURACY,
    ALPHA,
    CALIBRATION_RUNS,
    CASES,
    DAY_NOISE,
    EVENTS,
    FALSE_ALARMS,
    FIXED,
    TOLERANCE,
    TYPICAL,
    AccuracyCase,
    Bounds,
    Event,
    NoiseModel,
    SimulationCase,
)
from bench.stats.trend import Floats, settle

Decisions = npt.NDArray[np.int8]
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
    """Yield the rows of every case; sweeps of 24 cells are made up a quarter as often."""
    for seed, case in enumerate(CASES):
        trials = replications if case.cells == 1 else max(replications // 4, 1)
        yield from _rows(case.name, case.bounds, simulate(case, trials, seed))
    for seed, slowdown in enumerate((0.0, TOLERANCE), start=100):
        name = f"{FEWEST_SESSIONS} stored sittings of {FEWEST_RUNS} runs, {_change(slowdown)}"
        bounds: Bounds = {"regression": None, "pass": ("at most", ALPHA)} if slowdown else FALSE_ALARMS
        yield from _rows(name, bounds, simulate_stored(slowdown, replications, seed))
    for seed, accuracy in enumerate(ACCURACY, start=200):
        change = f"{100 * accuracy.drop:.0f} points lost" if accuracy.drop else "no change"
        among = f", one of {accuracy.tests} tests" if accuracy.tests > 1 else ""
        name = f"accuracy on {accuracy.questions} questions, 5 % churn, {change}{among}"
        yield from _rows(name, accuracy.bounds, simulate_accuracy(accuracy, replications, seed))


def simulate(case: SimulationCase, trials: int, seed: int) -> Decisions:
    """Return the decisions of ``trials`` sessions, (trials, cells)."""
    rng = np.random.default_rng(seed)
    size = max(_CHUNK_CELLS // case.cells, 1)
    chunks = [min(size, trials - start) for start in range(0, trials, size)]
    return np.concatenate([_decisions(case, count, rng) for count in chunks])


def _decisions(case: SimulationCase, count: int, rng: np.random.Generator) -> Decisions:
    shape, repeats = (count, case.cells), case.rule.looks[-1]
    slowdowns = np.zeros(case.cells)
    slowdowns[0] = case.slowdown
    baseline, candidate = _session(case, case.model, count, repeats, rng)
    arms = baseline, candidate + np.log1p(slowdowns)[:, np.newaxis, np.newaxis]
    variance, degrees = np.zeros(shape), np.zeros(shape)
    if case.calibration_factor is not None:
        variance, degrees = _calibration(case, case.calibration_factor, count, rng)
    medians = settle(np.concatenate(arms, axis=-2)).log_medians
    block = Block(
        baseline=medians[..., :repeats],
        candidate=medians[..., repeats:],
        differences=settle(arms[1] - arms[0]).log_medians if case.by_steps else None,
        calibration_variance=variance,
        calibration_degrees=degrees,
        tolerance_log=np.full(shape, math.log1p(TOLERANCE)),
    )
    return follow([block], case.rule).blocks[0].decisions


def _calibration(
    case: SimulationCase, factor: float, count: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return each cell's calibrated variance, off by the factor's square, and its degrees of freedom."""
    machine = case.calibration_model or case.model
    same = _session(case, machine, count, CALIBRATION_RUNS // 2, rng)
    if case.by_steps:
        variance = settle(same[1] - same[0]).log_medians.var(axis=-1, ddof=1) / 2
    else:
        variance = settle(np.concatenate(same, axis=-2)).log_medians.var(axis=-1, ddof=1)
    known = CALIBRATION_RUNS // 2 if case.by_steps else CALIBRATION_RUNS
    return variance * factor**2, np.full(variance.shape, known - 1.0)


def _session(
    case: SimulationCase, model: NoiseModel, count: int, repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return both arms' log steps without a slowdown; cells of another noise stand last."""
    make = session_by_steps if case.by_steps else session
    quiet = make(model, (count, case.cells - case.noisy_cells), repeats, rng)
    if not case.noisy_cells:
        return quiet
    noisy = make(case.noisy_model, (count, case.noisy_cells), repeats, rng)
    return np.concatenate([quiet[0], noisy[0]], axis=1), np.concatenate([quiet[1], noisy[1]], axis=1)


def simulate_stored(slowdown: float, trials: int, seed: int) -> Decisions:
    """Return decisions on one cell against as few past sessions as are allowed, (trials, 1)."""
    rng = np.random.default_rng(seed)
    chunks = [min(_CHUNK_CELLS // 10, trials - start) for start in range(0, trials, _CHUNK_CELLS // 10)]
    decisions = []
    for count in chunks:
        shape = (count, 1, FEWEST_SESSIONS + 1)
        steps, _ = session(TYPICAL, shape, FEWEST_RUNS, rng)
        means = np.median(steps, axis=-1).mean(axis=-1) + rng.normal(0, DAY_NOISE, shape)
        evidence = against_sessions(means[..., 1:], means[..., 0] + math.log1p(slowdown))
        tolerance = np.full((count, 1), math.log1p(TOLERANCE))
        decisions.append(decide(evidence, holm(evidence.p_value()), FIXED, tolerance))
    return np.concatenate(decisions)


def simulate_accuracy(case: AccuracyCase, trials: int, seed: int) -> Decisions:
    """Return decisions on accuracy where half the answers were right, (trials, 1)."""
    rng = np.random.default_rng(seed)
    shape = (trials, case.questions)
    lost, gained = changed_answers(shape, accuracy=0.5, drop=case.drop, churn=0.05, rng=rng)
    decisions = decide_drop(
        lost,
        gained,
        np.full(trials, float(case.questions)),
        family_p_values=drop_p_value(lost, gained) * case.tests,
        alpha=ALPHA,
        minimum_drop=0.01,
        tolerance=TOLERANCE,
    )
    return decisions[:, np.newaxis].astype(np.int8)


def _change(slowdown: float) -> str:
    return f"{100 * slowdown:.0f} % slower" if slowdown else "no change"


def _rows(name: str, bounds: Bounds, decisions: Decisions) -> Iterator[CheckRow]:
    """Yield a row for each event; all but *any regression* are of the first cell."""
    for event, bound in bounds.items():
        if event == "any regression":
            happened = (decisions == REGRESSION).any(axis=1)
        else:
            happened = decisions[:, 0] == EVENTS.index(event)
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


def session(
    model: NoiseModel, cells: tuple[int, ...], repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the log step times of two arms of the same code, each (*cells, repeats, measured steps)."""
    steps = _steps(model, (*cells, 2 * repeats), rng)
    if model.slow_log:
        steps += _speeds(model, steps.shape, rng)
    steps += model.drift * np.linspace(0, 1, 2 * repeats)[:, np.newaxis]
    first, second = steps[..., 0::2, :], steps[..., 1::2, :]
    candidate_first = (np.arange(repeats) % 2 == 1)[:, np.newaxis]  # A B, B A, A B, …
    return np.where(candidate_first, second, first), np.where(candidate_first, first, second)


def session_by_steps(
    model: NoiseModel, cells: tuple[int, ...], repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the same of arms that take turns at steps, A B B A A B B A …, on one machine of any speed."""
    shape, count = (*cells, repeats), model.measured_steps
    arms = (_steps(model, shape, rng), _steps(model, shape, rng))
    of_candidate = np.arange(2 * count) % 4 % 3 != 0
    machine = _speeds(model, (*shape, 2 * count), rng)
    machine += model.drift * np.linspace(0, 1, repeats)[:, np.newaxis]
    return arms[0] + machine[..., ~of_candidate], arms[1] + machine[..., of_candidate]


def _speeds(model: NoiseModel, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return the log slowness of a restless machine at each of the steps on the last axis."""
    changes = rng.random(shape) < model.restlessness
    changes[..., 0] = rng.random(shape[:-1]) < 0.5  # noqa: PLR2004 - either speed at first
    slow = np.cumsum(changes, axis=-1) % 2 == 1
    return np.where(slow, model.slow_log, 0.0)


def _steps(model: NoiseModel, runs: tuple[int, ...], rng: np.random.Generator) -> Floats:
    count = model.measured_steps
    steps = rng.normal(0, model.step_noise, (*runs, count))
    fresh = np.sqrt(1 - model.autocorrelation**2)
    for step in range(1, count):
        steps[..., step] = model.autocorrelation * steps[..., step - 1] + fresh * steps[..., step]
    index = np.arange(model.warmup_steps, model.warmup_steps + count)
    steps += 0.6 * np.exp(-index / 3) + 0.05 * np.exp(-index / 15)
    spikes = rng.random(steps.shape) < model.spike_share
    steps[spikes] += rng.exponential(model.spike_size, int(spikes.sum()))
    steps += rng.normal(0, model.run_noise, (*runs, 1))
    return steps


def changed_answers(
    shape: tuple[int, int], *, accuracy: float, drop: float, churn: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return how many questions each replication lost and gained; ``shape`` is (replications, questions).

    ``churn`` is the share of questions whose answer changes without a drop, half of them each way.
    """
    right = rng.random(shape) < accuracy
    chance = rng.random(shape)
    lost = right & (chance < (churn / 2 + drop) / accuracy)
    gained = ~right & (chance < churn / 2 / (1 - accuracy))
    return lost.sum(axis=1).astype(np.float64), gained.sum(axis=1).astype(np.float64)
