"""When a comparison may stop, and what it may then say: pass, regression, or nothing yet.

Promised over all looks together: with no cell worse at all, *any* cell of the sweep is called a regression
with probability of at most alpha, whatever the noise, as long as it could as well have struck the other side:
besides the t-test the order of the runs has to be one that chance seldom makes, with a calibration too. A
cell worse by no more than the minimum effect is called one, and one worse by the tolerance passes, seldom.

Speed is judged by the total of all steps. Most of alpha goes to the median step all the same, which sees a
slowdown of every step through noise that the total does not; it counts where the total agrees.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.errors import percent
from bench.metrics import METRICS, Metric, size_text
from bench.records.verdicts import MetricVerdict, VerdictName
from bench.scenario.gate import GateSpec, MetricGate
from bench.stats.chance import Rule, chance_of_order, chance_of_signs, holm, looks
from bench.stats.noise import Evidence, moments_of_arms, moments_of_pairs, weigh
from bench.stats.trend import Bools, Floats, Ints

DECISIONS: tuple[VerdictName, ...] = ("inconclusive", "pass", "regression")
"""A decision is held as its place in this list."""

UNDECIDED, PASS, REGRESSION = range(3)
Direction = Literal["lower", "higher", "same"]


@dataclass(frozen=True, kw_only=True)
class Arms:
    """One summary of the runs of one sitting's cells, as logs signed so that positive is worse.

    Arms are (..., cells, runs) in the order run, ``NaN`` where a run is missing; the rest is (..., cells). A
    calibration of 0 degrees of freedom says that there is none. ``differences`` (..., cells, repeats) are of
    runs made step by step in turn; there the arms are not what is compared.
    """

    baseline: Floats
    candidate: Floats
    differences: Floats | None = None
    calibration_variance: Floats
    calibration_degrees: Floats

    def evidence(self, repeats: Ints) -> Evidence:
        """Return what so many repeats say."""
        if self.differences is None:
            moments = moments_of_arms(self.baseline, self.candidate, repeats)
        else:
            moments = moments_of_pairs(self.differences, repeats)
        return weigh(moments, self.calibration_variance, self.calibration_degrees)

    def chance(self, repeats: Ints, tolerance_log: Floats | None = None) -> Floats:
        """Return how likely chance orders runs so at no change, or at one by the tolerance."""
        if tolerance_log is None:
            if self.differences is None:
                return chance_of_order(self.baseline, self.candidate, repeats)
            return chance_of_signs(self.differences, repeats)
        allowed = tolerance_log[..., np.newaxis]
        if self.differences is None:
            return chance_of_order(self.candidate - allowed, self.baseline, repeats)
        return chance_of_signs(allowed - self.differences, repeats)

    def less(self, other: "Arms") -> "Arms":
        """Return by how much these summaries exceed the other's, without a calibration."""
        unknown, differences = np.zeros_like(self.calibration_degrees), None
        if self.differences is not None and other.differences is not None:
            differences = self.differences - other.differences
        return Arms(
            baseline=self.baseline - other.baseline,
            candidate=self.candidate - other.candidate,
            differences=differences,
            calibration_variance=unknown,
            calibration_degrees=unknown,
        )

    def complete(self) -> Ints:
        """Return how many repeats each cell had, up to its last run."""
        shortest = min(self.baseline.shape[-1], self.candidate.shape[-1])
        there = ~np.isnan(self.baseline[..., :shortest]) | ~np.isnan(self.candidate[..., :shortest])
        repeats: Ints = np.where(there, np.arange(1, shortest + 1), 0).max(axis=-1, initial=0)
        return repeats


@dataclass(frozen=True, kw_only=True)
class Block:
    """One metric over the cells of one sitting: its total, and its median step where it has steps."""

    total: Arms
    median: Arms | None = None
    tolerance_log: Floats

    @property
    def pairs(self) -> bool:
        """Whether runs are compared two by two."""
        return self.total.differences is not None


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What each cell came to, on which evidence, adjusted for the family and the looks, after how many.

    ``alpha`` is what its bounds are each missed with, ``median`` the evidence of the median step, ``lower``
    the bound that a regression rests on, of either. ``needed`` are the repeats that cells wait for which the
    t-test alone would decide, ``overlap`` says that they have them and their order may still be chance, and
    ``apart`` that the total changed by more than the median step, or by less.
    """

    decisions: npt.NDArray[np.int8]
    alpha: Floats
    evidence: Evidence
    median: Evidence | None = None
    lower: Floats
    family_p_values: Floats
    repeats: Ints
    needed: Ints
    overlap: Bools
    apart: Bools
    pairs: bool = False


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What each block came to, and the adjusted p-values of the tests that are looked at once."""

    blocks: tuple[Decided, ...]
    other_family_p_values: Floats


def follow(blocks: Sequence[Block], rule: Rule, other_p_values: Floats | None = None) -> Followed:
    """Go through the looks as they were, or would have been, made, and return what each block came to.

    A cell that is decided keeps its evidence. ``other_p_values`` (..., tests) belong to the same family but
    are looked at once, such as accuracy's. *Undecided* cells that had fewer than all repeats wait for more.
    """
    if not blocks:
        others = np.ones(0) if other_p_values is None else other_p_values
        return Followed(blocks=(), other_family_p_values=holm(others))
    once = np.ones((*blocks[0].tolerance_log.shape[:-1], 0)) if other_p_values is None else other_p_values
    ends = np.cumsum([block.tolerance_log.shape[-1] for block in blocks])
    tests = int(ends[-1]) + once.shape[-1]
    states = [_nothing_yet(block) for block in blocks]
    p_values = [np.ones_like(block.tolerance_log) for block in blocks]
    for look in rule.looks:
        fresh = [_look(*each, look, rule, tests) for each in zip(blocks, states, strict=True)]
        p_values = [np.minimum(before, one.p_values) for before, one in zip(p_values, fresh, strict=True)]
        *adjusted, others = np.split(holm(np.concatenate([*p_values, once], axis=-1)), ends, axis=-1)
        states = [_concluded(*each, rule) for each in zip(states, fresh, adjusted, strict=True)]
    told = tuple(_compared(*each, rule) for each in zip(blocks, states, strict=True))
    return Followed(blocks=told, other_family_p_values=others)


def _compared(block: Block, state: Decided, rule: Rule) -> Decided:
    if block.median is None:
        return state
    lower, upper = block.total.less(block.median).evidence(state.repeats).bounds(rule.alpha / 2)
    return replace(state, apart=(lower > rule.minimum_effect_log) | (upper < -rule.minimum_effect_log))


def _nothing_yet(block: Block) -> Decided:
    shape = block.tolerance_log.shape
    nothing = block.total.evidence(np.zeros(shape, dtype=np.int64))
    return Decided(
        decisions=np.zeros(shape, dtype=np.int8),
        alpha=np.ones(shape),
        evidence=nothing,
        median=None if block.median is None else nothing,
        lower=np.full(shape, -np.inf),
        family_p_values=np.ones(shape),
        repeats=np.zeros(shape, dtype=np.int64),
        needed=np.zeros(shape, dtype=np.int64),
        overlap=np.zeros(shape, dtype=np.bool_),
        apart=np.zeros(shape, dtype=np.bool_),
        pairs=block.pairs,
    )


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One block after so many repeats: p-values adjusted for the looks, and what the t-test alone says.

    ``worse`` says that the lower bound is above the minimum effect, ``within`` that the upper one is below
    the tolerance, ``passes`` that the order of enough runs bears that out and that it does not wait to be
    called worse. ``asked`` are the repeats that would be enough.
    """

    alpha: Floats
    evidence: Evidence
    median: Evidence | None
    repeats: Ints
    p_values: Floats
    lower: Floats
    worse: Bools
    within: Bools
    passes: Bools
    asked: Ints


def _look(block: Block, state: Decided, look: int, rule: Rule, tests: int) -> _Look:
    used = np.where(state.decisions == UNDECIDED, np.minimum(look, block.total.complete()), state.repeats)
    to_fail, to_pass = (rule.fewest_repeats(many, pairs=block.pairs) for many in (tests, 1))
    share = 0.0 if block.median is None else rule.share_of_median(look, tests, pairs=block.pairs)
    alpha, evidence = rule.alpha * rule.share_of(look, pairs=block.pairs), block.total.evidence(used)
    p_values = np.maximum(evidence.p_value(), block.total.chance(used)) / (1 - share)
    lower, (_, upper) = evidence.bounds(alpha * (1 - share))[0], evidence.bounds(alpha)
    median = None
    if block.median is not None:
        median = block.median.evidence(used)
        agrees = evidence.difference > 0
        own = np.maximum(median.p_value(), block.median.chance(used)) / share
        p_values = np.where(agrees, np.minimum(p_values, own), p_values)
        lower = np.where(agrees, np.maximum(lower, median.bounds(alpha * share)[0]), lower)
    p_values = p_values / rule.share_of(look, tests, pairs=block.pairs)
    worse, within = lower > rule.minimum_effect_log, upper < block.tolerance_log
    by_order = block.total.chance(used, block.tolerance_log) <= alpha
    return _Look(
        alpha=np.where(state.decisions == UNDECIDED, alpha, state.alpha),
        evidence=evidence,
        median=median,
        repeats=used,
        p_values=np.where(used >= to_fail, np.minimum(p_values, 1.0), 1.0),
        lower=lower,
        worse=worse,
        within=within,
        passes=within & by_order & (used >= to_pass) & ~(worse & (used < to_fail)),
        asked=np.where(worse, to_fail, to_pass),
    )


def _concluded(state: Decided, fresh: _Look, adjusted: Floats, rule: Rule) -> Decided:
    """Return the state with decisions on what was undecided."""
    regression = fresh.worse & (adjusted <= rule.alpha)
    decisions = np.select([regression, fresh.passes], [REGRESSION, PASS], UNDECIDED).astype(np.int8)
    going_on = state.decisions == UNDECIDED
    waits = going_on & (decisions == UNDECIDED) & (fresh.worse | fresh.within)
    return replace(
        state,
        decisions=np.where(going_on, decisions, state.decisions),
        alpha=fresh.alpha,
        evidence=fresh.evidence,
        median=fresh.median,
        lower=np.where(going_on, fresh.lower, state.lower),
        repeats=fresh.repeats,
        family_p_values=adjusted,
        needed=np.where(waits & (fresh.repeats < fresh.asked), fresh.asked, 0),
        overlap=waits & (fresh.repeats >= fresh.asked),
    )


def decided_stored(evidence: Evidence, family_p_values: Floats, rule: Rule, tolerance_log: Floats) -> Decided:
    """Return what new sessions come to against past ones, looked at once."""
    lower, upper = evidence.bounds(rule.alpha)
    worse: Bools = (family_p_values <= rule.alpha) & (lower > rule.minimum_effect_log)
    nothing = np.zeros(lower.shape, dtype=np.int64)
    return Decided(
        decisions=np.select([worse, upper < tolerance_log], [REGRESSION, PASS], UNDECIDED).astype(np.int8),
        alpha=np.full(lower.shape, rule.alpha),
        evidence=evidence,
        lower=lower,
        family_p_values=family_p_values,
        repeats=nothing,
        needed=nothing,  # what is needed are sessions
        overlap=nothing > 0,
        apart=nothing > 0,
    )


@dataclass(frozen=True, kw_only=True)
class MetricPolicy:
    """How one metric is judged; ``tolerance`` is in its unit where it is deterministic, else a share."""

    metric: Metric
    direction: Direction
    tolerance: float
    relative_tolerance: float
    most_tolerated_share: float | None
    gated: bool

    def tolerated(self, baseline: float) -> float:
        """Return the smallest change for the worse of such a value of an exact metric that matters."""
        most = (self.most_tolerated_share or 0.0) * abs(baseline)
        return max(min(self.tolerance, most or math.inf), self.relative_tolerance * abs(baseline))

    @property
    def tolerated_text(self) -> str:
        """The same for a sentence; empty where any change matters."""
        if not self.tolerance:
            return ""
        unit = self.metric.unit
        text = size_text(self.tolerance) if unit == "bytes" else f"{self.tolerance:,.0f} {unit}"
        if self.most_tolerated_share:
            return f"{text}, or {percent(self.most_tolerated_share, 0)} where that is less"
        return text + f", or {percent(self.relative_tolerance, 0)} where that is more" * bool(
            self.relative_tolerance
        )

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
        most_tolerated_share=metric.most_tolerated_share if own.tolerance is None else None,
        gated=metric.gated if own.gated is None else own.gated,
    )
