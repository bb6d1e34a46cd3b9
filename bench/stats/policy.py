"""What a gate holds each metric to: the metric table, overridden by a scenario's ``[gate]``."""

import math
from dataclasses import dataclass
from typing import Literal

from bench.metrics import METRICS, Metric
from bench.scenario.gate import GateSpec, MetricGate
from bench.stats.sequential import Rule, looks

Direction = Literal["lower", "higher", "same"]


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
        relative_tolerance=own.relative_tolerance or 0.0,
        gated=metric.gated if own.gated is None else own.gated,
    )
