"""Pairs of answers: where they come from, how they are laid out, and what DPO makes of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.records.readings import Caveat
from bench.records.records import LedgerReading, StepSample
from bench.scenario.types import JsonlData, SyntheticData, TaskData, TrainingSpec
from bench.training.rows.data import IGNORED_LABEL, PreparedData, prepare_batches
from tiny_cells import of_type, readings_of, tiny_cell
from tiny_tokenizers import byte_level


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Any:
    """Forget accelerate's state: a worker trains one cell, here several share a process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepare(data: Any, steps: int = 2, **training: Any) -> PreparedData:
    """Prepare pairs with a byte-level tokenizer."""
    settings: dict[str, Any] = {"sequence_length": 128, "micro_batch": 2, **training}
    return prepare_batches(data, TrainingSpec(**settings), byte_level(), 300, steps, pairs=True)


def texts(prepared: PreparedData, row: int) -> tuple[str, str]:
    """Return the prompt and the answer in a row of the first micro-batch."""
    batch, tokenizer = prepared.steps[0][0], byte_level()
    ids, labels = batch.input_ids[row].tolist(), batch.labels[row].tolist()
    begin = next(place for place, label in enumerate(labels) if label != IGNORED_LABEL)
    answer = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED_LABEL]
    return tokenizer.decode(ids[:begin]), tokenizer.decode(answer)


def preferences(folder: Path, rows: list[dict[str, str]]) -> JsonlData:
    """Write rows of preferences."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JsonlData(source="jsonl", path=str(path), format="preference", template="plain")


def test_rows_hold_the_chosen_answers_then_the_rejected(tmp_path: Path) -> None:
    """Both to the same prompts, with an end of text, labels on answers alone, shorter rows padded."""
    rows = [{"prompt": f"Q{n}:", "chosen": " yes", "rejected": " not at all"} for n in range(2)]
    prepared = prepare(preferences(tmp_path, rows))
    (batch,) = prepared.steps[0]
    assert len(batch.input_ids) == 4
    for row in range(2):
        (prompt, chosen), (same, rejected) = texts(prepared, row), texts(prepared, row + 2)
        assert prompt == same
        assert (chosen, rejected) == (" yes</s>", " not at all</s>")
    assert batch.attention_mask is not None
    assert batch.counts.computed == batch.input_ids.numel() > batch.counts.non_padding
    assert batch.counts.loss_bearing == 2 * (5 + 10)  # a space and an a are one token


def test_answers_in_turns_are_shown_by_a_chat_template(tmp_path: Path) -> None:
    """The prompt is the rendering of its turns, the same for both; the answers end as turns do."""
    asked = [{"role": "user", "content": "Q"}]
    answers = {key: [*asked, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([answers]), encoding="utf-8")
    prepared = prepare(JsonlData(source="jsonl", path=str(path), template="chatml"), micro_batch=1)

    prompt = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert texts(prepared, 0) == (prompt, "chosen<|im_end|>\n")
    assert texts(prepared, 1) == (prompt, "rejected<|im_end|>\n")
    path.write_text('{"text": "a"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"loop\.driver trl-dpo needs rows with prompt, chosen and rejected"):
        prepare(JsonlData(source="jsonl", path=str(path)))


def test_a_task_s_rejected_answer_is_wrong() -> None:
    """The option after the right one, never the right one itself."""
    task = TaskData(task="largest-number", train_items=8)
    prepared = prepare(task)
    for row in range(2):
        (prompt, chosen), (same, rejected) = texts(prepared, row), texts(prepared, row + 2)
        assert prompt == same
        assert chosen != rejected


def test_random_pairs_are_seeded_and_share_half_a_row() -> None:
    """The same seed gives the same tokens; no padding, and no label in a prompt."""
    one, again = (prepare(SyntheticData(), sequence_length=16) for _ in range(2))
    other = prepare(SyntheticData(), sequence_length=16, seed=1)
    (batch,) = one.steps[0]
    assert batch.input_ids.tolist() == again.steps[0][0].input_ids.tolist()
    assert batch.input_ids.tolist() != other.steps[0][0].input_ids.tolist()
    assert batch.input_ids[:2, :8].tolist() == batch.input_ids[2:, :8].tolist()
    assert batch.input_ids[:2, 8:].tolist() != batch.input_ids[2:, 8:].tolist()
    assert set(batch.labels[:, :8].flatten().tolist()) == {IGNORED_LABEL}


def test_pairs_that_do_not_reach_their_answers_are_left_out(tmp_path: Path) -> None:
    """And counted; where all are, that is an error."""
    rows = [
        {"prompt": "Q:", "chosen": " a", "rejected": " b"},
        {"prompt": "Q" * 200, "chosen": "a", "rejected": "b"},
    ]
    prepared = prepare(preferences(tmp_path, rows))
    assert {"examples-left-out", "data-repeated"} <= {caveat.code for caveat in prepared.caveats}
    with pytest.raises(UsageError, match="No pair of answers begins within 128 tokens"):
        prepare(preferences(tmp_path, rows[1:]))


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora"}, {"kind": "qlora"}])
def test_dpo_begins_at_its_reference_and_learns(method: dict[str, Any], tmp_path: Path) -> None:
    """The first loss is ln 2, since reference and policy are one; later ones are lower."""
    rows = [{"prompt": f"{number} or not?", "chosen": " yes", "rejected": " no"} for number in range(10, 18)]
    data = preferences(tmp_path, rows).model_dump()
    training = {"dtype": "fp32", "micro_batch": 4, "sequence_length": 64, "learning_rate": 5e-3}
    window = {"warmup_steps": 1, "measured_steps": 6, "flops": False}
    loop = {"driver": "trl-dpo"}
    readings = readings_of(tiny_cell(method, data=data, training=training, window=window, loop=loop))
    steps = of_type(readings, StepSample)
    assert steps[0].loss == pytest.approx(math.log(2), rel=1e-3)
    assert steps[-1].loss < 0.95 * steps[0].loss
    assert all(step.tokens.loss_bearing < step.tokens.non_padding for step in steps)
    assert "batches-not-the-data-s" not in {caveat.code for caveat in of_type(readings, Caveat)}


def test_full_fine_tuning_keeps_a_second_model_and_an_adapter_none() -> None:
    """The reference's weights are in the ledger; an adapter is switched off instead, and not copied."""
    weights = {}
    for kind in ("full", "lora"):
        for driver in ("trl-sft", "trl-dpo"):
            cell = tiny_cell({"kind": kind}, loop={"driver": driver}, window={"flops": False})
            (ledger,) = of_type(readings_of(cell), LedgerReading)
            weights[kind, driver] = ledger.categories_at_peak_bytes["weights"]
    assert weights["full", "trl-dpo"] == 2 * weights["full", "trl-sft"]
    assert weights["lora", "trl-dpo"] == weights["lora", "trl-sft"]
