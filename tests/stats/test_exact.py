"""Verdicts without chance: bytes, counts and how runs ended."""

from dataclasses import replace

import pytest

from bench.metrics import MIB
from bench.scenario.gate import GateSpec
from bench.stats.exact import judge_exact, judge_outcomes
from bench.stats.policy import MetricPolicy, policies

PEAK = policies(GateSpec())["ledger_peak_bytes"]
COUNT = policies(GateSpec())["parameters_trainable"]
GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("policy", "before", "after", "verdict", "improved"),
    [
        (PEAK, GIB, GIB, "pass", False),
        (PEAK, GIB, GIB + MIB - 1, "pass", False),
        (PEAK, GIB, GIB + MIB, "regression", False),
        (PEAK, GIB, GIB - 1, "pass", True),
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
