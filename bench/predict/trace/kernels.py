"""What CUDA kernels allocate without telling torch's dispatcher: one table, each entry with its source.

Blocks are in bytes and live for one call of the kernel, except the workspaces of cuBLAS handles, which stay.
Left out, as each is under a megabyte or so: buffers of reductions over few rows, of sorts of a few thousand
numbers, and the split of a forward attention over too few query blocks to fill the card.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.metrics import MIB
from bench.scenario.platform import Platform, version_of

_aten = torch.ops.aten
_META = torch.device("meta")
_FP32 = 4
_INT64 = 8
_HALF = (torch.float16, torch.bfloat16)
_WIDTH_IN_REGISTERS = 128
"""Of a head: up to it the memory-efficient kernels accumulate outputs, dk and dv in registers."""
_FLASH_STEP_WIDTH = 192
"""Of a head: up to it FlashAttention rounds to 32, beyond it to 256."""
_UNSORTED_TOKENS = 3072
"""Up to it the gradient of an embedding is summed without sorting."""


Blocks = Callable[..., Sequence[int]]
"""Takes the arguments of one call of an operator."""


class Scratch(NamedTuple):
    """The temporary blocks of one operator, in versions of torch before ``before``."""

    operator: Any
    blocks: Blocks
    source: str
    before: tuple[int, ...]


SCRATCH: list[Scratch] = []
"""Entries by operator; of two for one operator, the versions exclude each other."""


def _scratch(*names: str, source: str, before: tuple[int, ...] = (1000,)) -> Callable[[Blocks], Blocks]:
    """Enter a function as the scratch blocks of these operators of aten."""

    def enter(blocks: Blocks) -> Blocks:
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(_aten, packet), overload or "default")
            SCRATCH.append(Scratch(operator, blocks, source, before))
        return blocks

    return enter


class Kernels:
    """The kernels of one platform, and what they have kept so far."""

    def __init__(self, platform: Platform, *, padded: bool = False, packed: bool = False) -> None:
        """Take a platform; the batch's mask hides something, its rows hold several sequences."""
        self.platform = platform
        self.padded = padded
        self.packed = packed
        self._handles: set[bool] = set()
        version = version_of(platform.torch)
        entries = SCRATCH if platform.device == "cuda" else ()
        self._scratch = {entry.operator: entry.blocks for entry in entries if version < entry.before}

    def over(self, *, padded: bool, packed: bool) -> "Kernels":
        """Return kernels that have kept as much, over another batch."""
        others = Kernels(self.platform, padded=padded, packed=packed)
        others._handles |= self._handles
        return others

    @property
    def on_cpu(self) -> bool:
        return self.platform.device == "cpu"

    def takes_more(self, func: Any) -> bool:
        """Tell whether an operator's kernel may take more than its result: a workspace or scratch blocks."""
        return func in _GEMMS or func in self._scratch

    def kept_workspaces(self, func: Any, *, in_backward: bool) -> Iterator[tuple[int, str]]:
        """Yield the workspaces that this operator is the first to need: one of cuBLAS for each thread."""
        if self.platform.device == "cuda" and func in _GEMMS and in_backward not in self._handles:
            self._handles.add(in_backward)
            yield cublas_workspace_bytes(self.platform), "cuBLAS workspace"

    def scratch_blocks(self, func: Any, args: tuple[Any, ...]) -> Sequence[int]:
        """Return the blocks that the operator's kernel takes besides its result, for as long as it runs."""
        return self._scratch[func](*args) if func in self._scratch else ()


def cublas_workspace_bytes(platform: Platform) -> int:
    """Return the size of a cuBLAS handle's workspace.

    Source: pytorch aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: ":4096:2:16:8" in KiB,
    32 MiB on Hopper and, in later versions (taken to be those from 2.9), on Blackwell.
    """
    major = platform.capability[0]
    large = {9} if version_of(platform.torch) < (2, 9) else {9, 10, 11, 12}
    return 32 * MIB if major in large else 2 * 4 * MIB + 8 * 16 * 1024


@_scratch(
    "addmm",
    before=(2, 7),
    source="pytorch aten/src/ATen/cuda/CUDABlas.cpp, gemm_and_bias; CublasHandlePool.cpp shares from 2.7",
)
def _cublaslt(bias: Tensor, left: Tensor, *_: object) -> Sequence[int]:
    """Fused bias: cuBLASLt's own workspace, before it shared that of the cuBLAS handle."""
    return (MIB,) if bias.dim() == 1 and left.dtype in (*_HALF, torch.float32) else ()


@_scratch(
    "_scaled_dot_product_flash_attention_backward",
    source="pytorch aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd",
)
def _flash_backward(_gradient: Tensor, query: Tensor, key: Tensor, *_: object) -> Sequence[int]:
    """Softmax row sums, an fp32 accumulator of dq, and dk and dv of every query head under grouping."""
    batch, heads, length, width = query.shape
    key_heads, key_length = key.shape[1:3]
    rounded_length = _up(length, 128)
    blocks = [
        _FP32 * batch * heads * rounded_length,
        _FP32 * batch * rounded_length * heads * (_up(width, 32) if width <= _FLASH_STEP_WIDTH else 256),
    ]
    if heads != key_heads:
        blocks += 2 * [query.element_size() * batch * key_length * heads * width]
    return blocks


@_scratch(
    "_scaled_dot_product_efficient_attention",
    source="pytorch .../transformers/cuda/attention.cu; mem_eff_attention/kernel_forward.h, "
    "kNeedsOutputAccumulatorBuffer",
)
def _efficient_forward(query: Tensor, _key: Tensor, value: Tensor, *_: object) -> Sequence[int]:
    """Accumulate half-precision outputs in fp32 where a head is too wide for the registers."""
    batch, heads, length = query.shape[:3]
    wide = value.shape[-1] > _WIDTH_IN_REGISTERS and query.dtype in _HALF
    return (_FP32 * batch * length * heads * value.shape[-1],) if wide else ()


@_scratch(
    "_scaled_dot_product_efficient_attention_backward",
    source="pytorch .../transformers/cuda/attention_backward.cu; mem_eff_attention/kernel_backward.h, "
    "kKernelComputesDelta, workspace_size",
)
def _efficient_backward(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object
) -> Sequence[int]:
    """Row sums of gradient times output; in half precision fp32 accumulators of the gradients.

    The accumulator of dq is in tiles of 128 queries by 64 columns (64 by 64 for some kernels: at most one
    tile a head less), those of dk and dv are only there where a head is too wide for the registers.
    """
    batch, heads, length, width = query.shape
    delta = _FP32 * batch * heads * length
    if query.dtype not in _HALF:
        return _FP32 * batch * heads * length * value.shape[-1], delta, delta
    per_head = _up(length, 128) * _up(width, 64)
    if max(width, value.shape[-1]) > _WIDTH_IN_REGISTERS:
        per_head += _up(key.shape[2], 128) * (_up(width, 64) + _up(value.shape[-1], 64))
    return delta, _FP32 * batch * heads * per_head


@_scratch(
    "embedding_dense_backward",
    source="pytorch aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu",
)
def _embedding_backward(gradient: Tensor, indices: Tensor, rows: int, *_: object) -> Sequence[int]:
    """Sort the tokens, then sum their gradients in fp32 in segments of ten; few tokens need neither.

    For few the blocks are empty, so that their number does not depend on the tokens.
    """
    tokens, width = indices.numel(), gradient.shape[-1]
    if tokens <= _UNSORTED_TOKENS:
        return 7 * [0]
    segments = min(tokens, rows)
    partial = tokens // 10 + segments
    accumulated = max(_FP32, gradient.element_size())
    return (
        *2 * [_INT64 * tokens],  # the sorted tokens and where they were
        *3 * [_INT64 * segments],
        _INT64 * partial,
        accumulated * partial * width,
    )


@_scratch(
    "index_put",
    "index_put_",
    source="pytorch aten/src/ATen/native/cuda/Indexing.cu, index_put_with_sort_kernel",
)
def _index_put(
    _tensor: Tensor, indices: Sequence[Tensor | None], _values: Tensor, *accumulate: object
) -> Sequence[int]:
    """Sum rows by sorting their indices: linear, sorted and original ones, a range, and the sort's copies."""
    if not any(accumulate[:1]):
        return ()
    rows = prod(torch.broadcast_shapes(*(index.shape for index in indices if index is not None)))
    return 6 * [_INT64 * rows]


@_scratch(
    "_foreach_norm.Scalar",
    source="pytorch aten/src/ATen/native/cuda/ForeachReduceOp.cu; kChunkSize of MultiTensorApply.cuh",
)
def _foreach_norm(tensors: Sequence[Tensor], *_: object) -> Sequence[int]:
    """One fp32 partial sum for each 65,536 elements of the largest tensor, for every tensor."""
    chunks = max((-(-tensor.numel() // 65536) for tensor in tensors), default=0)
    return (max(_FP32, tensors[0].element_size()) * len(tensors) * chunks,) if chunks else ()


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


_GEMMS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}


@dataclass(frozen=True, slots=True)
class ScratchCall:
    """A call whose kernel takes scratch memory: ``count`` blocks from number ``first`` on.

    ``numbers`` are all its whole numbers: sizes and strides of tensors, and integer arguments; ``form`` is
    the rest, with their places left open.
    """

    func: Any
    first: int
    count: int
    form: Any
    numbers: NDArray[np.int64]


def described(func: Any, args: tuple[Any, ...], first: int, count: int) -> ScratchCall:
    numbers: list[int] = []
    form = _form(args, numbers)
    return ScratchCall(func, first, count, form, np.array(numbers, dtype=np.int64))


def rebuilt(call: ScratchCall, numbers: NDArray[np.int64]) -> tuple[Any, ...]:
    """Put the arguments of a call together again with other numbers, on tensors without data."""
    return tuple(_value(call.form, iter(numbers.tolist())))


def _form(value: Any, numbers: list[int]) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        numbers += [*value.size(), *value.stride()]
        return Tensor, value.dtype, value.dim()
    if isinstance(value, int) and not isinstance(value, bool):
        numbers.append(value)
        return (int,)
    if isinstance(value, list | tuple):
        return list, *(_form(each, numbers) for each in value)
    return None, value


def _value(form: tuple[Any, ...], numbers: Iterator[int]) -> Any:
    match form:
        case (kind, dtype, dimensions) if kind is Tensor:
            size, stride = ([next(numbers) for _ in range(dimensions)] for _ in range(2))
            return torch.empty_strided(size, stride, dtype=dtype, device=_META)
        case (kind,) if kind is int:
            return next(numbers)
        case (kind, *inside) if kind is list:
            return [_value(each, numbers) for each in inside]
    return form[1]
