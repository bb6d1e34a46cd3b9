"""What older versions of transformers computed otherwise: losses of causal models, caches of keys and values.

One table, by family and version. Sources: wheels of transformers 4.36.2 to 4.57.6, the forward() of each
ForCausalLM class (models/*/modeling_*.py), loss/loss_utils.py and cache_utils.py.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

from torch import Tensor, nn

from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform, version_of

PADS_LABELS = (4, 49)
"""Version from which labels are padded in the place of cutting logits (loss/loss_utils.py)."""
CACHES_COPIES = (4, 54)
"""Version from which a DynamicCache joins keys and values to empty tensors; before, it kept what it got, and
so all of a fused projection. GPTBigCode had its own, and returned it even where layers were checkpointed."""
CHECKPOINTS_BY_LAYER = (4, 52)
"""Version from which a layer checkpoints itself (modeling_layers.py; a few families followed in 4.53). Its
model did so before, around the whole call, and around FSDP1 with it."""
_EVERY_FAMILY_HANDS_OVER = (5, 0)

Rule = Literal["installed", "cuts logits", "cuts fp32 logits", "cuts logits as given", "unknown"]
"""How a version computes a family's loss: as the installed one does; over an fp32 copy of the model's logits
and a copy of all but the last position of that; over such a copy of logits that the model itself copied to
fp32, dropping its own; or over a copy of the model's logits in their dtype."""


class _OwnLoss(NamedTuple):
    """From which version a family hands its logits to loss_utils, and what its forward() did before."""

    until: tuple[int, int]
    rule: Rule


_FP32: Rule = "cuts fp32 logits"
_AS_GIVEN: Rule = "cuts logits as given"
_OWN: dict[str, _OwnLoss] = {
    **dict.fromkeys(
        ("cohere", "gemma", "jamba", "llama", "mixtral", "nemotron", "olmo", "olmoe", "phi", "phi3", "qwen2"),
        _OwnLoss((4, 46), _FP32),
    ),
    "qwen2_moe": _OwnLoss((4, 46), _FP32),
    "starcoder2": _OwnLoss((4, 47), _FP32),
    **dict.fromkeys(("granite", "mistral"), _OwnLoss((4, 48), _FP32)),
    **dict.fromkeys(("codegen", "gptj", "granitemoe"), _OwnLoss((4, 49), _FP32)),
    **dict.fromkeys(("bloom", "dbrx", "falcon", "gpt2", "gpt_bigcode"), _OwnLoss((4, 49), _AS_GIVEN)),
    **dict.fromkeys(("gpt_neox", "gpt_neox_japanese", "mpt", "opt"), _OwnLoss((4, 49), _AS_GIVEN)),
    **dict.fromkeys(("persimmon", "rwkv", "stablelm"), _OwnLoss((4, 49), _AS_GIVEN)),
    **dict.fromkeys(("falcon_mamba", "mamba"), _OwnLoss(_EVERY_FAMILY_HANDS_OVER, _FP32)),
    "gemma2": _OwnLoss((4, 46), "unknown"),  # caps its logits in their own dtype, then copies them
    **dict.fromkeys(("gpt_neo", "jetmoe", "recurrent_gemma"), _OwnLoss((4, 49), "unknown")),
}
_NEVER_OWN = {"bamba", "cohere2", "diffllama", "glm", "olmo2", "phimoe", "zamba"}
"""Families that came between 4.46 and 4.48 and have always handed their logits over."""
FLASH_ATTENTION_2 = (2, 2)
"""Version of torch from which it has the kernels whose memory is known here (its release notes)."""
UNKNOWN_BYTES_PER_LOGIT = 8
"""How much less than with two fp32 copies, 14, a loss may take: 16-bit logits, cut and normalised, are 6."""


def loss_rule(config: Any, platform: Platform) -> Rule:
    """Return how a platform's transformers computes the loss of a configuration's model."""
    version, kind = version_of(platform.transformers), config.get_text_config().model_type
    own = _OWN.get(kind)
    if platform.device == "cpu":
        return "installed"
    if own and version < own.until:
        return own.rule
    if version >= PADS_LABELS:
        return "installed"
    return "cuts logits" if own or kind in _NEVER_OWN else "unknown"


def unknown_loss_bytes(cell: Cell, config: Any, platform: Platform) -> int:
    """Return how much less a cell's loss may take than is traced, by a version of which nothing is known."""
    if cell.training.loss != "full" or platform.litgpt or loss_rule(config, platform) != "unknown":
        return 0
    tokens = cell.training.micro_batch * cell.training.sequence_length
    return UNKNOWN_BYTES_PER_LOGIT * tokens * int(config.get_text_config().vocab_size)


def unknown_attention_bytes(cell: Cell, config: Any, platform: Platform) -> int:
    """Return how much more attention may keep than is traced, by torch before its FlashAttention 2.

    That is as if all that it is given and returns, queries, keys, values and outputs of every layer whose
    activations are kept, were there once more.
    """
    if platform.device == "cpu" or version_of(platform.torch) >= FLASH_ATTENTION_2:
        return 0
    text, training = config.get_text_config(), cell.training
    heads = int(text.num_attention_heads)
    width = heads * int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    layers = int(text.num_hidden_layers) if training.gradient_checkpointing == "off" else 1
    element_bytes = 4 if training.dtype == "fp32" and training.autocast == "off" else 2
    return 4 * layers * training.micro_batch * training.sequence_length * width * element_bytes


def caveats_of_versions(cell: Cell, config: Any, platform: Platform) -> Iterator[Caveat]:
    """Yield that nothing is known of a version's loss or attention, where that is so."""
    if unknown_attention_bytes(cell, config, platform):
        yield Caveat(
            code="attention-of-version-unknown",
            message=f"What attention of torch {platform.torch} kept is not known here, only since 2.2, which "
            "brought FlashAttention 2: the upper end is with all that it is given and returns once more.",
        )
    if unknown_loss_bytes(cell, config, platform):
        kind = config.get_text_config().model_type
        yield Caveat(
            code="loss-of-version-unknown",
            message=f"How transformers {platform.transformers} computed the loss of {kind} is not known: "
            "predicted with two fp32 copies of its logits, the most there may have been; the lower end is "
            "without them.",
        )


def checkpoint_around(model: nn.Module, cell: Cell, platform: Platform) -> None:
    """Put checkpointing around layers that FSDP1 wraps, and not into them, where a version did so.

    A recomputation then runs FSDP1's forward pass again. What it hooks to the input of a layer without
    trained weights of its own keeps that input and its gradient until the whole backward pass is over.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    inside = version_of(platform.transformers) >= CHECKPOINTS_BY_LAYER
    if inside or cell.parallel.strategy != "fsdp1" or cell.parallel.activation_checkpointing:
        return
    for unit in FullyShardedDataParallel.fsdp_modules(model):
        layer = unit.module
        if getattr(layer, "gradient_checkpointing", False) and hasattr(layer, "_gradient_checkpointing_func"):
            layer.gradient_checkpointing = False  # type: ignore[assignment]
            unit.forward = _recomputed(unit.forward, layer)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any], layer: nn.Module) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        checkpoint: Any = layer._gradient_checkpointing_func
        return checkpoint(partial(forward, **kwargs), *args)

    return recomputed


def older_computations(platform: Platform) -> Iterator[Any]:
    """Yield patchers that make models compute losses and caches as the platform's transformers did."""
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicLayer

    version = version_of(platform.transformers)
    if platform.device == "cpu" or version >= _EVERY_FAMILY_HANDS_OVER:
        return
    installed: Any = PreTrainedModel.loss_function
    losses = {_FP32: _cut_loss, _AS_GIVEN: _cut_loss, "cuts logits": _copied_loss, "unknown": _copied_loss}

    def loss_function(model: Any) -> Any:
        return losses.get(loss_rule(model.config, platform)) or installed.fget(model)

    yield patch.object(PreTrainedModel, "loss_function", property(loss_function, installed.fset))
    if version < CACHES_COPIES:
        from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeModel

        yield patch.object(GPTBigCodeModel, "forward", _returning_views(GPTBigCodeModel.forward))
        yield patch.object(DynamicLayer, "update", _keeping_what_it_gets(DynamicLayer.update))


def copies_logits(model: Any, platform: Platform) -> None:
    """Let a model copy its logits to fp32 by itself, and drop them, where the platform's version does."""
    if loss_rule(model.config, platform) != _FP32:
        return
    handles: list[Any] = []

    def begin(_model: nn.Module, _args: Any, kwargs: Any) -> None:
        if kwargs.get("labels") is not None:
            head = model.get_output_embeddings()
            handles.append(head.register_forward_hook(lambda _head, _inputs, logits: logits.float()))

    def end(_model: nn.Module, _args: Any, _outputs: Any) -> None:
        while handles:
            handles.pop().remove()

    model.register_forward_pre_hook(begin, with_kwargs=True)
    model.register_forward_hook(end, always_call=True)


def _copied_loss(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
    """Copy the logits to fp32, then all but each row's last (4.48's ForCausalLMLoss)."""
    return _cut_loss(logits.float(), labels, vocab_size, **kwargs)


def _cut_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: int | None = None,
    ignore_index: int = -100,
    **_kwargs: Any,
) -> Tensor:
    """Copy all but each row's last, in the dtype they have."""
    from transformers.loss.loss_utils import fixed_cross_entropy

    shifted = logits[..., :-1, :].contiguous().view(-1, vocab_size)
    targets = labels[..., 1:].contiguous().view(-1)
    loss: Tensor = fixed_cross_entropy(shifted, targets, num_items_in_batch, ignore_index)
    return loss


def _keeping_what_it_gets(update: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the first keys and values of a layer themselves (4.53's DynamicCache.update)."""

    def update_or_keep(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.is_initialized and self.keys.numel():
            return update(self, keys, values, *args, **kwargs)
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        return keys, values

    return update_or_keep


def _returning_views(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Give back, for each layer, the key and value as the view of the projection they are split from.

    Source: ``present`` in modeling_gpt_bigcode.py of 4.53. The model does not turn its cache off where layers
    are checkpointed, as Llama does, so that every layer's projection lives as long as the outputs. A loop
    that asks for no cache gets none.
    """

    def forward_and_keep(self: Any, *args: Any, use_cache: bool | None = None, **kwargs: Any) -> Any:
        if not (self.config.use_cache if use_cache is None else use_cache):
            return forward(self, *args, use_cache=use_cache, **kwargs)
        projected: list[Any] = []
        hooks = [
            block.attn.c_attn.register_forward_hook(lambda _module, _inputs, result: projected.append(result))
            for block in self.h
        ]
        try:
            outputs = forward(self, *args, use_cache=False, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        outputs.past_key_values = tuple(
            result[..., block.attn.embed_dim :] if self.multi_query else result
            for block, result in zip(self.h, projected, strict=True)
        )
        return outputs

    return forward_and_keep
