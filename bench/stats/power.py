"""What a comparison can find: the smallest slowdown at so many repeats, the reverse, drops of accuracy.

From quantiles, for planning; what was found in a comparison is in its confidence interval.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import bdtrik, betainc, gammaln, stdtrit, xlogy

from bench.errors import counted, percent
from bench.records.sessions import Calibration
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.stats.chance import Rule
from bench.stats.noise import MOST_PRIOR_DEGREES, Noise, noise_of
from bench.stats.paired import Paired
from bench.stats.sequential import MetricPolicy, policies, rule_of
from bench.stats.trend import Floats

MOST_REPEATS = 100


def detectable_effect(
    noise: Noise, repeats: int, rule: Rule, *, tests: int = 1, power: float = 0.95
) -> float:
    """Return the slowdown, as a share, that ``repeats`` runs of each side find with probability ``power``.

    For ``tests`` gated numbers of which one is worse, with ``noise`` as calibrated. Sums of quantiles of t
    stand for the non-central t distribution, as in Julious 2004 (Stat. Med. 23:1921); the other cells of a
    sweep are not counted in, so a sweep finds a little more. Infinite where nothing is known of the noise.
    Runs compared two by two tell half as much of it. Infinite too for fewer repeats than a verdict takes.
    """
    if repeats < rule.fewest_repeats(tests, pairs=noise.of_pairs):
        return math.inf
    degrees = (1 if noise.of_pairs else 2) * (repeats - 1) + min(noise.degrees_of_freedom, MOST_PRIOR_DEGREES)
    if degrees <= 0:
        return math.inf
    error = math.sqrt(noise.log_variance * 2 / repeats)
    pairs = noise.of_pairs
    alpha = rule.alpha * rule.share_of(repeats, pairs=pairs) * rule.share_of_median(repeats, 1, pairs=pairs)
    missed, alone, among_all = stdtrit(degrees, (power, 1 - alpha, 1 - alpha / tests))
    return math.expm1(max(rule.minimum_effect_log + (alone + missed) * error, (among_all + missed) * error))


def repeats_needed(
    noise: Noise, effect_share: float, rule: Rule, *, tests: int = 1, power: float = 0.95
) -> int | None:
    """Return the fewest repeats that find a slowdown of ``effect_share``; None if a hundred do not."""

    def enough(repeats: int) -> bool:
        return detectable_effect(noise, repeats, rule, tests=tests, power=power) <= effect_share

    repeats = range(2, MOST_REPEATS + 1)
    place = bisect_left(repeats, x=True, key=enough)
    return repeats[place] if place < len(repeats) else None


@lru_cache(maxsize=100)
def _least_significant(items: int, alpha: float) -> Floats:
    """Return how many of none, one, two, … changed answers must be lost for McNemar's test to reject."""
    found: Floats = np.ceil(bdtrik(1 - alpha, np.arange(items + 1, dtype=np.float64), 0.5)) + 1
    return np.where(np.isnan(found), 1.0, found)


@lru_cache(maxsize=1000)
def smallest_drop_found(items: int, churn: int, alpha: float, minimum_drop: float) -> float | None:
    """Return the least drop, as a share, that McNemar's test finds with 95 %; None where there is none.

    ``churn`` answers change without one, as many for the better as for the worse. Sums over how many change
    (binomial) and how many of these are lost; a regression needs both alpha and ``minimum_drop``.
    """
    changed = np.arange(items + 1, dtype=np.float64)
    least = np.maximum(_least_significant(items, alpha), np.ceil((changed + minimum_drop * items) / 2))

    def found(drop: int) -> bool:
        share = min(1.0, (churn + drop) / items)
        lost_share = min(1.0, (churn / 2 + drop) / (share * items))
        logs = gammaln(items + 1) - gammaln(changed + 1) - gammaln(items - changed + 1)
        logs += xlogy(changed, share) + xlogy(items - changed, 1 - share)
        tail = betainc(least, np.maximum(changed - least, 0) + 1, lost_share)  # as in drop_p_value
        chance = np.where(least <= changed, tail, 0.0)
        return float((np.exp(logs) * chance).sum()) >= 0.95  # noqa: PLR2004 - as said above

    place = bisect_left(range(1, items + 1), x=True, key=found)
    return None if place == items else (place + 1) / items


def power_of(paired: Paired, gate: GateSpec, tests: int) -> str:
    """Say what so many questions find; of several about one source, as many as there are sources."""
    independent = max(1, int(paired.items / paired.source_items))
    churn = math.ceil(2 * min(paired.lost, paired.gained) / paired.source_items)
    least = smallest_drop_found(independent, churn, gate.alpha / tests, gate.minimum_drop)
    asked = "they" if paired.swings is None else f"their {counted(independent, 'source')}"
    return f"{asked} find {'no drop' if least is None else f'a drop of {percent(least)}'} with 95 %"


@dataclass(frozen=True, kw_only=True)
class NoiseRow:
    """One gated metric of one cell. Shares are of the metric's value, 0.05 being 5 %.

    ``spread_share`` is the standard deviation between runs; ``detectable_shares`` are the smallest changes
    for the worse that are found with a probability of 95 % after each of the ``looks`` (repeats) that may end
    in a verdict, and
    ``repeats_needed`` the repeats that find the metric's tolerance so; None if a hundred do not.
    """

    cell: str
    metric: str
    spread_share: float
    degrees_of_freedom: int
    looks: tuple[int, ...]
    detectable_shares: tuple[float, ...]
    tolerance_share: float
    repeats_needed: int | None


def noise_rows(calibration: Calibration, gate: GateSpec) -> tuple[NoiseRow, ...]:
    """Return a row for each calibrated cell and gated metric that varies between runs."""
    varying = [
        policy for policy in policies(gate).values() if policy.gated and policy.metric.kind == "statistical"
    ]
    pairs = [(cell, policy) for cell in calibration.cells for policy in varying]
    known = [
        (cell.cell, policy, noise)
        for cell, policy in pairs
        if (noise := noise_of(calibration, cell.digest, policy.metric.name)).degrees_of_freedom > 0
    ]
    return tuple(_row(cell, policy, noise, gate, tests=len(known)) for cell, policy, noise in known)


def _row(cell: str, policy: MetricPolicy, noise: Noise, gate: GateSpec, *, tests: int) -> NoiseRow:
    rule = rule_of(gate)
    looks = rule.usable(tests, pairs=noise.of_pairs) or (rule.fewest_repeats(tests, pairs=noise.of_pairs),)
    return NoiseRow(
        cell=cell,
        metric=policy.metric.name,
        spread_share=noise.log_variance**0.5,
        degrees_of_freedom=noise.degrees_of_freedom,
        looks=looks,
        detectable_shares=tuple(detectable_effect(noise, look, rule, tests=tests) for look in looks),
        tolerance_share=policy.tolerance,
        repeats_needed=repeats_needed(noise, policy.tolerance, rule, tests=tests),
    )


def family_of(gate: GateSpec, cells: Sequence[Cell]) -> int:
    """Return how many numbers of these cells are gated that chance has a part in."""
    by_chance = [one.metric.kind for one in policies(gate).values() if one.gated]
    tasks = sum(len(cell.evaluation.tasks) for cell in cells)
    return by_chance.count("statistical") * len(cells) + by_chance.count("paired") * tasks


def repeats_asked(rule: Rule, tests: int, *, pairs: bool) -> str:
    """Say how many repeats a verdict on speed takes, whatever the noise, and what fewer come to."""
    to_fail, to_pass = (rule.fewest_repeats(many, pairs=pairs) for many in (tests, 1))
    most, family = rule.looks[-1], f"{counted(tests, 'test')} together"
    told = f"A slowdown takes {to_fail} repeats of each side to be told from chance, {family}"
    if to_fail <= most:
        return f"{told}; at most {most} are made."
    left = "no speed" if to_pass > most else "a speed can pass, and none"
    return f"{told}, and at most {most} are made: {left} can be called a regression; raise gate.max_repeats."
