"""When a comparison may stop, and what it may then say: pass, regression, or nothing yet.

Promised over all looks together: with no cell worse at all, *any* cell of the sweep is called a regression
with probability of at most alpha. A cell worse by no more than the minimum effect is called one, and a cell
worse by the tolerance passes, with probability of at most alpha each. That rests on noise about as t has it;
where no calibration vouches for that, so many runs are asked for that any other noise would seldom do it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.metrics import METRICS, Metric
from bench.records.verdicts import MetricVerdict, VerdictName
from bench.scenario.gate import GateSpec, MetricGate
from bench.stats.noise import Evidence, moments_of_arms, moments_of_pairs, weigh
from bench.stats.trend import Bools, Floats, Ints

DECISIONS: tuple[VerdictName, ...] = ("inconclusive", "pass", "regression")
"""A decision is held as its place in this list."""

UNDECIDED, PASS, REGRESSION = range(3)
Direction = Literal["lower", "higher", "same"]

_GROWTH = 1.6
"""Each look has this many times the repeats of the last: 3, 5, 8, 13, 21."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is promised, and after how many repeats the evidence is looked at; alpha is shared out evenly."""

    alpha: float
    minimum_effect_log: float
    looks: tuple[int, ...]

    @property
    def alpha_of_a_look(self) -> float:
        """The part of alpha that one look may spend."""
        return self.alpha / len(self.looks)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One metric over the cells of one sitting, as logs signed so that positive is worse.

    Arms are (..., cells, runs) in the order run, ``NaN`` where a run is missing or was not made; the rest is
    (..., cells). A calibration of 0 degrees of freedom says that there is none. ``differences`` (..., cells,
    repeats) are of runs made step by step in turn; there the arms are not what is compared.
    """

    baseline: Floats
    candidate: Floats
    differences: Floats | None = None
    calibration_variance: Floats
    calibration_degrees: Floats
    tolerance_log: Floats


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What each cell came to, on which evidence, adjusted for the family and the looks, after how many.

    ``needed`` are the repeats that cells wait for which would be decided if a calibration vouched for their
    noise; 0 elsewhere.
    """

    decisions: npt.NDArray[np.int8]
    evidence: Evidence
    family_p_values: Floats
    repeats: Ints
    needed: Ints


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What each block came to, and the adjusted p-values of the tests that are looked at once."""

    blocks: tuple[Decided, ...]
    other_family_p_values: Floats


def looks(first: int, last: int) -> tuple[int, ...]:
    """Return the numbers of repeats after which the evidence is looked at, from ``first`` to ``last``."""
    found = [first]
    while found[-1] < last:
        found.append(min(last, round(found[-1] * _GROWTH)))
    return tuple(found)


def fewest_repeats(rule: Rule, tests: int) -> int:
    """Return how many repeats it takes for a verdict that does not rest on how runs are distributed.

    Of 2 n runs of the same code in random order, all n of one side are the slower ones with a probability of
    1 / C(2n, n), whatever the noise; a machine with two speeds gives no other sign that it was chance. Over
    all cells tested and all looks from that number on, this is to be at most alpha. Where no look is late
    enough, the number is above the last.
    """
    chances = [tests / math.comb(2 * look, look) for look in rule.looks]
    for place, look in enumerate(rule.looks):
        if sum(chances[place:]) <= rule.alpha:
            return look
    return next(n for n in itertools.count(rule.looks[-1] + 1) if tests / math.comb(2 * n, n) <= rule.alpha)


def holm(p_values: Floats) -> Floats:
    """Return p-values adjusted for all on the last axis (Holm 1979, Scand. J. Stat. 6:65).

    Holds under any dependence between them.
    """
    count = p_values.shape[-1]
    order = np.argsort(p_values, axis=-1)
    steps = np.take_along_axis(p_values, order, axis=-1) * (count - np.arange(count))
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return adjusted


def decide(
    evidence: Evidence, family_p_values: Floats, rule: Rule, tolerance_log: Floats
) -> npt.NDArray[np.int8]:
    """Return the place in ``DECISIONS`` of each cell, from p-values adjusted for the family.

    A *regression* needs one of at most alpha and a lower bound above the minimum effect, a *pass* an upper
    bound below the tolerance. Anything else is undecided.
    """
    lower, upper = evidence.bounds(rule.alpha_of_a_look)
    worse: Bools = (family_p_values <= rule.alpha) & (lower > rule.minimum_effect_log)
    return np.select([worse, upper < tolerance_log], [REGRESSION, PASS], UNDECIDED).astype(np.int8)


def follow(blocks: Sequence[Block], rule: Rule, other_p_values: Floats | None = None) -> Followed:
    """Go through the looks as they were, or would have been, made, and return what each block came to.

    A cell that is decided keeps its evidence and needs no more runs. ``other_p_values`` (..., tests) belong
    to the same family but are looked at once, such as accuracy's. *Undecided* cells that had all repeats of
    the last look are inconclusive; those that had fewer wait for more runs.
    """
    if not blocks:
        others = np.ones(0) if other_p_values is None else other_p_values
        return Followed(blocks=(), other_family_p_values=holm(others))
    once = np.ones((*blocks[0].tolerance_log.shape[:-1], 0)) if other_p_values is None else other_p_values
    states = [_nothing_yet(block) for block in blocks]
    p_values = [np.ones_like(block.tolerance_log) for block in blocks]
    ends = np.cumsum([each.shape[-1] for each in p_values])
    for repeats in rule.looks:
        states = [_look(block, state, repeats) for block, state in zip(blocks, states, strict=True)]
        p_values = [
            np.minimum(before, state.evidence.p_value() * len(rule.looks))
            for before, state in zip(p_values, states, strict=True)
        ]
        *adjusted, others = np.split(holm(np.concatenate([*p_values, once], axis=-1)), ends, axis=-1)
        states = [
            _concluded(block, state, own, rule, int(ends[-1]) + once.shape[-1])
            for block, state, own in zip(blocks, states, adjusted, strict=True)
        ]
    return Followed(blocks=tuple(states), other_family_p_values=others)


def _nothing_yet(block: Block) -> Decided:
    shape = block.tolerance_log.shape
    return Decided(
        decisions=np.zeros(shape, dtype=np.int8),
        evidence=Evidence(
            difference=np.zeros(shape),
            standard_error=np.full(shape, np.inf),
            degrees_of_freedom=np.zeros(shape),
            calibration_held=np.ones(shape, dtype=np.bool_),
        ),
        family_p_values=np.ones(shape),
        repeats=np.zeros(shape, dtype=np.int64),
        needed=np.zeros(shape, dtype=np.int64),
    )


def _look(block: Block, state: Decided, repeats: int) -> Decided:
    going_on = state.decisions == UNDECIDED
    used = np.where(going_on, np.minimum(repeats, _complete(block)), state.repeats)
    if block.differences is None:
        moments = moments_of_arms(block.baseline, block.candidate, used)
    else:
        moments = moments_of_pairs(block.differences, used)
    fresh = weigh(moments, block.calibration_variance, block.calibration_degrees)
    return replace(state, evidence=fresh.where(going_on, state.evidence), repeats=used)


def _complete(block: Block) -> Ints:
    """Return how many repeats each cell had, up to its last run."""
    shortest = min(block.baseline.shape[-1], block.candidate.shape[-1])
    there = ~np.isnan(block.baseline[..., :shortest]) | ~np.isnan(block.candidate[..., :shortest])
    repeats: Ints = np.where(there, np.arange(1, shortest + 1), 0).max(axis=-1, initial=0)
    return repeats


def _concluded(block: Block, state: Decided, adjusted: Floats, rule: Rule, tests: int) -> Decided:
    """Return the state with decisions on what was undecided, ``tests`` being those of the family."""
    fresh = decide(state.evidence, adjusted, rule, block.tolerance_log)
    # Also where it was dropped: that is for runs that spread more than it says, and those of two speeds that
    # chance has parted spread less.
    vouched = block.calibration_degrees > 0
    asked = np.select(
        [fresh == REGRESSION, fresh == PASS], [fewest_repeats(rule, tests), fewest_repeats(rule, 1)]
    )
    too_few = ~vouched & (state.repeats < asked)
    fresh[too_few] = UNDECIDED
    going_on = state.decisions == UNDECIDED
    return replace(
        state,
        decisions=np.where(going_on, fresh, state.decisions),
        family_p_values=adjusted,
        needed=np.where(going_on & too_few, asked, 0),
    )


@dataclass(frozen=True, kw_only=True)
class MetricPolicy:
    """How one metric is judged; ``tolerance`` is in its unit where it is deterministic, else a share."""

    metric: Metric
    direction: Direction
    tolerance: float
    relative_tolerance: float
    gated: bool

    @property
    def worse_sign(self) -> int:
        """1 where more is worse, -1 where less is."""
        return -1 if self.direction == "higher" else 1

    @property
    def tolerance_log(self) -> float:
        """The tolerance of a metric that varies, as a log ratio for the worse; infinite where all may pass.

        A fall by 5 % is a little more than a rise by 5 %.
        """
        if self.direction != "higher":
            return math.log1p(self.tolerance)
        return -math.log1p(-self.tolerance) if self.tolerance < 1 else math.inf

    def verdict(self, cell: str, verdict: VerdictName, reason: str, **figures: Any) -> MetricVerdict:
        """Return a verdict on this metric of a cell; ``figures`` are fields of ``MetricVerdict``."""
        metric = self.metric
        return MetricVerdict(
            cell=cell,
            metric=metric.name,
            unit=metric.unit,
            instrument=metric.instrument,
            kind=metric.kind,
            verdict=verdict,
            gated=self.gated,
            reason=reason,
            **figures,
        )


def rule_of(gate: GateSpec) -> Rule:
    """Return the promise of a gate to metrics that vary, and when it looks at them."""
    return Rule(
        alpha=gate.alpha,
        minimum_effect_log=math.log1p(gate.minimum_effect),
        looks=looks(gate.repeats, gate.max_repeats),
    )


def without_noise(gate: GateSpec) -> GateSpec:
    """Return the gate with what varies between runs only shown, for machines too noisy to time."""
    shown = {
        name: gate.metrics.get(name, MetricGate()).model_copy(update={"gated": False})
        for name, metric in METRICS.items()
        if metric.kind == "statistical"
    }
    return gate.model_copy(update={"metrics": {**gate.metrics, **shown}})


def policies(gate: GateSpec) -> dict[str, MetricPolicy]:
    """Return the policy of every metric, gated or not, in the order of the metric table."""
    return {name: _policy(metric, gate.metrics.get(name, MetricGate())) for name, metric in METRICS.items()}


def _policy(metric: Metric, own: MetricGate) -> MetricPolicy:
    by_default: Direction = "same" if metric.better == "neither" else metric.better
    if metric.kind == "paired":  # more right answers are better, if a scenario gates them at all
        by_default = "higher"
    return MetricPolicy(
        metric=metric,
        direction=own.direction or by_default,
        tolerance=metric.tolerance if own.tolerance is None else own.tolerance,
        relative_tolerance=metric.relative_tolerance
        if own.relative_tolerance is None
        else own.relative_tolerance,
        gated=metric.gated if own.gated is None else own.gated,
    )
