"""Liger's patch as stand-ins: what its functions save and write over, in the window and in trainers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from bench.errors import UnavailableError
from bench.predict.predict import predict, predict_all
from bench.predict.trace.patches import patched
from bench.predict.trace.variants import liger as stand_ins
from bench.records.predictions import Refusal
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training import methods
from bench.training.loading.models import empty_causal_model
from tiny_cells import tiny_cell

A100 = Platform(capability=(8, 0))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def liger_cell(method: dict[str, Any] | None = None, loop: str = "window", **training: Any) -> Cell:
    """Return a tiny cell for CUDA with Liger's kernels, long enough that activations decide."""
    levers = {"kernels": "liger", "sequence_length": 256, **training}
    return tiny_cell(method, device="cuda", training=levers, loop={"driver": loop})


def test_a_norm_keeps_its_input_and_a_number_for_each_row() -> None:
    """Of [2, 3, 8] bf16 values: those, the weight and six statistics in fp32; the gradient is its own."""
    values = torch.zeros((2, 3, 8), dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.zeros(8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    saved: list[torch.Tensor] = []

    def keep(one: torch.Tensor) -> torch.Tensor:
        saved.append(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        normed = stand_ins._Norm.apply(values, weight, 108, *[True])  # type: ignore[no-untyped-call]  # torch's own
    shapes = [(tuple(one.shape), one.dtype) for one in saved]
    assert shapes == [((6, 8), torch.bfloat16), ((8,), torch.bfloat16), ((6,), torch.float32)]
    assert saved[0].untyped_storage()._cdata == values.untyped_storage()._cdata
    gradient = torch.zeros_like(normed)
    own, of_weight = torch.autograd.grad(normed, (values, weight), gradient)
    assert own.untyped_storage()._cdata == gradient.untyped_storage()._cdata
    assert (of_weight.shape, of_weight.dtype) == (weight.shape, torch.bfloat16)


def test_a_gate_s_gradients_are_written_over_what_it_saved() -> None:
    """Both halves are saved and nothing between them, and no gradient takes memory of its own."""
    halves = [torch.zeros((5, 8), device="meta", requires_grad=True) for _ in range(2)]
    product = stand_ins._Gate.apply(*halves)  # type: ignore[no-untyped-call]  # torch's own
    gradients = torch.autograd.grad(product, halves, torch.zeros_like(product))
    for half, gradient in zip(halves, gradients, strict=True):
        assert half.untyped_storage()._cdata == gradient.untyped_storage()._cdata


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora"}, {"kind": "qlora"}], ids=str)
@pytest.mark.parametrize("loop", ["window", "hf-trainer", "trl-sft"])
def test_every_loop_needs_less_with_it(method: dict[str, Any], loop: str) -> None:
    """No fp32 copy of the logits, norms and gates that keep their inputs alone."""
    with_it, without = (
        predict(liger_cell(method, loop, kernels=kernels), A100) for kernels in ("liger", "torch")
    )
    assert with_it.allocated_peak_bytes < without.allocated_peak_bytes


@pytest.mark.parametrize(
    "levers", [{"dtype": "fp32", "autocast": "bf16"}, {"gradient_checkpointing": "reentrant"}]
)
def test_levers_go_with_it(levers: dict[str, Any]) -> None:
    """Under autocast the loss takes its older way; checkpointed layers run their patched parts twice."""
    with_it, without = (
        predict(liger_cell(kernels=kernels, **levers), A100) for kernels in ("liger", "torch")
    )
    assert with_it.allocated_peak_bytes < without.allocated_peak_bytes


def test_the_window_s_steps_are_the_trainer_s() -> None:
    """Both leave the loss to Liger: no logits of all positions are among what is alive."""
    window, trainer = (predict(liger_cell(loop=loop), A100) for loop in ("window", "hf-trainer"))
    assert window.allocated_peak_bytes == pytest.approx(trainer.allocated_peak_bytes, rel=1e-3)


def test_rotations_are_put_back() -> None:
    """Liger replaces a function of transformers' module; another cell in the same worker has its own."""
    from transformers.models.llama import modeling_llama

    own = modeling_llama.apply_rotary_pos_emb
    predict(liger_cell(), A100)
    assert modeling_llama.apply_rotary_pos_emb is own


@pytest.mark.parametrize(("kind", "norms"), [("llama", 5), ("qwen3", 9), ("gemma2", 9), ("olmo2", 5)])
def test_norms_are_those_that_liger_patches(kind: str, norms: int) -> None:
    """Of two layers: two, four with those of queries and keys or after each part, and the last one."""
    config = AutoConfig.for_model(kind, num_hidden_layers=2, vocab_size=64, head_dim=8, **SIZES)
    model = empty_causal_model(config)
    with patched(A100):
        methods.patch_model(model, fused_loss=True)
    changed = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert norms == sum(name.endswith("norm") for name in changed)
    assert sum(name.endswith("mlp") for name in changed) == 2
    assert "" in changed  # the model's own, which makes a loss and no logits


def test_models_whose_patch_is_not_expressed_are_refused_by_name(tmp_path: Path) -> None:
    """Experts have kernels of their own in Liger."""
    fields = {
        "model_type": "mixtral",
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "num_local_experts": 2,
        **SIZES,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = {"name": "experts", "random": None, "path": str(tmp_path)}
    cell = tiny_cell(model=model, device="cuda", training={"kernels": "liger"})
    ((_, refused),) = predict_all([cell], A100)
    assert isinstance(refused, Refusal)
    assert "kernels liger is not predicted for mixtral models, only for gemma, " in refused.message


def test_without_the_package_a_run_ends_in_a_sentence() -> None:
    """For real the library itself patches the model, and must be there."""
    with pytest.raises(UnavailableError, match="pip install liger-kernel, or set training"):
        methods.patch_as_asked(torch.nn.Linear(2, 2), liger_cell())
