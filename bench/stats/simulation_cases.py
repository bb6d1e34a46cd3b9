"""The situations in which the gates' error rates are promised, and the promises; nothing is tested here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bench.stats.sequential import Rule
from bench.stats.simulate import NoiseModel

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
"""Standard deviation between sittings, for stored baselines."""

Event = Literal["any regression", "regression", "pass", "undecided"]
Bounds = Mapping[Event, tuple[Literal["at most", "at least"], float] | None]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A sitting to make up many times over: its machine, what was known of it, and one slower cell.

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

SITUATIONS: tuple[Situation, ...] = (
    Situation(name="1 cell, no change", bounds=FALSE_ALARMS),
    Situation(name="1 cell, 1 % slower (the minimum effect)", bounds=FALSE_ALARMS, slowdown=0.01),
    Situation(name="1 cell, 5 % slower", bounds=_FOUND, slowdown=TOLERANCE),
    Situation(name="24 cells, no change", bounds=_FALSE_IN_SWEEP, cells=SWEEP_CELLS),
    Situation(name="24 cells, one 5 % slower", bounds=_FOUND, cells=SWEEP_CELLS, slowdown=TOLERANCE),
    Situation(
        name="24 cells, no calibration, no change",
        bounds=_FALSE_IN_SWEEP,
        cells=SWEEP_CELLS,
        calibration_factor=None,
    ),
    Situation(
        name="24 cells, looks at 3, 5, 8, no change",
        bounds=_FALSE_IN_SWEEP,
        cells=SWEEP_CELLS,
        rule=SEQUENTIAL,
    ),
    Situation(
        name="24 cells, looks at 3, 5, 8, one 5 % slower",
        bounds=_FOUND,
        cells=SWEEP_CELLS,
        rule=SEQUENTIAL,
        slowdown=TOLERANCE,
    ),
    Situation(
        name="24 cells, half of them twice as noisy, looks at 3, 5, 8, no change",
        bounds=_FALSE_IN_SWEEP,
        cells=SWEEP_CELLS,
        noisy_cells=12,
        rule=SEQUENTIAL,
    ),
    Situation(name="1 cell, 2 % drift, no change", bounds={"regression": ("at most", 0.02)}, model=DRIFTING),
    Situation(
        name="24 cells, 2 % drift, no change",
        bounds={"any regression": ("at most", 0.02)},
        cells=SWEEP_CELLS,
        model=DRIFTING,
    ),
    Situation(
        name="1 cell, noise half as calibrated, no change", bounds=_MISCALIBRATED, calibration_factor=2
    ),
    Situation(
        name="1 cell, noise half as calibrated, 5 % slower",
        bounds=_HONEST,
        slowdown=TOLERANCE,
        calibration_factor=2,
    ),
    Situation(
        name="1 cell, noise twice as calibrated, no change", bounds=_MISCALIBRATED, calibration_factor=0.5
    ),
    Situation(
        name="1 cell, noise twice as calibrated, 1 % slower",
        bounds=_MISCALIBRATED,
        slowdown=0.01,
        calibration_factor=0.5,
    ),
    Situation(
        name="24 cells, noise twice as calibrated, no change",
        bounds={"any regression": ("at most", 0.05)},
        cells=SWEEP_CELLS,
        calibration_factor=0.5,
    ),
    Situation(
        name="1 cell, heavy noise, looks at 3, 5, 8, no change",
        bounds=_UNTOLD,
        model=HEAVY,
        rule=SEQUENTIAL,
    ),
    Situation(
        name="1 cell, heavy noise, looks at 3, 5, 8, 1 % slower",
        bounds=FALSE_ALARMS,
        model=HEAVY,
        rule=SEQUENTIAL,
        slowdown=0.01,
    ),
    Situation(
        name="1 cell, heavy noise, looks at 3, 5, 8, 5 % slower",
        bounds=_HONEST,
        model=HEAVY,
        rule=SEQUENTIAL,
        slowdown=TOLERANCE,
    ),
    Situation(
        name="1 cell, heavy noise since the calibration, looks at 3, 5, 8, no change",
        bounds=FALSE_ALARMS,
        model=HEAVY,
        rule=SEQUENTIAL,
        calibration_model=TYPICAL,
    ),
    *(
        Situation(
            name=f"{cells}, restless machine, {turns} in turn{known}, looks at 3, 5, 8, {change}",
            bounds=bounds,
            slowdown=slowdown,
            rule=SEQUENTIAL,
            cells=SWEEP_CELLS if cells == "24 cells" else 1,
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
    Situation(
        name="24 cells, steps in turn, noise twice as calibrated, no change",
        bounds={"any regression": ("at most", 0.05)},
        cells=SWEEP_CELLS,
        model=RESTLESS,
        calibration_factor=0.5,
        by_steps=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class AccuracySituation:
    """Two evaluations of the same questions, 5 % of the answers changing anyway; one of ``tests`` tests."""

    questions: int
    bounds: Bounds
    drop: float = 0.0
    tests: int = 1


ACCURACY: tuple[AccuracySituation, ...] = (
    AccuracySituation(questions=1000, bounds=FALSE_ALARMS),
    AccuracySituation(
        questions=1000, bounds={"regression": ("at least", 0.99), "pass": ("at most", ALPHA)}, drop=0.05
    ),
    AccuracySituation(questions=1000, bounds=_HONEST, drop=0.05, tests=2 * SWEEP_CELLS),
    AccuracySituation(questions=100, bounds=FALSE_ALARMS),
    AccuracySituation(questions=100, bounds=_HONEST, drop=0.05),
)
