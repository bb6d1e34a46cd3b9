"""Remembers what meta kernels return, since most of a trace is the same operators on the same shapes again.

Many of torch's meta kernels are Python and take longer than everything around them. What is remembered is
only what one of them has said: sizes, strides and dtypes of results that share no memory with anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_META = torch.device("meta")
_FORGETTABLE = 20_000  # entries of one operator; a plan of many cells would otherwise grow without end


@dataclass(frozen=True, slots=True)
class _Operator:
    """How an operator's results can be made again, and what is known of them by its arguments' layouts."""

    kind: str
    known: dict[object, tuple[_Layout, ...]] = field(default_factory=dict)


class ShapeMemory:
    """Results of operators by operator and the layouts of its arguments."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._operators: dict[Any, _Operator] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what ``func`` would, running it only if it has not met these layouts before."""
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = _Operator(_kind(func))
        kind = operator.kind
        if kind == "run":
            return func(*args, **kwargs)
        try:
            key: object = tuple(map(_layout, args))
            if kwargs:
                key = key, tuple([(name, _layout(value)) for name, value in kwargs.items()])
            layouts = operator.known.get(key)
        except TypeError:  # an argument that cannot be a key
            return func(*args, **kwargs)
        if layouts is None:
            return self._learn(func, args, kwargs, key, operator)
        if kind == "in place":
            return args[0]
        if kind == "one":
            ((size, stride, dtype),) = layouts
            return torch.empty_strided(size, stride, dtype=dtype, device=_META)
        return tuple(
            [torch.empty_strided(size, stride, dtype=dtype, device=_META) for size, stride, dtype in layouts]
        )

    def _learn(self, func: Any, args: Any, kwargs: Any, key: object, operator: _Operator) -> Any:
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple) else (result,)
        known = operator.known
        if len(known) > _FORGETTABLE:
            known.clear()
        if operator.kind == "in place":
            if result is args[0]:
                known[key] = ()
        elif all(isinstance(each, torch.Tensor) and _is_plain(each) for each in results) and not (
            _storages(results)
            & _storages(tree_leaves((args, kwargs)))  # as _unsafe_view's, which does not say so
        ):
            known[key] = tuple((each.size(), each.stride(), each.dtype) for each in results)
        return result


def _kind(func: Any) -> str:
    """Return how an operator's results can be made again: one, several, in place, or only by running it."""
    schema = func._schema  # noqa: SLF001 - the only place where it is
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
    return {value.untyped_storage()._cdata for value in values if isinstance(value, torch.Tensor)}  # noqa: SLF001 - torch has no public name for it


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor fills its own meta storage as torch.empty_strided would."""
    if tensor.device.type != "meta" or tensor.storage_offset() or type(tensor) is not torch.Tensor:
        return False
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return made.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
