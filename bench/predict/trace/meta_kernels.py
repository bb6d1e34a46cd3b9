"""Kernels for the meta device that torch lacks there, or whose results differ from a platform's in size.

Results only; what a kernel takes besides is in ``kernels.py``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._meta_registrations
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from bench.probes.flops import flops_of
from bench.scenario.platform import Platform, version_of

FREES_ITS_INPUT = (0, 43, 2)
"""Version from which the input is not kept (bitsandbytes pull request 1270, commit 9e753741)."""

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_META = torch.device("meta")
_FORGETTABLE = 20_000  # entries of one operator; a plan of many cells would otherwise grow without end


@contextmanager
def registrations(namespace: str) -> Iterator[torch.library.Library]:
    """Yield a library whose kernels for a namespace's operators are gone when the block ends."""
    library = torch.library.Library(namespace, "IMPL")
    try:
        yield library
    finally:
        library._destroy()


@contextmanager
def patched_results(platform: Platform) -> Iterator[None]:
    """Use these kernels for tensors of the meta device while a ``with`` block runs."""
    import bitsandbytes  # noqa: F401 - registers the operators

    kernels = _EVERYWHERE | (_ON_CPU if platform.device == "cpu" else {})
    with registrations("aten") as aten, registrations("bitsandbytes") as foreign:
        for name, kernel in kernels.items():
            namespace, _, bare = name.partition("::")
            (aten if namespace == "aten" else foreign).impl(bare, kernel, "Meta", allow_override=True)
        yield


def _histogram(values: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:  # noqa: A002, ARG001 - torch's own signature
    """Count in the dtype of the input; torch has this kernel for floating-point tensors only."""
    return values.new_empty(bins)


def _bincount(values: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """Count as many numbers as are asked for at least: who says how many means that there are no others.

    Source: pytorch aten/src/ATen/native/cuda/SummaryOps.cu, _bincount_cuda; without a least number, the
    largest value decides.
    """
    if not minlength:
        raise NotImplementedError("how many numbers bincount() counts is not known of a meta tensor")
    if weights is None:
        return values.new_empty(minlength, dtype=torch.int64)
    whole = not weights.is_floating_point()
    return weights.new_empty(minlength, dtype=torch.float64 if whole else weights.dtype)


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
    return torch._meta_registrations._create_grouped_mm_output_tensor(  # type: ignore[no-any-return]
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


def _loss(values: Tensor, target: Tensor, reduction: int = 1, _beta: float = 1.0) -> Tensor:
    """Return a loss; one number of it still has the memory that all of them had.

    Source: pytorch aten/src/ATen/native/BinaryOps.cpp (mse_loss), Loss.cpp (TORCH_META_FUNC, mean_out).
    """
    shape = torch.broadcast_shapes(values.shape, target.shape)
    losses = values.new_empty(shape, dtype=torch.result_type(values, target))
    return losses.resize_(()) if reduction else losses


def _binary_cross_entropy(
    values: Tensor, target: Tensor, _weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Return a loss, likewise (pytorch aten/src/ATen/native/Loss.cpp and cuda/Loss.cu)."""
    return _loss(values, target, reduction)


_EVERYWHERE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("aten::mse_loss", "aten::smooth_l1_loss", "aten::soft_margin_loss"), _loss),
    "aten::binary_cross_entropy": _binary_cross_entropy,
    "aten::_grouped_mm": _grouped_product,
    "aten::histc": _histogram,
    "aten::bincount": _bincount,
    "bitsandbytes::int8_vectorwise_quant": _int8_rows,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_mixed_product,
}
_ON_CPU: dict[str, Callable[..., Any]] = {"aten::native_layer_norm": _layer_norm}


def four_bit_product(platform: Platform) -> Any:
    """Return what takes the place of ``bitsandbytes.autograd._functions.MatMul4Bit`` on CUDA.

    The library at hand may be newer than the platform's, and its product on the meta device shows neither
    the de-quantised weight nor what older versions kept. Every version up to 0.49 makes the whole weight
    16-bit for each product; 0.50 has kernels of its own for at most 1,536 rows on some cards (its
    backends/cuda/ops.py, _gemm_4bit_use_custom_cuda) and does the same otherwise, so for these few the
    prediction is the copy of one weight too high. Versions before 0.43.2 hang the input on the context as
    an attribute, not by ``save_for_backward``: it lives as long as the graph, beyond backward() if a name
    for the loss or the outputs does.
    """
    from bitsandbytes.autograd._functions import MatMul4Bit
    from bitsandbytes.functional import dequantize_4bit

    keeps_input = version_of(platform.bitsandbytes) < FREES_ITS_INPUT

    class Product(MatMul4Bit):  # type: ignore[misc]  # bitsandbytes ships no types
        @staticmethod
        def forward(
            ctx: Any,
            values: Tensor,
            packed: Tensor,
            _out: None = None,
            bias: Tensor | None = None,
            state: Any = None,
        ) -> Tensor:
            ctx.is_empty = False
            ctx.state = state
            ctx.dtype_A, ctx.dtype_B = values.dtype, packed.dtype
            ctx.dtype_bias = getattr(bias, "dtype", None)
            ctx.tensors = (None, packed)
            if keeps_input and any(ctx.needs_input_grad[:2]):
                ctx.kept_input = values
            weight = dequantize_4bit(packed.view(-1, 1), state)  # a row until 0.49, which turned the result
            return torch.nn.functional.linear(values, weight.to(values.dtype), bias)

    return Product


def is_paged(tensor: Tensor) -> bool:
    """Tell whether a tensor lies in CUDA's managed memory, which torch's allocator never sees."""
    return bool(getattr(tensor, "is_paged", False))


def managed_state(*shape: int, dtype: torch.dtype = torch.float32, **_: object) -> Tensor:
    """Return paged optimizer state, unseen by ledgers and marked as bitsandbytes marks it."""
    with _disable_current_modes():
        tensor = torch.empty(shape, dtype=dtype, device="meta")
    tensor.is_paged = True  # type: ignore[attr-defined]  # bitsandbytes' own mark
    return tensor


def ordinary_state(*shape: int, dtype: torch.dtype = torch.float32, **_: object) -> Tensor:
    """Return the ordinary memory that paged optimizers use on a CPU."""
    return torch.zeros(shape, dtype=dtype, device="meta")


Remembered = dict[object, Any]
"""What else follows from an operator and its arguments' layouts, for those who work that out to keep."""


_Run = tuple[Any, int, Remembered | None]


@dataclass(frozen=True, slots=True)
class _Operator:
    """How an operator's results can be made again, and these and its FLOPs by its arguments' layouts."""

    kind: str
    known: dict[object, tuple[tuple[_Layout, ...], int, Remembered]] = field(default_factory=dict)


class ShapeMemory:
    """Results and FLOPs of operators by operator and the layouts of its arguments.

    Most of a trace is the same operators on the same shapes again, and many of torch's meta kernels are
    Python and take longer than everything around them. What is remembered is only what one of them has
    said: sizes, strides and dtypes of results that share no memory with anything.
    """

    def __init__(self) -> None:
        self._operators: dict[Any, _Operator] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Run:
        """Return what ``func`` would, run only if it has not met these layouts before, and its FLOPs."""
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = _Operator(_kind(func))
        kind = operator.kind
        if kind == "run":
            return _run(func, args, kwargs)
        try:
            key: object = tuple(map(_layout, args))
            if kwargs:  # as of factories, whose results may be of the default dtype
                given = tuple([(name, _layout(value)) for name, value in kwargs.items()])
                key = key, given, torch.get_default_dtype()
            known = operator.known.get(key)
        except TypeError:  # an argument that cannot be a key
            return _run(func, args, kwargs)
        if known is None:
            return self._learn(func, args, kwargs, key, operator)
        layouts, flops, remembered = known
        if kind == "in place":
            return args[0], flops, remembered
        if kind == "one":
            ((size, stride, dtype),) = layouts
            return torch.empty_strided(size, stride, dtype=dtype, device=_META), flops, remembered
        made = [
            torch.empty_strided(size, stride, dtype=dtype, device=_META) for size, stride, dtype in layouts
        ]
        return tuple(made), flops, remembered

    def _learn(self, func: Any, args: Any, kwargs: Any, key: object, operator: _Operator) -> _Run:
        result, flops, _ = _run(func, args, kwargs)
        results = result if isinstance(result, tuple) else (result,)
        known = operator.known
        if len(known) > _FORGETTABLE:
            known.clear()
        if operator.kind == "in place":
            if result is args[0]:
                known[key] = (), flops, {}
        elif all(isinstance(each, torch.Tensor) and _is_plain(each) for each in results) and not (
            _storages(results)
            & _storages(tree_leaves((args, kwargs)))  # as _unsafe_view's, which does not say so
        ):
            known[key] = tuple((each.size(), each.stride(), each.dtype) for each in results), flops, {}
        return result, flops, known[key][2] if key in known else None


def _run(func: Any, args: Any, kwargs: Any) -> _Run:
    result = func(*args, **kwargs)
    return result, flops_of(func, args, kwargs, result), None


def _kind(func: Any) -> str:
    """Return how an operator's results can be made again: one, several, in place, or only by running it."""
    schema = func._schema
    returns = schema.returns
    tensors = all(str(each.type) == "Tensor" for each in returns)
    if not returns or not tensors:
        return "run"
    if not schema.is_mutable and all(each.alias_info is None for each in returns):
        return "one" if len(returns) == 1 else "several"
    written = [
        index for index, each in enumerate(schema.arguments) if each.alias_info and each.alias_info.is_write
    ]
    in_place = written == [0] and len(returns) == 1 and returns[0].alias_info is not None
    # Only a name ending in _ says that nothing is resized: set_ and resize_ are named here for that reason.
    name = schema.name.partition("::")[2]
    return (
        "in place"
        if in_place and name.endswith("_") and name not in {"set_", "resize_", "resize_as_"}
        else "run"
    )


def _layout(value: Any) -> Any:
    """Return what of an argument decides an operator's result."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_layout, value))
    return value.__class__, value


def _storages(values: Iterable[Any]) -> set[int]:
    return {value.untyped_storage()._cdata for value in values if isinstance(value, torch.Tensor)}


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor fills its own meta storage as torch.empty_strided would."""
    if tensor.device.type != "meta" or tensor.storage_offset() or type(tensor) is not torch.Tensor:
        return False
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return made.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
