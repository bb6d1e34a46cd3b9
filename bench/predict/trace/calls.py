"""The operators of a traced step: what each was, and the sizes of the tensors that it read and wrote."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.predict.trace.meta_kernels import Remembered
from bench.probes.tensors import Block

Ints = NDArray[np.int64]
Shape = tuple[int, ...]
TIMED = frozenset({"forward", "backward", "optimizer_step"})
"""Phases whose operators count; batches are copied to the device while another step runs."""
_LAYER = re.compile(r"\.\d+(?=\.|$)")


class Part(NamedTuple):
    """A tensor but for its sizes; ``spread`` marks dimensions that repeat one element (stride 0)."""

    dtype: torch.dtype
    spread: tuple[bool, ...]
    dense: bool
    on_host: bool


class Form(NamedTuple):
    """A call but for the sizes of its tensors; ``module`` is without the numbers of layers.

    A list of tensors is one part of two numbers: their count and that of all elements; 0 on the host.
    """

    phase: str
    recomputed: bool
    op: str
    module: str
    view: bool
    inputs: tuple[Part, ...] = ()
    outputs: tuple[Part, ...] = ()
    flags: tuple[bool, ...] = ()
    listed: bool = False


@dataclass(frozen=True)
class Forms:
    """The forms of a step's calls in order, and for how many calls each stands: layers left out, too."""

    forms: Sequence[Form]
    times: Sequence[int]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Where among all numbers those of each call are."""
        sizes = [sum(len(part.spread) for part in (*form.inputs, *form.outputs)) for form in self.forms]
        return list(pairwise([0, *np.cumsum(sizes).tolist()]))

    @cached_property
    def kinds(self) -> list[int]:
        """The first call that has the form of each."""
        first: dict[Form, int] = {}
        return [first.setdefault(form, index) for index, form in enumerate(self.forms)]


class Call(NamedTuple):
    """Calls that are alike in form and sizes, and how many there are."""

    form: Form
    shapes: Sequence[tuple[Part, Shape]]
    times: int


@dataclass(frozen=True)
class Calls:
    """The calls of one step; ``numbers`` are the sizes of all their tensors, one after the other."""

    of: Forms
    numbers: Ints

    def resized(self, numbers: Ints) -> "Calls":
        return Calls(self.of, numbers)

    def distinct(self) -> Iterator[Call]:
        """Yield each call once, those that are alike together."""
        numbers = self.numbers.tolist()
        found: dict[tuple[int, Shape], int] = {}
        for kind, times, (begin, end) in zip(self.of.kinds, self.of.times, self.of.spans, strict=True):
            key = kind, tuple(numbers[begin:end])
            found[key] = found.get(key, 0) + times
        for (kind, sizes), times in found.items():
            form, left = self.of.forms[kind], iter(sizes)
            parts = (*form.inputs, *form.outputs)
            yield Call(form, [(part, tuple([next(left) for _ in part.spread])) for part in parts], times)

    def places_in(self, offered: "Calls") -> Ints | None:
        """Return where among the numbers offered each of these is; None where not.

        Its call is of the same operator at the same place and sizes; strides may differ, as in a batch of 1.
        """
        mine, its = self.numbers.tolist(), offered.numbers.tolist()
        left = iter(zip(map(_place, offered.of.forms), offered.of.spans, strict=True))
        places: list[int] = []
        for form, (begin, end) in zip(self.of.forms, self.of.spans, strict=True):
            place, sizes = _place(form), mine[begin:end]
            found = next((at for one, at in left if one == place and its[at[0] : at[1]] == sizes), None)
            if found is None:
                return None
            places += range(*found)
        return np.array(places, dtype=np.int64)


def _place(form: Form) -> tuple[object, ...]:
    return form.op, form.module, form.phase, form.recomputed


class At(NamedTuple):
    """Where a call is made: the step, its part (a phase, by number), the module and the layer at work."""

    step: int
    part: int
    phase: str
    module: str
    layer: int
    times_of: Callable[[Tensor], int]
    """For how many each tensor of a list stands."""
    block_of: Callable[[Tensor], Block | None]
    """The block of a tensor, sized with the layers added."""
    within: bool = False
    """Inside a module's own forward pass."""

    def shape_of(self, tensor: Tensor) -> Shape:
        """Return a tensor's shape: of a vector with a place for each parameter, with the layers added."""
        block, held = self.block_of(tensor), tensor.untyped_storage().nbytes()
        if block is None or block.nbytes == held or tensor.dim() != 1:
            return tensor.shape
        return (tensor.numel() * block.nbytes // held,)


class Added(NamedTuple):
    """How many periods of so many layers, each like the second, are to be imagined."""

    periods: int
    period: int


_LISTS = ("aten::_foreach_", "aten::_fused_", "aten::_amp_foreach_")
"""Operators on lists of parameters, or of what belongs to them."""
_JOINED = "aten::stack"
"""Another such in the optimizer's step: clipping puts the norms of all gradients into one vector."""
_FIRST, _SECOND, _THIRD = range(3)


class Recorder:
    """Notes the calls of steps; with layers added, each of the second period's stands for several."""

    def __init__(self, added: Added) -> None:
        self.added = added
        self._steps: dict[int, _Notes] = {}

    @property
    def calls(self) -> list[Calls]:
        """What was noted, by step."""
        return [notes.calls(self.added) for _, notes in sorted(self._steps.items())]

    def note(
        self, func: Any, args: Iterable[Any], result: Any, at: At, remembered: Remembered | None = None
    ) -> None:
        """Note a call; what follows from its arguments' layouts is kept in ``remembered``."""
        notes = self._steps.get(at.step)
        if notes is None:
            notes = self._steps[at.step] = _Notes()
        notes.add(func, args, result, at, remembered)


@dataclass
class _Notes:
    forms: list[Form] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # part and layer
    numbers: list[int] = field(default_factory=list)

    def calls(self, added: Added) -> Calls:
        forms = Forms(tuple(self.forms), self._times(added))
        return Calls(forms, np.array(self.numbers, dtype=np.int64))

    def add(self, func: Any, args: Iterable[Any], result: Any, at: At, remembered: Remembered | None) -> None:
        recomputed = at.phase == "backward" and (at.within or torch.is_grad_enabled())
        where = at.phase, recomputed, _without_numbers(at.module)
        if at.phase == "optimizer_step":  # whose sizes are of all layers
            remembered = None
        described = remembered.get(where) if remembered is not None else None
        if described is None:
            described = _described(func, args, result, at, where)
            if remembered is not None:
                remembered[where] = described
        form, numbers = described
        self.places.append((at.part, -1 if form.listed else at.layer))
        self.forms.append(form)
        self.numbers += numbers

    def _times(self, added: Added) -> list[int]:
        """Return for how many each call stands: in a pass, from where the second layer begins to the next.

        What is attributed to the layer before, in between, is so in each layer (see ``repeat.py``).
        """
        times = [1] * len(self.places)
        if not added.periods:
            return times
        for indices in _by_part(self.places):
            groups = [self.places[index][1] // added.period for index in indices]
            if self.forms[indices[0]].phase == "optimizer_step":
                span = [index for index, group in zip(indices, groups, strict=True) if group == _SECOND]
            elif _SECOND not in groups:
                continue
            else:
                begin = groups.index(_SECOND)
                after = _FIRST if groups.index(_THIRD) < begin else _THIRD
                span = indices[begin : groups.index(after) if after in groups else None]
            for index in span:
                times[index] = 1 + added.periods
        return times


def _described(
    func: Any, args: Iterable[Any], result: Any, at: At, where: tuple[str, bool, str]
) -> tuple[Form, list[int]]:
    op, view, listed = _named(func)
    if view:
        return Form(*where[:2], op, where[2], view=True), []
    updating = at.phase == "optimizer_step"
    listed = listed or (updating and op == _JOINED)
    weights = [at.times_of(one) for one in next(iter(args))] if listed else None
    shape_of = at.shape_of if updating else _as_it_is
    numbers: list[int] = []
    inputs, outputs = (_parts(values, weights, shape_of, numbers) for values in (args, (result,)))
    flags = tuple([value for value in args if value is True or value is False])
    return Form(*where[:2], op, where[2], False, inputs, outputs, flags, listed), numbers  # noqa: FBT003 - a record


def _parts(
    values: Iterable[Any],
    weights: Sequence[int] | None,
    shape_of: Callable[[Tensor], Shape],
    numbers: list[int],
) -> tuple[Part, ...]:
    """Return the parts that tensors and lists of them are; their sizes go to ``numbers``."""
    found: list[Part] = []
    for value in values:
        if isinstance(value, Tensor):
            numbers += shape_of(value)
            found.append(_part(value))
        elif isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value):
            if weights is None or len(value) != len(weights):
                found += _parts(value, None, shape_of, numbers)
                continue
            part = _part(value[0])._replace(spread=(False, False), dense=True)
            elements = sum(one.numel() * times for one, times in zip(value, weights, strict=True))
            numbers += (0, 0) if part.on_host else (sum(weights), elements)
            found.append(part)
    return tuple(found)


@cache
def _named(func: Any) -> tuple[str, bool, bool]:
    """Return an operator's name, whether it is a view, and whether it works on lists."""
    op = str(func._schema.name)
    return op, func.is_view, op.startswith(_LISTS)


@cache
def _without_numbers(module: str) -> str:
    return _LAYER.sub(".*", module)


def _as_it_is(tensor: Tensor) -> Shape:
    return tensor.shape


_known_parts: dict[object, Part] = {}
"""By layout: there are few, and a step has thousands of tensors."""


def _part(tensor: Tensor) -> Part:
    layout = tensor.dtype, tensor.shape, tensor.stride(), tensor.is_cpu
    part = _known_parts.get(layout)
    if part is None:
        spread = tuple([stride == 0 for stride in tensor.stride()])
        part = _known_parts[layout] = Part(tensor.dtype, spread, tensor.is_contiguous(), tensor.is_cpu)
    return part


def _by_part(places: Sequence[tuple[int, int]]) -> Iterable[list[int]]:
    found: dict[int, list[int]] = {}
    for index, (part, _) in enumerate(places):
        found.setdefault(part, []).append(index)
    return found.values()
