"""What kernels allocate without telling torch's dispatcher, by platform. One entry each, with its source.

Sizes are of temporary blocks in bytes, alive for one kernel, unless an entry says that they are kept.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from bench.metrics import MIB
from bench.spec.platforms import Platform

_aten = torch.ops.aten
Scratch = Callable[[Platform, tuple[Any, ...], Mapping[str, Any], Any], int]


class Kernels:
    """The kernels of one platform, and what they have kept so far."""

    def __init__(self, platform: Platform, *, padded: bool) -> None:
        """``padded`` says that the attention mask of the traced batch hides something."""
        self.platform = platform
        self._padded = padded
        self._handles: set[bool] = set()

    @property
    def on_cpu(self) -> bool:
        """Tell whether the platform is the CPU."""
        return self.platform.device == "cpu"

    def answer(self, question: torch.Tensor) -> bool | float | int:
        """Answer what code asks of a tensor's data, as a finite batch of this kind would."""
        if question.dtype is torch.bool:
            return not (self._padded and _asked_by("ignore_causal_mask", "ignore_bidirectional"))
        return 1.0 if question.dtype.is_floating_point else 1

    def kept_workspaces(self, func: Any, *, in_backward: bool) -> Iterator[tuple[int, str]]:  # noqa: ANN401 - torch ships no type
        """Yield workspaces that this operator is the first to need: cuBLAS's, one for each thread's handle."""
        if self.platform.device == "cuda" and func in _GEMMS and in_backward not in self._handles:
            self._handles.add(in_backward)
            yield cublas_workspace_bytes(self.platform), "cuBLAS workspace"

    def scratch_bytes(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:  # noqa: ANN401 - the same
        """Return the bytes of temporary memory that the operator takes inside its kernel."""
        if self.platform.device == "cpu":
            return 0
        scratch = _SCRATCH.get(func)
        return scratch(self.platform, args, kwargs, result) if scratch else 0


def cublas_workspace_bytes(platform: Platform) -> int:
    """Return the size of a cuBLAS workspace (pytorch aten/src/ATen/cuda/CublasHandlePool.cpp)."""
    return 32 * MIB if platform.capability >= (9, 0) else 8 * MIB + 128 * 1024


def _flash_backward(_platform: Platform, args: tuple[Any, ...], _kwargs: Mapping[str, Any], _out: Any) -> int:  # noqa: ANN401 - the same
    """fp32 accumulator of dq, the softmax's row sums, and dk, dv for every query head under GQA."""
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    key_heads, key_length = key.shape[1:3]
    rounded_width = _round_up(width, 32 if width <= 128 else 64)
    rounded_length = _round_up(length, 128)
    total = 4 * batch * rounded_length * heads * rounded_width + 4 * batch * heads * rounded_length
    if heads != key_heads:
        total += 2 * query.element_size() * batch * key_length * heads * width
    return int(total)


def _embedding_backward(
    _platform: Platform, args: tuple[Any, ...], _kwargs: Mapping[str, Any], _out: Any
) -> int:
    """Sorted indices, their origin and counts; up to 3072 tokens a kernel without sorting is used."""
    tokens = args[1].numel()
    return tokens * 8 * 4 if tokens > 3072 else 0


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _asked_by(*names: str) -> bool:
    """Tell whether a function with one of these names is on the stack."""
    frame = sys._getframe(1)  # noqa: SLF001 - the stack has no public cheap reader
    for _ in range(20):
        if frame is None:
            return False
        if any(name in frame.f_code.co_name for name in names):
            return True
        frame = frame.f_back  # type: ignore[assignment]  # None ends the walk
    return False


_GEMMS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}
_SCRATCH: dict[Any, Scratch] = {
    _aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,  # noqa: SLF001 - its only name
    _aten.embedding_dense_backward.default: _embedding_backward,
}
