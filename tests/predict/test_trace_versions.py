"""What older versions of libraries did differently, and peft's initialisations without data."""

import sys
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from peft import BOFTConfig, LoraConfig, PeftConfig, PeftModel, UniLoraConfig, get_peft_model
from peft.tuners import tuners_utils
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from bench.errors import UntraceableError
from bench.predict.predict import predict
from bench.predict.trace.meta_kernels import four_bit_product
from bench.predict.trace.patches import patched
from bench.predict.trace.variants.older_computations import copies_logits, loss_rule
from bench.probes.ledger import Ledger
from bench.scenario.platform import Platform
from bench.training.loading.models import configuration_of
from tiny_cells import tiny_cell

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


SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": 11,
    "max_position_embeddings": 8,
    "pad_token_id": 0,
}


def _loss_and_logits(family: str, version: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a 16-bit model of random weights as a version of transformers did."""
    platform = Platform(transformers=version)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).to(torch.bfloat16)
    ids = torch.randint(11, (2, 5))
    with patched(platform):
        copies_logits(model, platform)
        outputs = model(input_ids=ids, labels=ids)
    return outputs.loss, outputs.logits


# As the forward() of each class in the wheels of these versions has it.
@pytest.mark.parametrize(
    ("family", "version", "loss", "logits"),
    [
        ("llama", "4.45.2", torch.float32, torch.float32),
        ("llama", "4.46.0", torch.float32, torch.bfloat16),
        ("mistral", "4.47.1", torch.float32, torch.float32),
        ("mistral", "4.48.0", torch.float32, torch.bfloat16),
        ("granite", "4.45.2", torch.float32, torch.float32),
        ("stablelm", "4.48.1", torch.bfloat16, torch.bfloat16),
        ("gpt2", "4.45.2", torch.bfloat16, torch.bfloat16),
        ("gpt2", "4.49.0", torch.float32, torch.bfloat16),
        ("olmo2", "4.48.1", torch.float32, torch.bfloat16),
        ("llama", "5.23", torch.float32, torch.bfloat16),
    ],
)
def test_logits_and_loss_have_the_dtypes_of_the_version(
    family: str, version: str, loss: torch.dtype, logits: torch.dtype
) -> None:
    """Some copied logits to fp32 in the model, some in the loss, some nowhere; the number hardly differs."""
    found = _loss_and_logits(family, version)
    assert (loss, logits) == (found[0].dtype, found[1].dtype)
    installed, _ = _loss_and_logits(family, "5.23")
    torch.testing.assert_close(found[0].float(), installed.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "version", "bytes_per_logit"),
    [
        ("llama", "5.23", (2 + 4 + 4, 0)),
        ("llama", "4.48.0", (2 + 4, 4 + 4)),
        ("llama", "4.45.2", (4, 4 + 4)),
        ("gpt2", "4.48.0", (2, 2 + 2)),
    ],
)
def test_the_copies_of_the_logits_are_those_of_the_version(
    family: str, version: str, bytes_per_logit: tuple[int, int]
) -> None:
    """Of each logit so many bytes live, and so many more but for each row's last position, 5 of 6 here."""
    platform, vocabulary, rows, length = Platform(transformers=version), 1000, 2, 6
    config = AutoConfig.for_model(family, **SIZES | {"vocab_size": vocabulary})
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    ids = torch.randint(11, (rows, length))
    ledger = Ledger(model, "cpu", vocabulary)
    ledger.register_model(model)
    ledger.mark("forward")
    with patched(platform), ledger:
        copies_logits(model, platform)
        outputs = model(input_ids=ids, labels=ids, use_cache=False)
    of_all, of_cut = bytes_per_logit
    expected = rows * vocabulary * (length * of_all + (length - 1) * of_cut)
    assert expected == ledger.reading().categories_at_peak_bytes["logits"]
    assert outputs.logits.shape == (rows, length, vocabulary)


def test_a_loss_of_which_nothing_is_known_is_an_interval_that_says_so() -> None:
    """Gemma 2 before 4.46 capped its logits first; what is traced is the most that it may have taken."""
    config = AutoConfig.for_model("gemma2")
    assert "unknown" == loss_rule(config, Platform(transformers="4.45.2"))
    assert "cuts logits" == loss_rule(config, Platform(transformers="4.47"))
    cell = tiny_cell({"kind": "lora"}, device="cuda", training={"sequence_length": 16, "attention": "eager"})
    model = cell.model.model_copy(update={"random": "gemma-2-2b", "overrides": {"num_hidden_layers": 2}})
    cell = cell.model_copy(update={"model": model})
    prediction = predict(cell, Platform(transformers="4.45.2"))
    low = prediction.allocated_low_bytes
    assert low is not None
    assert prediction.allocated_peak_bytes - low >= 8 * 16 * 256_000
    assert any(caveat.code == "loss-of-version-unknown" for caveat in prediction.caveats)
    assert prediction.reserved_low_bytes is not None
    assert prediction.reserved_low_bytes >= low


@pytest.mark.parametrize(("version", "layers"), [("2.1.2", 1), ("2.2", 0)])
def test_attention_of_torch_before_2_2_widens_what_is_predicted(version: str, layers: int) -> None:
    """Queries, keys, values and outputs of 16 tokens in 16 bits, once more, and a caveat that says why."""
    cell = tiny_cell({"kind": "lora"}, device="cuda", training={"sequence_length": 16})
    prediction = predict(cell, Platform(torch=version))
    config = configuration_of(cell.model)
    width, all_layers = config.hidden_size, config.num_hidden_layers
    high = prediction.allocated_high_bytes or prediction.allocated_peak_bytes
    more = 4 * all_layers * 16 * width * 2 * layers
    assert more <= high - prediction.allocated_peak_bytes < more + (1 << 20)
    assert bool(layers) == any(one.code == "attention-of-version-unknown" for one in prediction.caveats)


def test_caches_kept_what_they_were_given() -> None:
    """Before 4.54 the value of a fused projection was a view of all of it; since then it is a copy."""
    kept = {}
    for version in ("4.53.3", "4.54.0"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **SIZES))
        with patched(Platform(transformers=version)):
            cache = model(input_ids=torch.randint(11, (2, 5)), use_cache=True).past_key_values
        kept[version] = cache.layers[0].values.untyped_storage().nbytes()
    assert {"4.53.3": 3 * 2 * 5 * WIDTH * 4, "4.54.0": 2 * 5 * WIDTH * 4} == kept


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


def test_a_four_bit_product_takes_packed_weights_as_older_versions_hand_them_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until 0.49 bitsandbytes turned a packed row and, to match, what it had made of one."""
    dequantize = functional.dequantize_4bit

    def turning(packed: torch.Tensor, state: Any) -> torch.Tensor:
        weight: torch.Tensor = dequantize(packed, state)
        return weight.t() if packed.shape[0] == 1 else weight

    monkeypatch.setattr(functional, "dequantize_4bit", turning)
    packed, state = functional.quantize_4bit(torch.randn(32, 64), quant_type="nf4")
    values = torch.randn(3, 64)
    product = four_bit_product(Platform()).apply(values, packed.t(), None, None, state)
    torch.testing.assert_close(values @ dequantize(packed, state).T, product)


def test_an_older_peft_without_a_method_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions before 0.19 and 0.20 have neither AdaMSS nor UniLoRA: nothing of theirs is patched."""
    for module in ("tuners.adamss.layer", "tuners.unilora.model"):
        monkeypatch.setitem(sys.modules, f"peft.{module}", None)
    with patched(Platform()):
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), LoraConfig(r=2))
    assert model.peft_config


def test_an_adapter_is_moved_by_the_installed_peft_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a version does to a new adapter, as casting it: only the meta device is no reason not to."""

    def move(self: Any, adapter_name: str) -> None:
        self.is_skipped = tuners_utils.torch.device("meta") == self.adapter.device
        self.adapter = self.adapter.to(torch.device("meta"), dtype=torch.bfloat16)
        self.name = adapter_name

    monkeypatch.setattr(tuners_utils.BaseTunerLayer, "_move_adapter_to_device_of_base_layer", move)
    layer: Any = tuners_utils.BaseTunerLayer()
    layer.adapter = torch.empty(2, device="meta")
    with patched(Platform()):
        layer._move_adapter_to_device_of_base_layer("default")
    assert not layer.is_skipped
    assert (torch.bfloat16, "default") == (layer.adapter.dtype, layer.name)
    assert torch.device("meta") == tuners_utils.torch.device("meta")


def test_counts_of_named_length_are_traced() -> None:
    """A router's loss says of how many experts it counts the tokens; without that the values decide."""
    chosen, weights = torch.empty(6, dtype=torch.int64, device="meta"), torch.empty(6, device="meta")
    with patched(Platform()):
        counts = torch.bincount(chosen, minlength=4)
        weighted = torch.bincount(chosen, weights, minlength=4)
    assert ((4,), torch.int64) == (tuple(counts.shape), counts.dtype)
    assert ((4,), torch.float32) == (tuple(weighted.shape), weighted.dtype)
    with (
        pytest.raises(UntraceableError, match=r"needs the data of a tensor \(how many .* bincount"),
        patched(Platform()),
    ):
        torch.bincount(chosen)
