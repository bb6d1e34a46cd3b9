"""When a comparison may stop and what it may say, and what a gate holds each metric to."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.scenario.gate import GateSpec, MetricGate
from bench.stats.chance import Rule, holm, looks
from bench.stats.noise import pad
from bench.stats.sequential import DECISIONS, Arms, Block, Decided, follow, policies, rule_of
from bench.stats.trend import Floats

RULE = Rule(alpha=0.01, minimum_effect_log=0.01, looks=(3, 5, 8))


def _block(
    baseline: Floats,
    candidate: Floats,
    *,
    sd: float = 0.01,
    differences: Floats | None = None,
    medians: tuple[Floats, Floats] | None = None,
) -> Block:
    """Return a block of well calibrated cells; of a standard deviation of 0 nothing is known."""

    def arms(first: Floats, second: Floats) -> Arms:
        return Arms(
            baseline=first,
            candidate=second,
            differences=differences,
            calibration_variance=np.full(len(first), sd**2),
            calibration_degrees=np.full(len(first), 8.0 if sd else 0.0),
        )

    return Block(
        total=arms(baseline, candidate),
        median=None if medians is None else arms(*medians),
        tolerance_log=np.full(len(baseline), math.log(1.05)),
    )


def _arm(mean: float, repeats: int = 8, spread: float = 0.01) -> list[float]:
    """Return runs around a mean that spread evenly."""
    return [mean + spread * (-1) ** index for index in range(repeats)]


def _names(decided: Decided) -> list[str]:
    return [DECISIONS[decision] for decision in decided.decisions]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(3, 8, (3, 5, 8)), (5, 5, (5,)), (2, 20, (2, 3, 5, 8, 13, 20)), (3, 4, (3, 4))],
)
def test_looks_grow_to_the_budget(first: int, last: int, expected: tuple[int, ...]) -> None:
    """Each look has about 1.6 times the repeats, and the last has them all."""
    assert expected == looks(first, last)


def test_holm_by_hand() -> None:
    """0.01, 0.02, 0.03, 0.04 of four become 0.04, 0.06, 0.06, 0.06, in any order and row by row."""
    rows = np.array([[0.04, 0.01, 0.03, 0.02], [0.5, 0.5, 0.5, 0.001]])
    expected = [[0.06, 0.04, 0.06, 0.06], [1.0, 1.0, 1.0, 0.004]]
    assert pytest.approx(np.array(expected)) == holm(rows)


def test_clear_cells_stop_at_the_first_look_and_unclear_ones_go_on() -> None:
    """No change passes and 20 % fails as soon as chance allows; 3 % stays in doubt to the last."""
    baseline = pad([_arm(0.0)] * 3)
    candidate = pad([_arm(0.0), _arm(0.2), _arm(0.03, spread=0.03)])
    (decided,) = follow([_block(baseline, candidate, sd=0.02)], RULE).blocks
    assert (["pass", "regression", "inconclusive"], [5, 8, 8]) == (_names(decided), list(decided.repeats))


def test_a_decision_stays_whatever_later_runs_say() -> None:
    """A cell that passed is not judged again by runs made for others."""
    late = [*_arm(0.0, 5), *[0.5] * 3]
    (decided,) = follow([_block(pad([_arm(0.0)]), pad([late]))], RULE).blocks
    assert (["pass"], [5]) == (_names(decided), list(decided.repeats))
    assert abs(float(decided.evidence.difference[0])) < 0.02


def test_cells_that_wait_for_runs_are_undecided() -> None:
    """Runs of one look only: those in doubt keep the repeats they had."""
    short = _block(pad([_arm(0.0, 3)]), pad([_arm(0.04, 3, spread=0.03)]))
    (decided,) = follow([short], RULE).blocks
    assert (["inconclusive"], [3]) == (_names(decided), list(decided.repeats))


def test_a_sure_but_small_slowdown_is_no_regression() -> None:
    """2 % is one, 0.9 % is none, at almost no noise; and 2 % is none where 3 % is let pass."""
    baseline = pad([_arm(0.0, spread=1e-4)] * 2)
    block = _block(baseline, pad([_arm(0.009, spread=1e-4), _arm(0.02, spread=1e-4)]), sd=1e-4)
    assert ["pass", "regression"] == _names(follow([block], RULE).blocks[0])
    lenient = replace(RULE, minimum_effect_log=0.03)
    assert ["pass", "pass"] == _names(follow([block], lenient).blocks[0])


@pytest.mark.parametrize("sd", [0.0, 0.01])
def test_few_repeats_are_no_proof_with_a_calibration_either(sd: float) -> None:
    """Three fast runs against three slow ones come up once in twenty sittings by chance; five once in 252."""
    arms = pad([_arm(0.0)] * 2), pad([_arm(0.0), _arm(0.4)])
    (three,) = follow([_block(*(arm[:, :3] for arm in arms), sd=sd)], RULE).blocks
    assert ["inconclusive", "inconclusive"] == _names(three)
    assert 5 == three.needed[1]
    (all_looks,) = follow([_block(*arms, sd=sd)], RULE).blocks
    assert (["pass", "regression"], [0, 0]) == (_names(all_looks), list(all_looks.needed))
    assert [5, 5] == list(all_looks.repeats)


@pytest.mark.parametrize(
    ("tests", "of_runs", "of_pairs"),
    [(1, 5, 8), (2, 5, 9), (24, 8, 13), (96, 8, 15), (122, 8, 15), (123, 9, 15)],
)
def test_how_many_repeats_chance_alone_seldom_parts(tests: int, of_runs: int, of_pairs: int) -> None:
    """Of n runs of each side C(2n, n) orders, 20, 252, 12,870; of n pairs 2^n: from a look on, one in 100."""
    assert (of_runs, of_pairs) == (RULE.fewest_repeats(tests), RULE.fewest_repeats(tests, pairs=True))


def test_pairs_are_counted_as_pairs() -> None:
    """Seven differences of one sign come up once in 128 sessions, so that eight are asked for."""
    nothing, slower = pad([[0.0] * 8]), pad([[0.11, 0.1, 0.12, 0.1, 0.11, 0.12, 0.1, 0.11]])
    for count, expected in ((7, "inconclusive"), (8, "regression")):
        rule = replace(RULE, looks=(count,))
        block = _block(nothing, slower, differences=slower)
        assert [expected] == _names(follow([block], rule).blocks[0])


def test_runs_that_overlap_as_chance_might_have_them_decide_nothing() -> None:
    """Two speeds: t is sure of seven slow runs of eight, and one sweep of 96 in fifty looks so by chance."""
    baseline = pad([[0.001 * run for run in range(8)]] * 96)
    slow = [*(0.3 + 0.001 * run for run in range(7)), 0.0005]
    candidate = pad([slow, *[_arm(0.0, spread=0.004)] * 95])
    (decided,) = follow([_block(baseline, candidate, sd=0.0)], RULE).blocks
    assert ("inconclusive", True) == (_names(decided)[0], bool(decided.overlap[0]))
    assert float(decided.evidence.p_value()[0]) * 96 < 0.01


def test_the_total_decides_and_the_median_only_helps() -> None:
    """Few slow steps are a regression; a slower median step is one only where the total is slower too."""
    same, noisy = pad([_arm(0.0)]), pad([_arm(0.0, spread=0.06)])
    few_steps = _block(same, pad([_arm(0.3)]), medians=(same, same))
    (decided,) = follow([few_steps], RULE).blocks
    assert (["regression"], [True]) == (_names(decided), list(decided.apart))
    agreeing = _block(noisy, noisy + 0.05, medians=(same, same + 0.05), sd=0.0)
    assert ["regression"] == _names(follow([agreeing], RULE).blocks[0])
    not_in_all = _block(noisy, noisy - 0.001, medians=(same, same + 0.05), sd=0.0)
    assert ["inconclusive"] == _names(follow([not_in_all], RULE).blocks[0])


def test_other_tests_belong_to_the_family() -> None:
    """Twenty tests of accuracy beside it make a slowdown harder to call, and theirs are adjusted too."""
    block = _block(pad([_arm(0.0, 5)]), pad([_arm(0.045, 5)]))
    rule = replace(RULE, looks=(5,))
    alone = follow([block], rule)
    among = follow([block], rule, np.array([1e-7, *[0.9] * 19]))
    assert (["regression"], ["inconclusive"]) == (_names(alone.blocks[0]), _names(among.blocks[0]))
    assert 7 == among.blocks[0].needed[0]
    assert pytest.approx(1e-7 * 21) == among.other_family_p_values[0]
    assert pytest.approx([0.02, 0.03]) == follow([], rule, np.array([0.01, 0.03])).other_family_p_values


def test_two_metrics_share_one_family() -> None:
    """The p-values of a metric are twice as large beside another one without a finding."""
    baseline, candidate = pad([_arm(0.0)]), pad([_arm(0.06)])
    block, same = _block(baseline, candidate), _block(baseline, baseline)
    rule = replace(RULE, looks=(8,))
    (alone,), (first, second) = follow([block], rule).blocks, follow([block, same], rule).blocks
    assert pytest.approx(2 * alone.family_p_values[0]) == first.family_p_values[0]
    assert float(second.family_p_values[0]) > 0.9


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
