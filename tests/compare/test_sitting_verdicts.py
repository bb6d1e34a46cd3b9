"""Sessions judged from their records: while they last and afterwards."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.compare.gate_report import GateJudge, judge_folder, open_cells
from bench.errors import UsageError
from bench.io import write_json
from bench.records.records import Failure, Record
from bench.records.verdicts import MetricVerdict, Verdicts
from bench.scenario.gate import GateSpec, MetricGate
from calibrations_factory import make_calibration
from records_factory import make_environment, make_measurement, make_record, make_steps
from sittings_factory import LOUD, MIB, QUIET, make_runs, write_sitting

if TYPE_CHECKING:
    from bench.records.sessions import Calibration, SideName

LOOKS = (3, 5, 8)
DEFAULT = GateSpec()


def judged(base: list[Record], candidate: list[Record], **gate: Any) -> Verdicts:
    """Judge runs as a session does between two of them."""
    return _judge(GateSpec(**gate)).judge({"base": base, "candidate": candidate})


def _judge(gate: GateSpec = DEFAULT, calibration: "Calibration | None" = None) -> GateJudge:
    return GateJudge(gate=gate, design="one sitting", looks=LOOKS, calibration=calibration)


def bad(verdicts: Verdicts) -> dict[str, str]:
    """Return what did not pass, by metric."""
    return {one.metric: one.verdict for one in verdicts.gated if one.verdict != "pass"}


def the(verdicts: Verdicts, metric: str, cell: str = "tiny/a") -> MetricVerdict:
    """Return one judgement."""
    return next(one for one in verdicts.judgements if (one.metric, one.cell) == (metric, cell))


@pytest.mark.parametrize("alone", ["base", "candidate"])
def test_a_side_that_failed_says_why(alone: "SideName") -> None:
    """Where the base alone failed, the change may be what brings the gate."""
    why = "loop.driver mine:loop cannot be imported: No module named 'mine'"
    failed = [
        record.replace(failure=Failure(message=f"{why}."))
        for record in make_runs(speeds=(1.0,), outcome="failed")
    ]
    sides = {"base": make_runs(speeds=(1.0,)), "candidate": make_runs(speeds=(1.0,)), alone: failed}
    reason = the(judged(sides["base"], sides["candidate"]), "outcome").reason
    name, hint = {"base": ("baseline", True), "candidate": ("candidate", False)}[alone]
    assert reason.startswith(f"a run of the {name} ended as failed: {why}")
    assert hint == reason.endswith(
        "; where this change brings the gate, there is no base yet: merge its scenario and loop first"
    )


def test_no_change_passes_on_every_kind_of_metric() -> None:
    """How runs ended, exact metrics, speed and accuracy."""
    verdicts = judged(make_runs(), make_runs(speeds=(1001.0, 999.0, 1002.0, 1000.0, 1001.0)))
    assert ("pass", 0, {}) == (verdicts.verdict, verdicts.exit_code(), bad(verdicts))
    kinds = {"outcome", "deterministic", "bounded", "statistical", "paired"}
    assert kinds == {one.kind for one in verdicts.gated}
    assert frozenset() == open_cells(verdicts)


@pytest.mark.parametrize(
    ("candidate", "metric"),
    [
        ({"ledger_bytes": 601 * MIB}, "ledger_peak_bytes"),
        ({"speeds": (900.0, 902.0, 898.0, 901.0, 899.0)}, "tokens_per_second"),
        ({"right": 130}, "accuracy_after"),
        ({"outcome": "oom"}, "outcome"),
    ],
)
def test_each_kind_of_regression_is_found_alone(candidate: dict[str, Any], metric: str) -> None:
    """One MiB, a tenth of the speed, twenty answers of 200, and memory that no longer suffices."""
    verdicts = judged(make_runs(), make_runs(**candidate))
    assert ("regression", 1, {metric: "regression"}) == (
        verdicts.verdict,
        verdicts.exit_code(),
        bad(verdicts),
    )
    assert frozenset() == open_cells(verdicts)


def test_a_gain_is_no_regression() -> None:
    """Less memory, more speed, more right answers, or running where the base ran out of memory."""
    better = make_runs(ledger_bytes=500 * MIB, speeds=[1.1 * speed for speed in QUIET], right=190)
    verdicts = judged(make_runs(), better)
    improved = {one.metric for one in verdicts.gated if one.improved}
    assert ("pass", {"ledger_peak_bytes", "tokens_per_second", "accuracy_after"}) == (
        verdicts.verdict,
        improved,
    )
    runs_now = judged(make_runs(outcome="oom"), make_runs())
    assert ("pass", ["outcome"]) == (runs_now.verdict, [one.metric for one in runs_now.gated if one.improved])


def test_only_cells_that_more_runs_could_decide_are_run_again() -> None:
    """Noise is; noise beside a regression that is certain is not, nor are failures."""
    base = [*make_runs("a"), *make_runs("b", speeds=LOUD), *make_runs("c", speeds=LOUD), *make_runs("d")]
    candidate = [
        *make_runs("a"),
        *make_runs("b", speeds=LOUD[::-1]),
        *make_runs("c", speeds=LOUD[::-1], ledger_bytes=700 * MIB),
        *make_runs("d", outcome="crashed"),
    ]
    judge = _judge()
    records: dict[SideName, list[Record]] = {"base": base, "candidate": candidate}
    assert frozenset({"b"}) == judge(records, 3)
    quiet_b = [record for record in base if record.cell.id != "b"]
    quiet = {"base": [*quiet_b, *make_runs("b")], "candidate": [*candidate[:5], *make_runs("b")]}
    assert frozenset() == judge(quiet, 3)  # type: ignore[arg-type] # the keys are the sides


def test_noise_is_inconclusive_and_exits_so() -> None:
    """Whatever was asked to be made of it."""
    verdicts = judged(make_runs(speeds=LOUD), make_runs(speeds=LOUD[::-1]))
    assert {"tokens_per_second": "inconclusive"} == bad(verdicts)
    assert [3, 0, 1] == [verdicts.exit_code(choice) for choice in (None, "pass", "fail")]


def test_sides_that_took_turns_at_steps_are_compared_pair_by_pair() -> None:
    """What makes runs differ by half tells nothing apart, and in pairs a tenth of the speed is found."""
    loud = (*LOUD, *LOUD[:3])
    base, slower = make_runs(speeds=loud), make_runs(speeds=[0.9 * speed for speed in loud])
    assert {"tokens_per_second": "inconclusive"} == bad(judged(base, slower))
    gate = GateSpec(metrics={"accuracy_after": MetricGate(gated=False)})
    by_steps = GateJudge(gate=gate, design="one sitting by steps", looks=LOOKS)
    found = by_steps.judge({"base": base, "candidate": slower})
    assert {"tokens_per_second": "regression"} == bad(found)
    assert pytest.approx(0.9) == the(found, "tokens_per_second").ratio
    assert {} == bad(by_steps.judge({"base": base, "candidate": base}))
    assert "one sitting by steps" == found.design


def test_all_gated_tests_of_a_sitting_are_one_family() -> None:
    """Nine answers lost, none gained, are significant alone (p = 0.002), not in 48 tests of 24 cells."""
    alone = judged(make_runs(), make_runs(right=141))
    cells = [f"tiny/{number:02}" for number in range(24)]
    base = [record for cell in cells for record in make_runs(cell)]
    candidate = [
        record for cell in cells for record in make_runs(cell, right=141 if cell == cells[0] else 150)
    ]
    among = judged(base, candidate)
    first, second = the(alone, "accuracy_after"), the(among, "accuracy_after", cells[0])
    assert ("regression", "inconclusive") == (first.verdict, second.verdict)
    assert [pytest.approx(2 * 0.5**9), pytest.approx(48 * 0.5**9)] == [first.p_value, second.p_value]


def test_what_is_not_gated_is_shown_and_judged_apart() -> None:
    """A scenario can take speed out of the gate, and its tests out of the family."""
    verdicts = judged(
        make_runs(),
        make_runs(speeds=[speed / 2 for speed in QUIET], right=141),
        metrics={"tokens_per_second": MetricGate(gated=False)},
    )
    assert ("regression", False) == (
        the(verdicts, "tokens_per_second").verdict,
        the(verdicts, "tokens_per_second").gated,
    )
    assert {"accuracy_after": "regression"} == bad(verdicts)
    assert pytest.approx(0.5**9) == the(verdicts, "accuracy_after").p_value


def test_a_calibration_sharpens_and_must_be_of_this_machine() -> None:
    """Where the noise is known the interval is narrower; and two repeats are too few all the same."""
    speeds = (1000.0, 1042.0, 1000.0, 1039.0, 1019.0)
    base, candidate = make_runs(speeds=speeds), make_runs(speeds=speeds[::-1])
    records: dict[SideName, list[Record]] = {"base": base, "candidate": candidate}
    calibration = make_calibration(0.01, base[0].cell.digest)
    unknown, known = (
        the(_judge(calibration=each).judge(records), "tokens_per_second") for each in (None, calibration)
    )
    assert (unknown.ratio_low or 1) < (known.ratio_low or 0)
    two: dict[SideName, list[Record]] = {"base": base[:2], "candidate": base[:2]}
    assert "inconclusive" == the(_judge(calibration=calibration).judge(two), "tokens_per_second").verdict
    other = calibration.model_copy(update={"environment": make_environment(machine={"cpu_cores": 64})})
    with pytest.raises(UsageError, match="cpu_cores 64 then, 2 now"):
        _judge(calibration=other).judge(records)


def test_a_stored_sitting_is_judged_as_it_was_while_it_lasted(tmp_path: Path) -> None:
    """By the gate it was made for and the calibration beside it."""
    base, candidate = make_runs(speeds=(1000.0, 1012.0)), make_runs(speeds=(931.0, 939.0), right=141)
    gate, calibration = GateSpec(alpha=0.05), make_calibration(0.005, base[0].cell.digest)
    write_sitting(tmp_path, base, candidate, gate=gate)
    write_json(tmp_path / "calibration.json", calibration)
    live = _judge(gate, calibration)
    stored = judge_folder(tmp_path)
    assert live.judge({"base": base, "candidate": candidate}).judgements == stored.judgements
    assert ("regression", 0.05, ()) == (stored.verdict, stored.alpha, stored.problems)
    (tmp_path / "calibration.json").unlink()
    assert the(stored, "tokens_per_second") != the(judge_folder(tmp_path), "tokens_per_second")


def test_a_cell_whose_turn_never_came_has_not_passed(tmp_path: Path) -> None:
    """The budget was spent before."""
    write_sitting(
        tmp_path, make_runs(), make_runs(), cells=("tiny/a", "tiny/b"), stopped="budget", budget_s=60.0
    )
    verdicts = judge_folder(tmp_path)
    assert ("inconclusive", 3) == (verdicts.verdict, verdicts.exit_code())
    assert "ended before its turn" in the(verdicts, "outcome", "tiny/b").reason
    assert "The budget of 60 s ended the session." in [caveat.message for caveat in verdicts.caveats]
    noisy = make_runs(speeds=LOUD)
    (tmp_path / "cut").mkdir()
    write_sitting(tmp_path / "cut", noisy, noisy, stopped="budget", budget_s=60.0)
    speed = the(judge_folder(tmp_path / "cut"), "tokens_per_second")
    assert speed.reason.startswith("the budget of 60 s ended it first; ")


@pytest.mark.parametrize("candidate", ["crashed", "gone"])
def test_a_run_that_failed_or_is_gone_is_no_verdict_on_the_code(tmp_path: Path, candidate: str) -> None:
    """Exit code 4, whatever the rest says, unless something regressed."""
    after = make_runs(outcome="crashed") if candidate == "crashed" else make_runs()
    write_sitting(tmp_path, make_runs(), after)
    if candidate == "gone":
        next((tmp_path / "candidate").glob("*.json")).unlink()
    verdicts = judge_folder(tmp_path)
    assert (("tiny/a",), "inconclusive", 4) == (
        verdicts.failed_cells,
        verdicts.verdict,
        verdicts.exit_code("pass"),
    )
    assert (candidate == "gone") == (len(verdicts.problems) == 1)


def test_spoilt_runs_and_breaks_are_told(tmp_path: Path) -> None:
    """A run that others spoilt is left out, and a session that was broken off says so."""
    spoilt = make_runs()[0].replace(outcome="contaminated", run=9)
    write_sitting(tmp_path, make_runs(), [*make_runs(), spoilt], ended_at=None, stopped=None)
    verdicts = judge_folder(tmp_path)
    assert {"left-out", "unfinished"} == {caveat.code for caveat in verdicts.caveats}
    assert {} == bad(verdicts)


def test_samples_survive_the_way_to_the_figures() -> None:
    """Values and the ratio are those of the runs: the geometric means of five speeds."""
    now = (990.0, 1003.0, 1010.0, 1000.0, 995.0)
    one = the(judged(make_runs(), make_runs(speeds=now)), "tokens_per_second")
    before, after = (math.prod(speeds) ** (1 / 5) for speeds in (QUIET, now))
    assert [pytest.approx(value, rel=1e-6) for value in (before, after, after / before)] == [
        one.baseline,
        one.candidate,
        one.ratio,
    ]
    assert 5 == one.repeats


@pytest.mark.parametrize("late", [range(20, 30), range(0, 30, 10)])
def test_steps_that_the_median_does_not_see_are_throughput_all_the_same(late: range) -> None:
    """The last third a third slower, or every tenth step five times as slow: found, and the two disagree."""
    slow = {step: 3 / 4 if len(late) > 3 else 1 / 5 for step in late}
    base, candidate = (
        [
            make_record(
                run=run,
                measurement=make_measurement(
                    steps=make_steps([speed * slower.get(step, 1.0) for step in range(30)])
                ),
            )
            for run, speed in enumerate([*QUIET, *QUIET[:3]], start=1)
        ]
        for slower in ({}, slow)
    )
    verdicts = judged(base, candidate)
    found = the(verdicts, "tokens_per_second", base[0].cell.id)
    assert ("regression", True) == (found.verdict, found.median_disagrees)
    assert (found.ratio or 1) < 0.95
    assert "median-disagrees" in {caveat.code for caveat in verdicts.caveats}
