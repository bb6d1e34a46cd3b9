"""Values of small tensors that came from real data, kept beside the meta tensors that stand for them.

Masks, labels, positions and counts are told by the batch, not by the model. What is computed from known
values alone is known too, so that a loop that asks gets the truth, and what a mask selects its size.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch

_SKIPPED = ("aten::empty", "aten::detach")
_MASKS = {torch.bool, torch.uint8}


class KnownValues:
    """The values of meta tensors: a flat CPU tensor for each storage; views are read by their strides."""

    def __init__(self, most_integers: int = 1 << 22, most_floats: int = 64) -> None:
        """Know nothing, and never more than so many elements of a tensor."""
        self._most_integers, self._most_floats = most_integers, most_floats
        self._values: dict[int, torch.Tensor] = {}
        self._guards: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def know(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Keep the values of a meta tensor, unless they are too many or those of a model's outputs."""
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        if tensor.device.type != "meta" or count > self._most(tensor):
            return
        address = storage._cdata
        flat = torch.zeros(count, dtype=tensor.dtype, device="cpu")
        flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(value)
        self._values[address] = flat
        self._guards[address] = weakref.ref(storage, lambda _: self._forget(address))

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the values of a tensor: its own where it has data, None where they are not known."""
        if tensor.device.type != "meta":
            return tensor
        flat = self._values.get(tensor.untyped_storage()._cdata)
        if flat is None or flat.dtype != tensor.dtype:
            return None
        return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Learn what an operator that ran on meta tensors would have returned, or written, with data."""
        if written := [tensor for tensor in written_by(func, args, kwargs) if tensor.is_meta]:
            known = self.with_values((args, kwargs))
            if known is None or _ran(func, known) is None:
                for tensor in written:
                    self._forget(tensor.untyped_storage()._cdata)
            return
        if not isinstance(result, torch.Tensor) or not result.is_meta or result.numel() > self._most(result):
            return
        random = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if random or func._schema.name.startswith(_SKIPPED) or self.value_of(result) is not None:
            return
        known = self.with_values((args, kwargs))
        if known is not None and (made := _ran(func, known)) is not None:
            self.know(result, made)

    def with_values(self, values: Any) -> Any:
        """Return operands with their values in the place of meta tensors; None if one is not known."""

        def known(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                real = self.value_of(value)
                if real is None:
                    raise LookupError
                return real
            if isinstance(value, torch.device):
                return torch.device("cpu")
            if isinstance(value, list | tuple):
                return type(value)(map(known, value))
            if isinstance(value, dict):
                return {name: known(one) for name, one in value.items()}
            return value

        try:
            return known(values)
        except LookupError:
            return None

    def _most(self, tensor: torch.Tensor) -> int:
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        return self._most_integers if whole else self._most_floats

    def _forget(self, address: int) -> None:
        self._values.pop(address, None)
        self._guards.pop(address, None)


def written_by(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that an operator changes in place."""
    if not func._schema.is_mutable:
        return
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, torch.Tensor):
                    yield tensor


def is_mask(index: object) -> bool:
    """Tell whether an index selects by truth values."""
    return isinstance(index, torch.Tensor) and index.dtype in _MASKS


def _ran(func: Any, operands: Any) -> Any:
    """Run an operator on values; None where torch cannot."""
    args, kwargs = operands
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError):
        return None
