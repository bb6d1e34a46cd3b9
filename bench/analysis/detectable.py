"""What a comparison can find: the smallest slowdown at a number of repeats, and the reverse.

From quantiles, for planning; what was found in a comparison is in its confidence interval.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from bench.analysis.moderated import MOST_PRIOR_DEGREES, Noise
from bench.analysis.sequential import Rule
from bench.analysis.settling import Floats

MOST_REPEATS = 100


def detectable_effect(
    noise: Noise, repeats: int, rule: Rule, *, tests: int = 1, power: float = 0.95
) -> float:
    """Return the slowdown, as a share, that ``repeats`` runs of each side find with probability ``power``.

    For ``tests`` gated numbers of which one is worse, with ``noise`` as calibrated. Sums of quantiles of t
    stand for the non-central t distribution, as in Julious 2004 (Stat. Med. 23:1921); the other cells of a
    sweep are not counted in, so a sweep finds a little more. Infinite where nothing is known of the noise.
    """
    return float(_effects(noise, np.array([repeats]), rule, tests=tests, power=power)[0])


def repeats_needed(
    noise: Noise, effect_share: float, rule: Rule, *, tests: int = 1, power: float = 0.95
) -> int | None:
    """Return the fewest repeats that find a slowdown of ``effect_share``; None if a hundred do not."""
    repeats = np.arange(2, MOST_REPEATS + 1)
    enough = _effects(noise, repeats, rule, tests=tests, power=power) <= effect_share
    return int(repeats[enough.argmax()]) if enough.any() else None


def _effects(noise: Noise, repeats: npt.NDArray[np.int64], rule: Rule, *, tests: int, power: float) -> Floats:
    """Return what each number of repeats finds: above the minimum effect, and among all tests."""
    degrees = 2.0 * (repeats - 1) + min(noise.degrees_of_freedom, MOST_PRIOR_DEGREES)
    known = np.maximum(degrees, 1.0)
    error = np.sqrt(noise.log_variance * 2 / repeats)
    missed = stdtrit(known, power)
    alone = rule.minimum_effect_log + (stdtrit(known, 1 - rule.alpha_of_a_look) + missed) * error
    among_all = (stdtrit(known, 1 - rule.alpha_of_a_look / tests) + missed) * error
    return np.where(degrees > 0, np.expm1(np.maximum(alone, among_all)), np.inf)
