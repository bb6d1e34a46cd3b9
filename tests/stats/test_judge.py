"""From decisions to judgements: figures in the metric's unit, and a sentence that helps."""

import math

import numpy as np
import pytest

from bench.scenario.gate import GateSpec
from bench.stats.judge import Answered, centre, judge_accuracy, judge_statistical
from bench.stats.moderated import pad
from bench.stats.paired import Paired
from bench.stats.policy import MetricPolicy, policies
from bench.stats.sequential import Block, Rule, follow
from bench.stats.verdicts import Judgement, Verdict, overall

RULE = Rule(alpha=0.01, minimum_effect_log=math.log(1.01), looks=(5,))
SPEED = policies(GateSpec())["tokens_per_second"]
STEP_TIME = policies(GateSpec())["step_time_ns"]
ACCURACY = policies(GateSpec())["accuracy_after"]


def _judge(
    policy: MetricPolicy,
    baseline: list[float],
    candidate: list[float],
    *,
    calibration_sd: float = 0.0,
    too_little: list[str | None] | None = None,
) -> Judgement:
    """Judge one cell of runs given in the metric's unit."""
    arms = [policy.worse_sign * np.log(pad([runs])) for runs in (baseline, candidate)]
    block = Block(
        baseline=arms[0],
        candidate=arms[1],
        calibration_variance=np.full(1, calibration_sd**2),
        calibration_degrees=np.full(1, 8.0 if calibration_sd else 0.0),
        tolerance_log=np.full(1, policy.tolerance_log),
    )
    (decided,) = follow([block], RULE).blocks
    (judgement,) = judge_statistical(
        ["cell"],
        policy,
        decided,
        RULE,
        baseline=centre(arms[0]),
        candidate=centre(arms[1]),
        too_little=too_little or (),
    )
    return judgement


def _runs(middle: float, spread: float = 0.002) -> list[float]:
    return [middle * (1 + spread * step) for step in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize(("policy", "factor"), [(SPEED, 0.9), (STEP_TIME, 1.1)])
def test_a_slowdown_is_a_regression_in_the_metric_s_own_direction(
    policy: MetricPolicy, factor: float
) -> None:
    """Fewer tokens per second or more time: the ratio and its interval are candidate / baseline."""
    judgement = _judge(policy, _runs(1000), _runs(1000 * factor))
    assert ("regression", 5, policy.gated) == (judgement.verdict, judgement.repeats, judgement.gated)
    assert pytest.approx((1000, 1000 * factor, factor), rel=1e-4) == (
        judgement.baseline,
        judgement.candidate,
        judgement.ratio,
    )
    assert judgement.ratio_low is not None
    assert judgement.ratio_high is not None
    assert judgement.ratio_low < factor < judgement.ratio_high
    assert judgement.reason.startswith("10.0% worse, at least ")


def test_faster_passes_as_improved() -> None:
    """More tokens per second is said to be better, by at least the near end of the interval."""
    judgement = _judge(SPEED, _runs(1000), _runs(1100))
    assert ("pass", True) == (judgement.verdict, judgement.improved)
    assert judgement.reason.endswith("% better at least")
    assert not _judge(SPEED, _runs(1000), _runs(1000)).improved


def test_noise_is_inconclusive_and_the_sentence_says_how_many_repeats_would_do() -> None:
    """Runs that spread by some per cent do not decide on 5 %; what would is said."""
    judgement = _judge(SPEED, _runs(1000, 0.02), _runs(990, 0.02))
    assert "inconclusive" == judgement.verdict
    assert "too noisy: anything from" in judgement.reason
    assert "about 20 find a change of 5.0% reliably" in judgement.reason
    hopeless = _judge(SPEED, _runs(1000, 0.2), _runs(990, 0.2))
    assert "quieten the machine" in hopeless.reason


def test_a_calibration_that_does_not_hold_is_said() -> None:
    """The user learns that the machine has changed since."""
    judgement = _judge(SPEED, _runs(1000, 0.02), _runs(1000, 0.02), calibration_sd=1e-4)
    assert "calibrate again" in judgement.reason


def test_one_run_of_each_side_tells_values_and_no_interval() -> None:
    """What is known is shown; the noise is not."""
    judgement = _judge(SPEED, [1000.0], [900.0])
    assert ("inconclusive", None, None) == (judgement.verdict, judgement.ratio_low, judgement.ratio_high)
    assert pytest.approx(0.9) == judgement.ratio
    assert "1 repeats do not tell the noise" in judgement.reason


def test_a_side_without_runs_is_not_comparable() -> None:
    """The sentence names it."""
    judgement = _judge(SPEED, [], _runs(1000))
    assert ("not comparable", "not measured in the baseline") == (judgement.verdict, judgement.reason)


def test_too_few_sittings_never_decide() -> None:
    """However clear the difference, the reason given makes it inconclusive; the figures stay."""
    judgement = _judge(SPEED, _runs(1000), _runs(500), too_little=["too few sittings"])
    assert ("inconclusive", "too few sittings") == (judgement.verdict, judgement.reason)
    assert pytest.approx(0.5, rel=1e-3) == judgement.ratio


def judge_one(paired: Paired, p_value: float) -> Judgement:
    """Return the judgement on one pair of evaluations."""
    found = Answered(cell="cell", policy=ACCURACY, paired=paired, family_p_value=p_value)
    (judgement,) = judge_accuracy([found], GateSpec())
    return judgement


@pytest.mark.parametrize(
    ("lost", "gained", "verdict", "improved"),
    [(75, 25, "regression", False), (25, 75, "pass", True), (20, 20, "pass", False)],
)
def test_accuracy_is_judged_on_the_same_questions(
    lost: int, gained: int, verdict: str, *, improved: bool
) -> None:
    """The difference is in shares of the questions, with its interval around it."""
    share = (gained - lost) / 1000
    paired = Paired(items=1000, unmatched=0, gained=gained, lost=lost)
    judgement = judge_one(paired, 1e-6 if lost > gained else 1.0)
    assert (verdict, improved, share) == (judgement.verdict, judgement.improved, judgement.difference)
    assert judgement.difference_low is not None
    assert judgement.difference_high is not None
    assert judgement.difference_low < share < judgement.difference_high


def test_too_few_questions_are_inconclusive() -> None:
    """Sixty questions cannot rule out a drop of five points, even with as many gained as lost."""
    judgement = judge_one(Paired(items=60, unmatched=0, gained=5, lost=5), 1.0)
    assert ("inconclusive", True) == (judgement.verdict, "more questions" in judgement.reason)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive", "regression"], "regression"),
        (["pass", "inconclusive"], "inconclusive"),
        (["pass", "not comparable"], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_what_several_come_to(verdicts: list[Verdict], expected: str) -> None:
    """One regression is enough, nothing undecided passes, and what is not gated has no say."""
    gated = [Judgement(cell="c", metric="m", verdict=one, gated=True, reason="") for one in verdicts]
    ungated = Judgement(cell="c", metric="m", verdict="regression", gated=False, reason="")
    assert expected == overall([*gated, ungated])
