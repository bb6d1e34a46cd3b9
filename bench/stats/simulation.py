"""The gates' error rates on made-up measurements, next to what is promised: ``bench gate --self-check``.

Every number comes out of the code that judges real runs, from step times on, with fixed seeds. The made-up
machines (``machines.py``) and the promises are in ``simulation.toml``.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.io import read_json
from bench.records.readings import Positive, Stored
from bench.stats.chance import Rule, chance_of_order, holm
from bench.stats.machines import (
    ALPHA,
    CHUNK_CELLS,
    FIXED,
    MACHINES,
    NO_CHANGE,
    SEQUENTIAL,
    SIMULATED,
    TOLERANCE,
    Decisions,
    NoiseModel,
    Shape,
    calibrated_variances,
    chunks,
    judged,
    no_change,
    session,
    session_by_steps,
    slowed,
    summaries_of,
)
from bench.stats.noise import FEWEST_RUNS, FEWEST_SESSIONS, against_sessions
from bench.stats.paired import decide_drop, drop_p_value
from bench.stats.sequential import REGRESSION, decided_stored

DAY_NOISE = 0.008
BAD_DAY_LOG = math.log(1.2)
"""Between sessions, for stored baselines: a standard deviation, and what a bad day takes longer."""

Event = Literal["any regression", "regression", "pass", "undecided"]
EVENTS: tuple[Event, ...] = ("undecided", "pass", "regression")
"""Of one cell, as ``sequential.DECISIONS``."""

Side = Literal["at most", "at least"]
Bounds = Mapping[Event, tuple[Side, float] | tuple[()]]


@dataclass(frozen=True, kw_only=True)
class SimulationCase:
    """A session to make up many times over: its machine, what was known of it, and one slower cell.

    The first cell is the slower one: each step by ``slowdown``, and its throughput in a ``shape`` by
    ``lost``. A calibration has ten runs of each cell, of ``calibration_model`` where that is another machine
    than the one at hand, and its standard deviations are off by ``calibration_factor``. With ``by_steps``
    the sides take turns at steps.
    """

    name: str
    bounds: Bounds
    slowdown: float = 0.0
    shape: Shape = "constant"
    lost: float = 0.0
    rule: Rule = FIXED
    cells: int = 1
    model: NoiseModel = NoiseModel()  # noqa: RUF009 - it is frozen
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


PROMISES: Mapping[str, Bounds] = SIMULATED["promises"]


def _case(name: str, *, promise: str, machine: str = "typical", **what: Any) -> SimulationCase:
    """Return a case; much of it is read from its name, so that the two cannot disagree."""
    slower, shape = (
        re.search(r"(\d+) % slower", name),
        re.search(r"(\d+) % of the throughput lost, (\w+)", name),
    )
    return SimulationCase(
        name=name,
        bounds=PROMISES[promise],
        slowdown=int(slower[1]) / 100 if slower else 0.0,
        lost=int(shape[1]) / 100 if shape else 0.0,
        shape=shape[2] if shape else "constant",  # type: ignore[arg-type] # another would be a KeyError's kin
        rule=SEQUENTIAL if "looks at 3, 5, 8" in name else FIXED,
        cells=int(name.split(maxsplit=1)[0]),
        model=MACHINES[machine],
        by_steps="steps in turn" in name,
        **what,
    )


CASES = tuple(_case(name, **what) for name, what in SIMULATED["cases"].items())
ACCURACY = tuple(AccuracyCase(bounds=PROMISES[one.pop("promise")], **one) for one in SIMULATED["accuracy"])


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """How often something happened in ``trials``, with a 99.9 % Wilson interval, and the bound it is held to.

    ``holds`` is False only where the whole interval lies on the wrong side of the bound. A row without a
    bound is there for information. ``cells`` is set where a page has a column for so many.
    """

    situation: str
    event: Event
    trials: int
    rate: float
    low: float
    high: float
    side: Side | None
    bound: float | None
    cells: int | None = None

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
        return all(row.holds for row in self.rows)


def read_self_check(path: Path) -> SelfCheck:
    """Read what ``bench gate --self-check -o`` wrote. Raises ``UsageError`` where there is none."""
    return read_json(path, SelfCheck, "a self-check", f"make one with bench gate --self-check -o {path}")


def self_check(replications: int) -> Iterator[CheckRow]:
    """Yield the rows of every case; what a sweep finds is made up a quarter as often."""
    for seed, case in enumerate(CASES):
        trials = replications if case.cells == 1 else max(replications // 4, 1)
        yield from _rows(case.name, case.bounds, simulate(case, trials, seed))
    for seed, (turns, name) in enumerate(NO_CHANGE, start=300):
        for known, cells, number in no_change(name, replications, seed, by_steps=turns == "steps"):
            situation = f"{name}, {turns} in turn, {known}"
            yield _row(situation, "any regression", number, replications, ("at most", ALPHA), cells)
    for seed, slowdown in enumerate((0.0, TOLERANCE), start=100):
        change = f"{100 * slowdown:.0f} % slower" if slowdown else "no change"
        for bad_days in (0.0, 0.05):
            days = ", one bad day in twenty" if bad_days else ""
            name = f"{FEWEST_SESSIONS} stored sittings of {FEWEST_RUNS} runs{days}, {change}"
            bounds = PROMISES["not passed" if slowdown else "no false alarm"]
            decisions = simulate_stored(slowdown, replications, seed, bad_days=bad_days)
            yield from _rows(name, bounds, decisions)
    for seed, accuracy in enumerate(ACCURACY, start=200):
        change = f"{100 * accuracy.drop:.0f} points lost" if accuracy.drop else "no change"
        among = f", one of {accuracy.tests} tests" if accuracy.tests > 1 else ""
        name = f"accuracy on {accuracy.questions} questions, 5 % churn, {change}{among}"
        yield from _rows(name, accuracy.bounds, simulate_accuracy(accuracy, replications, seed))


def simulate(case: SimulationCase, trials: int, seed: int) -> Decisions:
    """Return the decisions of ``trials`` sessions, (trials, cells)."""
    rng = np.random.default_rng(seed)
    sizes = chunks(trials, max(CHUNK_CELLS // case.cells, 1))
    return np.concatenate([_decisions(case, count, rng) for count in sizes])


def _decisions(case: SimulationCase, count: int, rng: np.random.Generator) -> Decisions:
    make, shape = session_by_steps if case.by_steps else session, (count, case.cells)
    baseline, candidate = make(case.model, shape, case.rule.looks[-1], rng)
    candidate[:, 0] += math.log1p(case.slowdown)
    if case.lost:
        candidate[:, 0] += slowed(case.shape, case.lost, candidate[:, 0].shape, rng)
    summaries = summaries_of(baseline, candidate, by_steps=case.by_steps)
    known = np.zeros((2, *shape))
    if case.calibrated:
        known = calibrated_variances(case.calibration_model or case.model, shape, rng, by_steps=case.by_steps)
    return judged(summaries, known * case.calibration_factor**2, case.rule)


def simulate_stored(slowdown: float, trials: int, seed: int, *, bad_days: float = 0.0) -> Decisions:
    """Return decisions on one cell against as few past sessions as are allowed, (trials, 1).

    On a share of days the machine takes a fifth longer.
    """
    rng = np.random.default_rng(seed)
    decisions = []
    for count in chunks(trials, CHUNK_CELLS // 10):
        shape = (count, 1, FEWEST_SESSIONS + 1)
        steps, _ = session(NoiseModel(), shape, FEWEST_RUNS, rng)
        means = np.log(np.exp(steps).mean(axis=-1)).mean(axis=-1) + rng.normal(0, DAY_NOISE, shape)
        means += np.where(rng.random(shape) < bad_days, BAD_DAY_LOG, 0.0)
        before, today = means[..., 1:], means[..., 0] + math.log1p(slowdown)
        evidence = against_sessions(before, today)
        by_day = chance_of_order(before, today[..., np.newaxis], np.full(today.shape, FEWEST_SESSIONS))
        p_values = holm(np.maximum(evidence.p_value(), by_day))
        tolerance = np.full(today.shape, math.log1p(TOLERANCE))
        decisions.append(decided_stored(evidence, p_values, FIXED, tolerance).decisions)
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
        yield _row(name, event, int(happened.sum()), len(happened), bound)


def _row(  # noqa: PLR0917 - the fields of a row
    name: str,
    event: Event,
    count: int,
    trials: int,
    bound: tuple[Side, float] | tuple[()],
    cells: int | None = None,
) -> CheckRow:
    low, high = wilson(count, trials)
    side, limit = bound or (None, None)
    return CheckRow(
        situation=name,
        event=event,
        trials=trials,
        rate=count / trials,
        low=low,
        high=high,
        side=side,
        bound=limit,
        cells=cells,
    )


CONFIDENCE_DEVIATIONS = 3.290527
"""Of 99.9 %: of some four hundred rows hardly one breaks its promise by chance."""


def wilson(count: int, trials: int, z: float = CONFIDENCE_DEVIATIONS) -> tuple[float, float]:
    """Return the interval of a rate (Wilson 1927, J. Am. Stat. Assoc. 22:209), by default of 99.9 %."""
    share = count / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    width = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(middle - width, 0.0), min(middle + width, 1.0)
