"""What older versions of libraries did differently, and peft's initialisations without data."""

import pytest
import torch
from peft import BOFTConfig, PeftConfig, PeftModel, UniLoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.loss.loss_utils import LOSS_MAPPING

from bench.predict.trace.patches import patched
from bench.scenario.types import Platform

WIDTH, HEADS, LAYERS = 16, 4, 2


def _model() -> GPTBigCodeForCausalLM:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": 11, "n_positions": 8}
    return GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes, bos_token_id=0, eos_token_id=0))


def test_each_layer_returns_a_view_that_keeps_its_whole_projection() -> None:
    """One key and one value head for each token, in a storage that holds all query heads as well."""
    ids = torch.randint(11, (2, 5))
    with patched(Platform(transformers="4.53.3")):
        cache = _model()(input_ids=ids, use_cache=True).past_key_values
    head = WIDTH // HEADS
    assert [(2, 5, 2 * head)] * LAYERS == [tuple(kept.shape) for kept in cache]
    assert [2 * 5 * (WIDTH + 2 * head) * 4] * LAYERS == [kept.untyped_storage().nbytes() for kept in cache]


def test_a_loop_that_asks_for_no_cache_gets_none() -> None:
    """The cache is the loop's choice in every version."""
    with patched(Platform(transformers="4.53.3")):
        outputs = _model()(input_ids=torch.randint(11, (2, 5)), use_cache=False)
    assert outputs.past_key_values is None


@pytest.mark.parametrize("platform", [Platform(transformers="4.54.0"), Platform(device="cpu")])
def test_later_versions_and_the_cpu_keep_the_installed_cache(platform: Platform) -> None:
    """Nothing stands in for it there, and nothing is left behind by a platform where something does."""
    with patched(Platform(transformers="4.53.3")):
        pass
    with patched(platform):
        cache = _model()(input_ids=torch.randint(11, (2, 5)), use_cache=True).past_key_values
    assert "DynamicCache" == type(cache).__name__


@pytest.mark.parametrize("version", ["4.48.1", "4.49", "5.23"])
def test_loss_is_the_same_number_in_every_version(version: str) -> None:
    """Cutting logits or padding labels gives one loss; only before 4.49 is anything put in its place."""
    installed = LOSS_MAPPING["ForCausalLM"]
    logits = torch.randn(2, 5, 11, dtype=torch.bfloat16)
    labels = torch.randint(11, (2, 5))
    expected = installed(logits=logits, labels=labels, vocab_size=11)
    with patched(Platform(transformers=version)):
        shifting = LOSS_MAPPING["ForCausalLM"]
        torch.testing.assert_close(expected, shifting(logits=logits, labels=labels, vocab_size=11))
    assert (version == "4.48.1") == (shifting is not installed)
    assert installed is LOSS_MAPPING["ForCausalLM"]


def test_models_with_a_loss_of_their_own_had_none_in_fp32() -> None:
    """GPT-2's loss before 4.49 comes in the dtype of its logits."""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11, n_positions=8)
    model = GPT2LMHeadModel(config).to(torch.bfloat16)
    ids = torch.randint(11, (2, 5))
    with patched(Platform(transformers="4.48.1")):
        assert torch.bfloat16 == model(input_ids=ids, labels=ids).loss.dtype
    assert torch.float32 == model(input_ids=ids, labels=ids).loss.dtype


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
    with patched(Platform()):
        assert expected == _sizes(_adapted(config, "meta"))


@pytest.mark.filterwarnings("ignore")  # the same
@pytest.mark.parametrize(("device", "expected"), [("cuda", "cpu"), ("cpu", "meta")])
def test_permutations_of_boft_stay_on_the_cpu(device: str, expected: str) -> None:
    """On CUDA the buffer is not on the device; on the CPU the meta device stands for where it is."""
    with patched(Platform.model_validate({"device": device})):
        model = _adapted(CONFIGS[1], "meta")
    places = {buffer.device.type for name, buffer in model.named_buffers() if name.endswith("boft_P")}
    assert {expected} == places
