"""What can be found at how many repeats, against simulated gates, and what a calibration says of it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.errors import percent
from bench.scenario.gate import GateSpec
from bench.stats.chance import Rule
from bench.stats.machines import NoiseModel
from bench.stats.noise import Noise
from bench.stats.paired import Paired, drop_p_value
from bench.stats.power import (
    detectable_effect,
    family_of,
    noise_rows,
    power_of,
    repeats_asked,
    repeats_needed,
    smallest_drop_found,
)
from bench.stats.sequential import DECISIONS, rule_of
from bench.stats.simulation import SimulationCase, simulate
from calibrations_factory import make_calibration
from records_factory import make_cell

RULE = Rule(alpha=0.01, minimum_effect_log=math.log(1.01), looks=(5,))
PLAIN = NoiseModel(run_noise=0.012, step_noise=0.0, spike_share=0.0, warmup_steps=500, measured_steps=1)


def test_the_effect_is_found_as_often_as_promised() -> None:
    """At the effect for a power of 80 % a simulated gate finds about 80 %."""
    noise = Noise(log_variance=PLAIN.run_noise**2, degrees_of_freedom=9)
    effect = detectable_effect(noise, 5, RULE, power=0.8)
    decisions = simulate(SimulationCase(name="", bounds={}, slowdown=effect, model=PLAIN), 4000, seed=1)
    assert pytest.approx(0.8, abs=0.04) == (decisions == DECISIONS.index("regression")).mean()


def test_pairs_find_what_simulated_pairs_do() -> None:
    """About 80 %, less ten points: sums of quantiles promise much, and the pairs' order is asked too."""
    noise = Noise(log_variance=PLAIN.run_noise**2, degrees_of_freedom=4, of_pairs=True)
    rule = replace(RULE, looks=(8,))
    effect = detectable_effect(noise, 8, rule, power=0.8)
    assert math.inf == detectable_effect(noise, 7, rule, power=0.8)
    in_turn = SimulationCase(name="", bounds={}, slowdown=effect, rule=rule, model=PLAIN, by_steps=True)
    decisions = simulate(in_turn, 4000, seed=1)
    assert pytest.approx(0.75, abs=0.06) == (decisions == DECISIONS.index("regression")).mean()


def test_more_repeats_find_less_and_more_tests_need_more() -> None:
    """The effect falls with repeats; the repeats needed are the fewest that reach it, and grow with tests."""
    noise = Noise(log_variance=0.012**2, degrees_of_freedom=9)
    assert detectable_effect(noise, 3, RULE) > detectable_effect(noise, 8, RULE)
    needed = repeats_needed(noise, 0.05, RULE)
    assert needed is not None
    assert detectable_effect(noise, needed, RULE) <= 0.05 < detectable_effect(noise, needed - 1, RULE)
    in_sweep = repeats_needed(noise, 0.05, RULE, tests=24)
    assert in_sweep is not None
    assert in_sweep > needed


def test_what_no_number_of_repeats_can_find() -> None:
    """The minimum effect itself is never found, and of unknown noise nothing is promised at one repeat."""
    assert repeats_needed(Noise(log_variance=0.1, degrees_of_freedom=9), 0.02, RULE) is None
    assert math.inf == detectable_effect(Noise(log_variance=0.1, degrees_of_freedom=0), 1, RULE)


def test_quieter_machines_find_smaller_changes() -> None:
    """Only gated metrics that vary have a row; more repeats find less."""
    (quiet,), (loud,) = (noise_rows(make_calibration(spread), GateSpec()) for spread in (0.005, 0.05))
    assert ("c", "tokens_per_second", (5, 8), 0.05) == (
        quiet.cell,
        quiet.metric,
        quiet.looks,
        quiet.tolerance_share,
    )
    assert all(
        less < more for less, more in zip(quiet.detectable_shares, loud.detectable_shares, strict=True)
    )
    assert sorted(quiet.detectable_shares, reverse=True) == list(quiet.detectable_shares)
    assert (quiet.repeats_needed or 99) < (loud.repeats_needed or 999)


@pytest.mark.parametrize(("items", "churn"), [(60, 4), (281, 20), (1000, 120)])
def test_the_smallest_drop_is_found_as_often_as_promised(items: int, churn: int) -> None:
    """Drawn at that drop, 95 % of simulated evaluations are regressions; at two thirds of it, fewer."""
    least = smallest_drop_found(items, churn, 0.01, 0.01)
    assert least is not None
    rng = np.random.default_rng(1)

    def found(drop: float) -> float:
        changed = rng.binomial(items, churn / items + drop, 20_000)
        lost = rng.binomial(changed, (churn / 2 / items + drop) / (churn / items + drop))
        gained = changed - lost
        alarms = drop_p_value(lost.astype(float), gained.astype(float)) <= 0.01
        return float((alarms & (lost - gained >= 0.01 * items)).mean())

    assert 0.94 <= found(least) <= 0.985
    assert found(least * 2 / 3) < 0.9


def test_what_few_questions_find_is_said() -> None:
    """Five questions find nothing; of four hundred about forty passages count the passages."""
    one = Paired(items=5, gained=0, lost=0)
    assert power_of(one, GateSpec(), 1) == "they find no drop with 95 %"
    alone = Paired(items=400, gained=2, lost=2)
    shared = Paired(items=400, gained=2, lost=2, swings=(2, -2), source_items=10.0)
    texts = [power_of(each, GateSpec(), 1) for each in (alone, shared)]
    least = [smallest_drop_found(number, churn, 0.01, 0.01) for number, churn in ((400, 4), (40, 1))]
    assert least[0] is not None
    assert least[1] is not None
    assert least[0] < least[1] / 5
    assert texts[0] == f"they find a drop of {percent(least[0])} with 95 %"
    assert texts[1] == f"their 40 sources find a drop of {percent(least[1])} with 95 %"


def test_a_gate_says_before_it_starts_how_many_repeats_a_verdict_takes() -> None:
    """One speed takes five; 24 take eight; in pairs, more than the eight there are, so that none can fail."""
    rule = rule_of(GateSpec())
    assert "takes 5 repeats" in repeats_asked(rule, 1, pairs=False)
    assert "takes 8 repeats of each side to be told from chance, 24 tests together; at most 8" in (
        repeats_asked(rule, 24, pairs=False)
    )
    assert "none can be called a regression; raise gate.max_repeats" in repeats_asked(rule, 24, pairs=True)
    few = rule_of(GateSpec(max_repeats=3))
    assert "no speed can be called a regression" in repeats_asked(few, 1, pairs=False)
    cell = make_cell()
    assert 2 * (1 + len(cell.evaluation.tasks)) == family_of(GateSpec(), [cell, cell])
