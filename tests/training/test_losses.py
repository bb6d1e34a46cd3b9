"""Losses: chunks give the value and the gradients of the whole, and what cannot be chunked is refused."""

import sys
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bench.errors import UnavailableError
from bench.scenario.types import TrainingSpec
from bench.training import losses
from bench.training.losses import FusedOutputs, forward_pass, loss_of
from bench.training.rows.data import IGNORED_LABEL

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CHUNKED = TrainingSpec(loss="chunked", loss_chunk_tokens=3)
LOGITS_IN_CHUNKS = TrainingSpec(loss="chunked-logits", loss_chunk_tokens=3)


def _model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | changes)))
    model.train()
    return model


def _inputs() -> dict[str, torch.Tensor]:
    """Two rows of ten, the second padded: 9 + 6 positions bear loss."""
    ids = torch.randint(97, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, IGNORED_LABEL),
    }


def _loss(model: Any, training: TrainingSpec) -> torch.Tensor:
    inputs = _inputs()
    return loss_of(forward_pass(model, inputs, training), inputs["labels"])


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("asked", [False, True])
def test_outputs_hold_a_cache_only_where_it_is_asked_for(asked: bool) -> None:  # noqa: FBT001 - a case
    """A loop that trains has no use for one, but some leave it on."""
    outputs: Any = forward_pass(_model("llama"), _inputs(), TrainingSpec(use_cache=asked))
    assert asked == (outputs.past_key_values is not None)


@pytest.mark.parametrize("training", [CHUNKED, LOGITS_IN_CHUNKS], ids=lambda training: training.loss)
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("phi", {}), ("gpt_neox", {})],
    ids=["llama", "tied", "phi, whose output layer has a bias", "gpt_neox"],
)
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(
    family: str, changes: dict[str, Any], training: TrainingSpec
) -> None:
    """In fp32 both agree to 1e-5, with padding and a length that is no multiple of the chunk."""
    model = _model(family, **changes)
    whole = _loss(model, TrainingSpec())
    whole.backward()
    expected = _gradients(model)
    parts = _loss(model, training)
    parts.backward()
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_gradients(model), expected, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(model.get_output_embeddings())


def test_only_logits_in_chunks_are_there_to_keep() -> None:
    """The loss of litgpt gives the logits of every chunk; the other gives nothing but a loss."""
    model = _model("llama")
    chunks = forward_pass(model, _inputs(), LOGITS_IN_CHUNKS)
    assert isinstance(chunks, list)
    assert [(2, 3, 97)] * 3 + [(2, 1, 97)] == [tuple(chunk.shape) for chunk in chunks]
    assert isinstance(forward_pass(model, _inputs(), CHUNKED), FusedOutputs)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_backward_pass_is_kept_waiting_with_nothing_as_wide_as_the_vocabulary(autocast: bool) -> None:  # noqa: FBT001 - a case
    """Neither logits nor their softmax outlive a chunk, under autocast as without; litgpt's keep both."""
    kept: dict[str, list[torch.Tensor]] = {}
    for training in (CHUNKED, LOGITS_IN_CHUNKS):
        wide = kept[training.loss] = []

        def note(tensor: torch.Tensor, wide: list[torch.Tensor] = wide) -> torch.Tensor:
            if tensor.shape[-1:] == (97,) and not isinstance(tensor, nn.Parameter):
                wide.append(tensor)
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            _loss(_model("llama").to(torch.bfloat16 if not autocast else torch.float32), training)
    assert [] == [tensor.shape for tensor in kept["chunked"]]
    assert len(kept["chunked-logits"]) >= 4


def test_learned_prompts_bear_no_loss() -> None:
    """Prompt tuning's own positions shift the labels of a chunked loss as they do the whole one's."""
    from peft import PromptTuningConfig, get_peft_model

    model: Any = get_peft_model(
        _model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    )
    whole = _loss(model, TrainingSpec())
    parts = _loss(model, CHUNKED)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": 8.0}),
        ("mixtral", {"num_local_experts": 2, "output_router_logits": True}),
    ],
    ids=["softcap", "scale", "divisor", "router loss"],
)
def test_more_than_an_output_layer_is_refused(family: str, changes: dict[str, Any]) -> None:
    """Capped or scaled logits and router losses would be lost; the model is whole again afterwards."""
    model = _model(family, **changes)
    with pytest.raises(UnavailableError, match=rf"the loss of {family} is more than .* set training.loss to"):
        _loss(model, CHUNKED)
    assert model(input_ids=_inputs()["input_ids"]).logits.shape == (2, 10, 97)


def test_liger_gets_shifted_labels_and_the_output_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its kernel is exchanged for the formula, the loss is the model's own; nothing is left to keep."""

    def formula(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())

    monkeypatch.setattr(losses, "liger_loss", formula)
    model = _model("llama")
    whole = _loss(model, TrainingSpec())
    outputs = forward_pass(model, _inputs(), TrainingSpec(loss="liger"))
    assert isinstance(outputs, FusedOutputs)
    torch.testing.assert_close(outputs.loss, whole)
    with pytest.raises(UnavailableError, match="linear layer without bias, and phi has Linear; set"):
        _loss(_model("phi"), TrainingSpec(loss="liger"))


def test_liger_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing package is named."""
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(UnavailableError, match="needs the package liger-kernel, which is not installed"):
        _loss(_model("llama"), TrainingSpec(loss="liger"))


def test_outputs_are_upcast_where_asked() -> None:
    """The logits that a loop would hold are fp32 then, whole or in chunks; else they stay 16-bit."""
    model = _model("llama").to(torch.bfloat16)
    whole: Any = forward_pass(model, _inputs(), TrainingSpec())
    upcast: Any = forward_pass(model, _inputs(), TrainingSpec(upcast_outputs=True))
    parts: Any = forward_pass(model, _inputs(), LOGITS_IN_CHUNKS)
    fp32_parts: Any = forward_pass(
        model, _inputs(), LOGITS_IN_CHUNKS.model_copy(update={"upcast_outputs": True})
    )
    assert (torch.bfloat16, torch.float32) == (whole.logits.dtype, upcast.logits.dtype)
    assert (torch.bfloat16, torch.float32) == (parts[0].dtype, fp32_parts[-1].dtype)
