"""Floating-point operations of one step, by torch's counter, with formulas for bitsandbytes' products."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper

from bench.probes.ledger import name_of
from bench.probes.sharded import COLLECTIVES

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
    """Collects operators that torch's counter does not know and takes for free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = name_of(func)
        foreign = func.namespace not in {"aten", "prim", "prims", "profiler"}
        attention = "attention" in name and func._overloadpacket not in flop_registry  # noqa: SLF001 - the same
        if foreign or attention:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


class FlopCounter:
    """torch's FLOP counter over a ``with`` block. Recomputation under checkpointing counts: it runs."""

    def __init__(self) -> None:
        """Know the formulas of the operators that are installed."""
        self._counter = FlopCounterMode(display=False, custom_mapping=_formulas())
        self._foreign = _ForeignOperators()

    def __enter__(self) -> Self:
        self._foreign.__enter__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self._counter.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._counter.__exit__(*error)
        self._foreign.__exit__(*error)  # type: ignore[no-untyped-call]  # the same

    def counted(self) -> CountedFlops:
        known = _WITHOUT_PRODUCTS | set(_FORMULAS)
        names = (name for name in self._foreign.names if name.split("::")[0] not in COLLECTIVES)
        uncounted = sorted(name for name in names if name not in known)
        return CountedFlops(int(self._counter.get_total_flops()), uncounted)


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the FLOPs of one call, as the counter counts them; 0 for an operator that it takes for free."""
    formula = _formula(func)
    return 0 if formula is None else int(formula(*args, **(kwargs or {}), out_val=result))


@cache
def _formula(func: Any) -> Callable[..., Any] | None:
    packet = func._overloadpacket  # noqa: SLF001 - what formulas are registered for
    own = _formulas().get(packet)
    return flop_registry.get(packet) if own is None else shape_wrapper(own)


@cache
def _formulas() -> dict[Any, Callable[..., int]]:
    """Map the operators that the installed versions have to their formulas."""
    import bitsandbytes  # noqa: F401 - registers the operators

    found = {}
    for full_name, formula in _FORMULAS.items():
        namespace, name = full_name.split("::")
        operator = getattr(getattr(torch.ops, namespace), name, None)
        if operator is not None:
            found[operator] = formula
    return found


def _products(query: torch.Size, key: torch.Size, value: torch.Size) -> tuple[int, int]:
    """Count scores, and their product with the values; shapes are [batch, heads, positions, width]."""
    return 2 * query.numel() * key[2], 2 * query[:3].numel() * key[2] * value[3]


def _attention_backward(
    _gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    """Count the scores again, then the gradients of scores, values, queries and keys: five products."""
    scores, values = _products(query, key, value)
    return 3 * scores + 2 * values


# Operators that multiply matrices in training and that torch 2.13's counter does not know: all of
# bitsandbytes 0.50 (its _ops.py), and attention on a CPU. Formulas of the shapes of an operator's arguments.
_FORMULAS: dict[str, Callable[..., int]] = {
    # A, B packed, shape of B unpacked [n, k], …
    "bitsandbytes::gemm_4bit": lambda a, _b, shape, *_, **__: 2 * a.numel() * shape[0],
    # A, B [n, k], row_stats, col_stats, …
    "bitsandbytes::int8_scaled_mm": lambda a, b, *_, **__: 2 * a.numel() * b[0],
    # A, CA, CB [n, k], …: the int8 product; the few outlier columns in 16 bit are left out
    "bitsandbytes::int8_mixed_scaled_mm": lambda _a, ca, cb, *_, **__: 2 * ca.numel() * cb[0],
    "aten::_scaled_dot_product_flash_attention_for_cpu": lambda q, k, v, *_, **__: sum(_products(q, k, v)),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}
