"""From figures to verdicts: how runs ended, exact metrics, speed and accuracy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.metrics import MIB
from bench.records.verdicts import MetricVerdict, VerdictName, overall
from bench.scenario.gate import GateSpec, MetricGate
from bench.stats.chance import Rule
from bench.stats.noise import centre, pad
from bench.stats.paired import Paired
from bench.stats.sequential import Arms, Block, MetricPolicy, follow, policies
from bench.stats.verdicts import (
    AccuracyChange,
    judge_accuracy,
    judge_exact,
    judge_outcomes,
    judge_statistical,
)

PEAK = policies(GateSpec())["ledger_peak_bytes"]
OWN_PEAK = policies(GateSpec(metrics={"ledger_peak_bytes": MetricGate(tolerance=2.0 * MIB)}))[
    "ledger_peak_bytes"
]
COUNT = policies(GateSpec())["parameters_trainable"]
HEAP = policies(GateSpec())["heap_kept_bytes"]
PROCESS = policies(GateSpec())["host_peak_bytes"]
GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("policy", "before", "after", "verdict", "improved"),
    [
        (PEAK, GIB, GIB, "pass", False),
        (PEAK, GIB, GIB + MIB - 1, "pass", False),
        (PEAK, GIB, GIB + MIB, "regression", False),
        (PEAK, GIB, GIB - 1, "pass", True),
        (PEAK, 2 * MIB, 2 * MIB + MIB // 10, "pass", False),
        (PEAK, 2 * MIB, 2 * MIB + MIB // 9, "regression", False),  # a toy takes no more than a twentieth
        (OWN_PEAK, 2 * MIB, 3 * MIB, "pass", False),
        (PEAK, 0, 1000, "pass", False),
        (replace(PEAK, tolerance=0.0), GIB, GIB + 1, "regression", False),
        (replace(PEAK, relative_tolerance=0.01), GIB, GIB + 10 * MIB, "pass", False),
        (replace(PEAK, relative_tolerance=0.01), GIB, GIB + 11 * MIB, "regression", False),
        (replace(PEAK, direction="higher"), GIB, GIB - MIB, "regression", False),
        (COUNT, 1000, 1000, "pass", False),
        (COUNT, 1000, 999, "regression", False),
        (COUNT, 1000, 1001, "regression", False),
    ],
)
def test_a_change_of_the_tolerance_or_more_is_a_regression(
    policy: MetricPolicy, before: int, after: int, verdict: str, *, improved: bool
) -> None:
    """To the byte, in the metric's direction; with *same*, either way."""
    judgement = judge_exact("cell", policy, [before], [after])
    assert (verdict, improved) == (judgement.verdict, judgement.improved)
    assert (before, after) == (judgement.baseline, judgement.candidate)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [((0, 4), (4, 5), "inconclusive"), ((0, 4), (14, 15), "regression"), ((0, 4), (1, 3), "pass")],
)
def test_runs_that_differ_must_agree_on_the_verdict(
    before: tuple[int, ...], after: tuple[int, ...], verdict: str
) -> None:
    """A metric that should repeat and does not is judged only where every pair of runs says the same."""
    judgement = judge_exact("cell", replace(PEAK, tolerance=5.0), before, after)
    assert (verdict, True) == (judgement.verdict, "its runs differ" in judgement.reason)
    same = judge_exact("cell", replace(COUNT, tolerance=5.0), after, before)
    assert verdict == same.verdict


@pytest.mark.parametrize(
    ("policy", "before", "after", "verdict", "improved"),
    [
        (HEAP, (10 * MIB, 10 * MIB + 5000), (11 * MIB, 11 * MIB + 5000), "regression", False),
        (HEAP, (10 * MIB, 10 * MIB + 5000), (10 * MIB - 100, 10 * MIB - 50), "pass", False),
        (HEAP, (10 * MIB, 12 * MIB), (13 * MIB, 13 * MIB), "inconclusive", False),
        (HEAP, (12 * MIB, 12 * MIB), (11 * MIB, 11 * MIB), "pass", True),
        (PROCESS, (500 * MIB, 503 * MIB), (756 * MIB, 760 * MIB), "regression", False),
        (PROCESS, (500 * MIB, 503 * MIB), (520 * MIB, 524 * MIB), "pass", False),
        (PROCESS, (500 * MIB, 700 * MIB), (730 * MIB, 740 * MIB), "inconclusive", False),
    ],
)
def test_a_bounded_metric_is_held_against_its_own_noise(
    policy: MetricPolicy, before: tuple[int, ...], after: tuple[int, ...], verdict: str, *, improved: bool
) -> None:
    """Sides must lie farther apart than the tolerance and than runs of a side; less is no gain either."""
    judgement = judge_exact("cell", policy, before, after)
    assert (verdict, improved) == (judgement.verdict, judgement.improved)


def test_what_one_side_lacks_is_not_comparable() -> None:
    """The sentence names the side."""
    judgement = judge_exact("cell", PEAK, [None, None], [1])
    assert ("not comparable", "not measured in the baseline") == (judgement.verdict, judgement.reason)


def test_a_baseline_of_nought_has_no_ratio() -> None:
    """From nothing to something is a difference, not a ratio."""
    judgement = judge_exact("cell", PEAK, [0], [5 * MIB])
    assert ("regression", None) == (judgement.verdict, judgement.ratio)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "improved"),
    [
        (["ok", "ok"], ["ok"], "pass", False),
        (["ok", "ok"], ["ok", "oom"], "regression", False),
        (["oom"], ["ok"], "pass", True),
        (["oom"], ["oom"], "pass", False),
        (["ok", "oom"], ["ok", "oom"], "inconclusive", False),
        (["ok", "oom"], ["oom"], "inconclusive", False),
        (["ok"], ["crashed", "oom"], "not comparable", False),
        (["ok"], [], "not comparable", False),
    ],
)
def test_how_runs_ended(before: list[str], after: list[str], verdict: str, *, improved: bool) -> None:
    """Out of memory where the baseline ran is a regression; another failure says nothing."""
    judgement = judge_outcomes("cell", before, after)  # type: ignore[arg-type]
    assert (verdict, improved) == (judgement.verdict, judgement.improved)


RULE = Rule(alpha=0.01, minimum_effect_log=math.log(1.01), looks=(5,))
SPEED = policies(GateSpec())["tokens_per_second"]
STEP_TIME = policies(GateSpec())["step_time_ns"]
STEP_TIME_GATED = replace(STEP_TIME, gated=True)
ACCURACY = policies(GateSpec())["accuracy_after"]


def _judge(
    policy: MetricPolicy,
    baseline: list[float],
    candidate: list[float],
    *,
    calibration_sd: float = 0.0,
    rule: Rule = RULE,
    notes: list[str | None] | None = None,
) -> MetricVerdict:
    """Judge one cell of runs given in the metric's unit."""
    arms = [policy.worse_sign * np.log(pad([runs])) for runs in (baseline, candidate)]
    total = Arms(
        baseline=arms[0],
        candidate=arms[1],
        calibration_variance=np.full(1, calibration_sd**2),
        calibration_degrees=np.full(1, 8.0 if calibration_sd else 0.0),
    )
    block = Block(total=total, tolerance_log=np.full(1, policy.tolerance_log))
    (decided,) = follow([block], rule).blocks
    (judgement,) = judge_statistical(
        ["cell"],
        policy,
        decided,
        rule,
        baseline=centre(arms[0]),
        candidate=centre(arms[1]),
        notes=notes or (),
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
    assert judgement.reason.startswith("10.0 % worse, at least ")


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
    assert "about 20 find a change of 5.0 % reliably" in judgement.reason
    hopeless = _judge(SPEED, _runs(1000, 0.2), _runs(990, 0.2))
    assert "reduce background load" in hopeless.reason


def test_a_calibration_that_does_not_hold_is_said() -> None:
    """The user learns that the machine has changed since."""
    judgement = _judge(SPEED, _runs(1000, 0.02), _runs(1000, 0.02), calibration_sd=1e-4)
    assert "calibrate again" in judgement.reason


def test_one_run_of_each_side_tells_values_and_no_interval() -> None:
    """What is known is shown; the noise is not."""
    judgement = _judge(SPEED, [1000.0], [900.0])
    assert ("inconclusive", None, None) == (judgement.verdict, judgement.ratio_low, judgement.ratio_high)
    assert pytest.approx(0.9) == judgement.ratio
    assert judgement.reason.startswith("1 repeat does not show the noise; run at least 5")


def test_a_side_without_runs_is_not_comparable() -> None:
    """The sentence names it."""
    judgement = _judge(SPEED, [], _runs(1000))
    assert ("not comparable", "not measured in the baseline") == (judgement.verdict, judgement.reason)


def test_too_few_sittings_never_decide() -> None:
    """However clear the difference, the reason given makes it inconclusive; the figures stay."""
    judgement = _judge(SPEED, _runs(1000), _runs(500), notes=["too few sittings"])
    assert ("inconclusive", "too few sittings") == (judgement.verdict, judgement.reason)
    assert pytest.approx(0.5, rel=1e-3) == judgement.ratio


def judge_one(paired: Paired, p_value: float) -> MetricVerdict:
    """Return the judgement on one pair of evaluations."""
    found = AccuracyChange(
        cell="cell", task="task", policy=ACCURACY, baseline=0.5, candidate=0.5, paired=paired
    )
    (judgement,) = judge_accuracy([found], np.array([p_value]), GateSpec())
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
    paired = Paired(items=1000, gained=gained, lost=lost)
    judgement = judge_one(paired, 1e-6 if lost > gained else 1.0)
    assert (verdict, improved, share) == (judgement.verdict, judgement.improved, judgement.difference)
    assert judgement.difference_low is not None
    assert judgement.difference_high is not None
    assert judgement.difference_low < share < judgement.difference_high


def test_too_few_questions_are_inconclusive() -> None:
    """Sixty questions cannot rule out a drop of five points, even with as many gained as lost."""
    judgement = judge_one(Paired(items=60, gained=5, lost=5), 1.0)
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
def test_what_several_come_to(verdicts: list[VerdictName], expected: str) -> None:
    """One regression is enough, nothing undecided passes, and what is not gated has no say."""
    gated = [STEP_TIME_GATED.verdict("c", one, "") for one in verdicts]
    ungated = STEP_TIME.verdict("c", "regression", "")
    assert expected == overall([*gated, ungated])


def test_runs_that_merely_finished_have_not_passed() -> None:
    """Without a metric that was compared there is no pass; memory that did not suffice is a finding."""
    finished = judge_outcomes("c", ["ok"], ["ok"])
    assert ("pass", "inconclusive") == (finished.verdict, overall([finished]))
    assert "pass" == overall([finished, STEP_TIME_GATED.verdict("c", "pass", "")])
    assert "pass" == overall([finished, judge_outcomes("d", ["oom"], ["ok"])])


def test_what_is_not_gated_and_differs_is_counted() -> None:
    """An exact value that differs, a proven change; not what noise explains or cannot be compared."""
    exact = judge_exact("c", replace(PEAK, gated=False), [GIB], [GIB + 1])
    assert [True, False, True, False] == [
        one.differs
        for one in (
            exact,
            judge_exact("c", PEAK, [GIB], [GIB]),
            STEP_TIME.verdict("c", "pass", "", improved=True),
            STEP_TIME.verdict("c", "inconclusive", "", ratio=1.5),
        )
    ]


@pytest.mark.parametrize(("looks", "least"), [((1,), 5), ((3, 5), 5)])
def test_one_repeat_is_never_told_to_run_one(looks: tuple[int, ...], least: int) -> None:
    """Where a gate looks after one run, as with exact metrics only, a verdict still takes five."""
    judgement = _judge(SPEED, [1000.0], [900.0], rule=replace(RULE, looks=looks))
    assert judgement.reason == f"1 repeat does not show the noise; run at least {least}"
