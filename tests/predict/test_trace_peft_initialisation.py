"""Methods of peft whose initialisation reads tensors: initialised without data, as large as with it."""

import pytest
import torch
from peft import BOFTConfig, PeftConfig, PeftModel, UniLoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bench.predict.trace.peft_initialisation import staged_initialisation
from bench.scenario.platforms import Platform

TARGETS = ["q_proj"]
CONFIGS = [
    UniLoraConfig(r=2, theta_d_length=8, target_modules=TARGETS),
    BOFTConfig(boft_block_size=4, target_modules=TARGETS),
]


def _adapted(config: PeftConfig, device: str) -> PeftModel:
    """Adapt a tiny model that is made on the device."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 11}
    with torch.device(device):
        return get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)), config)


def _sizes(model: PeftModel) -> dict[str, tuple[torch.Size, torch.dtype]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}


@pytest.mark.parametrize("config", CONFIGS, ids=["unilora", "boft"])
@pytest.mark.filterwarnings("ignore")  # BOFT tells at length that its extension cannot be built here
def test_sizes_are_those_of_an_initialisation_with_data(config: PeftConfig) -> None:
    """Every parameter and buffer is as with data."""
    expected = _sizes(_adapted(config, "cpu"))
    with staged_initialisation(Platform()):
        assert expected == _sizes(_adapted(config, "meta"))


@pytest.mark.filterwarnings("ignore")  # the same
@pytest.mark.parametrize(("device", "expected"), [("cuda", "cpu"), ("cpu", "meta")])
def test_permutations_of_boft_stay_on_the_cpu(device: str, expected: str) -> None:
    """On CUDA the buffer is not on the device; on the CPU the meta device stands for where it is."""
    with staged_initialisation(Platform.model_validate({"device": device})):
        model = _adapted(CONFIGS[1], "meta")
    places = {buffer.device.type for name, buffer in model.named_buffers() if name.endswith("boft_P")}
    assert {expected} == places
