"""What a gate holds each metric to."""

import math

import pytest

from bench.scenario.gate import GateSpec, MetricGate
from bench.stats.policy import policies, rule_of
from bench.stats.sequential import Rule


def test_tolerances_are_shares_of_the_metric_s_own_value() -> None:
    """5 % more time, 5 % fewer tokens per second; to let all pass is possible."""
    own = policies(GateSpec(metrics={"tokens_per_second": MetricGate(tolerance=1.0)}))
    table = policies(GateSpec())
    assert pytest.approx((math.log(1.05), -math.log(0.95))) == (
        table["step_time_ns"].tolerance_log,
        table["tokens_per_second"].tolerance_log,
    )
    assert math.inf == own["tokens_per_second"].tolerance_log


def test_the_rule_of_a_gate() -> None:
    """Error rate and minimum effect as given, looks from the first number of repeats to the last."""
    gate = GateSpec(alpha=0.05, minimum_effect=0.02, repeats=2, max_repeats=4)
    assert Rule(alpha=0.05, minimum_effect_log=math.log1p(0.02), looks=(2, 3, 4)) == rule_of(gate)


def test_a_scenario_overrides_the_metric_table() -> None:
    """Tolerance, direction and gating as given; the rest as in the table."""
    own = {"op_count": MetricGate(gated=True, direction="lower", tolerance=3.0)}
    policy = policies(GateSpec(metrics=own))["op_count"]
    assert (True, "lower", 3.0, 0.0) == (
        policy.gated,
        policy.direction,
        policy.tolerance,
        policy.relative_tolerance,
    )
    plain = policies(GateSpec())["op_count"]
    assert (False, "same") == (plain.gated, plain.direction)


def test_every_gated_metric_that_varies_has_a_tolerance_a_pass_can_rule_out() -> None:
    """Else no run could ever pass."""
    gate = GateSpec()
    least = {"statistical": gate.minimum_effect, "paired": gate.minimum_drop}
    for policy in policies(gate).values():
        if policy.gated and policy.metric.kind in least:
            assert policy.tolerance > least[policy.metric.kind]
