"""Which versions a prediction knows, and models as transformers before the installed one built them.

What was a linear layer then was quantised and adapted. Sources: wheels of transformers 4.45.2, 4.53.3 and
4.57.6 (models/*/modeling_*.py) and of 5.0 to 5.7 (integrations/bitsandbytes.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.errors import UntraceableError
from bench.predict.trace.variants.adapters import of_peft
from bench.records.readings import Caveat
from bench.scenario.platform import KNOWN_SINCE, Platform, version_of

FUSES_EXPERTS = (5, 0)
"""Version from which the experts of a layer are one three-dimensional parameter, which is no linear layer."""
QUANTISES_NO_SUBCLASS = (5, 5)
"""Version from which replace_with_bnb_linear passes over subclasses of nn.Linear, FalconLinear among them."""
GROUPS_HEADS, GROUPS_HEADS_TORCH = (4, 54), (2, 5)
"""Versions from which SDPA is given key and value heads as they are; before, they were repeated for each
query head (integrations/sdpa_attention.py, use_gqa_in_sdpa; torch's enable_gqa)."""
COPIES_HEADS = (4, 48)
"""Version from which, and until those, the same file made queries, keys and values contiguous. Before it each
family did so by itself, as Llama's LlamaSdpaAttention where there was a mask."""
KNOWN_CAPABILITIES = ((7, 0), (12, 1))


@dataclass(frozen=True)
class _Looped:
    """A block whose experts were linear layers, run one after the other."""

    block: str
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    router: str = "gate"
    normalises: bool | None = None  # None: as norm_topk_prob says
    layer_with_own_name: str = ""  # the class of layers that called the block block_sparse_moe


_W = ("w1", "w3", "w2")
_LOOPED = {
    "flex_olmo": _Looped("FlexOlmoSparseMoeBlock"),
    "jamba": _Looped("JambaSparseMoeBlock", router="router", normalises=False),
    "minimax": _Looped(
        "MiniMaxSparseMoeBlock", _W, normalises=True, layer_with_own_name="MiniMaxDecoderLayer"
    ),
    "mixtral": _Looped(
        "MixtralSparseMoeBlock", _W, normalises=True, layer_with_own_name="MixtralDecoderLayer"
    ),
    "olmoe": _Looped("OlmoeSparseMoeBlock"),
    "qwen2_moe": _Looped("Qwen2MoeSparseMoeBlock"),
    "qwen3_moe": _Looped("Qwen3MoeSparseMoeBlock"),
    "qwen3_next": _Looped("Qwen3NextSparseMoeBlock"),
}


def check_platform(platform: Platform) -> None:
    """Raise ``UntraceableError`` for a version or capability of which nothing is known here."""
    for name, oldest in KNOWN_SINCE.items():
        given, newest = getattr(platform, name), version(name).partition("+")[0]
        if not version_of(oldest) <= version_of(given)[:2] <= version_of(".".join(newest.split(".")[:2])):
            raise UntraceableError(
                f"{name} {given} is not known here; give one from {oldest} to the installed {newest}."
            )
    low, high = KNOWN_CAPABILITIES
    if platform.device == "cuda" and not low <= platform.capability <= high:
        raise UntraceableError(
            f"compute capability {_dotted(platform.capability)} is not known here; give one from "
            f"{_dotted(low)} to {_dotted(high)}."
        )
    for name in KNOWN_SINCE if platform.device == "cpu" else ():
        given, default = (version_of(getattr(one, name))[:2] for one in (platform, Platform()))
        if given not in {default, version_of(version(name).partition("+")[0])[:2]}:
            raise UntraceableError(
                f"for the CPU only the installed {name} is traced, not {getattr(platform, name)}; leave "
                f"platform.{name} out."
            )


def check_model(model: Any, platform: Platform) -> None:
    """Raise ``UntraceableError`` where an older version built experts in a way that is not known here."""
    if not _is_older(platform, FUSES_EXPERTS):
        return
    for name, module in model.named_modules():
        parameters = module.parameters(recurse=False)
        if "xpert" in type(module).__name__ and any(each.dim() > 2 for each in parameters):  # noqa: PLR2004 - a matrix
            raise UntraceableError(
                f"how transformers {platform.transformers} built the experts of a {model.config.model_type} "
                f"model ({name}) is not known here; predict it for transformers 5 (leave "
                "platform.transformers out), or measure it."
            )


def caveats_of_version(config: Any, platform: Platform) -> Iterator[Caveat]:
    """Yield what a prediction for an older version takes for granted."""
    kind = config.get_text_config().model_type
    if _is_older(platform, FUSES_EXPERTS) and kind in _LOOPED:
        yield Caveat(
            code="experts-as-linear-layers",
            message=f"Built as transformers {platform.transformers} did: each expert of {kind} is three "
            "linear layers, run in a loop; tokens are taken to be spread evenly over the experts.",
        )


def older_models(platform: Platform) -> Iterator[Any]:
    """Yield patchers that make transformers build and quantise what the platform's version did."""
    if platform.device == "cuda":
        yield from _older_attention(platform)
    if _is_older(platform, QUANTISES_NO_SUBCLASS):
        quantiser = import_module("transformers.integrations.bitsandbytes")
        yield patch.object(quantiser, "type", _class_to_quantise, create=True)
    if not _is_older(platform, FUSES_EXPERTS):
        return
    # peft maps the names of experts' layers to the fused parameter wherever transformers 5 is installed.
    if conversion := of_peft("utils.transformers_weight_conversion"):
        yield patch.object(conversion, "convert_peft_config_for_transformers", lambda *_, **__: None)
    for kind, facts in _LOOPED.items():
        module = import_module(f"transformers.models.{kind}.modeling_{kind}")
        yield patch.object(module, facts.block, _with_experts_apart(getattr(module, facts.block), facts))
        owner = getattr(module, facts.block.replace("SparseMoeBlock", "PreTrainedModel"))
        recorded = owner._can_record_outputs
        recorder = type(recorded["router_logits"])  # in another module until 5.1
        yield patch.dict(recorded, router_logits=recorder(_Logits))
        if name := facts.layer_with_own_name:
            yield patch.object(module, name, _with_own_name(getattr(module, name)))


def _older_attention(platform: Platform) -> Iterator[Any]:
    """Yield what was done to queries, keys and values before torch's SDPA saved them."""
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import AttentionInterface

    grouped = not _is_older(platform, GROUPS_HEADS) and version_of(platform.torch) >= GROUPS_HEADS_TORCH
    if not grouped:
        yield patch.object(sdpa_attention, "use_gqa_in_sdpa", lambda *_: False)
    if _is_older(platform, GROUPS_HEADS):
        always = not _is_older(platform, COPIES_HEADS)
        copying = _copying_heads(sdpa_attention.sdpa_attention_forward, always=always)
        yield patch.dict(AttentionInterface._global_mapping, sdpa=copying)


def _copying_heads(attend: Callable[..., Any], *, always: bool) -> Callable[..., Any]:
    """Make heads contiguous first, always or where there is a mask; repeated ones are so by that."""

    def attend_to_copies(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *args: Any, **more: Any
    ) -> Any:
        if always or mask is not None:
            query = query.contiguous()
            if getattr(module, "num_key_value_groups", 1) == 1:
                key, value = key.contiguous(), value.contiguous()
        return attend(module, query, key, value, mask, *args, **more)

    return attend_to_copies


def _is_older(platform: Platform, than: tuple[int, int]) -> bool:
    return version_of(platform.transformers) < than


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _class_to_quantise(module: object) -> type:
    """Answer ``type(module) is nn.Linear`` as ``isinstance(module, nn.Linear)`` would."""
    return nn.Linear if isinstance(module, nn.Linear) else type(module)


def _with_own_name(layer: Any) -> type:
    """Return a class of layers whose block goes by its old name, which names target modules too."""

    class Layer(layer):  # type: ignore[misc]  # the class that is installed
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._modules["block_sparse_moe"] = self._modules.pop("mlp")

        @property
        def mlp(self) -> Any:
            return self._modules["block_sparse_moe"]

    return Layer


def _with_experts_apart(block: Any, facts: _Looped) -> type:
    """Return a class of blocks that differ from the installed one in their experts and router alone."""

    class Block(block):  # type: ignore[misc]  # the class that is installed
        def __init__(self, config: Any, *args: Any) -> None:
            super().__init__(config, *args)
            fused, router = self.get_submodule("experts"), getattr(self, facts.router)
            self.num_experts, self.top_k = fused.num_experts, router.top_k
            own = facts.normalises
            self.norm_topk_prob = config.norm_topk_prob if own is None else own
            setattr(self, facts.router, nn.Linear(fused.hidden_dim, fused.num_experts, bias=False))
            self.logits = _Logits()
            self.experts = nn.ModuleList(_Expert(fused, facts.projections) for _ in range(self.num_experts))

        def forward(self, hidden_states: Tensor) -> Tensor:
            return _looped_over_experts(self, getattr(self, facts.router), hidden_states)

    return Block


class _Logits(nn.Identity):
    """Where those of a router are seen by who asks for them: its layer is one that quantising replaces."""


class _Expert(nn.Module):
    """The MLP of one expert: down(act(gate(x)) * up(x))."""

    def __init__(self, fused: Any, projections: tuple[str, str, str]) -> None:
        super().__init__()
        self.projections, self.act_fn = projections, fused.act_fn
        for name in projections:
            sizes = fused.hidden_dim, fused.intermediate_dim
            self.add_module(name, nn.Linear(*(sizes[::-1] if name == projections[-1] else sizes), bias=False))

    def forward(self, values: Tensor) -> Tensor:
        gate, up, down = map(self.get_submodule, self.projections)
        result: Tensor = down(self.act_fn(gate(values)) * up(values))
        return result


def _looped_over_experts(block: Any, router: nn.Module, hidden_states: Tensor) -> Tensor:
    """Run the loop of 4.45's MixtralSparseMoeBlock, which the others copied, tokens being spread evenly.

    Without data each expert gets its share of indices.
    """
    batch, length, width = hidden_states.shape
    if block.training and getattr(block, "jitter_noise", 0) > 0:
        noise = 1.0 - block.jitter_noise, 1.0 + block.jitter_noise
        hidden_states *= torch.empty_like(hidden_states).uniform_(*noise)
    hidden_states = hidden_states.view(-1, width)
    weights = nn.functional.softmax(block.logits(router(hidden_states)), dim=1, dtype=torch.float)
    weights, selected = torch.topk(weights, block.top_k, dim=-1)
    if block.norm_topk_prob:
        weights /= weights.sum(dim=-1, keepdim=True)
    weights = weights.to(hidden_states.dtype)
    final = torch.zeros((batch * length, width), dtype=hidden_states.dtype, device=hidden_states.device)
    mask = torch.zeros((*selected.shape, block.num_experts), dtype=torch.int64, device=selected.device)
    mask.scatter_(-1, selected.unsqueeze(-1), 1)  # as one_hot makes it
    routed = batch * length * block.top_k
    for index, expert in enumerate(block.experts):
        share = routed * (index + 1) // block.num_experts - routed * index // block.num_experts
        if mask.is_meta:
            rank, token = torch.empty((share, 2), dtype=torch.int64, device=mask.device).unbind(1)
        else:
            rank, token = torch.where(mask.permute(2, 1, 0)[index])
        state = hidden_states[None, token].reshape(-1, width)
        result = expert(state) * weights[token, rank, None]
        final.index_add_(0, token, result.to(hidden_states.dtype))
    if hasattr(block, "shared_expert"):
        shared = block.shared_expert(hidden_states)
        final = final + nn.functional.sigmoid(block.shared_expert_gate(hidden_states)) * shared
    return final.reshape(batch, length, width)
