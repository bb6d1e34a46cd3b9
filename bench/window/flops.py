"""Floating-point operations of one step, by torch's counter, with formulas for bitsandbytes' products."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_WITHOUT_PRODUCTS = {
    "bitsandbytes::dequantize_4bit",
    "bitsandbytes::dequantize_blockwise",
    "bitsandbytes::int8_vectorwise_dequant",
    "bitsandbytes::int8_vectorwise_quant",
    "bitsandbytes::optimizer_update_32bit",
    "bitsandbytes::optimizer_update_8bit_blockwise",
    "bitsandbytes::quantize_4bit",
    "bitsandbytes::quantize_blockwise",
}


class CountedFlops(NamedTuple):
    """FLOPs (a multiply-add is two), and the operators whose FLOPs nobody could count."""

    flops: int
    uncounted_operators: list[str]


class _ForeignOperators(TorchDispatchMode):
    """Collects operators that are not torch's own: torch's counter takes an unknown one for free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        if func.namespace not in {"aten", "prim", "prims", "profiler"}:
            self.names.add(func._schema.name)  # noqa: SLF001 - the op's only full name
        return func(*args, **(kwargs or {}))


def count_flops(run: Callable[[], object]) -> CountedFlops:
    """Run once under torch's FLOP counter. Recomputation under checkpointing counts, as it is executed."""
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with _ForeignOperators() as foreign, counter:
        run()
    known = _WITHOUT_PRODUCTS | {f"bitsandbytes::{name}" for name in _FORMULAS}
    uncounted = sorted(name for name in foreign.names if name not in known)
    return CountedFlops(int(counter.get_total_flops()), uncounted)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Map the operators that this version of bitsandbytes has to their formulas."""
    import bitsandbytes  # noqa: F401 - registers the operators

    found = {getattr(torch.ops.bitsandbytes, name, None): formula for name, formula in _FORMULAS.items()}
    return {operator: formula for operator, formula in found.items() if operator is not None}


def _gemm_4bit(
    a_shape: torch.Size, _b_shape: torch.Size, weight_shape: Sequence[int], *_: object, **__: object
) -> int:
    """Signature (A, B packed, shape of B unpacked [n, k], …)."""
    return 2 * a_shape.numel() * weight_shape[0]


def _int8_scaled_mm(a_shape: torch.Size, b_shape: torch.Size, *_: object, **__: object) -> int:
    """Signature (A, B [n, k], row_stats, col_stats, …)."""
    return 2 * a_shape.numel() * b_shape[0]


def _int8_mixed_scaled_mm(
    _a_shape: torch.Size, ca_shape: torch.Size, cb_shape: torch.Size, *_: object, **__: object
) -> int:
    """Signature (A, CA, CB [n, k], …): the int8 product; the few outlier columns in 16 bit are left out."""
    return 2 * ca_shape.numel() * cb_shape[0]


# Every operator of bitsandbytes 0.50 that multiplies matrices in training (its _ops.py).
_FORMULAS: dict[str, Callable[..., int]] = {
    "gemm_4bit": _gemm_4bit,
    "int8_scaled_mm": _int8_scaled_mm,
    "int8_mixed_scaled_mm": _int8_mixed_scaled_mm,
}
