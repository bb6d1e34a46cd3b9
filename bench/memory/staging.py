"""Makes meta tensors take the code paths that a platform's tensors take. Nothing is allocated here.

torch and its companions choose kernels by device; on the meta device they would choose those of a
reference implementation. Everything is put back when the ``with`` block ends.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from bench.spec.platforms import Platform

_aten = torch.ops.aten
_DISPATCHED_SDPA = torch.nn.functional.scaled_dot_product_attention


@contextmanager
def staged(platform: Platform) -> Iterator[None]:
    """Run a ``with`` block as if the meta device were the platform's."""
    import bitsandbytes.functional

    with ExitStack() as stack:
        for module, name in _device_lists():
            listed = getattr(module, name)()
            stack.enter_context(patch.object(module, name, lambda listed=listed: [*listed, "meta"]))
        sdpa = _cuda_attention if platform.device == "cuda" else _cpu_attention
        stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", sdpa))
        # bitsandbytes keeps its quantisation maps in a global; those made here have no data.
        maps = dict(bitsandbytes.functional.name2qmap)
        stack.callback(bitsandbytes.functional.name2qmap.update, maps)
        stack.callback(bitsandbytes.functional.name2qmap.clear)
        yield


def _device_lists() -> list[tuple[Any, str]]:
    """Return torch's functions that list the devices with fused and foreach kernels, where imported."""
    names = ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices")
    # torch.optim hides its modules behind the classes of the same name.
    modules = [import_module(f"torch.{name}") for name in ("utils._foreach_utils", "optim.optimizer")]
    return [(module, name) for module in modules for name in names if hasattr(module, name)]


def _cuda_attention(  # noqa: PLR0913 - torch's own signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
) -> torch.Tensor:
    """Choose the kernel that torch would choose on CUDA."""
    if query.device.type != "meta":
        return _DISPATCHED_SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    half = query.dtype in (torch.float16, torch.bfloat16)
    if attn_mask is None and half and query.shape[-1] <= 256:
        return _aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if enable_gqa and query.shape[1] != key.shape[1]:
        return _DISPATCHED_SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
            attn_mask.logical_not(), float("-inf")
        )
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs, dropout_p, is_causal, scale=scale
    )[0]


def _cpu_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Choose the kernel that torch would choose on the CPU."""
    return _DISPATCHED_SDPA(*args, **kwargs)
