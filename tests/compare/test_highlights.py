"""The answers that readers look for first, from records whose answers are known."""

import pytest

from bench.compare.comparison import compare
from bench.records.readings import Category
from bench.records.records import Failure, MergeCheck, Record
from bench.report.highlights import sentences
from bench.report.pages import render_summary
from bench.report.text import MEBIBYTES
from gpu_factory import make_gpu, make_gpu_record
from records_factory import (
    MIB,
    make_cell,
    make_environment,
    make_ledger,
    make_measurement,
    make_record,
    make_steps,
)

METHODS = {
    "full": {"kind": "full"},
    "lora-r8": {"kind": "lora", "rank": 8},
    "qlora-nf4-dq-r8": {"kind": "qlora", "rank": 8},
}


def make(name: str, memory: int, speeds: tuple[float, ...]) -> Record:
    """Return a run of a method with a ledger's peak in MiB and a speed for each step."""
    cell = make_cell(id=f"tiny/{name}/b4-s256", method=METHODS[name])
    measurement = make_measurement(ledger=make_ledger(memory * MIB), steps=make_steps(speeds))
    return make_record(cell=cell, measurement=measurement)


FULL = make("full", 1000, (1000.0,) * 8)
LORA = make("lora-r8", 600, (1010.0, 990.0) * 4)
QLORA = make("qlora-nf4-dq-r8", 450, (800.0,) * 8)


def said(*records: Record) -> dict[str, str]:
    """Return the sentences about one group by what they are about."""
    (one,) = compare(records).groups
    return {sentence.about: sentence.text for sentence in sentences(one, MEBIBYTES)}


def test_least_memory_is_told_by_each_instrument_with_its_saving() -> None:
    """The ledger and the process may disagree, so each has its sentence."""
    found = said(FULL, LORA, QLORA)
    expected = (
        "qlora-nf4-dq-r8 with 450 MiB (55 % less than full fine-tuning), then lora-r8 with 600 MiB "
        "(40 % less than full fine-tuning), then full with 1,000 MiB."
    )
    assert expected == found["Least memory (live tensors)"]
    assert "Least memory (process, net of start-up)" in found


def test_ranges_that_meet_are_not_called_slower() -> None:
    """Full fine-tuning's speed lies in the range of LoRA's; QLoRA's does not."""
    (one,) = compare((FULL, LORA, QLORA)).groups
    assert one.fastest is not None
    names = {one.fastest[0].method, *(row.method for row in one.fastest[1])}
    assert {"full", "lora-r8"} == names


def test_a_ratio_of_speeds_says_when_they_are_not_distinguishable() -> None:
    """LoRA's range holds full fine-tuning's speed, QLoRA's does not; a CPU says nothing of a GPU."""
    told = said(FULL, LORA, QLORA)
    assert (
        "lora-r8 1.00 (not distinguishable: ranges overlap), qlora-nf4-dq-r8 0.80. "
        "Measured on a CPU; do not extrapolate to GPUs."
    ) == told["Speed, full fine-tuning = 1"]
    near = make("qlora-nf4-dq-r8", 450, (980.0, 1000.0) * 4)
    assert (
        "speed not distinguishable (1 % slower, ranges overlap)" in said(LORA, near)["QLoRA instead of LoRA"]
    )


def test_speeds_that_drift_are_rough() -> None:
    """A tenth from the first step to the last, whether or not it is significant; or too few steps to see."""
    drifting = make("lora-r8", 600, tuple(1000.0 + 20 * step for step in range(8)))
    told = said(FULL, drifting)["Speed, full fine-tuning = 1"]
    assert "Throughput is approximate: some runs drifted by more than 10 %." in told
    window = FULL.cell.window.model_copy(update={"measured_steps": 3})
    few = [
        one.replace(cell=one.cell.model_copy(update={"window": window}))
        for one in (make("full", 1000, (1000.0,) * 3), make("lora-r8", 600, (1010.0,) * 3))
    ]
    told = said(*few)["Speed, full fine-tuning = 1"]
    assert "Throughput is approximate: too few steps were measured to see whether it drifted." in told


def test_qlora_is_set_against_lora_of_the_same_rank() -> None:
    """A quarter less memory, a fifth slower, the same answers."""
    text = said(FULL, LORA, QLORA)["QLoRA instead of LoRA"]
    assert text.startswith("qlora-nf4-dq-r8 against lora-r8: 25 % less memory by live tensors")
    assert "20 % slower" in text
    assert "0.0 points on held-out (p = 1.000, not significant)" in text


def test_what_cells_were_trained_with_is_one_line_and_says_where_they_differ() -> None:
    """The task, the steps and the targets; and another learning rate with the methods that had it."""
    other = LORA.cell.training.model_copy(update={"learning_rate": 0.001})
    lora = LORA.replace(cell=LORA.cell.model_copy(update={"training": other}))
    text = said(FULL, lora, QLORA)["Trained with"]
    shared, _, differs = text.partition(" Differs: ")
    assert shared.startswith("tiny on cpu, 2 threads; data longest-word (easy, 2,048 items to train on); ")
    assert "; LoRA targets all-linear." in shared
    assert "learning rate 0.0001 (full and qlora-nf4-dq-r8), 0.001 (lora-r8)." == differs


def test_a_cell_that_failed_is_counted_where_the_least_is_named() -> None:
    """Who did not run may need least; the sentence says how many did not."""
    failed = make_record(
        cell=make_cell(id="tiny/other/b4-s256", method={"kind": "lora", "rank": 4}),
        outcome="oom",
        failure=Failure(message="It did not fit."),
        measurement={},
    )
    found = said(FULL, LORA, failed)
    assert "Least memory (live tensors)" in found
    assert found["Least memory (live tensors)"].startswith("lora-r8 with 600 MiB (40 % less")


def causes(name: str, part: Category, **training: str) -> Record:
    """Return a run of a method whose peak is mostly of one category."""
    record = make(name, 600, (1000.0,) * 8)
    sizes = {part: 400 * MIB, "temporary": 200 * MIB}
    ledger = make_ledger(600 * MIB, categories_at_peak_bytes=sizes)
    cell = record.cell.model_copy(update={"training": record.cell.training.model_copy(update=training)})
    measurement = record.measurement.replace(ledger=ledger)
    return record.replace(measurement=measurement, cell=cell)


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("full", "weights", "try adapters on a frozen base (lora), which can be quantised as well (qlora)."),
        ("lora-r8", "weights", "try a quantised base (qlora)."),
        ("qlora-nf4-dq-r8", "weights", "try a smaller model, since the base is quantised already."),
        ("lora-r8", "optimizer_state", "8-bit or paged state, or fewer trained parameters."),
        ("full", "gradients", "try an adapter (lora), which trains fewer parameters."),
        ("lora-r8", "activations", "try gradient checkpointing, a smaller batch or shorter sequences."),
    ],
)
def test_the_largest_part_of_a_peak_decides_what_to_try(name: str, part: Category, expected: str) -> None:
    """No adapter is told to become one; the command that predicts changes is named."""
    text = said(causes(name, part))["To need less"]
    assert f"{name}: the largest part is {part.replace('_', ' ')} (67 %); " in text
    assert text.endswith(f"{expected} bench plan SCENARIO --advice predicts what each change frees.")


def test_what_a_cell_does_already_is_not_advised() -> None:
    """With gradient checkpointing on, only less data remains."""
    text = said(causes("lora-r8", "activations", gradient_checkpointing="non-reentrant"))["To need less"]
    assert "(67 %); try a smaller batch or shorter sequences." in text


def test_an_adapter_that_changes_by_merging_is_not_to_be_merged() -> None:
    """The change of a logit is told; one within the tolerance is not spoken of."""
    merged = QLORA.measurement.replace(merge=MergeCheck(max_abs_difference=13.6, reference_max_abs=20))
    told = said(FULL, LORA, QLORA.replace(measurement=merged))
    expected = (
        "Do not merge qlora-nf4-dq-r8 into the quantised base here: a logit changes by 68 % of the largest."
    )
    assert expected == told["Merging"]
    assert "Merging" not in said(FULL, LORA, QLORA)


def test_a_second_full_method_is_named() -> None:
    """Every cell has its place among the least memory, two kinds of full fine-tuning included."""
    cell = make_cell(
        id="tiny/full-8bit/b4-s256",
        method={"kind": "full", "name": "full-8bit"},
        training={"sequence_length": 256, "micro_batch": 4, "optimizer": "adamw-8bit"},
        device="cpu",
    )
    second = FULL.replace(cell=cell, key="8" * 64)
    text = said(FULL, second, LORA)["Least memory (live tensors)"]
    assert "full with 1,000 MiB" in text
    assert "full-8bit with 1,000 MiB" in text


def test_records_of_two_machines_have_highlights_of_their_own() -> None:
    """Nothing is set against a cell elsewhere, no method is named twice, none is missing."""
    elsewhere = make_environment(machine={"cpu_model": "Other CPU"})
    there = [
        one.replace(environment=elsewhere, key=str(index) * 64)
        for index, one in enumerate((FULL, LORA, QLORA))
    ]
    comparison = compare([FULL, LORA, QLORA, *there])
    found = comparison.groups
    assert [("A", 3), ("B", 3)] == [(one.rows[0].environment, len(one.rows)) for one in found]
    text = render_summary(comparison)
    assert "cpu, 2 threads, environment A" in text
    assert "cpu, 2 threads, environment B" in text
    assert 2 == text.count("Least memory (live tensors)")


def test_on_a_gpu_reserved_leads() -> None:
    """A card must hold what is reserved; what torch allocated comes second."""
    records = [make_gpu_record(make_gpu(4000 * MIB), method=name) for name in ("full", "lora")]
    lines = render_summary(compare(records)).split("Least memory (")[1:3]
    assert ["GPU, reserved", "GPU, allocated"] == [line.partition(")")[0] for line in lines]


def test_dora_over_4_bit_is_not_qlora_instead_of_lora() -> None:
    """Adapters that differ in more than how the base is stored are not set against each other."""
    method = {"kind": "qlora", "rank": 8, "peft": {"use_dora": True}}
    dora = QLORA.replace(cell=make_cell(id="tiny/qdora/b4-s256", method=method), key="d" * 64)
    assert "QLoRA instead of LoRA" not in said(LORA, dora)


def test_a_change_that_rounds_to_zero_has_no_sign() -> None:
    """Not minus 0 %: 1,000 against 1,001 MiB is as much."""
    near = make("lora-r8", 1001, (1000.0,) * 8)
    text = said(FULL, near)["Least memory (live tensors)"]
    assert "lora-r8 with 1,001 MiB (as much as full fine-tuning)" in text
    assert "\u22120 %" not in render_summary(compare((FULL, near)))
