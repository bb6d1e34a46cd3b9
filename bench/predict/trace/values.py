"""Values of tensors without data: what is known of small ones, and what code that asks for others is told.

Masks, labels, positions and counts are told by the batch, not by the model. What is computed from known
values alone is known too, so that a loop that asks gets the truth, and what a mask selects its size. Of other
values it is who asks that tells what a dense, padded or packed batch would answer.
"""

import math
import sys
import weakref
from collections.abc import Iterator
from pathlib import PurePath
from types import FrameType
from typing import Any

import torch

from bench.errors import UntraceableError

_SKIPPED = ("aten::empty", "aten::detach")
_aten = torch.ops.aten
_IF_FINITE = {
    **dict.fromkeys((_aten.eq.Tensor, _aten.ne.Scalar), True),
    **dict.fromkeys((_aten.ne.Tensor, _aten.eq.Scalar, _aten.isnan.default, _aten.isinf.default), False),
}
_MASKS = {torch.bool, torch.uint8}


class KnownValues:
    """The values of meta tensors: a flat CPU tensor for each storage; views are read by their strides."""

    def __init__(self, most_integers: int = 1 << 22, most_floats: int = 64) -> None:
        """Know nothing, and never more than so many elements of a tensor."""
        self._most_integers, self._most_floats = most_integers, most_floats
        self._values: dict[int, torch.Tensor] = {}
        self._guards: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._assumed: set[int] = set()

    def is_assumed(self, tensor: torch.Tensor) -> bool:
        """Tell whether a value follows from computed numbers being taken to be finite."""
        return tensor.device.type == "meta" and tensor.untyped_storage()._cdata in self._assumed

    def aside(self, tensor: torch.Tensor) -> str | None:
        """Return what is to be said of a known tensor's answer; None if it follows from no assumption."""
        if not self.is_assumed(tensor):
            return None
        value = self.value_of(tensor)
        return " (yes: numbers are finite)" if value is not None and value.all() else ""

    def know(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Keep the values of a meta tensor, unless they are too many or those of a model's outputs."""
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        if tensor.device.type != "meta" or count > self._most(tensor):
            return
        address = storage._cdata
        flat = torch.zeros(count, dtype=tensor.dtype, device="cpu")
        once = tuple(slice(None if stride else 1) for stride in tensor.stride())  # where it is expanded
        flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())[once].copy_(value[once])
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
            addresses = {tensor.untyped_storage()._cdata for tensor in written}
            if known is None or _ran(func, known) is None:
                for address in addresses:
                    self._forget(address)
            elif any(map(self.is_assumed, _tensors(args))):
                self._assumed |= addresses
            return
        if not isinstance(result, torch.Tensor) or not result.is_meta or result.numel() > self._most(result):
            return
        random = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if random or func._schema.name.startswith(_SKIPPED) or self.value_of(result) is not None:
            return
        known = self.with_values((args, kwargs))
        made, assumed = (
            None if known is None else _ran(func, known),
            any(map(self.is_assumed, _tensors(args))),
        )
        if known is None and (answer := _if_finite(func, args)) is not None:
            made, assumed = torch.full(result.shape, answer, device="cpu"), True
        if made is not None:
            self.know(result, made)
            if assumed:
                self._assumed.add(result.untyped_storage()._cdata)

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
        self._assumed.discard(address)
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


def _tensors(args: Any) -> list[torch.Tensor]:
    return [each for each in args if isinstance(each, torch.Tensor)]


def is_mask(index: object) -> bool:
    """Tell whether an index selects by truth values."""
    return isinstance(index, torch.Tensor) and index.dtype in _MASKS


def _if_finite(func: Any, args: Any) -> bool | None:
    """Answer what isfinite, isnan and isinf are made of: all computed numbers are taken to be finite."""
    if func not in _IF_FINITE:
        return None
    other = args[1] if len(args) > 1 else math.inf
    infinite = isinstance(other, float) and math.isinf(other)
    return _IF_FINITE[func] if infinite or other is args[0] else None


def _ran(func: Any, operands: Any) -> Any:
    """Run an operator on values; None where torch cannot."""
    args, kwargs = operands
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError):
        return None


_DEPTH = 24  # frames; the dispatcher's own lie between the question and who asks it
_MACHINERY = ("/torch/", "/bench/predict/", "/bench/probes/")
_HIDES_NOTHING = {"_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa", "flash_attention_mask"}
"""transformers' masking_utils.py: does the mask hide nothing, so that no mask need be made?"""
_SEVERAL_PER_ROW = {"_flash_attention_forward"}
"""Its modeling_flash_attention_utils.py: do positions begin anew within a row?"""
_ONE_SEQUENCE_PER_ROW = {"find_packed_sequence_indices"}
"""masking_utils.py: do positions just count up, as they do but in packed rows?"""
_FOUND_INFINITIES = {"_maybe_opt_step"}
"""torch's grad_scaler.py: how many gradients overflowed? If any had, there would be no step to predict."""
_SCALE = {"get_scale"}
"""The same: the scale itself, which is only compared with that of the step before."""


def resolve_item(*, padded: bool, packed: bool) -> bool | float | int:
    """Return what ``.item()`` of a tensor without data would, as a dense, padded or packed batch gives it.

    Only questions that were met and thought about are resolved; who asks tells which. ``padded`` says
    that the batch's attention mask hides something, ``packed`` that its rows hold several sequences. Raises
    ``UntraceableError`` naming the line that asks something else.
    """
    names = {frame.f_code.co_name for frame in _callers()}
    if names & _HIDES_NOTHING:
        return not padded
    if names & _ONE_SEQUENCE_PER_ROW:
        return not packed
    if names & _SEVERAL_PER_ROW:
        return packed
    if names & _FOUND_INFINITIES:
        return 0.0
    if names & _SCALE:
        return 1.0
    raise UntraceableError(
        "the memory of this model depends on data that a prediction does not have: it asks for the value of "
        f"a tensor ({asking_line()}); measure it with bench run."
    )


def asking_line() -> str:
    """Name the line that asks for a value: the nearest that is not torch's or ours."""
    asker = next((frame for frame in _callers() if not _is_machinery(frame)), None)
    return "somewhere in torch" if asker is None else _place(asker)


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _is_machinery(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in _MACHINERY)


def _place(frame: FrameType) -> str:
    """Name a line by its file, without the folders above the package."""
    path = PurePath(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}, line {frame.f_lineno}, in {frame.f_code.co_name}"
