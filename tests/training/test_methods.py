"""What each method does to a model, and what peft refuses."""

from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.training.loading.models import load_model
from bench.training.loading.weights import fetch_weights
from bench.training.methods import adapt, check_merge, count_parameters, excess_ranks, trainable_parameters
from bench.training.rows.data import prepare_batches
from bench.training.step import build_trainer, run_step
from tiny_cells import tiny_cell

pytestmark = pytest.mark.usefixtures("tiny_weights")


def _adapted(cell: Cell) -> Any:
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
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"use_rslora": True}, "lora_A"),
        ({"init_lora_weights": "pissa"}, "lora_A"),
    ],
    ids=["dora", "rslora", "pissa"],
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


@pytest.mark.parametrize("prepared", [True, False])
def test_an_int8_base_is_prepared_where_asked(prepared: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Peft's preparation turns the embeddings to fp32 over int8 weights too."""
    model = _adapted(tiny_cell({"kind": "lora", "base": "int8", "kbit_preparation": prepared}))
    expected = torch.float32 if prepared else torch.bfloat16
    assert model.get_input_embeddings().weight.dtype == expected


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_can_be_quantised_too(tied: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Its 4-bit weights are its own: the embeddings it was tied to stay 16-bit, and logits stay close."""
    logits, heads = [], []
    for quantised in (False, True):
        cell = tiny_cell(
            {"kind": "qlora", "kbit_preparation": False, "quantise_lm_head": quantised},
            model={"overrides": {"tie_word_embeddings": tied}},
        )
        model = load_model(
            cell, fetch_weights(cell.model), torch.device("cpu"), trust_remote_code=False
        ).model
        logits.append(model(input_ids=torch.arange(16)[None]).logits.detach().float())
        heads.append(model.get_output_embeddings().weight)
        assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert (torch.bfloat16, torch.uint8) == (heads[0].dtype, heads[1].dtype)
    assert heads[0].numel() == heads[1].quant_state.shape.numel() == 2 * heads[1].numel()
    assert 0 < float((logits[0] - logits[1]).norm() / logits[0].norm()) < 0.2


@pytest.mark.parametrize(
    ("name", "config", "trained"),
    [
        ("ia3", {}, 2 * (32 + 32 + 256)),
        ("Prompt-Tuning", {"num_virtual_tokens": 4}, 4 * 64),
        ("prefix_tuning", {"num_virtual_tokens": 4}, 4 * 2 * 2 * 32),
        ("fourierft", {"n_frequency": 50, "target_modules": ["q_proj"]}, 2 * 50),
        ("trainable_tokens", {"token_indices": [1, 2, 3]}, 3 * 64),
    ],
)
def test_other_methods_of_peft_train_what_they_say(name: str, config: dict[str, Any], trained: int) -> None:
    """A step reaches each trained tensor, whose number follows from the method; the base is frozen."""
    cell = tiny_cell({"kind": "peft", "type": name, "config": config}, training={"max_grad_norm": 0})
    model = _adapted(cell)
    trainer = build_trainer(model, cell, 2)
    assert trained == sum(parameter.numel() for parameter in trainer.parameters)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    (step,) = prepare_batches(cell.data, cell.training, None, 512, 1).steps
    result = run_step(trainer, step)
    assert bool(result.loss.isfinite())
    assert not any(torch.equal(old, new) for old, new in zip(before, trainer.parameters, strict=True))


def test_an_adapter_has_the_dtype_of_the_weights_in_other_methods_too() -> None:
    """``adapter_dtype`` holds for any method of peft."""
    model = _adapted(tiny_cell({"kind": "peft", "type": "ia3", "adapter_dtype": "weights"}))
    assert {p.dtype for p in trainable_parameters(model)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"type": "promt_tuning"}, 'peft has no method of type "promt_tuning"; .* meant "prompt_tuning"?'),
        ({"type": "vblora"}, "peft refuses the adapter of method 'peft': .* the method's config table"),
        ({"type": "ia3", "config": {"rank": 8}}, "peft refuses the adapter of method 'peft': .*'rank'"),
    ],
    ids=["unknown", "unfit", "unknown field"],
)
def test_what_peft_has_not_is_a_usage_error(method: dict[str, Any], expected: str) -> None:
    """A wrong type proposes the nearest one; a wrong configuration names its table."""
    with pytest.raises(UsageError, match=expected):
        _adapted(tiny_cell({"kind": "peft", **method}))


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    "method",
    [
        {"kind": "peft", "type": "prompt_tuning", "config": {"num_virtual_tokens": 4}},
        {"kind": "peft", "type": "lily", "config": {"target_modules": ["q_proj"]}},
        {"kind": "lora", "peft": {"lora_bias": True}},
    ],
    ids=["no merge", "none yet", "impossible merge"],
)
def test_what_cannot_be_merged_says_so(method: dict[str, Any]) -> None:
    """A learned prompt and an adapter that peft does not merge end in a caveat, not in a failure."""
    cell = tiny_cell(method)
    (step,) = prepare_batches(cell.data, cell.training, None, 512, 1).steps
    found = check_merge(_adapted(cell), step[0], torch.device("cpu"))
    assert isinstance(found, Caveat)
    assert found.code == "not-mergeable"


@pytest.mark.parametrize(("rank", "expected"), [(32, ()), (48, ("k_proj, v_proj: 32",))])
def test_a_rank_that_layers_cannot_use_is_remarked_on(rank: int, expected: tuple[str, ...]) -> None:
    """Above the smaller side of a layer's weights; at it, and for other methods, nothing is said."""
    lora = {"kind": "lora", "rank": rank, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    said = [caveat.message for caveat in excess_ranks(_adapted(tiny_cell(lora)))]
    assert len(expected) == len(said)
    assert all(part in message for part, message in zip(expected, said, strict=True))
    assert () == excess_ranks(_adapted(tiny_cell({"kind": "full"})))
