"""The answers that readers look for first, from records whose answers are known."""

import pytest

from bench.compare.answers import answers
from bench.compare.summary import compare
from bench.records.records import Category, Failure, MergeCheck, Record
from bench.report.answers import answer_sentences
from bench.report.linked import RowLink
from bench.report.text import MEBIBYTES
from records_factory import MIB, make_cell, make_ledger, make_measurement, make_record, make_steps

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
    (one,) = answers(compare(records), records)
    return {
        sentence.about: "".join(
            piece.text if isinstance(piece, RowLink) else piece for piece in sentence.pieces
        )
        for sentence in answer_sentences(one, MEBIBYTES)
    }


def test_least_memory_is_told_by_each_instrument_with_its_saving() -> None:
    """The ledger and the process may disagree, so each has its sentence."""
    found = said(FULL, LORA, QLORA)
    expected = "qlora-nf4-dq-r8 needs least, 450 MiB, 55 % less than full fine-tuning."
    assert expected == found["Least memory (live tensors)"]
    assert "Least memory (process, net of start-up)" in found


def test_ranges_that_meet_are_not_called_slower() -> None:
    """Full fine-tuning's speed lies in the range of LoRA's; QLoRA's does not."""
    (one,) = answers(compare((FULL, LORA, QLORA)), (FULL, LORA, QLORA))
    assert one.fastest is not None
    names = {one.fastest.row.method, *(row.method for row in one.fastest.level)}
    assert {"full", "lora-r8"} == names


def test_a_ratio_of_speeds_says_when_they_are_not_told_apart() -> None:
    """LoRA's range holds full fine-tuning's speed, QLoRA's does not; a CPU says nothing of a GPU."""
    told = said(FULL, LORA, QLORA)
    assert (
        "lora-r8 1.00 (ranges overlap: not told apart), qlora-nf4-dq-r8 0.80. "
        "Measured on a CPU, which says nothing of a GPU."
    ) == told["Speed, full fine-tuning = 1"]
    near = make("qlora-nf4-dq-r8", 450, (980.0, 1000.0) * 4)
    assert "speed not told apart (1 % slower, ranges overlap)" in said(LORA, near)["QLoRA instead of LoRA"]


def test_speeds_that_drift_are_rough() -> None:
    """A tenth from the first step to the last, whether or not it is significant; or too few steps to see."""
    drifting = make("lora-r8", 600, tuple(1000.0 + 20 * step for step in range(8)))
    told = said(FULL, drifting)["Speed, full fine-tuning = 1"]
    assert "Treat speeds as rough: not all kept within 10 % over the measured steps." in told
    window = FULL.cell.window.model_copy(update={"measured_steps": 3})
    few = [
        one.model_copy(update={"cell": one.cell.model_copy(update={"window": window})})
        for one in (make("full", 1000, (1000.0,) * 3), make("lora-r8", 600, (1010.0,) * 3))
    ]
    told = said(*few)["Speed, full fine-tuning = 1"]
    assert "Treat speeds as rough: too few steps were measured to see whether they drifted." in told


def test_qlora_is_set_against_lora_of_the_same_rank() -> None:
    """A quarter less memory, a fifth slower, the same answers."""
    text = said(FULL, LORA, QLORA)["QLoRA instead of LoRA"]
    assert text.startswith("qlora-nf4-dq-r8 against lora-r8: 25 % less memory by live tensors")
    assert "20 % slower" in text
    assert "0.0 points on held-out (p = 1.000, not significant)" in text


def test_what_cells_were_trained_with_is_one_line_and_says_where_they_differ() -> None:
    """The task, the steps and the targets; and another learning rate with the methods that had it."""
    other = LORA.cell.training.model_copy(update={"learning_rate": 0.001})
    lora = LORA.model_copy(update={"cell": LORA.cell.model_copy(update={"training": other})})
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
    assert found["Least memory (live tensors)"].startswith("lora-r8 needs least, 600 MiB, 40 % less")


def causes(name: str, part: Category, **training: str) -> Record:
    """Return a run of a method whose peak is mostly of one category."""
    record = make(name, 600, (1000.0,) * 8)
    sizes = {part: 400 * MIB, "temporary": 200 * MIB}
    ledger = make_ledger(600 * MIB, categories_at_peak_bytes=sizes)
    cell = record.cell.model_copy(update={"training": record.cell.training.model_copy(update=training)})
    measurement = record.measurement.model_copy(update={"ledger": ledger})
    return record.model_copy(update={"measurement": measurement, "cell": cell})


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
    merged = QLORA.measurement.model_copy(
        update={"merge": MergeCheck(max_abs_difference=13.6, reference_max_abs=20)}
    )
    told = said(FULL, LORA, QLORA.model_copy(update={"measurement": merged}))
    expected = (
        "Do not merge qlora-nf4-dq-r8 into the quantised base here: a logit changes by 68 % of the largest."
    )
    assert expected == told["Merging"]
    assert "Merging" not in said(FULL, LORA, QLORA)
