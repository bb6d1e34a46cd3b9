"""The ledger over meta tensors: shapes flow, no data does, and what the device would do is filled in.

It adds to the dispatcher's view what a device allocates without telling it, answers the questions that
code asks of data, and notes at which layer of the model each entry was made.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from bench.errors import UntraceableError
from bench.predict.trace.calls import TIMED, Added, At, Recorder
from bench.predict.trace.kernels import Kernels, ScratchCall, described
from bench.predict.trace.meta_kernels import Remembered, ShapeMemory
from bench.predict.trace.values import resolve_item
from bench.probes.ledger import Ledger, StepPhase, name_of
from bench.probes.sharded import collected, desugars, is_collective
from bench.probes.tensors import Block, address_of, quantisation_state, tensors_among
from bench.training.loading.wrappers import beside_text, is_beside

_COPY = torch.ops.aten.copy_.default
_TO_COPY = torch.ops.aten._to_copy.default
_HOST = torch.device("cpu")
_ITEM = torch.ops.aten._local_scalar_dense.default
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
_SPECIAL = {_ITEM, *INDEXING}
NO_LAYER = -1
shapes_on = cache(lambda _platform: ShapeMemory())  # results follow from arguments and platform


@dataclass(frozen=True, slots=True)
class Mark:
    """A phase of a step began after so many entries."""

    phase: StepPhase
    step: int
    entries: int


class Computed(NamedTuple):
    """What was computed up to some moment: operators, and their FLOPs."""

    ops: int
    flops: int


class MetaLedger(Ledger):
    """A ledger of meta tensors that stands for a device with the given kernels.

    ``periods_added`` more periods of ``period`` layers, like the second one, are to be imagined: what is
    sized by the number of parameters is sized as if they were there.
    """

    def __init__(
        self,
        model: nn.Module,
        vocabulary_size: int,
        kernels: Kernels,
        *,
        periods_added: int = 0,
        period: int = 1,
        phase: StepPhase = "load",
    ) -> None:
        super().__init__(model, "meta", vocabulary_size)
        self._kernels = kernels
        self._shapes = shapes_on(kernels.platform)
        self._special: dict[Any, bool] = {}  # operators of which there is more to say than their results
        self.platform = kernels.platform
        self.on_cpu = kernels.on_cpu
        if self.on_cpu:  # where small tensors that no device is asked for count like all others
            self._counted_devices = {"meta", "cpu"}
        self._periods_added = periods_added
        self._period = period
        self.marks: list[Mark] = []
        self.step = 0
        self.cache_emptied_at: list[int] = []
        self.scratch_calls: list[ScratchCall] = []
        self.timed = False  # whether the calls of steps are noted
        self.recorder = Recorder(Added(periods_added, period))
        self.layer_of_entry: list[int] = []  # the layer at work, or whose block it was
        self.layer_of_block: list[int] = []
        self.stream_of_block: list[int] = []  # the CUDA stream that was current
        self.current_stream: Callable[[], int] = int
        self._layers: dict[str, int] = {}
        self._beside = dict.fromkeys(beside_text(model))  # whose layers are not the language model's
        self._layer = NO_LAYER
        self._layers_on_host: dict[int, int] = {}  # of optimizer state, by storage
        self._on_host: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # offloaded, by storage
        self._works_on_host = False  # the operator at hand
        self.host_bytes = self.most_host_bytes = 0  # of what is offloaded
        self._layers_of_results: list[int] = []
        self._began_with = 0  # entries of the books that these were copied from
        self.computed = Computed(0, 0)
        self._flops = 0  # of the operator at hand
        self._remembered: Remembered | None = None  # with it and its arguments' layouts
        self.computed_before: list[Computed] = []  # each entry
        self.mark(phase)

    def mark(self, phase: StepPhase) -> None:
        """Say which part begins, and note where in the stream."""
        super().mark(phase)
        self.marks.append(Mark(phase, self.step, len(self.entries)))
        self._layer, self._layers_of_results = NO_LAYER, []  # an optimizer that works in place leaves some

    def end_step(self) -> None:
        super().end_step()
        self.step += 1

    def receive(self, tensors: Iterable[torch.Tensor]) -> None:
        """Enter weights and buffers that come to the device, and what is beside quantised ones."""
        for tensor in tensors:
            self.register([tensor], "weights")
            self.register(quantisation_state(tensor), "quantisation_state")

    def to_host(self, tensor: torch.Tensor) -> None:
        """Take a tensor out of the device's books; what is computed of it alone is on the host as well."""
        storage = tensor.untyped_storage()
        if (number := self._live.get(address_of(storage))) is not None:
            self._free(address_of(storage), number)
        self._hosted(storage)

    def _hosted(self, storage: torch.UntypedStorage) -> None:
        address, nbytes = address_of(storage), storage.nbytes()
        if address in self._on_host or not nbytes:
            return

        def leave(_storage: object) -> None:
            del self._on_host[address]
            self.host_bytes -= nbytes

        self._on_host[address] = weakref.ref(storage, leave)
        self.host_bytes += nbytes
        self.most_host_bytes = max(self.most_host_bytes, self.host_bytes)

    def learn(self, *models: nn.Module) -> None:
        """Learn the names of models' modules, and whose the blocks of their parameters are."""
        self._module_names = {}
        for model in models:
            self._module_names |= {id(module): name or "model" for name, module in model.named_modules()}
            self.register_model(model)
            for name, parameter in model.named_parameters():
                self._belongs(parameter, self._layer_named(name))

    def copied(self, *, padded: bool, packed: bool) -> Self:
        """Return books that stand where these do, to be gone on with over a batch; both see what dies."""
        twin = copy(self)
        own = {name: copy(kept) for name, kept in vars(self).items() if isinstance(kept, list | dict | set)}
        kernels = self._kernels.over(padded=padded, packed=packed)
        vars(twin).update(own, _guards={}, _kernels=kernels, _began_with=len(self.entries))
        twin.recorder = Recorder(self.recorder.added)
        for address, number in self._live.items():
            storage = self._guards[number]()
            if storage is not None:
                twin._guard(storage, address, number)
        return twin

    def holds_just(self, others: "MetaLedger") -> bool:
        """Tell whether what is alive is what other books began with, and none of that has died since."""
        return self._live == others._live and self._began_with == len(others.entries)

    def register_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Enter gradients as such, each under the module and the layer of its parameter."""
        parameters = [*parameters]
        super().register_gradients(parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                layer = self._layer_of(parameter)
                self._belongs(parameter.grad, NO_LAYER if layer is None else layer)

    def know_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Learn whose the counters of steps are, which lie on the host and in no book."""
        for parameter, state in optimizer.state.items():
            layer = self._layer_of(parameter)
            step = state.get("step")
            if layer is not None and isinstance(step, torch.Tensor):
                self._layers_on_host[step.untyped_storage()._cdata] = layer

    def work_on(self, module: str) -> None:
        self._layer = self._layer_named(module)

    def times(self, name: str) -> int:
        """Return for how many the named module or parameter stands: one, and one in each added period."""
        return self._times_at(self._layer_named(name))

    def times_of(self, parameter: torch.Tensor) -> int:
        layer = self._layer_of(parameter)
        return 1 if layer is None else self._times_at(layer)

    def empty_cache(self) -> None:
        self.cache_emptied_at.append(len(self.entries))

    def hold(self, nbytes: int, op: str) -> int:
        """Enter a block that no tensor stands for, until it is released; return its number."""
        self.blocks.append(Block(nbytes, self._phase, op, self._module_stack[-1]))
        number = len(self.blocks) - 1
        self._write(number, born=True)
        return number

    def release(self, number: int) -> None:
        """End a block made by ``hold``."""
        self.blocks[number].died_phase = self._phase
        self._write(number, born=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and add what its kernel would take besides its result."""
        if types and desugars(types):
            return NotImplemented
        self._works_on_host = bool(self._on_host) and self._is_on_host(args)
        if self._works_on_host:
            return super().__torch_dispatch__(func, types, args, kwargs)
        special = self._is_special(func)
        if special:
            if func is _ITEM and args[0].device.type == "meta":
                self._op_count += 1
                return self.resolve(args[0])
            self._prepare(func, args)
        in_optimizer = self._phase == "optimizer_step"
        if in_optimizer:
            self._layers_of_results = self._layers_read(args)
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            raise self._untraceable(func, args) from error
        if special or in_optimizer:
            self._add_scratch(func, args, result)
        ops, flops = self.computed
        self.computed = Computed(ops + 1, flops + self._flops)
        if self.timed and self._phase in TIMED:
            self._record(func, (*args, *kwargs.values()) if kwargs else args, result)
        return result

    def _record(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        within = len(self._module_stack) > 1
        inside = self._phase == "forward" or within
        module = self._module_stack[-1] if inside else self._module_of_backward
        module = "optimizer" if self._phase == "optimizer_step" else module
        place = self.step, len(self.marks), self._phase, module, self._layer
        at = At(*place, self.times_of, self._known, within)
        self.recorder.note(func, args, result, at, self._remembered)

    def _times_at(self, layer: int) -> int:
        return 1 + self._periods_added * (self._period <= layer < 2 * self._period)

    def resolve(self, _tensor: torch.Tensor) -> bool | float | int:
        """Return the value of a tensor that code asks for; see ``resolve_item``."""
        return resolve_item(padded=self._kernels.padded, packed=self._kernels.packed)

    def _prepare(self, func: Any, args: tuple[Any, ...]) -> None:
        """Enter tensors that its indices are made of, and workspaces that it is the first to need."""
        if func in INDEXING:
            self._enter_indices(args)
        for nbytes, op in self._kernels.kept_workspaces(func, in_backward=self._phase == "backward"):
            self.hold(nbytes, op)

    def _add_scratch(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Enter what a kernel takes while it runs, and take it out again."""
        imagined = self._with_added_layers(args)
        if imagined is not args:
            self._size_by_parameters(args[0], imagined[0], result)
        blocks = self._kernels.scratch_blocks(func, imagined)
        if blocks:
            held = [self.hold(nbytes, f"{name_of(func)} (workspace)") for nbytes in blocks]
            self.scratch_calls.append(described(func, imagined, held[0], len(held)))
            for number in held:
                self.release(number)

    def _is_special(self, func: Any) -> bool:
        special = self._special.get(func)
        if special is None:
            special = self._special[func] = func in _SPECIAL or self._kernels.takes_more(func)
        return special

    def _is_on_host(self, args: tuple[Any, ...]) -> bool:
        """Tell whether all tensors are offloaded that an operator works on, or the optimizer makes one."""
        addresses = [address_of(tensor.untyped_storage()) for tensor in tensors_among(args)]
        made = not addresses and self._phase == "optimizer_step"
        return made or (bool(addresses) and all(address in self._on_host for address in addresses))

    def _enter_storage(self, storage: torch.UntypedStorage, op: str, module: str) -> Block | None:
        """Enter a storage of the device's; what is on the host, or computed there, is none."""
        if self._works_on_host:
            self._hosted(storage)
        if address_of(storage) in self._on_host:
            return None
        return super()._enter_storage(storage, op, module)

    def _settle(self) -> None:
        """Leave garbage alone: none of it is in this ledger, and there is much of it between traces."""

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _COPY and args[0].is_cpu and args[1].is_meta:  # DDP brings lists of its back to the host
            self._remembered = None
            return args[0]
        if func is _TO_COPY and self._on_host and kwargs.get("device") == _HOST:
            self._remembered, offloaded = None, torch.empty_like(args[0])
            self._hosted(offloaded.untyped_storage())
            return offloaded
        if is_collective(func):  # whose result may be more than its shape
            self._flops, self._remembered = 0, None
            return collected(func, args, kwargs)
        result, self._flops, self._remembered = self._shapes.run(func, args, kwargs)
        return result

    def _untraceable(self, func: Any, args: tuple[Any, ...]) -> UntraceableError:
        return UntraceableError(
            f"{name_of(func)} in {self._module_of(args)} cannot be predicted: the size of its result "
            "depends on data, or torch has no kernel of it without data; measure this cell with bench run."
        )

    def _enter_indices(self, args: tuple[Any, ...]) -> None:
        """Enter index tensors that torch made of lists: on other devices the dispatcher is shown those."""
        for index in args[1]:
            if index is not None and self._known(index) is None:
                self._op_count += 1
                self._enter(index, "aten::lift_fresh", self._module_of(args))

    def _layers_read(self, args: tuple[Any, ...]) -> list[int]:
        """Return the layers that an optimizer's operator works on: one for each result, last one first.

        A list of tensors gives a list of results; a single tensor's layer is its result's.
        """
        first = args[0] if args else None
        tensors: Sequence[Any] = first if isinstance(first, list | tuple) else args
        layers = [self._layer_of(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)]
        known = [layer for layer in layers if layer is not None]
        if tensors is args:
            self._layer = known[0] if known else self._layer
            return []
        return known[::-1]

    def _with_added_layers(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with a list of tensors as long as it would be with the layers added."""
        first = args[0] if args else None
        if not self._periods_added or self._phase != "optimizer_step" or not isinstance(first, list | tuple):
            return args
        period = range(self._period, 2 * self._period)
        repeated = [one for one in first if isinstance(one, torch.Tensor) and self._layer_of(one) in period]
        return ([*first, *repeated * self._periods_added], *args[1:])

    def _size_by_parameters(self, given: Sequence[Any], imagined: Sequence[Any], result: Any) -> None:
        """Size a result of one element for each tensor of a list, such as norms, with the layers added."""
        block = self._known(result) if isinstance(result, torch.Tensor) else None
        if block is not None and result.numel() == len(given):
            block.nbytes = block.nbytes // len(given) * len(imagined)

    def _belongs(self, tensor: torch.Tensor, layer: int) -> None:
        number = self._live.get(tensor.untyped_storage()._cdata)
        if number is not None:
            self.layer_of_block[number] = layer

    def _layer_of(self, tensor: torch.Tensor) -> int | None:
        address = tensor.untyped_storage()._cdata
        number = self._live.get(address)
        return self._layers_on_host.get(address) if number is None else self.layer_of_block[number]

    def _module_of(self, args: tuple[Any, ...]) -> str:
        if self._phase == "backward" and args and self._is_bucket(args[0]):
            args = args[1:]  # without a hook DDP fills buckets as what a product is written to, no argument
        module = super()._module_of(args)
        if self._phase in {"forward", "backward"}:
            self._layer = self._layer_named(module)
        return module

    def _is_bucket(self, tensor: object) -> bool:
        block = self._known(tensor) if isinstance(tensor, torch.Tensor) else None
        return block is not None and block.module == "DistributedDataParallel"

    def _layer_named(self, module: str) -> int:
        """Return the layer that a module's name tells: its first number, as in model.layers.3.mlp."""
        layer = self._layers.get(module)
        if layer is None:
            parts = [] if is_beside(module, self._beside) else module.split(" ", maxsplit=1)[0].split(".")
            numbers = [int(part) for part in parts if part.isdecimal()]
            layer = self._layers[module] = numbers[0] if numbers else NO_LAYER
        return layer

    def _write(self, number: int, *, born: bool) -> None:
        self.computed_before.append(self.computed)
        super()._write(number, born=born)
        if born:
            if self._layers_of_results:
                self._layer = self._layers_of_results.pop()
            self.layer_of_block.append(self._layer)
            self.stream_of_block.append(self.current_stream())
            self.layer_of_entry.append(self._layer)
        else:
            own = self._phase in {"adapt", "optimizer_step"}
            self.layer_of_entry.append(self.layer_of_block[number] if own else self._layer)
