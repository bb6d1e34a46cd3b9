"""The rows of a comparison: grouped by cell and key, set against full fine-tuning, with every caveat."""

import math

import pytest

from bench.compare.comparison import Comparison, compare
from bench.compare.measured import Measured
from bench.errors import UsageError
from bench.records.readings import Caveat
from bench.records.records import DeviceFacts, Failure, Measurement, MergeCheck, ModelFacts, Record
from records_factory import (
    MIB,
    make_cell,
    make_environment,
    make_evaluation,
    make_ledger,
    make_measurement,
    make_phases,
    make_record,
    make_steps,
)

FULL_CELL = make_cell(id="tiny/full/b4-s256", method={"kind": "full"})
FULL = make_record(
    cell=FULL_CELL,
    started_at="2026-11-22T07:00:00Z",
    measurement=make_measurement(
        ledger=make_ledger(1200 * MIB),
        phases=make_phases(host_peak_bytes=1600 * MIB),
        steps=make_steps([500.0] * 8),
        evaluations=(
            make_evaluation("before", [index < 5 for index in range(20)]),
            make_evaluation("after", [index < 18 for index in range(20)]),
        ),
    ),
)
LORA = make_record()


def _codes(row: Measured) -> set[str]:
    """Return the codes of a row's caveats."""
    return {caveat.code for caveat in row.caveats}


def _lora(comparison: Comparison) -> Measured:
    """Return the only row that is not full fine-tuning."""
    (row,) = (row for row in comparison.rows if row.kind != "full")
    return row


def _with(**changes: object) -> Record:
    """Return the LoRA record with other readings."""
    return make_record(measurement=make_measurement(**changes))


def test_runs_of_one_cell_share_a_row() -> None:
    """Three runs make one row, with the median speed and the range over runs."""
    speeds = (900.0, 1000.0, 1300.0)
    runs = [
        make_record(run=number, measurement=make_measurement(steps=make_steps([speed] * 8)))
        for number, speed in enumerate(speeds, start=1)
    ]
    (row,) = compare(runs).rows
    assert row.throughput is not None
    assert pytest.approx((1000.0, 900.0, 1300.0)) == (
        row.throughput.tokens_per_second,
        row.throughput.low,
        row.throughput.high,
    )
    assert ("range over runs", 3, 3, set()) == (row.throughput.spread, row.runs, row.runs_ok, _codes(row))


def test_one_run_gives_the_middle_half_of_its_steps_and_says_so() -> None:
    """The quartiles of 1000 to 9000 are 3000 and 7000; the caveat says that there was one run."""
    (row,) = compare([_with(steps=make_steps([1000.0 * each for each in (5, 1, 9, 2, 8, 3, 7, 4, 6)]))]).rows
    assert row.throughput is not None
    assert pytest.approx((5000.0, 3000.0, 7000.0)) == (
        row.throughput.tokens_per_second,
        row.throughput.low,
        row.throughput.high,
    )
    assert ("middle half of the steps", {"one-run"}) == (row.throughput.spread, _codes(row))


def test_the_same_cell_under_another_key_is_another_row() -> None:
    """Another machine or version is never averaged in."""
    other = make_record(key="f" * 64, environment=make_environment(versions={"torch": "2.6.0"}))
    comparison = compare([LORA, other])
    assert ["A", "B"] == [row.environment for row in comparison.rows]
    assert comparison.differences != ()


def test_peaks_by_each_instrument() -> None:
    """Host gross is the high-water mark of training, net takes off start-up, the ledger stands apart."""
    (row,) = compare([LORA]).rows
    assert [
        ("ledger", 600, "backward"),
        ("host_net", 600, "first_backward"),
        ("host", 1000, "first_backward"),
    ] == [(peak.instrument, peak.peak_bytes // MIB, peak.phase) for peak in row.peaks]


def test_cuda_peaks() -> None:
    """A GPU cell has the allocator's peaks, and no host peak where none was read."""
    phases = make_phases(host_peak_bytes=None, cuda_allocated_peak_bytes=800 * MIB)
    (row,) = compare([_with(phases=phases, ledger=None)]).rows
    assert [("cuda_allocated", 800 * MIB), ("cuda_reserved", 800 * MIB)] == [
        (peak.instrument, peak.peak_bytes) for peak in row.peaks
    ]


def test_saving_and_speed_against_full() -> None:
    """Half by the ledger and net of start-up, 1000 of 1600 MiB gross, and twice the speed."""
    row = _lora(compare([FULL, LORA]))
    full = row.against_full
    assert full is not None
    assert pytest.approx({"ledger": -0.5, "host_net": -0.5, "host": -0.375}) == {
        peak.instrument: full.memory_share(peak.instrument) for peak in row.peaks
    }
    assert pytest.approx(2.0) == full.speed_ratio
    assert not full.speeds_overlap
    assert ("tiny/full/b4-s256", None) == (full.base.id, row.no_reference)


def test_full_is_not_compared_with_itself() -> None:
    """The reference row has neither a saving nor a reason for having none."""
    (row,) = compare([FULL]).rows
    assert (None, None) == (row.reference, row.no_reference)
    assert row.against_full is None


def test_a_full_cell_of_another_window_is_no_reference() -> None:
    """A different batch is a different question."""
    cell = make_cell(id="tiny/full/b1-s256", method={"kind": "full"}, training={"sequence_length": 256})
    assert "full fine-tuning was not run alike" == _lora(compare([make_record(cell=cell), LORA])).no_reference


def test_a_full_cell_on_another_machine_is_no_reference() -> None:
    """Savings and speeds are taken within one machine."""
    elsewhere = make_environment(machine={"cpu_model": "Other CPU"})
    row = _lora(compare([FULL.replace(environment=elsewhere), LORA]))
    assert "full fine-tuning was not run alike" == row.no_reference


def test_another_learning_rate_is_still_comparable() -> None:
    """A method may have its own learning rate: memory and arithmetic stay."""
    training = {"sequence_length": 256, "micro_batch": 4, "learning_rate": 0.01}
    assert _lora(compare([FULL, make_record(cell=make_cell(training=training))])).against_full is not None


def test_a_full_cell_that_ran_out_of_memory_is_named() -> None:
    """The missing saving has a reason, and the failed row keeps its sentence and no numbers."""
    oom = make_record(
        cell=FULL_CELL,
        outcome="oom",
        failure=Failure(message="Too small; lower training.micro_batch.", phase="load", requested_bytes=5),
        measurement=Measurement(),
    )
    comparison = compare([oom, LORA])
    assert "full fine-tuning ended as oom" == _lora(comparison).no_reference
    full = comparison.rows[0]
    assert ("oom", (), None) == (full.outcome, full.peaks, full.throughput)
    ((_, ending),) = full.endings
    assert ("load", "Too small; lower training.micro_batch.", 5) == (
        ending.phase,
        ending.message,
        ending.requested_bytes,
    )


def test_a_failed_run_beside_a_good_one() -> None:
    """The good run's numbers are shown, and the failure is not forgotten."""
    failed = make_record(run=1, outcome="failed", failure=Failure(message="ValueError: no."))
    (row,) = compare([failed, make_record(run=2)]).rows
    assert ("ok", 2, 1, ["failed"]) == (
        row.outcome,
        row.runs,
        row.runs_ok,
        [run.outcome for run, _ in row.endings],
    )
    assert "other-outcomes" in _codes(row)


def test_accuracy_with_standard_error_and_paired_tests() -> None:
    """5, 15 and 18 of 20: the standard error is sqrt(p q / 19); the exact tests are those of 10/0 and 0/3."""
    row = _lora(compare([FULL, LORA]))
    (accuracy,) = row.accuracies
    assert pytest.approx((0.25, 0.75, 0.0993399, 0.0993399)) == (
        accuracy.before,
        accuracy.after,
        accuracy.before_error,
        accuracy.after_error,
    )
    assert accuracy.change is not None
    assert row.against_full is not None
    against_full = row.against_full.accuracy("held-out")
    assert against_full is not None
    assert pytest.approx((10, 0, 2 / 2**10)) == (
        accuracy.change.gained,
        accuracy.change.lost,
        accuracy.change.p_value,
    )
    assert pytest.approx((0, 3, 2 / 2**3)) == (
        against_full.gained,
        against_full.lost,
        against_full.p_value,
    )


def test_unequal_questions_are_a_caveat_not_a_number() -> None:
    """Answers to other questions are not paired, and the reason is said."""
    changed = tuple(
        reading.replace(items=tuple(item.replace(doc_hash="0") for item in reading.items))
        for reading in make_measurement().evaluations
    )
    row = _lora(compare([FULL, _with(evaluations=changed)]))
    assert row.against_full is not None
    assert row.against_full.accuracy("held-out") is None
    assert "not-paired" in _codes(row)


def test_runs_that_answer_differently_are_said() -> None:
    """The first run is shown; that another one differs is a caveat."""
    other = make_measurement(evaluations=(make_evaluation("after", [True] * 20),))
    (row,) = compare([LORA, make_record(run=2, measurement=other)]).rows
    assert 0.75 == row.accuracies[0].after
    assert ["The runs differ on held-out after training (75.0 %, 100.0 %); the first run is shown."] == [
        caveat.message for caveat in row.caveats if caveat.code == "accuracy-differs"
    ]


def test_an_evaluation_before_only_has_no_after() -> None:
    """A missing reading stays missing."""
    (row,) = compare([_with(evaluations=(make_evaluation("before", [True, False]),))]).rows
    assert (0.5, None, None) == (
        row.accuracies[0].before,
        row.accuracies[0].after,
        row.accuracies[0].change,
    )


def test_what_set_the_peak() -> None:
    """Phase, operator, module and the largest category, as the ledger saw them."""
    ledger = make_ledger(categories_at_peak_bytes={"weights": 150 * MIB, "logits": 450 * MIB})
    cause = compare([_with(ledger=ledger)]).rows[0].cause
    assert cause is not None
    assert ("backward", "aten::mm", "lm_head", "logits", 0.75) == (
        cause.peak_phase,
        cause.peak_op,
        cause.peak_module,
        cause.largest_category,
        cause.largest_share,
    )


def test_the_overhead_is_what_is_left_of_the_total() -> None:
    """11.3 s less 2.5 loading, 4.7 stepping, 1 under the ledger and 2 evaluating leaves 1.1 s."""
    times = compare([LORA]).rows[0].times
    assert times is not None
    assert (11.3, 2.5, 4.7, 1.0, 2.0, 1.1) == tuple(
        part / 1e9
        for part in (
            times.total_ns,
            times.loading_ns,
            times.stepping_ns,
            times.instruments_ns,
            times.evaluation_ns,
            times.overhead_ns,
        )
    )
    assert (0.1, 0.2) == (times.starting_ns / 1e9, times.preparing_ns / 1e9)


def test_the_device_has_a_name() -> None:
    """CPU threads as the worker found them, the card's name on a GPU, the kind where no worker looked."""
    card = DeviceFacts(cpu_threads=8, cuda_available=True, cuda_name="Example 24 GB")
    gpu = make_record(cell=make_cell(device="cuda"), measurement=make_measurement(device=card))
    unknown = make_record(cell=make_cell(device="cuda"), outcome="unavailable", measurement=Measurement())
    assert ["cpu, 2 threads", "Example 24 GB", "cuda"] == [
        compare([record]).rows[0].device_name for record in (LORA, gpu, unknown)
    ]


def test_runs_belong_together_when_a_cell_gets_another_id() -> None:
    """A list that becomes a single value renames a cell; its runs stay one row, under the newest name."""
    renamed = LORA.replace(run=2, cell=LORA.cell.model_copy(update={"id": "tiny/new/b4-s256"}))
    (row,) = compare([LORA, renamed]).rows
    assert (row.id, row.runs) == ("tiny/new/b4-s256", 2)


def test_full_fine_tuning_comes_first() -> None:
    """What the others are compared with heads the table, whatever the order of the records."""
    assert ["full", "lora"] == [row.kind for row in compare([LORA, FULL]).rows]


def test_shares_of_parameters() -> None:
    """10,000 of 1,000,000 parameters are 1 %."""
    assert compare([LORA]).rows[0].trainable_share == 0.01


@pytest.mark.parametrize(
    ("measurement", "code"),
    [
        ({"steps": make_steps([1000.0, 1100, 1200, 1300, 1400, 1500, 1600, 1700])}, "not-steady"),
        ({"steps": make_steps([100.0, 101.0])}, "few-steps"),
        ({"caveats": (Caveat(code="recycled", message="The data was seen twice."),)}, "recycled"),
        (
            {"steps": tuple(step.replace(loss=math.nan) for step in make_steps())},
            "loss-not-finite",
        ),
        (
            {"steps": tuple(step.replace(skipped=True) for step in make_steps())},
            "steps-skipped",
        ),
        ({"merge": MergeCheck(max_abs_difference=0.2, reference_max_abs=1)}, "merge-differs"),
        (
            {
                "model": ModelFacts(
                    source="wheel",
                    weights_note="de-quantised from 4-bit",
                    parameters_total=2,
                    parameters_trainable=1,
                    weights_dtype="bf16",
                    attention="sdpa",
                    optimizer_class="AdamW",
                )
            },
            "weights",
        ),
    ],
)
def test_each_caveat(measurement: dict[str, object], code: str) -> None:
    """What the worker or the numbers give cause to say is said."""
    (row,) = compare([_with(**measurement)]).rows
    assert {code, "one-run"} == _codes(row)


def test_a_ledger_that_is_not_the_same_in_every_run() -> None:
    """The ledger is deterministic; when it is not, something changed."""
    second = make_measurement(ledger=make_ledger(600 * MIB + 1))
    (row,) = compare([LORA, make_record(run=2, measurement=second)]).rows
    assert {"ledger-differs"} == _codes(row)


def test_no_record_is_a_usage_error() -> None:
    """A report on nothing says what to do."""
    with pytest.raises(UsageError, match="there is no record to report on"):
        compare([])
