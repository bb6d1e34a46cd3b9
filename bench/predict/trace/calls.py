"""Calls of operators as numbers, so that the like call on tensors of other sizes can be made up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_META = torch.device("meta")


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


def described(func: Any, values: Any, first: int, count: int) -> ScratchCall:
    """Take a call apart; ``values`` are its arguments, its keywords and its result."""
    numbers: list[int] = []
    form = _form(values, numbers)
    return ScratchCall(func, first, count, form, np.array(numbers, dtype=np.int64))


def rebuilt(call: ScratchCall, numbers: NDArray[np.int64]) -> Any:
    """Put the call together again with other numbers, on tensors without data."""
    return _value(call.form, iter(numbers.tolist()))


def _form(value: Any, numbers: list[int]) -> Any:
    if isinstance(value, torch.Tensor):
        numbers += [*value.size(), *value.stride()]
        return torch.Tensor, value.dtype, value.dim()
    if isinstance(value, int) and not isinstance(value, bool):
        numbers.append(value)
        return int, None, 1
    if isinstance(value, list | tuple):
        return list, None, [_form(each, numbers) for each in value]
    if isinstance(value, Mapping):
        return dict, tuple(value), [_form(each, numbers) for each in value.values()]
    return None, value, 0


def _value(form: Any, numbers: Iterator[int]) -> Any:
    kind, what, inside = form
    if kind is torch.Tensor:
        size, stride = ([next(numbers) for _ in range(inside)] for _ in range(2))
        return torch.empty_strided(size, stride, dtype=what, device=_META)
    if kind is int:
        return next(numbers)
    if kind is list:
        return tuple(_value(each, numbers) for each in inside)
    if kind is dict:
        return {name: _value(each, numbers) for name, each in zip(what, inside, strict=True)}
    return what
