"""Positions that models look up in a table, and tokens: what is beyond is refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.predict.predict import predict_all
from bench.predict.trace.trace import worst_batch
from bench.records.predictions import Prediction, Refusal
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.reach import OutOfReachError, require_reach
from tiny_cells import readings_of, tiny_cell
from tiny_tokenizers import byte_level

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2}
LEARNED: list[tuple[str, dict[str, Any], int]] = [
    ("gpt2", {**GPT, "n_positions": 40}, 40),
    ("opt", {**SMALL, "max_position_embeddings": 40, "ffn_dim": 64, "word_embed_proj_dim": 32}, 40),
    ("roberta", {**SMALL, "max_position_embeddings": 42, "pad_token_id": 1, "is_decoder": True}, 40),
    ("codegen", {**GPT, "n_positions": 40, "rotary_dim": 4}, 40),  # rotary, but by a table
    ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40}, 40),  # ALiBi, made once
]
ENDLESS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {**SMALL, "max_position_embeddings": 40}),
    ("bloom", {"hidden_size": 32, "n_head": 4, "n_layer": 2}),
]


def cell_of(folder: Path, length: int, **changes: Any) -> Cell:
    """Return a cell of a folder's model at a length, one row."""
    training = {"sequence_length": length, "micro_batch": 1, "dtype": "fp32"}
    return tiny_cell(model={"name": "own", "random": None, "path": str(folder)}, training=training, **changes)


@pytest.mark.parametrize(("kind", "fields", "positions"), LEARNED)
def test_a_table_of_positions_ends_where_the_real_model_fails(
    kind: str, fields: dict[str, Any], positions: int
) -> None:
    """The longest that is let through runs for real, and one token more does not."""
    config = AutoConfig.for_model(kind, vocab_size=50, **fields)
    cell = tiny_cell(training={"sequence_length": 90, "micro_batch": 1})
    with pytest.raises(OutOfReachError, match=f"90 tokens are beyond the {positions} positions") as error:
        require_reach(cell, config, [worst_batch(cell, 50)])
    assert error.value.positions == positions
    model = AutoModelForCausalLM.from_config(config).eval()
    model(input_ids=torch.full((1, positions), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, positions + 1), 5))


@pytest.mark.parametrize(("kind", "fields"), ENDLESS)
def test_positions_that_are_computed_have_no_end(kind: str, fields: dict[str, Any]) -> None:
    """Rotary embeddings and ALiBi go beyond what the configuration names, and are let."""
    cell = tiny_cell(training={"sequence_length": 90, "micro_batch": 1})
    require_reach(cell, AutoConfig.for_model(kind, vocab_size=50, **fields), [worst_batch(cell, 50)])


def test_tokens_of_a_method_s_own_count() -> None:
    """Thirty tokens and a prompt of twenty are beyond forty positions; twenty are left for the data."""
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_positions=40, **GPT)
    method = {"kind": "peft", "type": "prompt_tuning", "config": {"num_virtual_tokens": 20}}
    cell = tiny_cell(method, training={"sequence_length": 30, "micro_batch": 1})
    with pytest.raises(OutOfReachError, match=r"50 tokens \(20 of them are the method's own\).*at most 20"):
        require_reach(cell, config, [worst_batch(cell, 50)])


def folder_with(tmp_path: Path, config: Any) -> Path:
    """Save a model with random weights and a tokenizer of bytes, whose last two tokens are " a" and " b"."""
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_refused_by_plan_and_run_alike(tmp_path: Path) -> None:
    """Both name the positions; the cells that fit in them are predicted, and a rotary one has a caveat."""
    folder = folder_with(tmp_path, AutoConfig.for_model("gpt2", vocab_size=300, n_positions=40, **GPT))
    cells = [cell_of(folder, length).model_copy(update={"id": str(length)}) for length in (40, 41)]
    found = {cell.id: answer for cell, answer in predict_all(cells, Platform())}
    assert isinstance(found["40"], Prediction)
    refused = found["41"]
    assert isinstance(refused, Refusal)
    assert refused.longest_tokens == 40
    assert "beyond the 40 positions of own" in refused.message
    with pytest.raises(OutOfReachError, match="beyond the 40 positions of own"):
        readings_of(cells[1])


def test_a_rotary_model_beyond_its_training_has_a_caveat(tmp_path: Path) -> None:
    """Its memory is predicted, and what the configuration names is told."""
    fields = {"vocab_size": 50, "model_type": "llama", "max_position_embeddings": 40, **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ((_, found),) = predict_all([cell_of(tmp_path, 41)], Platform())
    assert isinstance(found, Prediction)
    assert [one.code for one in found.caveats] == ["beyond-trained-positions"]
    assert "41 tokens are more than the 40" in found.caveats[0].message


@pytest.mark.parametrize(("text", "refused"), [("x a a", False), ("x a b", True)])
def test_a_token_without_a_row_is_refused_where_the_data_has_it(
    tmp_path: Path, text: str, *, refused: bool
) -> None:
    """A tokenizer larger than the embedding is harmless until a row needs what the embedding lacks."""
    tokens = len(byte_level())
    folder = folder_with(tmp_path, AutoConfig.for_model("gpt2", vocab_size=tokens - 1, n_positions=40, **GPT))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(4)))
    data = {"source": "jsonl", "path": str(rows), "format": "text", "template": "plain", "train_on": "all"}
    cell = cell_of(folder, 8, data=data)
    ((_, found),) = predict_all([cell], Platform())
    assert isinstance(found, Refusal if refused else Prediction)
    if isinstance(found, Refusal):
        assert f"id {tokens - 1}, beyond the {tokens - 1} rows" in found.message
        with pytest.raises(OutOfReachError, match=f"id {tokens - 1}, beyond"):
            readings_of(cell)
