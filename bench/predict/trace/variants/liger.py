"""Stand-ins for Liger's patch of a model: what its autograd functions allocate and save, without values.

Source: Liger-Kernel 0.8.5, src/liger_kernel: ops/rms_norm.py, rope.py, swiglu.py, geglu.py and
transformers/monkey_patch.py (_apply_liger_kernel_to_instance). Its Triton kernels write into what is there.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from bench.errors import UntraceableError
from bench.scenario.platform import Platform
from bench.training import methods
from bench.training.rows.data import IGNORED_LABEL


class _Kind(NamedTuple):
    """How a kind of model is patched: its norms, and whether gradients take their place; gates; rotations."""

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    in_place: bool = True
    fused_gate: bool = False  # one linear layer makes both halves
    rotations: bool = True


_GEMMA_2 = (*_Kind().norms, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("llama", "smollm3", "ministral", "mistral", "qwen2", "gemma"), _Kind()),
    "qwen3": _Kind(norms=(*_Kind().norms, "q_norm", "k_norm")),
    "gemma2": _Kind(norms=_GEMMA_2, in_place=False),
    "gemma3_text": _Kind(norms=(*_GEMMA_2, "q_norm", "k_norm"), in_place=False),
    "phi3": _Kind(fused_gate=True),
    **dict.fromkeys(("olmo2", "olmo3"), _Kind(norms=_AFTER, in_place=False)),
}
"""Kinds whose patch is expressed here; Liger has others, with experts or towers."""
_LAST_NORM_IN_PLACE = {"olmo2", "olmo3"}
_MULTIPROCESSORS = {(8, 0): 108, (8, 6): 84, (8, 9): 142, (9, 0): 132, (12, 0): 188}
"""Of the largest card of a capability; its norms add up a weight's gradient in a row for each."""
_replaced: dict[str, Any] = {}


def liger_stand_ins(platform: Platform) -> Iterator[Any]:
    """Yield what patches models without Liger, for a card; rotations are put back at the end."""
    if platform.device == "cpu":
        return
    rows = _MULTIPROCESSORS.get(platform.capability, 132)

    def patch_model(model: Any, *, fused_loss: bool) -> None:
        _patch(model, {} if fused_loss else {"fused_linear_cross_entropy": False}, rows)

    yield patch.object(methods, "patch_model", patch_model)
    if Version(transformers.__version__) < Version("5.1"):  # where a Trainer asks for Liger by itself
        from transformers import trainer

        apply = lambda model, options: _patch(_unwrapped(model), options or {}, rows)  # noqa: E731
        yield patch.object(trainer, "apply_liger_kernel", apply)
    yield _rotations_put_back()


@contextmanager
def _rotations_put_back() -> Iterator[None]:
    try:
        yield
    finally:
        for module, function in _replaced.items():
            sys.modules[module].apply_rotary_pos_emb = function  # type: ignore[attr-defined]  # as it was
        _replaced.clear()


def _patch(model: Any, options: dict[str, bool], rows: int) -> None:
    """Patch a model as Liger does by its options, all on by default."""
    name = model.config.model_type
    kind = KINDS.get(name)
    if kind is None:
        raise UntraceableError(
            f"kernels liger is not predicted for {name} models, only for {', '.join(sorted(KINDS))}; set "
            "training.kernels to torch, or measure it with bench run."
        )
    if options.get("rope", True) and kind.rotations:
        rotate(model)
    base = getattr(model, model.base_model_prefix)
    for path, module in base.named_modules():
        last = path.rpartition(".")[2]
        if options.get("rms_norm", True) and (last in kind.norms or path == "norm"):
            in_place = kind.in_place or (path == "norm" and name in _LAST_NORM_IN_PLACE)
            _bind(module, lambda self, values, at=in_place: _norm(self, values, rows, in_place=at))
        elif last == "mlp" and options.get("geglu" if name.startswith("gemma") else "swiglu", True):
            _bind(module, _fused_gate if kind.fused_gate else _gate)
    if options.get("fused_linear_cross_entropy", True):
        _bind(model, _forward)


def rotate(model: Any) -> None:
    """Put Liger's rotation in the place of that of a model's kind, until the trace is over."""
    module = type(_unwrapped(model)).__module__
    if module not in _replaced:
        _replaced[module] = sys.modules[module].apply_rotary_pos_emb
        sys.modules[module].apply_rotary_pos_emb = _rotated  # type: ignore[attr-defined]  # as Liger does


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _bind(module: nn.Module, forward: Any) -> None:
    module.forward = MethodType(forward, module)


def _norm(module: Any, values: Tensor, rows: int, *, in_place: bool) -> Tensor:
    normed: Tensor = _Norm.apply(values, module.weight, rows, in_place)  # type: ignore[no-untyped-call]  # torch's own
    return normed


def _rotated(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, *_more: Any, **_named: Any
) -> tuple[Tensor, Tensor]:
    rotated: tuple[Tensor, Tensor] = _Rotation.apply(query, key, cosines, sines)  # type: ignore[no-untyped-call]  # torch's own
    return rotated


def _gate(module: Any, values: Tensor) -> Any:
    return module.down_proj(_Gate.apply(module.gate_proj(values), module.up_proj(values)))  # type: ignore[no-untyped-call]  # torch's own


def _fused_gate(module: Any, values: Tensor) -> Any:
    gates, ups = module.gate_up_proj(values).chunk(2, dim=-1)
    return module.down_proj(_Gate.apply(gates, ups))  # type: ignore[no-untyped-call]  # torch's own


def _forward(
    model: Any, input_ids: Tensor | None = None, labels: Tensor | None = None, **inputs: Any
) -> CausalLMOutputWithPast:
    """Stand for ``lce_forward``: in training a loss and no logits."""
    inputs.pop("num_items_in_batch", None)
    outputs = getattr(model, model.base_model_prefix)(input_ids=input_ids, **inputs)
    hidden = outputs[0]
    if labels is None or not model.training:
        return CausalLMOutputWithPast(logits=model.lm_head(hidden), past_key_values=outputs.past_key_values)
    targets = nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous()
    loss = fused_loss_in_buffers(hidden.view(-1, hidden.shape[-1]), model.lm_head.weight, targets.view(-1))
    return CausalLMOutputWithPast(loss=loss, past_key_values=outputs.past_key_values)


class _Norm(torch.autograd.Function):
    """Saves what it is given, the weight, and a number in fp32 for each row; may write over the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, rows: int, in_place: bool) -> Tensor:  # noqa: FBT001 - of apply()
        flat = values.contiguous().view(-1, values.shape[-1])
        normed = torch.empty(flat.shape, dtype=flat.dtype, device=flat.device)
        statistics = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
        ctx.rows, ctx.in_place = rows, in_place
        ctx.save_for_backward(flat, weight, statistics)
        return normed.view(values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _flat, weight, _statistics = ctx.saved_tensors
        gradient = gradient.contiguous()
        trained = ctx.needs_input_grad[1]
        size = (ctx.rows, len(weight))
        partial = torch.empty(size, dtype=torch.float32, device=weight.device) if trained else None
        own = gradient.view(gradient.shape) if ctx.in_place else torch.zeros_like(gradient)
        return own, None if partial is None else partial.sum(dim=0).to(weight.dtype), None, None


class _Rotation(torch.autograd.Function):
    """Rotates queries and keys where they are, as [batch, positions, heads, width]; saves both angles."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cosines.contiguous(), sines.contiguous())
        return tuple(each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key))

    @staticmethod
    def backward(_ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor | None, ...]:
        own = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key))
        return (*own, None, None)


class _Gate(torch.autograd.Function):
    """Saves both halves and nothing between; their gradients are written over them (SwiGLU and GEGLU)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, ups: Tensor) -> Tensor:
        gates, ups = gates.contiguous(), ups.contiguous()
        flat = [each.view(-1, each.shape[-1]) for each in (gates, ups)]
        ctx.save_for_backward(*flat)
        return torch.empty_like(flat[0]).view(gates.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        gradient = gradient.contiguous()
        return tuple(each.view(gradient.shape) for each in ctx.saved_tensors)


def empty_liger_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Stand for ``bench.training.losses.liger_loss``: the same arguments, a loss without a value.

    Source: Liger-Kernel src/liger_kernel/ops/fused_linear_cross_entropy.py (0.6), by default settings: what
    its kernel allocates, in its order. Its Triton kernels work in place and allocate nothing.
    """

    def add(total: Tensor, logits: Tensor, part: Tensor) -> None:
        total += torch.mm(logits.t(), part).float()

    return _loss(hidden.flatten(0, 1), weight, targets.flatten(), add)


def fused_loss_in_buffers(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Stand for the same loss as Liger 0.8 has it: logits in one buffer, products added where they belong.

    Shapes: hidden [tokens, width], targets [tokens]. On cards from Ampere on. Where autocast casts what is
    multiplied, each chunk has logits of its own, and the weight's gradient still none besides.
    """
    own = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
    in_buffers = hidden.dtype == weight.dtype == own
    return _loss(
        hidden, weight, targets, None if in_buffers else lambda _, logits, part: part.to(logits.dtype)
    )


_Add = Callable[[Tensor, Tensor, Tensor], object]
"""Adds the product of a chunk's logits and hidden states to the weight's gradient."""


def _loss(hidden: Tensor, weight: Tensor, targets: Tensor, add: _Add | None) -> Tensor:
    loss: Tensor = _FusedLoss.apply(hidden, weight, targets, add)  # type: ignore[no-untyped-call]  # torch's own
    return loss


class _FusedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk, and only scaled in the backward pass.

    Without ``add`` all chunks share one buffer for their logits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, add: _Add | None) -> Tensor:
        (tokens, width), vocabulary = hidden.shape, len(weight)
        # Liger takes the next power of two at a time.
        chunk = min(1 << (-(-tokens // -(-vocabulary // width)) - 1).bit_length(), tokens)
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        counted = (targets != IGNORED_LABEL).sum()
        if add is None:
            logits = torch.empty((chunk, vocabulary), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, tokens, chunk) if add else ():
            part = hidden[start : start + chunk]
            logits = (part @ weight.t()).contiguous()  # becomes its own gradient
            hidden_gradient[start : start + chunk] = logits @ weight
            if add and weight_gradient is not None:
                add(weight_gradient, logits, part)
        del counted, logits
        ctx.save_for_backward(hidden_gradient.detach(), weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.saved_tensors, None, None)
