"""Plans of many cells: the shortcuts give what tracing every layer of every cell gives, to the byte."""

import os
import random
from typing import Any

import numpy as np
import pytest

from bench.predict.families import Family, families, streams
from bench.predict.sizes import Point
from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import trace
from bench.scenario.cell import Cell
from bench.scenario.types import FullMethod, LoraMethod, ModelSpec, Platform, QloraMethod, TrainingSpec
from bench.training.models import configuration_of
from tiny_cells import tiny_cell

PLATFORM = Platform(device="cuda", capability=(8, 9))
WIDTH = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 512}
GROUPED = WIDTH | {"num_key_value_heads": 2}
TINY: dict[str, dict[str, Any]] = {
    "llama-2-7b": GROUPED | {"num_hidden_layers": 7},
    "qwen2.5-0.5b": GROUPED | {"num_hidden_layers": 6},
    "mistral-7b": GROUPED | {"num_hidden_layers": 8, "sliding_window": 384},
    "gpt2": {
        "n_embd": 64,
        "n_layer": 6,
        "n_head": 4,
        "vocab_size": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "phi-3-mini": WIDTH | {"num_hidden_layers": 6, "num_key_value_heads": 4, "pad_token_id": 0},
    "starcoder2-3b": GROUPED | {"num_hidden_layers": 6},
}


def model(name: str) -> ModelSpec:
    """Return a catalogued architecture at toy width, deep enough to leave layers out."""
    return ModelSpec(name="m", random=name, overrides=TINY[name])


def random_structure(choose: random.Random) -> Cell:
    """Return a cell drawn from all levers that a family has in common."""
    name = choose.choice(sorted(TINY))
    fused = choose.choice([("c_attn",), ("c_proj",)]) if name == "gpt2" else "all-linear"
    method = choose.choice(
        [
            FullMethod(),
            LoraMethod(target_modules=fused, dropout=choose.choice([0.0, 0.05])),
            LoraMethod(target_modules=fused, adapter_dtype="weights"),
            QloraMethod(double_quantisation=choose.random() < 0.5, kbit_preparation=choose.random() < 0.5),
        ]
    )
    training = TrainingSpec(
        gradient_accumulation=choose.choice([1, 1, 2]),
        gradient_checkpointing=choose.choice(["off", "reentrant", "non-reentrant"]),
        optimizer=choose.choice(["adamw-fused", "adamw-foreach", "adamw-loop", "sgd", "adamw-8bit"]),
        attention=choose.choice(["sdpa", "sdpa", "eager"]),
        loss=choose.choice(["full", "full", "chunked"]),
        keep_outputs=choose.random() < 0.3,
        max_grad_norm=choose.choice([0.0, 1.0]),
    )
    data = {"source": "synthetic", "attention_mask": choose.choice(["none", "ones", "padded"])}
    return tiny_cell(
        device="cuda", data=data, model=model(name), method=method.model_dump(), training=training
    )


def at(cell: Cell, micro_batch: int, length: int, rank: int) -> Cell:
    """Return the cell with another batch, length and rank."""
    training = cell.training.model_copy(update={"micro_batch": micro_batch, "sequence_length": length})
    method = cell.method
    if isinstance(method, LoraMethod | QloraMethod):
        method = method.model_copy(update={"rank": rank})
    ident = f"{micro_batch}-{length}-{rank}"
    return cell.model_copy(update={"id": ident, "training": training, "method": method})


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft sets it right, and says so
@pytest.mark.parametrize("seed", range(int(os.environ.get("FAMILIES", "4"))))
def test_random_cells_equal_their_full_traces(seed: int) -> None:
    """Of each structure ten cells: each event and size is that of the whole model's trace."""
    choose = random.Random(seed)  # noqa: S311 - a draw, not a secret
    structure = random_structure(choose)
    grid = [
        at(structure, micro_batch, length, rank)
        for micro_batch in (1, 2, 3, 5)
        for length in (128, 256, 384, 512)
        for rank in ((4, 8) if structure.method.kind != "full" else (0,))
    ]
    config = configuration_of(structure.model)
    found = {
        cell.id: (stream, method)
        for family in families(grid, config)
        for cell, stream, method in streams(family, PLATFORM, config)
    }
    assert {cell.id for cell in grid} == set(found)
    for cell in choose.sample(grid, 10):
        stream, method = found[cell.id]
        whole = trace(cell, PLATFORM, config)
        assert method == "repeated layers"
        np.testing.assert_array_equal(whole.sizes[whole.events], stream.sizes[stream.events])
        np.testing.assert_array_equal(whole.born, stream.born)
        assert [mark.entries for mark in whole.marks] == [mark.entries for mark in stream.marks]
        assert int(whole.live_bytes().max()) == int(stream.live_bytes().max())


def test_a_length_as_long_as_the_window_has_a_family_of_its_own() -> None:
    """From the window's length on a mask is made, so shorter and equal lengths do not share a structure."""
    structure = tiny_cell(device="cuda", model=model("mistral-7b"), method=FullMethod().model_dump())
    grid = [at(structure, 2, length, 0) for length in (128, 256, 384, 512)]
    members = [
        [cell.training.sequence_length for _, cell in family.cells]
        for family in families(grid, configuration_of(structure.model))
    ]
    assert [[128, 256], [384], [512]] == members


def test_a_family_is_sampled_from_its_ends_inwards() -> None:
    """First both ends, then the middle and the middles of the halves; in the end every point once."""
    points = [Point(batch, 128, rank) for batch in (1, 2, 4) for rank in (4, 8, 16)]
    samples = list(Family([(point, tiny_cell()) for point in points]).samples())
    assert [points[index] for index in (0, 8, 4, 2, 6)] == samples[:5]
    assert points == sorted(samples)


def test_a_large_family_is_known_after_a_few_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixty cells four are traced: three that tell, one that checks."""
    structure = tiny_cell(
        device="cuda", model=model("llama-2-7b"), method=LoraMethod(target_modules="all-linear").model_dump()
    )
    grid = [
        at(structure, batch, length, rank)
        for batch in (2, 4, 8)
        for length in (128, 256, 384, 512, 640)
        for rank in (4, 8, 16, 32)
    ]
    traced: list[Cell] = []

    def noted(cell: Cell, *rest: Any) -> Stream:
        traced.append(cell)
        return trace(cell, *rest)

    monkeypatch.setattr("bench.predict.families.trace", noted)
    config = configuration_of(structure.model)
    grid += [at(structure, 1, length, rank) for length in (128, 256) for rank in (4, 8)]
    family, single_rows = families(grid, config)
    assert 60 == len(list(streams(family, PLATFORM, config)))
    assert 4 == len(traced)
    assert 4 == len(list(streams(single_rows, PLATFORM, config)))
    assert 6 == len(traced)  # a batch of 1 copies less, and the rest is known: a check at each end


def test_what_a_relative_lends_is_checked_at_both_ends() -> None:
    """A loss in chunks of 512 tokens is as large as the batch below that: no line through the small ones."""
    training = {"loss": "chunked", "loss_chunk_tokens": 512, "dtype": "bf16"}
    chunked = tiny_cell({"kind": "lora"}, device="cuda", training=training).model_copy(
        update={"model": model("llama-2-7b")}
    )
    lengths = {2: (128, 256, 512), 4: (128, 256, 512), 1: (128, 1024, 2048)}
    cells = [at(chunked, rows, length, 8) for rows, own in lengths.items() for length in own]
    config = configuration_of(chunked.model)
    found = [one for family in families(cells, config) for one in streams(family, PLATFORM, config)]
    assert len(found) == len(cells)
    for cell, stream, _ in found:
        truth = trace(cell, PLATFORM, config)
        assert stream.live_bytes().max() == truth.live_bytes().max(), cell.training
