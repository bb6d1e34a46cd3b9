"""The gates' error rates on made-up measurements, next to what is promised: ``bench gate --self-check``.

Every number comes out of the code that judges real runs, from step times on, with fixed seeds. The made-up
machines and the promises are in ``simulation.toml``.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.io import own_toml, read_json
from bench.records.readings import Positive, Stored
from bench.stats.noise import FEWEST_RUNS, FEWEST_SESSIONS, against_sessions
from bench.stats.paired import decide_drop, drop_p_value
from bench.stats.sequential import REGRESSION, Block, Rule, decide, follow, holm
from bench.stats.trend import Floats, settle

ALPHA = 0.01
FIXED = Rule(alpha=ALPHA, minimum_effect_log=math.log1p(0.01), looks=(5,))
SEQUENTIAL = replace(FIXED, looks=(3, 5, 8))
"""What ``GateSpec`` has by default."""

TOLERANCE = 0.05
CALIBRATION_RUNS = 10
DAY_NOISE = 0.008
"""Standard deviation between sessions, for stored baselines."""

Event = Literal["any regression", "regression", "pass", "undecided"]
EVENTS: tuple[Event, ...] = ("undecided", "pass", "regression")
"""Of one cell, as ``sequential.DECISIONS``."""

Side = Literal["at most", "at least"]
Bounds = Mapping[Event, tuple[Side, float] | tuple[()]]
Decisions = npt.NDArray[np.int8]
_CHUNK_CELLS = 3000


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """The log step time of a made-up machine, a sum of independent parts; shares are of the step time.

    ``run_noise`` and ``step_noise`` are standard deviations between runs and, autocorrelated (AR(1)), between
    steps. Spikes lengthen a step by an exponential share of ``spike_size`` on average. The warm-up leaves a
    quick part (60 %, decaying over 3 steps) and a slow one (5 %, over 15), of which ``warmup_steps`` are cut
    off. ``drift`` is added evenly from the first run of a session to its last. A restless machine's steps
    take longer by ``slow_share`` or do not, which changes after one with a probability of ``restlessness``.
    """

    run_noise: float = 0.012
    step_noise: float = 0.015
    autocorrelation: float = 0.5
    spike_share: float = 0.02
    spike_size: float = 0.25
    warmup_steps: int = 10
    measured_steps: int = 30
    drift: float = 0.0
    slow_share: float = 0.0
    restlessness: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SimulationCase:
    """A session to make up many times over: its machine, what was known of it, and one slower cell.

    The first cell is the slower one. ``noisy_cells`` of ``cells`` are of ``noisy_model``. A calibration has
    ten runs of each cell, of ``calibration_model`` where that is another machine than the one at hand, and
    its standard deviations are off by ``calibration_factor``. With ``by_steps`` the sides take turns at
    steps.
    """

    name: str
    bounds: Bounds
    slowdown: float = 0.0
    rule: Rule = FIXED
    cells: int = 1
    model: NoiseModel = NoiseModel()
    noisy_cells: int = 0
    noisy_model: NoiseModel = NoiseModel(run_noise=2 * NoiseModel.run_noise)
    calibration_model: NoiseModel | None = None
    calibrated: bool = True
    calibration_factor: float = 1.0
    by_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class AccuracyCase:
    """Two evaluations of the same questions, 5 % of the answers changing anyway; one of ``tests`` tests."""

    questions: int
    bounds: Bounds
    drop: float = 0.0
    tests: int = 1


_FILE = own_toml("bench.stats", "simulation.toml")
PROMISES: Mapping[str, Bounds] = _FILE["promises"]


def _case(name: str, *, promise: str, **what: Any) -> SimulationCase:
    """Return a case; much of it is read from its name, so that the two cannot disagree."""
    slower = re.search(r"(\d+) % slower", name)
    for field in {"model", "calibration_model"} & what.keys():
        what[field] = NoiseModel(**_FILE["machines"][what[field]])
    return SimulationCase(
        name=name,
        bounds=PROMISES[promise],
        slowdown=int(slower[1]) / 100 if slower else 0.0,
        rule=SEQUENTIAL if "looks at 3, 5, 8" in name else FIXED,
        cells=int(name.split(maxsplit=1)[0]),
        by_steps="steps in turn" in name,
        **what,
    )


CASES = tuple(_case(name, **what) for name, what in _FILE["cases"].items())
ACCURACY = tuple(AccuracyCase(bounds=PROMISES[one.pop("promise")], **one) for one in _FILE["accuracy"])


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
    side: Side | None
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
        change = f"{100 * slowdown:.0f} % slower" if slowdown else "no change"
        name = f"{FEWEST_SESSIONS} stored sittings of {FEWEST_RUNS} runs, {change}"
        bounds = PROMISES["not passed" if slowdown else "no false alarm"]
        yield from _rows(name, bounds, simulate_stored(slowdown, replications, seed))
    for seed, accuracy in enumerate(ACCURACY, start=200):
        change = f"{100 * accuracy.drop:.0f} points lost" if accuracy.drop else "no change"
        among = f", one of {accuracy.tests} tests" if accuracy.tests > 1 else ""
        name = f"accuracy on {accuracy.questions} questions, 5 % churn, {change}{among}"
        yield from _rows(name, accuracy.bounds, simulate_accuracy(accuracy, replications, seed))


def simulate(case: SimulationCase, trials: int, seed: int) -> Decisions:
    """Return the decisions of ``trials`` sessions, (trials, cells)."""
    rng = np.random.default_rng(seed)
    chunks = _chunks(trials, max(_CHUNK_CELLS // case.cells, 1))
    return np.concatenate([_decisions(case, count, rng) for count in chunks])


def _chunks(trials: int, size: int) -> list[int]:
    """Return the sizes of the parts in which so many trials fit in memory."""
    return [min(size, trials - start) for start in range(0, trials, size)]


def _decisions(case: SimulationCase, count: int, rng: np.random.Generator) -> Decisions:
    shape, repeats = (count, case.cells), case.rule.looks[-1]
    slowdowns = np.zeros(case.cells)
    slowdowns[0] = case.slowdown
    baseline, candidate = _session(case, case.model, count, repeats, rng)
    arms = baseline, candidate + np.log1p(slowdowns)[:, np.newaxis, np.newaxis]
    variance, degrees = _calibration(case, count, rng) if case.calibrated else np.zeros((2, *shape))
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


def _calibration(case: SimulationCase, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return each cell's calibrated variance, off by the factor's square, and its degrees of freedom."""
    same = _session(case, case.calibration_model or case.model, count, CALIBRATION_RUNS // 2, rng)
    logs = same[1] - same[0] if case.by_steps else np.concatenate(same, axis=-2)
    medians = settle(logs).log_medians
    variance = medians.var(axis=-1, ddof=1) / (2 if case.by_steps else 1)
    return variance * case.calibration_factor**2, np.full(variance.shape, medians.shape[-1] - 1.0)


def _session(
    case: SimulationCase, model: NoiseModel, count: int, repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return both arms' log steps without a slowdown; cells of another noise stand last."""
    make = session_by_steps if case.by_steps else session
    kinds = [(model, case.cells - case.noisy_cells), (case.noisy_model, case.noisy_cells)]
    made = [make(kind, (count, cells), repeats, rng) for kind, cells in kinds if cells]
    baseline, candidate = zip(*made, strict=True)
    return np.concatenate(baseline, axis=1), np.concatenate(candidate, axis=1)


def simulate_stored(slowdown: float, trials: int, seed: int) -> Decisions:
    """Return decisions on one cell against as few past sessions as are allowed, (trials, 1)."""
    rng = np.random.default_rng(seed)
    decisions = []
    for count in _chunks(trials, _CHUNK_CELLS // 10):
        shape = (count, 1, FEWEST_SESSIONS + 1)
        steps, _ = session(NoiseModel(), shape, FEWEST_RUNS, rng)
        means = np.median(steps, axis=-1).mean(axis=-1) + rng.normal(0, DAY_NOISE, shape)
        evidence = against_sessions(means[..., 1:], means[..., 0] + math.log1p(slowdown))
        tolerance = np.full((count, 1), math.log1p(TOLERANCE))
        decisions.append(decide(evidence, holm(evidence.p_value()), FIXED, tolerance))
    return np.concatenate(decisions)


def simulate_accuracy(case: AccuracyCase, trials: int, seed: int) -> Decisions:
    """Return decisions on accuracy where half the answers were right, (trials, 1).

    Without a drop too the answers to a share of the questions change, half of them each way.
    """
    rng = np.random.default_rng(seed)
    shape, accuracy, churn = (trials, case.questions), 0.5, 0.05
    right, chance = rng.random(shape) < accuracy, rng.random(shape)
    lost = (right & (chance < (churn / 2 + case.drop) / accuracy)).sum(axis=1).astype(np.float64)
    gained = (~right & (chance < churn / 2 / (1 - accuracy))).sum(axis=1).astype(np.float64)
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


def _rows(name: str, bounds: Bounds, decisions: Decisions) -> Iterator[CheckRow]:
    """Yield a row for each event; all but *any regression* are of the first cell."""
    for event, bound in bounds.items():
        if event == "any regression":
            happened = (decisions == REGRESSION).any(axis=1)
        else:
            happened = decisions[:, 0] == EVENTS.index(event)
        count, trials = int(happened.sum()), len(happened)
        low, high = wilson(count, trials)
        side, limit = bound or (None, None)
        yield CheckRow(
            situation=name,
            event=event,
            trials=trials,
            rate=count / trials,
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
    if model.slow_share:
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
    return np.where(slow, math.log(1 + model.slow_share), 0.0)


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
