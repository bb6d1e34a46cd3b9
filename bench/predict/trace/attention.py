"""Chooses the attention kernel that torch would choose on a platform. Allocates only what torch does.

Source of every rule: pytorch aten/src/ATen/native/transformers/attention.cpp, sdp_utils_cpp.cpp and .h, and
cuda/sdp_utils.cpp.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from bench.errors import UntraceableError
from bench.predict.trace.meta_kernels import registrations
from bench.scenario.platform import Platform

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_WIDEST_FLASH = 256
_WIDEST_FLASH_TRAINED = 192  # on consumer cards; wider ones only without dropout and from the next on
_WIDE_FLASH_TRAINED = 224
_DIMENSIONS = 4  # batch, heads, positions, width


class _Call(NamedTuple):
    """The arguments of one call of scaled_dot_product_attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout: float
    causal: bool
    scale: float | None
    grouped: bool

    @property
    def trains(self) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in self[:3])


@contextmanager
def patched_attention(platform: Platform) -> Iterator[None]:
    """Use the platform's kernels for tensors of the meta device while a ``with`` block runs."""

    def attention(  # noqa: PLR0917 - torch's own signature
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = _Call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _RUN[kernel_of(call, platform)](call)

    with registrations("aten") as aten, ExitStack() as stack:
        aten.impl("scaled_dot_product_attention", attention, "AutogradMeta")
        for one in _flash_attn() if platform.device == "cuda" else ():
            stack.enter_context(one)
        yield


def _flash_attn() -> Iterator[Any]:
    """Let transformers take its own way with flash-attn, for whose kernel torch's stands: it is the same.

    Source: flash_attn/flash_attn_interface.py of 2.8 (FlashAttnFunc pads heads to a multiple of 8 and keeps
    queries, keys, values, the result and its logarithms of sums), as in torch's.
    """
    from transformers import PreTrainedModel, modeling_flash_attention_utils

    has_cache = hasattr(modeling_flash_attention_utils, "_flash_with_kvcache_fn")  # from 5.4 on
    own = (_flash, _refuse_lengths, *(3 if has_cache else 2) * [None])
    refuses = "_flash_attn_import_error" if has_cache else "_flash_attn_2_can_dispatch"
    yield patch.object(PreTrainedModel, refuses, lambda *_, **__: None)
    yield patch.object(modeling_flash_attention_utils, "_loaded_implementation", None)
    yield patch.object(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: own)
    for name in ("_upad_input", "_prepare_from_posids"):
        yield patch.object(modeling_flash_attention_utils, name, _refuse_lengths)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, softmax_scale: float | None, **_more: float
) -> Tensor:
    """Run flash_attn_func of [batch, positions, heads, width]; windows, caps and dropout take no memory."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    call = _Call(query, key, value, None, 0.0, causal, softmax_scale, grouped=True)
    return _run_flash(call).transpose(1, 2)


def _refuse_lengths(*_args: Any, softcap: float = 0.0, **_kwargs: Any) -> None:  # noqa: ARG001 - transformers looks for its name
    raise UntraceableError(
        "flash_attention_2 over padded or packed rows cannot be traced: its kernel's sizes depend on the "
        'data; set training.attention to "sdpa", or data.attention_mask to "ones".'
    )


def kernel_of(call: _Call, platform: Platform) -> str:
    """Return the first kernel in torch's order of preference that takes the call."""
    if platform.device == "cpu":
        return "flash on the CPU" if _flash_on_cpu(call) else "math"
    if _flash_on_cuda(call, platform):
        return "flash"
    return "efficient" if _efficient_on_cuda(call, platform) else "math"


def _flash_on_cpu(call: _Call) -> bool:
    """Tell whether use_flash_attention_cpp holds."""
    return (
        _fused_shapes(call, grouped_heads=True)
        and call.dropout == 0.0
        and _mask_broadcasts(call)
        and call.query.shape[-1] == call.key.shape[-1] == call.value.shape[-1]
        and call.query.is_floating_point()
    )


def _flash_on_cuda(call: _Call, platform: Platform) -> bool:
    """Tell whether can_use_flash_attention holds."""
    width = call.query.shape[-1]
    # Its backward pass has no kernel for some wide heads on consumer cards.
    small = (8, 6) <= platform.capability <= (8, 9) or (12, 0) <= platform.capability <= (12, 1)
    trainable = (
        not (call.trains and small)
        or width <= _WIDEST_FLASH_TRAINED
        or (call.dropout == 0.0 and width > _WIDE_FLASH_TRAINED)
    )
    return (
        platform.capability >= (8, 0)
        and _fused_shapes(call, grouped_heads=True)
        and call.mask is None
        and width == call.key.shape[-1] == call.value.shape[-1]
        and width <= _WIDEST_FLASH
        and trainable
        and not (call.causal and call.query.shape[-2] != call.key.shape[-2])
        and call.query.dtype in _HALF
    )


def _efficient_on_cuda(call: _Call, platform: Platform) -> bool:
    """Tell whether can_use_mem_efficient_attention holds."""
    half = call.query.dtype in _HALF
    ampere = platform.capability >= (8, 0)
    tensor_cores = ampere or (platform.capability >= (7, 0) and half)
    alignment = max(4 if ampere else 1, (8 if half else 4) if tensor_cores else 1)
    dtypes = (*_HALF, torch.float32) if ampere else (torch.float16, torch.float32)
    return (
        _fused_shapes(call, grouped_heads=False)
        and call.query.shape[-1] == call.key.shape[-1]
        and call.query.shape[-1] % alignment == 0
        and call.value.shape[-1] % alignment == 0
        and call.query.dtype in dtypes
        and (call.mask is None or call.mask.stride(-1) == 1)
    )


def _fused_shapes(call: _Call, *, grouped_heads: bool) -> bool:
    """Check what every fused kernel asks of queries, keys and values (sdp_utils_cpp.h)."""
    query, key, value = call[:3]
    if not query.dim() == key.dim() == value.dim() == _DIMENSIONS:
        return False
    if call.grouped and grouped_heads:
        heads_fit = key.shape[1] == value.shape[1] and query.shape[1] % key.shape[1] == 0
    else:
        heads_fit = query.shape[1] == key.shape[1] == value.shape[1]
    return (
        heads_fit
        and query.dtype == key.dtype == value.dtype
        and query.shape[0] == key.shape[0] == value.shape[0]
        and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    )


def _mask_broadcasts(call: _Call) -> bool:
    """Tell whether the mask has 2 or 4 dimensions that fit the scores' (check_attn_mask_shape)."""
    if call.mask is None:
        return True
    scores = (call.query.shape[0], call.query.shape[1], call.query.shape[2], call.key.shape[2])
    fits = all(size in (1, full) for size, full in zip(call.mask.shape[::-1], scores[::-1], strict=False))
    return fits and call.mask.dim() in (2, 4) and not call.mask.requires_grad


def _run_flash_on_cpu(call: _Call) -> Tensor:
    return _aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        *call[:3], call.dropout, call.causal, attn_mask=_additive(call), scale=call.scale
    )[0]


def _run_flash(call: _Call) -> Tensor:
    """Pad the heads to a multiple of 8, run, and cut the padding off."""
    width = call.query.shape[-1]
    scale = width**-0.5 if call.scale is None else call.scale
    padded = [_pad_last(tensor, 8) for tensor in call[:3]]
    out: Tensor = _aten._scaled_dot_product_flash_attention(
        *padded, call.dropout, call.causal, return_debug_mask=False, scale=scale
    )[0]
    return out if out.shape[-1] == width else out[..., :width]


def _run_efficient(call: _Call) -> Tensor:
    """Align the mask as the kernel needs it, expand it without copying, and run."""
    mask = _additive(call)
    if mask is not None:
        aligned = all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1
        if not aligned:
            last = mask.shape[-1]
            mask = functional.pad(mask, (0, 8 - last % 8))[..., :last]
        mask = mask.expand(*call.query.shape[:3], call.key.shape[2])
    return _aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
        *call[:3], mask, call.trains, call.dropout, call.causal, scale=call.scale
    )[0]


def _additive(call: _Call) -> Tensor | None:
    """Turn a boolean mask into one to add (convert_boolean_attn_mask)."""
    if call.mask is None or call.mask.dtype != torch.bool:
        return call.mask
    hidden = torch.scalar_tensor(float("-inf"), dtype=call.query.dtype, device=call.mask.device)
    return torch.where(call.mask, 0.0, hidden)


def _pad_last(tensor: Tensor, alignment: int) -> Tensor:
    missing = -tensor.shape[-1] % alignment
    return functional.pad(tensor, (0, missing)) if missing else tensor


def _run_math(call: _Call) -> Tensor:
    return _aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
        *call[:3], _additive(call), call.dropout, call.causal, scale=call.scale, enable_gqa=call.grouped
    )[0]


_RUN = {
    "flash": _run_flash,
    "efficient": _run_efficient,
    "flash on the CPU": _run_flash_on_cpu,
    "math": _run_math,
}
