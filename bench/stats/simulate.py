"""Measurements made up by a noise model, to prove the gates' error rates; nothing is read from records."""

from dataclasses import dataclass

import numpy as np

from bench.stats.settling import Floats


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """The log step time of a made-up machine, a sum of independent parts; shares are of the step time.

    ``run_noise`` and ``step_noise`` are standard deviations between runs and, autocorrelated (AR(1)), between
    steps. Spikes lengthen a step by an exponential share of ``spike_size`` on average. The warm-up leaves a
    quick part (60 %, decaying over 3 steps) and a slow one (5 %, over 15), of which ``warmup_steps`` are cut
    off. ``drift`` is added evenly from the first run of a sitting to its last. A restless machine has two
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


def sitting(
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


def sitting_by_steps(
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
    """Return the log times of the measured steps of independent runs."""
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


def answers(
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
