"""Made-up machines: the log step times of unchanged code, run in turn by runs or by steps, and slowdowns.

Sweeps of their runs are summarised and judged by the code that judges real ones. Everything is a sum of parts
on natural logarithms; shares are of the step time.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.io import own_toml
from bench.stats.chance import Rule
from bench.stats.sequential import REGRESSION, Arms, Block, follow
from bench.stats.trend import Bools, Floats, settle

Shape = Literal["constant", "late", "periodic", "bursts"]

RUN_S = 9.0
MEASURED_SHARE = 0.65
"""What a run takes, and how much of that are its measured steps, for what lasts for seconds."""

_BURST_S = (20.0, 60.0)
_BETWEEN_BURSTS_S = 120.0


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """The log step time of a made-up machine, a sum of independent parts; shares are of the step time.

    ``run_noise`` and ``step_noise`` are standard deviations between runs and between steps, autocorrelated
    (AR(1)) both; the candidate's runs spread ``candidate_spread`` times as far. Spikes lengthen a step by an
    exponential share of ``spike_size`` on average. The warm-up leaves a quick part (60 %, decaying over 3
    steps) and a slow one (5 %, over 15), of which ``warmup_steps`` are cut off. ``drift`` is added evenly
    from the first run of a session to its last, and within each run up to ``drift_within``. A machine of two
    speeds takes longer by ``slow_share`` in a share ``slow_runs`` of its runs, or of the workers of runs by
    steps with ``by_worker``; a restless one changes after a step with a probability of ``restlessness``.
    Bursts of 20 to 60 s, two minutes apart, slow it down by ``burst_share``.
    """

    run_noise: float = 0.012
    run_autocorrelation: float = 0.0
    candidate_spread: float = 1.0
    step_noise: float = 0.015
    autocorrelation: float = 0.5
    spike_share: float = 0.02
    spike_size: float = 0.25
    warmup_steps: int = 10
    measured_steps: int = 30
    drift: float = 0.0
    drift_within: float = 0.0
    slow_share: float = 0.0
    slow_runs: float = 0.5
    by_worker: bool = False
    restlessness: float = 0.0
    burst_share: float = 0.0


SIMULATED = own_toml("bench.stats", "simulation.toml")
MACHINES = {name: NoiseModel(**parts) for name, parts in SIMULATED["machines"].items()}


def session(
    model: NoiseModel, cells: tuple[int, ...], repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the log step times of two arms of the same code, each (*cells, repeats, measured steps)."""
    steps = _steps(model, (*cells, 2 * repeats, model.measured_steps), rng)
    steps += _restless(model, steps.shape, rng)
    arms = of_runs(model, cells, repeats, rng)
    first, second = (
        steps[..., turns, :] + arm[..., np.newaxis]
        for turns, arm in zip(_turns(2 * repeats), arms, strict=True)
    )
    return first, second


def session_by_steps(
    model: NoiseModel, cells: tuple[int, ...], repeats: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the same of arms that take turns at steps, A B B A A B B A …, on one machine of any speed."""
    shape, count = (*cells, repeats), model.measured_steps
    machine = _restless(model, (*shape, 2 * count), rng)
    arms = of_runs(model, cells, repeats, rng, by_steps=True)
    first, second = (
        _steps(model, (*shape, count), rng) + machine[..., turns] + arm[..., np.newaxis]
        for turns, arm in zip(_turns(2 * count), arms, strict=True)
    )
    return first, second


def of_runs(
    model: NoiseModel,
    cells: tuple[int, ...],
    repeats: int,
    rng: np.random.Generator,
    *,
    by_steps: bool = False,
) -> tuple[Floats, Floats]:
    """Return what whole runs of both arms are off, each (*cells, repeats).

    By steps in turn both runs of a repeat have the machine at once, and its speed in common.
    """
    runs, spread = repeats if by_steps else 2 * repeats, (1.0, model.candidate_spread)
    machine = model.drift * np.linspace(0, 1, runs) + np.zeros((*cells, runs))
    if model.burst_share:
        machine += np.log1p(model.burst_share * _share_in_bursts(machine.shape, rng))
    if model.slow_share and not model.restlessness and not model.by_worker:
        machine += _slow(model, machine.shape, rng)
    noise = _autoregressive(rng.normal(0, model.run_noise, (*cells, 2 * repeats)), model.run_autocorrelation)
    if model.by_worker:
        noise += _slow(model, noise.shape, rng)
    arms = [noise[..., turns] * far for turns, far in zip(_turns(2 * repeats), spread, strict=True)]
    if by_steps:
        return arms[0] + machine, arms[1] + machine
    of_base, of_candidate = _turns(runs)
    return arms[0] + machine[..., of_base], arms[1] + machine[..., of_candidate]


def within_runs(model: NoiseModel) -> NoiseModel:
    """Return the machine without what whole runs are off."""
    two_speeds = model.slow_share if model.restlessness else 0.0
    return replace(model, run_noise=0.0, drift=0.0, burst_share=0.0, slow_share=two_speeds, by_worker=False)


def _turns(count: int) -> tuple[Bools, Bools]:
    """Return which of so many turns are the base's and the candidate's: A B, B A, A B and so on."""
    of_candidate = np.arange(count) % 4 % 3 != 0
    return ~of_candidate, of_candidate


def _slow(model: NoiseModel, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    return np.where(rng.random(shape) < model.slow_runs, math.log1p(model.slow_share), 0.0)


def slowed(shape: Shape, lost: float, steps: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return the logs to add to steps (..., runs, steps) to lose a share of the throughput over the window.

    All steps take longer, or only the last sixth, or every tenth, or a fifth of stretches of three steps.
    """
    slow: Bools = np.ones(steps, dtype=np.bool_)
    places, share = np.arange(steps[-1]), 1.0
    if shape == "late":
        share = 1 / 6
        slow = slow & (places >= steps[-1] * (1 - share))
    elif shape == "periodic":
        share = 0.1
        slow = slow & (places % 10 == 9)  # noqa: PLR2004 - every tenth
    elif shape == "bursts":
        share = 0.2
        stretches = rng.random((*steps[:-1], -(-steps[-1] // 3))) < share
        slow = np.repeat(stretches, 3, axis=-1)[..., : steps[-1]]
    longer = 1 / (1 - lost) - 1
    return np.where(slow, math.log1p(longer / share), 0.0)


def _autoregressive(values: Floats, correlation: float) -> Floats:
    """Return independent values as an AR(1) process of the same spread along the last axis."""
    if correlation:
        fresh = math.sqrt(1 - correlation**2)
        for place in range(1, values.shape[-1]):
            values[..., place] = correlation * values[..., place - 1] + fresh * values[..., place]
    return values


def _restless(model: NoiseModel, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return the log slowness of a restless machine at each of the steps on the last axis."""
    if not model.restlessness:
        return np.zeros(shape)
    changes = rng.random(shape) < model.restlessness
    changes[..., 0] = rng.random(shape[:-1]) < model.slow_runs
    return np.where(np.cumsum(changes, axis=-1) % 2 == 1, math.log1p(model.slow_share), 0.0)


def _share_in_bursts(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return the share of each run's measured time that lies in a burst, of runs one after the other."""
    ends_s = RUN_S * np.arange(1, shape[-1] + 1)
    starts_s = ends_s - RUN_S * MEASURED_SHARE
    covered_s = np.zeros(shape)
    last_s = np.full(shape[:-1], -10 * _BETWEEN_BURSTS_S)  # so that none is the first
    while (last_s < ends_s[-1]).any():
        first_s = last_s + rng.exponential(_BETWEEN_BURSTS_S, last_s.shape)
        last_s = first_s + rng.uniform(*_BURST_S, last_s.shape)
        if (last_s > 0).any():
            until = np.minimum(ends_s, last_s[..., np.newaxis])
            covered_s += np.maximum(until - np.maximum(starts_s, first_s[..., np.newaxis]), 0.0)
    return covered_s / (RUN_S * MEASURED_SHARE)


def _steps(model: NoiseModel, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return what single steps of runs are off."""
    count = shape[-1]
    steps = _autoregressive(rng.normal(0, model.step_noise, shape), model.autocorrelation)
    index = np.arange(model.warmup_steps, model.warmup_steps + count)
    steps += 0.6 * np.exp(-index / 3) + 0.05 * np.exp(-index / 15)
    spikes = rng.random(shape) < model.spike_share
    steps[spikes] += rng.exponential(model.spike_size, int(spikes.sum()))
    if model.drift_within:
        steps += rng.uniform(0, model.drift_within, (*shape[:-1], 1)) * np.linspace(0, 1, count)
    return steps


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
