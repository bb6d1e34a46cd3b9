"""The ledger of a whole script: three kinds of tensor, and what the script may know of each.

Tensors with data are the script's own (data sets, batches, counters). Those of the device are torch's meta
tensors and counted. On a card there are also meta tensors that stand for memory of the host, weights before
they are moved: computed with, not counted.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bench.errors import UntraceableError, first_line
from bench.predict.trace.loops import LoopLedger
from bench.predict.trace.meta_ledger import INDEXING
from bench.predict.trace.values import KnownValues, is_mask, resolve_item, written_by
from bench.probes.ledger import is_composite, name_of
from bench.probes.tensors import Block, tensors_among

MOST_ANSWERS = 2_000
"""So often may one line ask for a value that a prediction does not have; then it is waiting for it."""
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}
_ITEM = _aten._local_scalar_dense.default
_COPIES = {_aten.copy_.default, _aten._to_copy.default, *INDEXING}
_UNKNOWN_SIZE = (
    "and how large its result is depends on data that no prediction has; measure it with bench watch"
)
_MACHINERY = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[2]}/", "<")


class Storages:
    """A set of storages, by a tensor of each; freed ones are forgotten."""

    def __init__(self) -> None:
        self._guards: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage._cdata
        self._guards[address] = weakref.ref(storage, lambda _: self._guards.pop(address, None))
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return bool(self._guards) and tensor.untyped_storage()._cdata in self._guards


@dataclass(kw_only=True)
class ScriptState:
    """What is known of a script's tensors over all its ledgers, and what has to be told of the prediction."""

    on_cpu: bool
    most_bytes: int | None = None  # of live tensors on the card
    ledger: "ScriptLedger" = field(init=False)
    known: KnownValues = field(default_factory=KnownValues)
    hosts: Storages = field(default_factory=Storages)
    unknown: Storages = field(default_factory=Storages)  # with data, but not the data they would have
    asked: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)
    refusal: str | None = None
    lost: list[Block] = field(default_factory=list)  # blocks for which there was no memory
    paused: int = 0
    moving: int = 0

    @contextmanager
    def truthful(self) -> Iterator[None]:
        """Run a block that sees tensors as they are, and that no ledger counts."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count again what is moved from the host to the card."""
        self.moving += 1
        try:
            yield
        finally:
            self.moving -= 1

    def refuse(self, reason: str) -> UntraceableError:
        """Return a refusal that names the line, and remember it, should the script catch it."""
        self.refusal = self.refusal or f"this script cannot be predicted: {place()} {reason}"
        return UntraceableError(self.refusal)

    def invented(self, tensor: Tensor) -> bool | float | int:
        """Answer what is not known: no for a truth value, one for a number; the line that asks is noted."""
        where = place()
        self.asked[where] += 1
        if self.asked[where] > MOST_ANSWERS:
            raise self.refuse("waits for a value that no prediction has; measure it with bench watch.")
        return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1

    def values_of(self, tensor: Tensor) -> Tensor:
        """Return a tensor with data in the place of one without: its own where it is known."""
        if not tensor.is_meta and tensor not in self.unknown:
            return tensor
        value = self.known.value_of(tensor) if tensor.is_meta else None
        if value is None:
            with self.truthful():
                value = torch.full(tuple(tensor.shape), self.invented(tensor), dtype=tensor.dtype)
        return value

    def on_host(self, tensor: Tensor) -> Tensor:
        """Return a tensor without data for one that has some: on the CPU side of a card."""
        with self.truthful():
            blank = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        return blank if self.on_cpu else self.hosts.add(blank)


class ScriptLedger(LoopLedger):
    """A ledger of meta tensors among others, which computes with all and counts those of the device."""

    def __init__(self, state: ScriptState, *args: Any, **kwargs: Any) -> None:
        """Take what ``MetaLedger`` takes; what is learned is the script's."""
        super().__init__(*args, known=state.known, **kwargs)
        self._state = state
        self.most_since_reset = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, state = kwargs or {}, self._state
        if state.paused:
            return func(*args, **kwargs)
        if is_composite(func):
            return self.composed(func, args, kwargs)
        tensors = [*tensors_among(args), *(tensors_among(kwargs.values()) if kwargs else ())]
        blank = [tensor for tensor in tensors if tensor.is_meta]
        if not blank:
            return self._with_data(func, types, args, kwargs, tensors)
        if func is _ITEM:
            return self.resolve(args[0])
        if not state.moving and all(tensor in state.hosts for tensor in blank):
            return self._for_host(func, args, kwargs)
        if not state.on_cpu and func not in _COPIES:
            self._require_one_device(func, tensors)
        return self._for_device(func, types, args, kwargs, mixed=len(blank) < len(tensors))

    def _for_device(self, func: Any, types: Any, args: Any, kwargs: Any, *, mixed: bool) -> Any:
        """Run an operator without data and count what it makes."""
        state = self._state
        if func in _PRODUCTS and len({one.dtype for one in args if isinstance(one, Tensor)}) > 1:
            raise RuntimeError(
                f"expected m1 and m2 to have the same dtype ({name_of(func)})"
            )  # as torch does
        written = [tensor for tensor in written_by(func, args, kwargs) if not tensor.is_meta]
        for tensor in written:
            self._enter(state.unknown.add(tensor), name_of(func), self._module_of(args))
        if written:
            self.known.follow(func, args, kwargs, None)
            return args[0] if func._schema.returns else None
        if func in INDEXING:
            if any(is_mask(one) and self._value(one) is None for one in args[1]):
                raise state.refuse(f"indexes by a mask, {_UNKNOWN_SIZE}.")
        elif _sized_by_data(func):
            return self._sized_by_data(func, args, kwargs)
        if mixed and func not in _COPIES - INDEXING:
            args, kwargs = tree_map(self._blank, (args, kwargs))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _require_one_device(self, func: Any, tensors: list[Tensor]) -> None:
        """Raise torch's own error where tensors of the card meet others."""
        if any(one.dim() and (not one.is_meta or one in self._state.hosts) for one in tensors):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"cpu! ({name_of(func)})"
            )

    def _with_data(self, func: Any, types: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """Run an operator truly; results of values that are not what they would be are neither."""
        state = self._state
        spoiled = [tensor for tensor in tensors if tensor in state.unknown]
        if not spoiled:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func is _ITEM:
            return self.resolve(args[0])
        if _sized_by_data(func) or (func in INDEXING and any(map(is_mask, args[1]))):
            raise state.refuse(f"calls {name_of(func)}, {_UNKNOWN_SIZE}.")
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tensors_among((result,)):
            state.unknown.add(tensor)
        return result

    def _for_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute on the CPU side of a card, without data and without counting."""
        with self._state.truthful():
            args, kwargs = tree_map(lambda one: self._blank(one) if _wide(one) else one, (args, kwargs))
            result = func(*args, **kwargs)
            for tensor in tensors_among((result,)):
                if tensor.is_meta:
                    self._state.hosts.add(tensor)
        return result

    def _sized_by_data(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return results as large as the known values make them."""
        operands = self.known.with_values((args, kwargs))
        if operands is None:
            raise self._state.refuse(f"calls {name_of(func)}, {_UNKNOWN_SIZE}.")
        self._op_count += 1

        def entered(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            blank = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
            self._enter(blank, name_of(func), self._module_of(args))
            self.known.know(blank, value)
            return blank

        return tree_map(entered, func(*operands[0], **operands[1]))

    def resolve(self, tensor: Tensor) -> bool | float | int:
        """Answer what is known, or what was thought about; else by dtype."""
        value = self._value(tensor)
        if value is not None:
            if (aside := self.known.aside(tensor)) is not None:
                self._state.asked[place() + aside] += 1
            return value.item()
        try:
            answer = resolve_item(padded=True, packed=True)
        except UntraceableError:
            return self._state.invented(tensor)
        return self._state.invented(tensor) if isinstance(answer, bool) else answer

    def _value(self, tensor: Tensor) -> Tensor | None:
        return None if tensor in self._state.unknown else self.known.value_of(tensor)

    def _blank(self, value: Any) -> Any:
        """Return a meta tensor of the same layout for one with data, whose value stays known."""
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        blank = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        if value not in self._state.unknown:
            self.known.know(blank, value)
        return self._state.hosts.add(blank) if self.on_cpu else blank  # there the value itself is counted

    def _enter(self, tensor: Tensor, op: str, module: str) -> Block | None:
        """Enter a tensor of the device; raise torch's own error where the card has no memory for it."""
        state = self._state
        if tensor.is_meta and tensor in state.hosts:
            return None
        block = super()._enter(tensor, op, module)
        if block is None:
            return None
        self.most_since_reset = max(self.most_since_reset, self._live_bytes)
        if state.most_bytes is not None and self._live_bytes > state.most_bytes:
            state.lost.append(block)
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {block.nbytes / 2**20:.2f} MiB at {place()}."
            )
        return block

    def meet(self, model: nn.Module, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self.learn(model)

    def name_modules(self, model: nn.Module) -> None:
        """Learn the names of a model that is about to be loaded."""
        self._module_names = {id(module): name or "model" for name, module in model.named_modules()}

    def _untraceable(self, func: Any, args: tuple[Any, ...]) -> UntraceableError:
        error = sys.exc_info()[1]
        return self._state.refuse(
            f"calls {name_of(func)} in {self._module_of(args)}, which cannot be done without data "
            f"({first_line(error) if error else ''}); measure it with bench watch."
        )

    @property
    def live_bytes(self) -> int:
        """What torch.cuda.memory_allocated() says."""
        return self._live_bytes


def place() -> str:
    """Name the line at work: the nearest that is not torch's or ours, and the script's if that is another."""
    frame = sys._getframe(1)
    nearest = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_MACHINERY) and "/runpy.py" not in name and not _standard(name):
            here = f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno}"
            nearest = nearest or here
            if "site-packages" not in name:
                return here if nearest == here else f"{nearest} (from {here})"
        frame = frame.f_back  # type: ignore[assignment]  # the loop ends at None
    return nearest or "torch"


@cache
def _sized_by_data(func: Any) -> bool:
    return torch.Tag.dynamic_output_shape in func.tags


def _standard(file: str) -> bool:
    return file.startswith(f"{sys.base_prefix}/lib/python") and "site-packages" not in file


def _wide(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
