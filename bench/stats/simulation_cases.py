"""The made-up machines for which the gates' error rates are promised, and the promises."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.stats.sequential import Rule


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """The log step time of a made-up machine, a sum of independent parts; shares are of the step time.

    ``run_noise`` and ``step_noise`` are standard deviations between runs and, autocorrelated (AR(1)), between
    steps. Spikes lengthen a step by an exponential share of ``spike_size`` on average. The warm-up leaves a
    quick part (60 %, decaying over 3 steps) and a slow one (5 %, over 15), of which ``warmup_steps`` are cut
    off. ``drift`` is added evenly from the first run of a session to its last. A restless machine has two
    speeds, ``slow_log`` apart, and changes from one to the other after a step with a probability of
    ``restlessness``.
    """

    run_noise: float = 0.012
    step_noise: float = 0.015
    autocorrelation: float = 0.5
    spike_share: float = 0.02
    spike_size: float = 0.25
    warmup_steps: int = 10
    measured_steps: int = 30
    drift: float = 0.0
    slow_log: float = 0.0
    restlessness: float = 0.0


ALPHA = 0.01
FIXED = Rule(alpha=ALPHA, minimum_effect_log=math.log1p(0.01), looks=(5,))
SEQUENTIAL = replace(FIXED, looks=(3, 5, 8))
"""What ``GateSpec`` has by default."""

TOLERANCE = 0.05
TYPICAL = NoiseModel()
HEAVY = NoiseModel(run_noise=0.027)
TWICE_AS_NOISY = NoiseModel(run_noise=2 * TYPICAL.run_noise)
DRIFTING = NoiseModel(drift=0.02)
RESTLESS = NoiseModel(slow_log=math.log(1.4), restlessness=1 / 40)
"""A virtual machine with neighbours: as fast as ever or 40 % slower, for forty steps on average."""

SWEEP_CELLS = 24
CALIBRATION_RUNS = 10
DAY_NOISE = 0.008
"""Standard deviation between sessions, for stored baselines."""

Event = Literal["any regression", "regression", "pass", "undecided"]
EVENTS: tuple[Event, ...] = ("undecided", "pass", "regression")
"""Of one cell, as ``sequential.DECISIONS``."""

Bounds = Mapping[Event, tuple[Literal["at most", "at least"], float] | None]


@dataclass(frozen=True, kw_only=True)
class SimulationCase:
    """A session to make up many times over: its machine, what was known of it, and one slower cell.

    The first cell is the slower one. ``noisy_cells`` of ``cells`` are of ``noisy_model``. A calibration has
    ten runs of each cell, of ``calibration_model`` where that is another machine than the one at hand, and
    its standard deviations are off by ``calibration_factor``; a factor of None is no calibration. With
    ``by_steps`` the sides take turns at steps.
    """

    name: str
    bounds: Bounds
    slowdown: float = 0.0
    rule: Rule = FIXED
    cells: int = 1
    model: NoiseModel = TYPICAL
    noisy_cells: int = 0
    noisy_model: NoiseModel = TWICE_AS_NOISY
    calibration_model: NoiseModel | None = None
    calibration_factor: float | None = 1.0
    by_steps: bool = False


FALSE_ALARMS: Bounds = {"regression": ("at most", ALPHA)}
_FALSE_IN_SWEEP: Bounds = {"any regression": ("at most", ALPHA)}
_FOUND: Bounds = {"regression": ("at least", 0.95), "pass": ("at most", ALPHA)}
_MISCALIBRATED: Bounds = {"regression": ("at most", 0.05)}
_NOT_PROMISED_IN_SWEEP: Bounds = {"any regression": None}
_UNTOLD: Bounds = {"regression": ("at most", ALPHA), "pass": None, "undecided": None}
_HONEST: Bounds = {"regression": None, "pass": ("at most", ALPHA), "undecided": None}


def _case(name: str, bounds: Bounds, **what: Any) -> SimulationCase:
    """Return a case; cells and looks are read from its name, so that the two cannot disagree."""
    cells = SWEEP_CELLS if name.startswith(f"{SWEEP_CELLS} cells") else 1
    rule = SEQUENTIAL if "looks at 3, 5, 8" in name else FIXED
    return SimulationCase(name=name, bounds=bounds, cells=cells, rule=rule, **what)


CASES: tuple[SimulationCase, ...] = (
    _case("1 cell, no change", FALSE_ALARMS),
    _case("1 cell, 1 % slower (the minimum effect)", FALSE_ALARMS, slowdown=0.01),
    _case("1 cell, 5 % slower", _FOUND, slowdown=TOLERANCE),
    _case("24 cells, no change", _FALSE_IN_SWEEP),
    _case("24 cells, one 5 % slower", _FOUND, slowdown=TOLERANCE),
    _case("24 cells, no calibration, no change", _FALSE_IN_SWEEP, calibration_factor=None),
    _case("24 cells, looks at 3, 5, 8, no change", _FALSE_IN_SWEEP),
    _case("24 cells, looks at 3, 5, 8, one 5 % slower", _FOUND, slowdown=TOLERANCE),
    _case(
        "24 cells, half of them twice as noisy, looks at 3, 5, 8, no change", _FALSE_IN_SWEEP, noisy_cells=12
    ),
    _case("1 cell, 2 % drift, no change", {"regression": ("at most", 0.02)}, model=DRIFTING),
    _case("24 cells, 2 % drift, no change", {"any regression": ("at most", 0.02)}, model=DRIFTING),
    _case("1 cell, noise half as calibrated, no change", _MISCALIBRATED, calibration_factor=2),
    _case("1 cell, noise half as calibrated, 5 % slower", _HONEST, slowdown=TOLERANCE, calibration_factor=2),
    _case("1 cell, noise twice as calibrated, no change", _MISCALIBRATED, calibration_factor=0.5),
    _case(
        "1 cell, noise twice as calibrated, 1 % slower", _MISCALIBRATED, slowdown=0.01, calibration_factor=0.5
    ),
    _case(
        "24 cells, noise twice as calibrated, no change",
        {"any regression": ("at most", 0.05)},
        calibration_factor=0.5,
    ),
    _case("1 cell, heavy noise, looks at 3, 5, 8, no change", _UNTOLD, model=HEAVY),
    _case("1 cell, heavy noise, looks at 3, 5, 8, 1 % slower", FALSE_ALARMS, model=HEAVY, slowdown=0.01),
    _case("1 cell, heavy noise, looks at 3, 5, 8, 5 % slower", _HONEST, model=HEAVY, slowdown=TOLERANCE),
    _case(
        "1 cell, heavy noise since the calibration, looks at 3, 5, 8, no change",
        FALSE_ALARMS,
        model=HEAVY,
        calibration_model=TYPICAL,
    ),
    *(
        _case(
            f"{cells}, restless machine, {turns} in turn{known}, looks at 3, 5, 8, {change}",
            bounds,
            slowdown=slowdown,
            model=RESTLESS,
            calibration_factor=1.0 if known else None,
            by_steps=turns == "steps",
        )
        for cells, turns, known, change, slowdown, bounds in (
            ("1 cell", "runs", "", "no change", 0.0, _UNTOLD),
            # Two speeds are no noise that a few runs of many cells could tell from a change: no promise.
            ("24 cells", "runs", "", "no change", 0.0, _NOT_PROMISED_IN_SWEEP),
            ("1 cell", "runs", ", calibrated", "no change", 0.0, _UNTOLD),
            ("1 cell", "runs", ", calibrated", "5 % slower", TOLERANCE, _HONEST),
            ("24 cells", "runs", ", calibrated", "no change", 0.0, _FALSE_IN_SWEEP),
            ("1 cell", "steps", "", "no change", 0.0, _UNTOLD),
            ("1 cell", "steps", "", "1 % slower", 0.01, FALSE_ALARMS),
            ("1 cell", "steps", "", "5 % slower", TOLERANCE, _HONEST),
            ("1 cell", "steps", ", calibrated", "5 % slower", TOLERANCE, _FOUND),
            ("24 cells", "steps", "", "no change", 0.0, _FALSE_IN_SWEEP),
            ("24 cells", "steps", "", "one 5 % slower", TOLERANCE, _HONEST),
        )
    ),
    _case(
        "24 cells, steps in turn, noise twice as calibrated, no change",
        {"any regression": ("at most", 0.05)},
        model=RESTLESS,
        calibration_factor=0.5,
        by_steps=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class AccuracyCase:
    """Two evaluations of the same questions, 5 % of the answers changing anyway; one of ``tests`` tests."""

    questions: int
    bounds: Bounds
    drop: float = 0.0
    tests: int = 1


ACCURACY: tuple[AccuracyCase, ...] = (
    AccuracyCase(questions=1000, bounds=FALSE_ALARMS),
    AccuracyCase(
        questions=1000, bounds={"regression": ("at least", 0.99), "pass": ("at most", ALPHA)}, drop=0.05
    ),
    AccuracyCase(questions=1000, bounds=_HONEST, drop=0.05, tests=2 * SWEEP_CELLS),
    AccuracyCase(questions=100, bounds=FALSE_ALARMS),
    AccuracyCase(questions=100, bounds=_HONEST, drop=0.05),
)
