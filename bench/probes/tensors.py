"""Finds tensors: among values, beside quantised weights, and wherever else a process keeps them.

And what a ledger writes down of them: storages, when they were allocated and freed, the moment of most.
"""

import gc
import multiprocessing
import re
import sys
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bench.records.readings import Category, ModuleBytes, TracedPhase

if TYPE_CHECKING:
    from types import FrameType

SOMEWHERE = "many, small, or held by nothing with a name"
_MOST_NAMED = 8  # of the largest: for each, all objects of the process are looked through a few times
_LEAST_NAMED = 65_536  # bytes
_DEPTH = 5  # containers within containers, up to what has a name


def tensors_among(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors among an operator's arguments or results, in order; lists and tuples nest."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)


def address_of(storage: torch.UntypedStorage) -> int:
    """Return what identifies a live storage; views of one tensor share it."""
    address: int = storage._cdata  # noqa: SLF001 - torch has no public name for it
    return address


def quantisation_state(holder: object) -> list[torch.Tensor]:
    """Return the tensors that bitsandbytes keeps beside quantised weights.

    4-bit weights carry a ``QuantState`` (absmax, code, offset, nested state2); 8-bit ones carry
    ``CB`` and ``SCB`` on the parameter or on the module's matmul state.
    """
    found: list[torch.Tensor] = []
    pending = [getattr(holder, "quant_state", None), holder if not isinstance(holder, torch.Tensor) else None]
    pending += [getattr(holder, name, None) for name in ("CB", "SCB")]
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif item is not None:
            pending += [
                getattr(item, name, None) for name in ("absmax", "code", "offset", "state2", "CB", "SCB")
            ]
    return found


class Outside:
    """Storages that a process keeps and no ledger has entered, until they are freed or entered.

    Found are those of every tensor that Python knows of, and of their gradients. Storages that only C++ holds
    (saved by an autograd graph, say, without ever having been handed to Python) are not: they are in the
    bytes of the heap (``bench.probes.heap``), or in torch's own counter on CUDA.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, weakref.ref[torch.Tensor]]] = {}  # by address of the storage
        self._guards: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.looked = False
        """Whether any were looked for."""

    @property
    def nbytes(self) -> int:
        return sum(nbytes for nbytes, _ in self._held.values())

    def look(self, devices: Collection[str], known: Collection[int]) -> None:
        """Find what lies on ``devices`` and is not among the ``known`` addresses."""
        self.looked = True
        for tensor in _alive():
            if tensor.device.type in devices:
                self._add(tensor, known)

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Forget what has another place in a record, such as batches that wait for their step."""
        for tensor in tensors:
            self.forget(address_of(tensor.untyped_storage()))

    def forget(self, address: int) -> None:
        """Forget a storage that was freed, or that a ledger enters."""
        if self._held.pop(address, None):
            self._guards.pop(address, None)

    def by_holder(self) -> dict[str, int]:
        """Return bytes by what holds them, named as in ``module.NAME``; all but the largest without name."""
        sizes: Counter[str] = Counter()
        largest_first = sorted(self._held.values(), key=lambda held: -held[0])
        if largest_first and largest_first[0][0] >= _LEAST_NAMED:
            _unfreeze()  # whoever holds it may be frozen
        for place, (nbytes, reference) in enumerate(largest_first):
            tensor = reference() if place < _MOST_NAMED and nbytes >= _LEAST_NAMED else None
            sizes[SOMEWHERE if tensor is None else _holder_of(tensor)] += nbytes
        return dict(sizes)

    def _add(self, tensor: torch.Tensor, known: Collection[int]) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse ones, and those under torch.func's transforms
            return
        address, nbytes = address_of(storage), storage.nbytes()
        if nbytes and address not in known and address not in self._held:
            self._held[address] = nbytes, weakref.ref(tensor)
            self._guards[address] = weakref.ref(storage, lambda _: self.forget(address))


def _alive() -> Iterator[torch.Tensor]:
    frozen = [*_frozen()]
    for thing in chain(frozen, gc.get_objects()):
        # By type: asking an object for its class runs the code of those that stand for others.
        if issubclass(type(thing), torch.Tensor):
            yield thing
            if thing.is_leaf and thing.grad is not None:
                yield thing.grad


def _frozen() -> Iterator[torch.Tensor]:
    """Yield the tensors that a worker's server hides from garbage collections (``bench.workers.freeze``).

    Looking through all that it imported would copy its memory. What was frozen since is shown again.
    """
    server = sys.modules.get("bench.workers.freeze")
    if server is None or server.TENSORS is None or gc.get_freeze_count() > server.OBJECTS:
        _unfreeze()
    else:
        yield from (tensor for each in server.TENSORS if (tensor := each()) is not None)


def _unfreeze() -> None:
    if multiprocessing.parent_process() is not None:
        gc.unfreeze()


def _holder_of(tensor: torch.Tensor) -> str:
    """Name the module's variable, class, function or kind of object that a tensor is held by."""
    level: list[Any] = [tensor]
    for _ in range(_DEPTH):
        ours = {id(level), *map(id, level)}
        referrers = [one for one in gc.get_referrers(*level) if id(one) not in ours]
        names = (name for one in referrers for held in level if (name := _name_of(one, held)))
        if name := next(names, None) or _local_of(level):
            return name
        level = [one for one in referrers if type(one).__module__ == "builtins" and not _is_frame(one)]
        if not level:
            break
    return SOMEWHERE


def _local_of(held: Collection[object]) -> str | None:
    """Name the variable of a running function, outside this package, that is one of some objects.

    Asking a frame for its variables has it keep them until it ends, so only where nothing else has a name.
    """
    ours = set(map(id, held))
    for stack in sys._current_frames().values():  # noqa: SLF001 - documented, for debuggers
        frame: FrameType | None = stack
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            if module.partition(".")[0] not in {"bench", "torch"}:
                for name, value in frame.f_locals.items():
                    if id(value) in ours:
                        return f"{module}.{frame.f_code.co_qualname}.<locals>.{name}"
            frame = frame.f_back
    return None


def holder_of_storages(addresses: Collection[int]) -> str:
    """Return what holds the tensors with these storages, most of those with a name; empty if none has one."""
    found = [weakref.ref(tensor) for tensor in _alive() if _address(tensor) in addresses]
    names: Counter[str] = Counter()
    for each in found[:_MOST_NAMED]:
        if (tensor := each()) is not None:
            names[_holder_of(tensor)] += 1
    del names[SOMEWHERE]
    return next((name for name, _ in names.most_common(1)), "")


def _address(tensor: torch.Tensor) -> int | None:
    try:
        return address_of(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # sparse ones, and those under torch.func's transforms
        return None


def _is_frame(thing: object) -> bool:
    return hasattr(thing, "f_code") or type(thing).__name__ in {"generator", "list_iterator"}


def _name_of(holder: Any, held: object) -> str | None:
    """Return a holder's name, where it has one; of a module, that of the variable."""
    kind = type(holder)
    if kind is dict:
        module = holder.get("__name__")
        if isinstance(module, str) and vars(sys.modules.get(module, object)) is holder:
            variable = next((name for name, value in holder.items() if value is held), None)
            return variable and f"{module}.{variable}"
        return None
    if isinstance(holder, type) or kind.__name__ == "function":
        return f"{holder.__module__}.{holder.__qualname__}"
    if kind.__module__ != "builtins" and not issubclass(kind, torch.Tensor):
        return f"{kind.__module__}.{kind.__qualname__}"
    return None


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(slots=True)
class Block:
    """One storage: its size, where it was allocated and, once freed, in which phase that was.

    ``owner`` is the module whose weight or gradient it is, where that is not the one that allocated it.
    """

    nbytes: int
    born_phase: TracedPhase
    op: str
    module: str
    recomputed: bool = False
    category: Category | None = None
    died_phase: TracedPhase | None = None
    owner: str = ""


class Entry(NamedTuple):
    """One line of the ledger: a block was allocated (born) or freed."""

    block: int
    born: bool


@dataclass(slots=True)
class Peak:
    """The moment of most live bytes: how many, and after how many entries."""

    live_bytes: int = 0
    entries: int = 0


def by_module(sizes: Iterable[tuple[Block, int]]) -> ModuleBytes:
    """Return the bytes of blocks by module and category; * stands for any number, so that layers are one."""
    found: ModuleBytes = {}
    for block, nbytes in sizes:
        name = _NUMBER.sub("*", (block.owner or block.module).partition(" (")[0])
        own, category = found.setdefault(name, {}), category_of(block)
        own[category] = own.get(category, 0) + nbytes
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def category_of(block: Block) -> Category:
    """Sort what was not entered by name: alive from forward into backward means saved for it."""
    if block.category is not None:
        return block.category
    if block.born_phase == "inputs":
        return "inputs"
    saved = block.born_phase == "forward" and block.died_phase != "forward"
    return "activations" if saved or block.recomputed else "temporary"
