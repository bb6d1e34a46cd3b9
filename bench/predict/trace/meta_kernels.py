"""Kernels for the meta device that torch lacks there, or whose results differ from a platform's in size.

Results only; what a kernel takes besides is in ``kernels.py``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._meta_registrations
from torch import Tensor

from bench.scenario.platforms import Platform


@contextmanager
def staged_results(platform: Platform) -> Iterator[None]:
    """Use these kernels for tensors of the meta device while a ``with`` block runs."""
    import bitsandbytes  # noqa: F401 - registers the operators

    kernels = _EVERYWHERE | (_ON_CPU if platform.device == "cpu" else {})
    library = torch.library.Library("aten", "IMPL")
    foreign = torch.library.Library("bitsandbytes", "IMPL")
    try:
        for name, kernel in kernels.items():
            namespace, _, bare = name.partition("::")
            (library if namespace == "aten" else foreign).impl(bare, kernel, "Meta", allow_override=True)
        yield
    finally:
        library._destroy()  # noqa: SLF001 - has no public name
        foreign._destroy()  # noqa: SLF001 - the same


def _histogram(values: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:  # noqa: A002, ARG001 - torch's own signature
    """Count in the dtype of the input; torch has this kernel for floating-point tensors only."""
    return values.new_empty(bins)


def _layer_norm(
    values: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, _epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means and deviations in the input's dtype, or in fp32 if the parameters' differs.

    On CUDA they are always fp32, as in torch's kernel for the meta device.
    Source: pytorch aten/src/ATen/native/layer_norm.cpp and native/cpu/mixed_data_type.h.
    """
    mixed = any(part is not None and part.dtype != values.dtype for part in (weight, bias))
    outer = values.shape[: values.dim() - len(shape)]
    statistics = values.new_empty((*outer, *[1] * len(shape)), dtype=torch.float32 if mixed else values.dtype)
    return (
        torch.empty_like(values, memory_format=torch.contiguous_format),
        statistics,
        torch.empty_like(statistics),
    )


def _grouped_product(
    left: Tensor,
    right: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,  # noqa: ARG001 - the operator's own signature
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply group by group in any dtype; torch's kernel for the meta device takes bf16 only."""
    return torch._meta_registrations._create_grouped_mm_output_tensor(  # type: ignore[no-any-return]  # noqa: SLF001 - the rule of all devices
        left, right, offs, out_dtype or left.dtype
    )


def _int8_rows(values: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantise without outliers, the number of which depends on the data (bitsandbytes _ops.py)."""
    rows = values.numel() // values.shape[-1]
    packed = values.new_empty(values.shape, dtype=torch.int8)
    scales = values.new_empty(rows, dtype=torch.float32)
    return packed, scales, values.new_empty(0, dtype=torch.int64) if threshold > 0 else None


def _int8_mixed_product(
    values: Tensor,
    packed: Tensor,
    weight: Tensor,
    _row_scales: Tensor,
    _column_scales: Tensor,
    _outliers: Tensor | None = None,
    _bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Multiply without outliers (bitsandbytes _ops.py)."""
    return values.new_empty((*packed.shape[:-1], weight.shape[0])), None


_EVERYWHERE: dict[str, Callable[..., Any]] = {
    "aten::_grouped_mm": _grouped_product,
    "aten::histc": _histogram,
    "bitsandbytes::int8_vectorwise_quant": _int8_rows,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_mixed_product,
}
_ON_CPU: dict[str, Callable[..., Any]] = {"aten::native_layer_norm": _layer_norm}
