"""Plans of many cells: the shortcuts give what tracing every layer of every cell gives, to the byte."""

import os
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bench.predict.families import Family, families, streams
from bench.predict.sizes import Point
from bench.predict.trace.depth import Depth
from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import TRACED_STEPS, Tracer
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.scenario.types import FullMethod, LoraMethod, ModelSpec, QloraMethod, TrainingSpec
from bench.training import losses
from bench.training.loading.models import configuration_of
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


def model(name: str, **overrides: Any) -> ModelSpec:
    """Return a catalogued architecture at toy width, deep enough to leave layers out."""
    return ModelSpec(name="m", random=name, overrides=TINY[name] | overrides)


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
        loss=choose.choice(["full", "full", "chunked-logits"]),
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
@pytest.mark.parametrize(
    "seed", [pytest.param(0, marks=pytest.mark.slow), *range(1, int(os.environ.get("FAMILIES", "2")))]
)
def test_random_cells_equal_their_full_traces(seed: int) -> None:
    """Of each structure four cells, ten with FAMILIES=10 and one batch more: all is as in a whole trace."""
    choose = random.Random(seed)
    structure = random_structure(choose)
    grid = [
        at(structure, micro_batch, length, rank)
        for micro_batch in ((1, 2, 3, 5) if "FAMILIES" in os.environ else (1, 2, 5))
        for length in (128, 256, 384, 512)
        for rank in ((4, 8) if structure.method.kind != "full" else (0,))
    ]
    config = configuration_of(structure.model)
    found = {
        cell.id: (stream, method)
        for family in families(grid, config)
        for point, stream, method in streams(family, Tracer(PLATFORM, config))
        for cell in family.cells[point]
    }
    assert {cell.id for cell in grid} == set(found)
    for cell in choose.sample(grid, 10 if "FAMILIES" in os.environ else 4):
        stream, method = found[cell.id]
        whole = Tracer(PLATFORM, config).trace(cell)
        assert method == "repeated layers"
        np.testing.assert_array_equal(whole.sizes[whole.events], stream.sizes[stream.events])
        np.testing.assert_array_equal(whole.born, stream.born)
        assert [mark.entries for mark in whole.marks] == [mark.entries for mark in stream.marks]
        assert int(whole.live_bytes().max()) == int(stream.live_bytes().max())
        if stream.calls:  # where they do not follow from other cells', the cell is traced for its speed
            assert operators(whole) == operators(stream)


def operators(stream: Stream) -> Counter[object]:
    """Return how often the last step calls each operator on tensors of each size, views by their number."""
    found: Counter[object] = Counter()
    for call in stream.calls[-1].distinct():
        found[call.form.phase, call.form.op, tuple(shape for _, shape in call.shapes)] += call.times
    return found


def test_a_length_as_long_as_the_window_has_a_family_of_its_own() -> None:
    """From the window's length on a mask is made, so shorter and equal lengths do not share a structure."""
    structure = tiny_cell(device="cuda", model=model("mistral-7b"), method=FullMethod().model_dump())
    grid = [at(structure, 2, length, 0) for length in (128, 256, 384, 512)]
    members = [
        [point.sequence_length for point in family.cells]
        for family in families(grid, configuration_of(structure.model))
    ]
    assert [[128, 256], [384], [512]] == members


def test_a_family_is_sampled_from_its_ends_inwards() -> None:
    """First both ends, then the middle and the middles of the halves; in the end every point once."""
    points = [Point(batch, 128, rank) for batch in (1, 2, 4) for rank in (4, 8, 16)]
    samples = list(Family({point: [tiny_cell()] for point in points}).samples())
    assert [points[index] for index in (0, 8, 4, 2, 6)] == samples[:5]
    assert points == sorted(samples)


def test_a_large_family_is_known_after_a_few_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixty cells four are traced, for speed too: three tell, one checks; the first for two steps."""
    structure = tiny_cell(
        device="cuda", model=model("llama-2-7b"), method=LoraMethod(target_modules="all-linear").model_dump()
    )
    grid = [
        at(structure, batch, length, rank)
        for batch in (2, 4, 8)
        for length in (128, 256, 384, 512, 640)
        for rank in (4, 8, 16, 32)
    ]
    traced = noted_traces(monkeypatch)
    config = configuration_of(structure.model)
    grid += [at(structure, 1, length, rank) for length in (128, 256) for rank in (4, 8)]
    family, single_rows = families(grid, config)
    tracer = Tracer(PLATFORM, config, timed=True)
    deep = list(streams(family, tracer))
    assert 60 == len(deep) == sum(bool(stream.calls) for _, stream, _ in deep)
    assert [2, 1, 1, 1] == [steps for _, steps in traced]
    deep = list(streams(single_rows, tracer))
    assert 4 == len(deep) == sum(bool(stream.calls) for _, stream, _ in deep)
    # A batch of 1 copies less, and the rest is known, also of what its operators read: a check at each end.
    assert [2, 1] == [steps for _, steps in traced[4:]]


def noted_traces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Cell, int]]:
    """Return what will be the cells that are traced, each with how many steps were taken."""
    traced: list[tuple[Cell, int]] = []

    trace = Tracer.trace

    def noted(self: Tracer, cell: Cell, depth: Depth | None = None, steps: int = TRACED_STEPS) -> Stream:
        traced.append((cell, steps))
        return trace(self, cell, depth, steps)

    monkeypatch.setattr(Tracer, "trace", noted)
    return traced


def test_kinds_of_four_bits_share_their_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp4 is as large as nf4, so both are one family; one end is traced as the one, the rest as the other."""
    nf4, fp4 = (
        tiny_cell(device="cuda", model=model("llama-2-7b"), method={"kind": "qlora", "quantisation": kind})
        for kind in ("nf4", "fp4")
    )
    cells = [at(one, batch, length, 8) for one in (nf4, fp4) for batch in (2, 4) for length in (128, 256)]
    traced = noted_traces(monkeypatch)
    config = configuration_of(nf4.model)
    (family,) = families(cells, config)
    found = list(streams(family, Tracer(PLATFORM, config)))
    kinds = [cell.method.quantisation for cell, _ in traced if isinstance(cell.method, QloraMethod)]
    assert ["nf4", "fp4"] == sorted(set(kinds), key=kinds.index)
    assert ([2, 2, 2, 2], 4) == ([len(family.cells[point]) for point, _, _ in found], len(found))


@pytest.mark.parametrize(
    "method",
    [
        FullMethod(),
        LoraMethod(target_modules="all-linear"),
        LoraMethod(target_modules="all-linear", base="int8"),
        QloraMethod(),
    ],
    ids=lambda method: method.model_dump_json(include={"kind", "base"}),
)
@pytest.mark.parametrize("optimizer", ["adamw-fused", "adamw-8bit"])
def test_an_adapted_model_is_traced_again_as_if_it_were_new(
    method: FullMethod | LoraMethod | QloraMethod, optimizer: str
) -> None:
    """What a trace leaves behind is seen in no later one, whatever the first one's batch."""
    training = {"optimizer": optimizer, "gradient_checkpointing": "non-reentrant"}
    small = model("llama-2-7b", num_hidden_layers=2)
    cell = tiny_cell(device="cuda", model=small, method=method.model_dump(), training=training)
    config = configuration_of(cell.model)
    tracer = Tracer(PLATFORM, config)
    tracer.trace(at(cell, 3, 256, 8))
    kept = list(tracer.adapted.values())
    again, new = (each.trace(at(cell, 1, 128, 8)) for each in (tracer, Tracer(PLATFORM, config)))
    assert kept == list(tracer.adapted.values())
    np.testing.assert_array_equal(new.events, again.events)
    np.testing.assert_array_equal(new.sizes, again.sizes)
    assert (new.marks, new.paged_bytes) == (again.marks, again.paged_bytes)


def test_a_model_that_a_trace_has_changed_is_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that a step replaces is another block than the one that loading entered."""
    cell = tiny_cell(device="cuda", model=model("llama-2-7b"))

    def replacing(trained: Any, *rest: Any) -> Any:
        norm = trained.model.norm
        norm.weight.data = norm.weight.data.clone()
        return losses.forward_pass(trained, *rest)

    monkeypatch.setattr("bench.training.step.forward_pass", replacing)
    tracer = Tracer(PLATFORM, configuration_of(cell.model))
    tracer.trace(cell)
    assert not tracer.adapted


def test_what_a_relative_lends_is_checked_at_both_ends() -> None:
    """A loss in chunks of 512 tokens is as large as the batch below that: no line through the small ones."""
    training = {"loss": "chunked", "loss_chunk_tokens": 512, "dtype": "bf16"}
    chunked = tiny_cell({"kind": "lora"}, device="cuda", training=training).model_copy(
        update={"model": model("llama-2-7b", num_hidden_layers=5)}
    )
    lengths = {2: (128, 256, 512), 4: (128, 256, 512), 1: (128, 1024, 2048)}
    cells = [at(chunked, rows, length, 8) for rows, own in lengths.items() for length in own]
    config = configuration_of(chunked.model)
    found = [
        (cell, stream)
        for family in families(cells, config)
        for point, stream, _ in streams(family, Tracer(PLATFORM, config))
        for cell in family.cells[point]
    ]
    assert len(found) == len(cells)
    for cell, stream in found:
        truth = Tracer(PLATFORM, config).trace(cell)
        assert stream.live_bytes().max() == truth.live_bytes().max(), cell.training
