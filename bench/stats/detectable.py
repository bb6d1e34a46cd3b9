"""What a comparison can find: the smallest slowdown at a number of repeats, and the reverse.

From quantiles, for planning; what was found in a comparison is in its confidence interval.
"""

import math
from bisect import bisect_left

from scipy.special import stdtrit

from bench.stats.moderated import MOST_PRIOR_DEGREES, Noise
from bench.stats.sequential import Rule

MOST_REPEATS = 100


def detectable_effect(
    noise: Noise, repeats: int, rule: Rule, *, tests: int = 1, power: float = 0.95
) -> float:
    """Return the slowdown, as a share, that ``repeats`` runs of each side find with probability ``power``.

    For ``tests`` gated numbers of which one is worse, with ``noise`` as calibrated. Sums of quantiles of t
    stand for the non-central t distribution, as in Julious 2004 (Stat. Med. 23:1921); the other cells of a
    sweep are not counted in, so a sweep finds a little more. Infinite where nothing is known of the noise.
    Runs compared two by two tell half as much of it.
    """
    degrees = (1 if noise.of_pairs else 2) * (repeats - 1) + min(noise.degrees_of_freedom, MOST_PRIOR_DEGREES)
    if degrees <= 0:
        return math.inf
    error = math.sqrt(noise.log_variance * 2 / repeats)
    alpha = rule.alpha_of_a_look
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
