"""What each method does to a model, and what peft refuses."""

from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.spec.types import Cell
from bench.window.methods import adapt, count_parameters, trainable_parameters
from bench.window.models import load_model
from bench.window.weights import fetch_weights
from tiny_cells import tiny_cell

pytestmark = pytest.mark.usefixtures("tiny_weights")


def _adapted(cell: Cell) -> Any:  # noqa: ANN401 - transformers ships no types
    loaded = load_model(cell, fetch_weights(cell.model), torch.device("cpu"), trust_remote_code=False)
    return adapt(loaded.model, cell)


def test_full_trains_every_weight() -> None:
    """All parameters receive gradients, in the dtype asked for."""
    model = _adapted(tiny_cell({"kind": "full"}, training={"dtype": "fp32"}))
    assert sum(p.numel() for p in trainable_parameters(model)) == count_parameters(model) == 155_968
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_lora_freezes_the_base_and_keeps_its_adapter_in_32_bit() -> None:
    """Only adapter matrices train; fp32 over a bf16 base, as peft does by default."""
    model = _adapted(tiny_cell({"kind": "lora", "target_modules": ["q_proj", "v_proj"]}))
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    assert set(trained.values()) == {torch.float32}
    assert len(trained) == 2 * 2 * 2


def test_an_adapter_can_have_the_dtype_of_the_weights() -> None:
    """``adapter_dtype = "weights"`` keeps it 16-bit."""
    model = _adapted(tiny_cell({"kind": "lora", "adapter_dtype": "weights"}))
    assert {p.dtype for p in trainable_parameters(model)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("fields", "attribute"),
    [({"use_dora": True}, "lora_magnitude_vector"), ({"use_rslora": True}, "lora_A")],
    ids=["dora", "rslora"],
)
def test_other_lora_fields_pass_through(fields: dict[str, Any], attribute: str) -> None:
    """The method's peft table reaches LoraConfig."""
    model = _adapted(tiny_cell({"kind": "lora", "rank": 4, "alpha": 16, "peft": fields}))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert len(getattr(layer, attribute)) == 1
    assert layer.scaling["default"] == (16 / 4**0.5 if "use_rslora" in fields else 16 / 4)


@pytest.mark.parametrize(
    "change", [{"peft": {"no_such_field": 1}}, {"target_modules": ["no_such_layer"]}], ids=str
)
def test_what_peft_refuses_is_a_usage_error(change: dict[str, Any]) -> None:
    """A wrong field or target names the method and what to correct."""
    with pytest.raises(UsageError, match="peft refuses the adapter of method 'lora'"):
        _adapted(tiny_cell({"kind": "lora", **change}))


@pytest.mark.parametrize(("prepared", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_kbit_preparation_upcasts_what_stays_16_bit(prepared: bool, dtype: torch.dtype) -> None:  # noqa: FBT001 - a parameter of the test
    """Peft's preparation turns norms and embeddings to fp32; without it they stay."""
    model = _adapted(tiny_cell({"kind": "qlora", "kbit_preparation": prepared}))
    assert model.get_input_embeddings().weight.dtype == dtype


def test_quantised_layers_are_bitsandbytes_own() -> None:
    """QLoRA's base is Linear4bit with the asked type and compute dtype; int8's is Linear8bitLt."""
    import bitsandbytes

    four = _adapted(tiny_cell({"kind": "qlora", "quantisation": "fp4", "compute_dtype": "fp32"}))
    layer = four.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert (layer.weight.quant_type, layer.compute_dtype) == ("fp4", torch.float32)
    assert layer.weight.quant_state.nested
    eight = _adapted(tiny_cell({"kind": "lora", "base": "int8"}))
    assert isinstance(
        eight.base_model.model.model.layers[0].mlp.up_proj.base_layer, bitsandbytes.nn.Linear8bitLt
    )


def test_evaluation_does_not_rewrite_4_bit_weights() -> None:
    """A forward pass in evaluation mode leaves every packed byte and every scale as it was."""
    model = _adapted(tiny_cell({"kind": "qlora"}))
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    packed, scales = weight.data.clone(), weight.quant_state.absmax.clone()
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 8, dtype=torch.int64))
    assert torch.equal(packed, weight.data)
    assert torch.equal(scales, weight.quant_state.absmax)
