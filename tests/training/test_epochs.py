"""Tokens of a pass over a cell's data: as many as a run of one epoch computes."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.records.messages import EpochCounted, EpochJob, Message
from bench.scenario.types import JsonlData, ModelSpec, TrainingSpec
from bench.training.jobs import count_epochs, epoch_tokens
from bench.training.loading.weights import byte_tokenizer
from bench.training.rows.data import Piece, prepare_batches, tokenise
from bench.training.rows.examples import load_examples
from tiny_cells import tiny_cell

ROWS = 12


@pytest.fixture
def data(tmp_path: Path) -> JsonlData:
    """Return a file of rows of 1 to 12 letters and more for their template."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a" * (5 * size)} for size in range(1, ROWS + 1)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return JsonlData(source="jsonl", path=str(path))


@pytest.mark.parametrize("batching", ["pad-to-longest", "pad-to-length"])
@pytest.mark.parametrize("length", [40, 128])
def test_a_padded_pass_is_what_a_run_of_one_epoch_computes(
    data: JsonlData, batching: Any, length: int
) -> None:
    """Batch by batch as they are drawn, padding included, rows beyond the length cut off."""
    training = TrainingSpec(sequence_length=length, micro_batch=3, batching=batching)
    tokenizer = byte_tokenizer(512)
    pieces = tokenise(load_examples(data, tokenizer).examples, tokenizer)
    run = prepare_batches(data, training, tokenizer, 259, ROWS // 3)
    computed = sum(batch.counts.computed for step in run.steps for batch in step)
    assert epoch_tokens(pieces, training) == computed > 0


def test_a_packed_pass_has_no_padding_and_what_cannot_be_learnt_is_left_out() -> None:
    """Whole examples count, but for one without a label; the last group of a padded pass may be smaller."""
    pieces = [Piece(ids=(1,) * size, labels=(1,) * size, raw_tokens=size) for size in (5, 9, 30)]
    pieces.append(Piece(ids=(1, 1), labels=(-100, -100), raw_tokens=2))
    packed = TrainingSpec(sequence_length=16, micro_batch=2, batching="pack")
    assert epoch_tokens(pieces, packed) == 44
    padded = packed.model_copy(update={"batching": "pad-to-length"})
    assert epoch_tokens(pieces, padded) == 3 * 16


def test_a_job_counts_each_cell_and_refuses_a_tokenizer_that_is_not_at_hand(data: JsonlData) -> None:
    """Of a hub's model that was never downloaded nothing is fetched to count."""
    training = TrainingSpec(sequence_length=128, micro_batch=ROWS, batching="pad-to-length")
    cell = tiny_cell(data=data, training=training, model=ModelSpec(name="m", random="tiny-llama-test"))
    heard: list[Message] = []
    count_epochs(EpochJob(cells_json=(cell.model_dump_json(),)), heard.append)
    assert heard == [EpochCounted(cell_id=cell.id, tokens=ROWS * 128)]
    away = cell.model_copy(update={"model": ModelSpec(name="away", hub="nobody/nothing")})
    with pytest.raises(UsageError, match=r"the tokenizer of away is not at hand.*give --tokens"):
        count_epochs(EpochJob(cells_json=(away.model_dump_json(),)), heard.append)
