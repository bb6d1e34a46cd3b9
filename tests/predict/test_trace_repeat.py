"""Deepening: what repeats is repeated, what does not is refused, what treats layers apart is traced whole."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig

from bench.predict.predict import predict, predict_all
from bench.predict.trace import depth
from bench.predict.trace.depth import Depth, depth_of, depth_traced, shallow
from bench.predict.trace.repeat import LayersDifferError, deepen
from bench.predict.trace.trace import Tracer
from bench.records.predictions import Prediction
from bench.scenario.catalogue import card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.models import configuration_of
from tiny_cells import tiny_cell

PLATFORM = Platform()
SEVEN_LAYERS = {"name": "deep", "random": "tiny-llama-test", "overrides": {"num_hidden_layers": 7}}


def lora(**method: object) -> Cell:
    """Return a LoRA cell on seven toy layers."""
    return tiny_cell({"kind": "lora", **method}, device="cuda", model=SEVEN_LAYERS)


def test_a_layer_that_behaves_otherwise_is_noticed() -> None:
    """One block of one middle layer made larger by a byte: nothing is repeated."""
    cell = lora()
    config = configuration_of(cell.model)
    stream = Tracer(PLATFORM, config).trace(cell, Depth(4, 1, 3))
    of_layer_two = next(block for block, layer in enumerate(stream.layers) if layer == 2)
    sizes = stream.sizes.copy()
    sizes[of_layer_two] += 1
    with pytest.raises(LayersDifferError):
        deepen(replace(stream, sizes=sizes), 1, 3)


def test_modules_of_repeated_layers_are_named_by_their_own_number() -> None:
    """The blocks of seven layers name seven layers."""
    cell = lora()
    config = configuration_of(cell.model)
    deep = deepen(Tracer(PLATFORM, config).trace(cell, Depth(4, 1, 3)), 1, 3)
    names = [deep.module_of(block) for block, layer in enumerate(deep.layers) if layer >= 0]
    named = {name.split(".")[4] for name in names if name.startswith("base_model.model.model.layers.")}
    assert {str(layer) for layer in range(7)} == named


@pytest.mark.parametrize(
    ("layers", "period", "expected"), [(32, 1, 4), (3, 1, 3), (26, 2, 8), (27, 2, 9), (26, 6, 26)]
)
def test_depth_needs_four_periods_and_the_rest(layers: int, period: int, expected: int) -> None:
    """First, two alike, last, and what is left of a period; all of them where that saves nothing."""
    assert depth_traced(layers, period) == expected


@pytest.mark.parametrize(
    "method",
    [
        {"target_modules": r".*layers\.3\..*q_proj"},
        {"peft": {"layers_to_transform": [1]}},
        {"peft": {"rank_pattern": {"q": 2}}},
        {"peft": {"modules_to_save": ["layers.3.mlp"]}},
    ],
)
def test_methods_that_tell_layers_apart_are_traced_whole(method: dict[str, object]) -> None:
    """A layer's number in the targets, or an option of peft's that may name one, rules the short cut out."""
    cell = lora(**method)
    assert depth_of(cell, configuration_of(cell.model)) is None


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ({"peft": {"use_dora": True}}, {}),
        ({"peft": {"modules_to_save": ["norm"]}}, {}),
        ({"base": "int8"}, {}),
        ({}, {"autocast": "bf16", "gradient_checkpointing": "non-reentrant"}),
        ({}, {"autocast": "fp16", "gradient_accumulation": 2}),
        ({"kind": "qlora"}, {"autocast": "bf16"}),
        ({"kind": "full"}, {"autocast": "fp16"}),
    ],
)
def test_what_names_no_layer_leaves_the_short_cut(
    method: dict[str, object], training: dict[str, object]
) -> None:
    """Switches of peft's, int8's late frees, autocast's casts, a scaler's lists: as a whole trace tells."""
    cell = tiny_cell({"kind": "lora", **method}, device="cuda", model=SEVEN_LAYERS, training=training)
    config = configuration_of(cell.model)
    cards = (card("rtx4090"),)
    found = predict(cell, PLATFORM, cards=cards)
    depth.trace_whole(config)
    whole = predict(cell, PLATFORM, cards=cards)
    depth._found.clear()
    assert ("repeated layers", "full trace") == (found.method, whole.method)
    assert found.model_copy(update={"method": "full trace"}) == whole


def test_a_configuration_is_cut_with_its_lists() -> None:
    """Gemma 2 alternates two kinds of layers; eight of its 26 keep eight kinds."""
    cell = tiny_cell({"kind": "lora"}, model={"name": "g", "random": "gemma-2-2b"})
    config = configuration_of(cell.model)
    depth = depth_of(cell, config)
    assert depth == Depth(traced=8, period=2, periods_added=9)
    cut = shallow(config, 8)
    assert (8, config.layer_types[:8]) == (cut.num_hidden_layers, cut.layer_types)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "deepseek_v3", "first_k_dense_replace": 3, "n_routed_experts": 8, "n_group": 2},
        {"model_type": "qwen3_moe", "mlp_only_layers": [5, 6], "num_experts": 4},
        {"model_type": "qwen3_moe", "decoder_sparse_step": 9, "num_experts": 4},
    ],
)
def test_layers_told_apart_by_a_number_in_the_configuration_rule_the_short_cut_out(
    fields: dict[str, object],
) -> None:
    """Experts in some layers only: four layers would not tell what the whole model takes."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = AutoConfig.for_model(**fields, **sizes, num_hidden_layers=13, vocab_size=96)
    assert depth_of(lora(), config) is None


FALCON_H1 = {
    "model_type": "falcon_h1",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "num_hidden_layers": 6,
    "vocab_size": 64,
}


def test_a_list_that_follows_from_the_depth_is_left_to_follow() -> None:
    """Falcon-H1 has a name of its own for layer_types, derived and without a setter."""
    cut = shallow(AutoConfig.for_model(**FALCON_H1), 2)
    assert (2, 2) == (cut.num_hidden_layers, len(cut.layers_block_type))


@pytest.mark.parametrize("broken", ["shallow", "_built_layers"])
def test_a_model_that_cannot_be_cut_is_traced_whole(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Whatever a configuration raises that is made shorter: the prediction is that of all layers."""
    cell = lora().model_copy(update={"training": lora().training.model_copy(update={"seed": len(broken)})})
    config = configuration_of(cell.model)
    monkeypatch.setattr(depth, "_found", {})
    expected = predict(cell, PLATFORM)
    real = getattr(depth, broken)

    def refusing(config: Any, *layers: int) -> Any:
        if layers or config.num_hidden_layers < 7:
            raise AttributeError("no setter")
        return real(config)

    monkeypatch.setattr(depth, "_found", {})
    monkeypatch.setattr(depth, broken, refusing)
    found = predict(cell, PLATFORM)
    assert depth_of(cell, config) is None
    assert (expected.method, found.method) == ("repeated layers", "full trace")
    assert expected.allocated_peak_bytes == found.allocated_peak_bytes


def test_a_cut_model_that_fails_as_it_runs_is_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers may be alike and the model still be unable to run with fewer."""
    monkeypatch.setattr(depth, "_found", {})
    real = Tracer.trace

    def failing(self: Tracer, cell: Cell, depth: Depth | None = None, *steps: int) -> Any:
        if depth is not None:
            raise IndexError("list index out of range")
        return real(self, cell, depth, *steps)

    monkeypatch.setattr(Tracer, "trace", failing)
    ((_, found),) = predict_all([lora()], PLATFORM)
    assert isinstance(found, Prediction)
    assert found.method == "full trace"
