"""What a gate holds each metric to: the metric table, overridden by a scenario's ``[gate]``."""

from dataclasses import dataclass
from typing import Literal

from bench.metrics import METRICS, Metric
from bench.spec.gate import GateSpec, MetricGate

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


def policies(gate: GateSpec) -> dict[str, MetricPolicy]:
    """Return the policy of every metric, gated or not, in the order of the metric table."""
    return {name: _policy(metric, gate.metrics.get(name, MetricGate())) for name, metric in METRICS.items()}


def _policy(metric: Metric, own: MetricGate) -> MetricPolicy:
    by_default: Direction = "same" if metric.better == "neither" else metric.better
    return MetricPolicy(
        metric=metric,
        direction=own.direction or by_default,
        tolerance=metric.tolerance if own.tolerance is None else own.tolerance,
        relative_tolerance=own.relative_tolerance or 0.0,
        gated=metric.gated if own.gated is None else own.gated,
    )
