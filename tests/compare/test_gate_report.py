"""Two sides compared into one document: matching, what is not comparable, the family, what is exact."""

from collections.abc import Sequence
from typing import Any

import pytest

from bench.compare.comparison import compare
from bench.compare.gate_report import GateJudge
from bench.records.readings import Caveat, Held, Retained
from bench.records.records import DeviceFacts, Record
from bench.records.result_sets import ResultSet
from bench.records.run_summary import summarise_run
from bench.records.verdicts import MetricVerdict, Verdicts
from bench.scenario.gate import GateSpec
from gpu_factory import make_gpu
from records_factory import make_cell, make_environment, make_ledger, make_measurement, make_record
from sittings_factory import LOUD, MIB, QUIET, make_runs


def _side(*sittings: Sequence[Record]) -> ResultSet:
    return ResultSet(given="side", sessions=tuple(tuple(map(summarise_run, records)) for records in sittings))


def _stored(base: Sequence[Sequence[Record]], candidate: Sequence[Record]) -> Verdicts:
    judge = GateJudge(gate=GateSpec(), design="stored baseline")
    return judge.compare(_side(*base), _side(candidate))


def _one(verdicts: Verdicts, metric: str, cell: str = "tiny/a") -> MetricVerdict:
    (found,) = [one for one in verdicts.judgements if (one.metric, one.cell) == (metric, cell)]
    return found


def _days(count: int, *, slower: float = 0.0) -> list[list[Record]]:
    """Return sessions that differ by up to one per cent, as days do."""
    shifts = [1 + 0.01 * ((day * 7) % 5 - 2) / 2 for day in range(count)]
    return [make_runs(speeds=[speed * shift * (1 - slower) for speed in QUIET]) for shift in shifts]


def test_the_same_runs_pass_where_exact_and_are_undecided_in_speed() -> None:
    """One stored session cannot tell a slower program from a slower day; what is exact is decided."""
    verdicts = _stored([make_runs()], make_runs())
    assert ("pass", "inconclusive") == (
        _one(verdicts, "ledger_peak_bytes").verdict,
        _one(verdicts, "tokens_per_second").verdict,
    )
    assert "10 are needed" in _one(verdicts, "tokens_per_second").reason
    assert ("inconclusive", 3) == (verdicts.verdict, verdicts.exit_code())


@pytest.mark.parametrize(
    ("days", "slower", "verdict"),
    [(10, 0.0, "pass"), (10, 0.10, "inconclusive"), (199, 0.10, "regression"), (198, 0.10, "inconclusive")],
)
def test_sittings_decide_on_speed_as_far_as_days_can(days: int, slower: float, verdict: str) -> None:
    """Ten days are enough for a pass. The slowest of n + 1 days is so by chance; two tests, alpha 0.01."""
    (candidate,) = _days(1, slower=slower)
    judged = _one(_stored(_days(days), candidate), "tokens_per_second")
    assert (verdict, "sittings") == (judged.verdict, judged.interval)
    assert judged.ratio == pytest.approx(0.99 * (1 - slower), rel=0.01)
    asked = "but one day in 11 is the slowest by chance: to rule that out takes 199 sessions"
    assert (asked in judged.reason) == (days == 10 and slower > 0)


def test_one_mebibyte_more_is_a_regression() -> None:
    """The exact peak's tolerance is 1 MiB, and one regression is the verdict of all."""
    verdicts = _stored([make_runs()], make_runs(ledger_bytes=601 * MIB))
    judged = _one(verdicts, "ledger_peak_bytes")
    assert ("regression", 600 * MIB, 601 * MIB) == (judged.verdict, judged.baseline, judged.candidate)
    assert ("regression", 1) == (verdicts.verdict, verdicts.exit_code("pass"))
    assert verdicts.judgements[0] == judged


def _heaps(runs: Sequence[Record], kept_bytes: int, **environment: Any) -> list[Record]:
    """Return runs after each step of which so much was held beyond what there was as loading began."""
    return [
        run.replace(
            environment=make_environment(**environment) if environment else run.environment,
            measurement=run.measurement.replace(
                steps=tuple(step.replace(held=Held(kept_bytes)) for step in run.measurement.steps),
                phases=tuple(phase.replace(heap_start_bytes=0) for phase in run.measurement.phases),
                ledger=make_ledger(retained=Retained({}, 0, {})),
            ),
        )
        for run in runs
    ]


def test_a_baseline_from_before_a_metric_is_held_against_nobody() -> None:
    """What is new is shown with its reason; a candidate that lacks what the baseline has does not pass."""
    old, new = make_runs(), _heaps(make_runs(), 100 * MIB)
    names = ("retained_bytes", "leaked_bytes_per_step", "heap_kept_bytes", "heap_growth_bytes_per_step")
    shown = [_one(_stored([old], new), name) for name in names]
    assert {("not comparable", False)} == {(one.verdict, one.gated) for one in shown}
    assert all(one.reason.startswith("new: ") for one in shown)
    lost = [_one(_stored([new], old), name) for name in names]
    assert {("not comparable", True)} == {(one.verdict, one.gated) for one in lost}


def test_a_peak_that_grew_or_shrank_says_what_holds_it() -> None:
    """By category, by module, and where the peak was and is, from a tenth of the change on."""
    held: dict[str, Any] = {"model.layers.*.mlp": {"activations": 300_000}, "lm_head": {"logits": 2_000_000}}
    more = held | {"model.layers.*.mlp": {"activations": 1_100_000}, "model.norm": {"activations": 40_000}}
    moved = {"peak_op": "aten::gelu", "peak_module": "model.layers.0.mlp"}
    ledgers = (
        make_ledger(2_300_000, modules_at_peak_bytes=held),
        make_ledger(3_140_000, modules_at_peak_bytes=more, **moved),
    )
    sides = [
        [run.replace(measurement=run.measurement.replace(ledger=ledger)) for run in make_runs()]
        for ledger in ledgers
    ]
    judge = GateJudge(gate=GateSpec(), design="one sitting", looks=(5,))
    for (before, after), sign in ((sides, "+"), (sides[::-1], "-")):
        told = _one(judge.judge({"base": before, "candidate": after}), "ledger_peak_bytes")
        assert told.verdict == ("regression" if sign == "+" else "pass")
        assert f"in model.layers.*.mlp {sign}0.76 MiB; the peak moved from " in told.reason
        assert "aten::gelu in model.layers.0.mlp (" in told.reason


def test_a_peak_that_shrank_by_bytes_says_no_more() -> None:
    """Its parts would all be written as nothing."""
    sides = [
        [run.replace(measurement=run.measurement.replace(ledger=make_ledger(size))) for run in make_runs()]
        for size in (600 * MIB, 600 * MIB - 8)
    ]
    judge = GateJudge(gate=GateSpec(), design="one sitting", looks=(5,))
    verdicts = judge.judge({"base": sides[0], "candidate": sides[1]})
    assert _one(verdicts, "ledger_peak_bytes").reason == "-8 bytes, tolerance 1,048,576"


def test_what_holds_retained_tensors_and_leaks_them_is_told() -> None:
    """By name, where they made a regression; the columns' caveats say the same of the cell alone."""
    retained = Retained({"library.KEPT": 128 * MIB, "torch.X": 64}, 65_536, {"aten::ones in lm_head": 65_536})
    candidate = [
        run.replace(measurement=run.measurement.replace(ledger=make_ledger(retained=retained)))
        for run in make_runs()
    ]
    judge = GateJudge(gate=GateSpec(), design="one sitting", looks=(5,))
    verdicts = judge.judge({"base": _heaps(make_runs(), 0), "candidate": candidate})
    told = {one.code: one.message for one in verdicts.caveats}
    kept = "128.00 MiB of tensors live on outside the model, beside the peak: 128.00 MiB library.KEPT, "
    assert f"tiny/a: {kept}0.00 MiB torch.X." == told["retained"]
    leak = "Each step leaves 65,536 bytes of tensors behind: 0.06 MiB aten::ones in lm_head."
    assert f"tiny/a: {leak}" == told["leak"]
    assert leak in {one.message for one in compare(candidate).rows[0].caveats}
    assert {"retained", "leak"}.isdisjoint(
        one.code for one in judge.judge({"base": candidate, "candidate": candidate}).caveats
    )


def test_heaps_of_other_machines_are_not_compared() -> None:
    """They differ by what is no change of the code; tensors do not."""
    before, there = make_runs(), {"machine": {"cpu_model": "another"}}
    verdicts = _stored([_heaps(before, 100 * MIB)], _heaps(make_runs(), 200 * MIB, **there))
    heap, tensors = _one(verdicts, "heap_kept_bytes"), _one(verdicts, "retained_bytes")
    assert ("not comparable", False) == (heap.verdict, heap.gated)
    assert "cpu_model" in heap.reason
    assert ("pass", True) == (tensors.verdict, tensors.gated)
    here = _one(_stored([_heaps(before, 100 * MIB)], _heaps(make_runs(), 200 * MIB)), "heap_kept_bytes")
    assert ("regression", True) == (here.verdict, here.gated)


def test_sides_of_one_sitting_are_told_apart_by_their_runs() -> None:
    """Ten per cent between quiet runs that were made in turn is a regression; between loud ones it is not."""
    judge = GateJudge(gate=GateSpec(), design="one sitting", looks=(5,))
    slow = [speed * 0.9 for speed in QUIET]
    verdicts = judge.compare(_side(make_runs()), _side(make_runs(speeds=slow)))
    assert "regression" == _one(verdicts, "tokens_per_second").verdict
    verdicts = judge.compare(_side(make_runs(speeds=LOUD)), _side(make_runs(speeds=LOUD)))
    assert "inconclusive" == _one(verdicts, "tokens_per_second").verdict


def test_steps_taken_in_turn_are_not_held_against_others() -> None:
    """They begin with colder caches on fewer cores; what is counted is compared all the same."""
    in_turn = [
        record.replace(
            measurement=record.measurement.replace(
                caveats=(Caveat(code="steps-in-turn", message="In turn."),)
            )
        )
        for record in make_runs()
    ]
    verdicts = _stored([make_runs()], in_turn)
    assert "pass" == _one(verdicts, "ledger_peak_bytes").verdict
    speed = _one(verdicts, "tokens_per_second")
    assert "not comparable" == speed.verdict
    assert "steps one after the other before, in turn with another run's now" in speed.reason


def test_another_machine_compares_what_is_exact_only() -> None:
    """Speed on another processor says nothing of the program; both are named."""
    other = make_environment(machine={"cpu_model": "Other CPU", "cpu_cores": 2, "architecture": "x86_64"})
    moved = [record.replace(environment=other) for record in make_runs()]
    verdicts = _stored([make_runs()], moved)
    speed = _one(verdicts, "tokens_per_second")
    assert "not comparable" == speed.verdict
    assert "cpu_model Example CPU before, Other CPU now" in speed.reason
    assert "pass" == _one(verdicts, "ledger_peak_bytes").verdict
    assert "machine.cpu_model: Example CPU before, Other CPU now" in verdicts.differences


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"versions": {"python": "3.11.9", "torch": "2.14.0"}}, "versions.torch: 2.13.0 before, 2.14.0 now"),
        ({"git": {"commit": "fedcba", "dirty": False}}, "git.commit: 0123456789abcdef before, fedcba now"),
    ],
)
def test_other_versions_are_named_and_judged(environment: dict[str, Any], named: str) -> None:
    """An upgrade is what a user wants judged."""
    moved = [record.replace(environment=make_environment(**environment)) for record in make_runs()]
    verdicts = _stored([make_runs()], moved)
    assert (named,) == verdicts.differences
    assert "runs" == _one(verdicts, "tokens_per_second").interval


def test_other_threads_are_other_conditions() -> None:
    """Half the threads are half the speed."""
    moved = [record.replace(environment=make_environment(threads={"torch": 1})) for record in make_runs()]
    assert "torch 2 before, 1 now" in _one(_stored([make_runs()], moved), "step_time_ns").reason


def test_nvml_s_process_and_device_are_not_compared() -> None:
    """Each reading has its own metric, and the sentence says that the instruments differ."""
    sides = [
        [make_record(cell=make_cell(id="tiny/a"), measurement=make_measurement(gpu=make_gpu(isolation=kind)))]
        for kind in ("process", "device_delta")
    ]
    verdicts = _stored([sides[0]], sides[1])
    names = {"nvml_process_peak_bytes", "nvml_device_delta_peak_bytes"}
    found = [one for one in verdicts.judgements if one.metric in names]
    assert {"not comparable"} == {one.verdict for one in found}
    assert all("NVML process before, device_delta now" in one.reason for one in found)


def test_another_driver_is_another_condition() -> None:
    """It is named with both versions."""
    sides = []
    for driver in ("550.1", "560.2"):
        gpu = make_gpu(isolation="process")
        gpu = gpu.replace(facts=gpu.facts.replace(driver_version=driver))
        device = DeviceFacts(cpu_threads=2, cuda_available=True, cuda_name="Card")
        measurement = make_measurement(gpu=gpu, device=device)
        sides.append([make_record(cell=make_cell(id="tiny/a"), measurement=measurement)])
    verdicts = _stored([sides[0]], sides[1])
    assert "driver 550.1 before, 560.2 now" in _one(verdicts, "tokens_per_second").reason
    assert "gpu.driver: 550.1 before, 560.2 now" in verdicts.differences


def test_a_changed_cell_is_named_with_what_changed() -> None:
    """Under one id, another learning rate is another cell: nothing of it is compared."""
    changed = make_cell(
        id="tiny/a", training={"sequence_length": 256, "micro_batch": 4, "learning_rate": 0.5}
    )
    verdicts = _stored([make_runs()], [record.replace(cell=changed) for record in make_runs()])
    compared = [one for one in verdicts.judgements if one.metric != "outcome"]
    assert {"not comparable"} == {one.verdict for one in compared}
    assert "training.learning_rate" in compared[0].reason
    assert "0.5 now" in compared[0].reason


def test_a_missing_cell_is_inconclusive_and_a_new_one_is_listed() -> None:
    """What vanished has not passed; what is new cannot have become worse."""
    verdicts = _stored([[*make_runs("tiny/a"), *make_runs("tiny/b")]], make_runs("tiny/a"))
    gone = _one(verdicts, "outcome", "tiny/b")
    assert ("not comparable", True) == (gone.verdict, gone.gated)
    verdicts = _stored([make_runs("tiny/a")], [*make_runs("tiny/a"), *make_runs("tiny/b")])
    new = _one(verdicts, "outcome", "tiny/b")
    assert (False, True) == (new.gated, new.reason.startswith("new:"))


def test_out_of_memory_where_the_baseline_ran_is_a_regression() -> None:
    """And a crash is neither: it is for the infrastructure."""
    verdicts = _stored([make_runs()], make_runs(outcome="oom"))
    assert ("regression", 1) == (_one(verdicts, "outcome").verdict, verdicts.exit_code())
    verdicts = _stored([make_runs()], make_runs(outcome="crashed"))
    assert (4, 4) == (verdicts.exit_code(), verdicts.exit_code("pass"))


def test_questions_lost_are_a_regression_of_accuracy() -> None:
    """Fifty of 200 answers lost; the task and the change in shares are told."""
    judged = _one(_stored([make_runs(right=150)], make_runs(right=100)), "accuracy_after")
    assert ("regression", "held-out", -0.25, 0.75, 0.5) == (
        judged.verdict,
        judged.task,
        judged.difference,
        judged.baseline,
        judged.candidate,
    )


def test_only_the_latest_key_counts() -> None:
    """Runs of older versions in the same folder are left out, and that is said."""
    older = [record.replace(key="0" * 64) for record in make_runs(ledger_bytes=700 * MIB)]
    verdicts = _stored([make_runs()], [*older, *make_runs()])
    assert "pass" == _one(verdicts, "ledger_peak_bytes").verdict
    assert [True] == ["Left out: 5 runs" in caveat.message for caveat in verdicts.caveats]
