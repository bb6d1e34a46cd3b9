"""What older transformers built and quantised, and the versions of which nothing is known."""

from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bench.errors import UntraceableError
from bench.metrics import GIB
from bench.predict.predict import predict
from bench.predict.trace.patches import patched
from bench.predict.trace.trace import Tracer
from bench.predict.trace.variants.older_models import check_model
from bench.records.predictions import Prediction
from bench.scenario.platform import Platform
from bench.training.loading.models import build_empty_model
from tiny_cells import tiny_cell

OLD, NEW = Platform(transformers="4.45.2"), Platform()
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "pad_token_id": 0,
    "use_mamba_kernels": False,
}
LOOPED = ["flex_olmo", "jamba", "minimax", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next"]


def _model(kind: str, platform: Platform) -> Any:
    torch.manual_seed(0)
    with patched(platform):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SIZES))


def _blocks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "experts")]


@pytest.mark.parametrize("kind", LOOPED)
def test_a_block_with_experts_apart_computes_what_the_fused_one_does(kind: str) -> None:
    """With the same weights, so the loop is the old one and each matrix is in its place."""
    old, new = _blocks(_model(kind, OLD))[0], _blocks(_model(kind, NEW))[0]
    router = "router" if kind == "jamba" else "gate"
    with torch.no_grad():
        for index, expert in enumerate(old.experts):
            gate, up, down = (expert.get_submodule(name) for name in expert.projections)
            gate.weight.copy_(new.experts.gate_up_proj[index, :96].normal_())
            up.weight.copy_(new.experts.gate_up_proj[index, 96:].normal_())
            down.weight.copy_(new.experts.down_proj[index].normal_())
        getattr(old, router).weight.copy_(getattr(new, router).weight.normal_())
        for name in ("shared_expert", "shared_expert_gate"):
            if hasattr(new, name):
                getattr(old, name).load_state_dict(getattr(new, name).state_dict())
        hidden = torch.randn(2, 7, 64)
        torch.testing.assert_close(old(hidden.clone()), new(hidden.clone()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "olmoe"])
def test_a_loop_that_asks_for_router_logits_gets_them(kind: str) -> None:
    """As trl's does for its balancing loss: one for each layer with experts."""
    model = _model(kind, OLD)
    with patched(OLD):
        outputs = model(input_ids=torch.ones(1, 4, dtype=torch.int64), output_router_logits=True)
    assert [(4, 4)] * len(_blocks(model)) == [tuple(each.shape) for each in outputs.router_logits]


def _row(transformers: str, **changes: Any) -> Prediction:
    method = {"kind": "qlora", "target_modules": ["q_proj", "w1"], "kbit_preparation": False}
    model = {"name": "m", "random": "mixtral-8x7b", "overrides": {"num_hidden_layers": 8}}
    training = {"sequence_length": 512, "micro_batch": 1, "gradient_checkpointing": "reentrant"}
    cell = tiny_cell(method | changes, device="cuda", model=model, training=training)
    return predict(cell, Platform(transformers=transformers))


def test_experts_of_an_older_mixtral_are_quantised_and_adapted() -> None:
    """Eight layers: 11.9 thousand million elements at half a byte and its scales, where 5.0 keeps 16 bits."""
    new, old = _row("5.0", target_modules=["q_proj"]), _row("4.45.2")
    elements = 8 * (8 * 3 * 4096 * 14336 + 4096 * (2 * 4096 + 2 * 1024) + 8 * 4096)
    packed = elements / 2 + elements / 64 * (1 + 4 / 256)
    rest = 2 * 2 * 32000 * 4096
    assert old.phase_ends_bytes["load"] == pytest.approx(packed + rest, rel=1e-3)
    assert new.phase_ends_bytes["load"] > 20 * GIB
    adapters = 8 * 8 * (4096 + 4096 + 8 * (4096 + 14336)) * 4
    grown = old.phase_ends_bytes["adapt"] - old.phase_ends_bytes["load"]
    assert grown == pytest.approx(adapters, rel=1e-2)
    assert "experts-as-linear-layers" in {caveat.code for caveat in old.caveats}
    assert "experts-as-linear-layers" not in {caveat.code for caveat in new.caveats}
    fused = [any("Products of experts" in caveat.message for caveat in one.caveats) for one in (new, old)]
    assert fused == [True, False]


@pytest.mark.parametrize(("version", "packed"), [("4.57.6", True), ("5.4.0", True), ("5.5.0", False)])
def test_a_subclass_of_linear_was_quantised_until_it_was_passed_over(version: str, *, packed: bool) -> None:
    """Falcon's layers are such a subclass; its projections are four-bit layers before 5.5."""
    config = AutoConfig.for_model("falcon", vocab_size=96, hidden_size=64, num_hidden_layers=2)
    config.num_attention_heads = 4
    platform = Platform(transformers=version)
    with patched(platform):
        model = build_empty_model(tiny_cell({"kind": "qlora"}, device="cuda"), config)
    projection = model.get_submodule("transformer.h.0.mlp.dense_h_to_4h")
    assert isinstance(projection, bitsandbytes.nn.Linear4bit) == packed


def test_experts_of_which_nothing_is_known_in_older_versions_are_refused() -> None:
    """DeepSeek's ran in another loop, so an old version is neither ignored nor guessed at."""
    config = AutoConfig.for_model("deepseek_v3", **_SIZES, n_routed_experts=4, first_k_dense_replace=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    check_model(model, NEW)
    with pytest.raises(UntraceableError, match=r"4\.45\.2 built the experts of a deepseek_v3 model"):
        check_model(model, OLD)


@pytest.mark.parametrize(
    ("platform", "named"),
    [
        (Platform(torch="1.13"), r"torch 1\.13 is not known here; give one from 2\.1"),
        (Platform(torch="9.0"), r"torch 9\.0 is not known here"),
        (Platform(bitsandbytes="0.37.2"), r"bitsandbytes 0\.37\.2 is not known"),
        (Platform(transformers="4.30"), r"transformers 4\.30 is not known"),
        (Platform(transformers="6.1"), r"transformers 6\.1 is not known"),
        (Platform(capability=(3, 5)), r"capability 3\.5 is not known"),
        (Platform(capability=(13, 0)), r"capability 13\.0 is not known"),
        (Platform(device="cpu", transformers="4.45"), r"for the CPU only the installed transformers"),
        (Platform(device="cpu", torch="2.6"), r"for the CPU only the installed torch is traced, not 2\.6"),
    ],
)
def test_a_platform_of_which_nothing_is_known_is_refused(platform: Platform, named: str) -> None:
    """Each of its fields is heeded or refused by name."""
    with pytest.raises(UntraceableError, match=named), patched(platform):
        pass


HEADS, GROUPS, WIDTH, ROWS, LENGTH = 8, 2, 16, 2, 64


def _saved_by_attention(kind: str, platform: Platform, *, mask: str = "none") -> int:
    """Return what a whole model's forward pass leaves alive, in bytes."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=96,
        hidden_size=HEADS * WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        pad_token_id=0,
    )
    data = {"source": "synthetic", "attention_mask": mask}
    training = {"sequence_length": LENGTH, "micro_batch": ROWS, "dtype": "bf16"}
    cell = tiny_cell({"kind": "full"}, device="cuda", data=data, training=training)
    stream = Tracer(platform, config).trace(cell, steps=1)
    end = next(mark.entries for mark in stream.marks if mark.phase == "backward")
    return int(stream.live_bytes()[end - 1])


UNIT = 2 * ROWS * LENGTH * WIDTH  # bytes of one head's values
PHI3 = 2 * HEADS - GROUPS - (HEADS + 2 * GROUPS)  # its values are a view, which keeps all of a projection


@pytest.mark.parametrize(
    ("kind", "mask", "older", "later", "more_heads"),
    [
        ("llama", "none", Platform(torch="2.5"), Platform(), 0),
        ("llama", "none", Platform(torch="2.4.1"), Platform(), 2 * (HEADS - GROUPS)),
        ("llama", "none", Platform(transformers="4.53"), Platform(), 2 * (HEADS - GROUPS) + HEADS),
        ("phi3", "none", Platform(transformers="4.53"), Platform(), PHI3),
        ("llama", "none", Platform(transformers="4.48"), Platform(transformers="4.47"), HEADS),
        ("llama", "padded", Platform(transformers="4.48"), Platform(transformers="4.47"), 0),
    ],
)
def test_heads_were_repeated_and_copied_before_attention(
    kind: str, mask: str, older: Platform, later: Platform, more_heads: int
) -> None:
    """Keys and values are saved with all heads, where torch 2.5 takes groups of them.

    Queries made contiguous give a result that is copied once more: from 4.48 to 4.53, earlier with a mask.
    """
    grown = _saved_by_attention(kind, older, mask=mask) - _saved_by_attention(kind, later, mask=mask)
    assert grown == more_heads * UNIT
