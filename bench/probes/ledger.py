"""The ledger: each tensor storage allocated and freed, exact to the byte, as torch's dispatcher sees it.

It watches what operators return and when storages are freed. Scratch memory inside one kernel never passes
the dispatcher and is not in the ledger. What was alive before, and is part of nothing that is registered, is
no part of the peak, which is that of training: it is told beside it, as *retained*.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import torch
import torch._dynamo  # else imported at the first dispatch, and frames of that import keep tensors alive
from msgspec import UNSET
from torch import nn
from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import UnavailableError, first_line
from bench.metrics import METRICS
from bench.probes.sharded import Resizes, desugars, is_collective, local_of
from bench.probes.tensors import (
    Block,
    Entry,
    Outside,
    Peak,
    address_of,
    by_module,
    holder_of_storages,
    quantisation_state,
    tensors_among,
)
from bench.records.readings import (
    Category,
    PhaseStart,
    Retained,
    Timeline,
    TracedPhase,
    decimated,
    summed,
)
from bench.records.records import LedgerReading

OUTSIDE = "outside the model"
BEFORE = "before the ledger"
_LEAST_LEAK = METRICS["leaked_bytes_per_step"].tolerance
_COMPOSITE = DispatchKey.CompositeImplicitAutograd
StepPhase = TracedPhase


class Ledger(TorchDispatchMode):
    """Keep the books while a ``with`` block runs; ``mark`` names the phase, ``reading`` sums up.

    ``vocabulary_size`` tells logits (tensors whose last dimension it is) from other activations.
    """

    def __init__(self, model: nn.Module, device_type: str, vocabulary_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self._device_type = device_type
        self._counted_devices = {device_type}
        self._vocabulary_size = vocabulary_size
        self._module_names = {id(module): name or "model" for name, module in model.named_modules()}
        self._module_stack = [OUTSIDE]
        self._module_of_backward = OUTSIDE
        self._phase: StepPhase = "inputs"
        self.blocks: list[Block] = []
        """Every storage that was entered, in order of allocation."""
        self.entries: list[Entry] = []
        """Allocations and frees in order."""
        self._live: dict[int, int] = {}  # storage address → block
        self._guards: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._live_bytes = 0
        self._peak = Peak()
        self._phase_peaks_bytes: dict[str, int] = {}
        self._opened_at = 0  # so many entries were of what existed before
        self._outside = Outside()
        self._blocks_before = 0
        self._ends: list[tuple[int, int]] = []  # of steps: blocks so far, bytes alive
        self._phase_starts: list[tuple[StepPhase, int]] = []
        self._op_count = 0
        self._saved_bytes = 0
        self._hooks: list[Any] = []
        self._gc_was_on = False

    def mark(self, phase: StepPhase) -> None:
        """Say which part of the step begins."""
        if phase == "backward":
            self._saved_bytes = max(self._saved_bytes, self._bytes_born_in("forward"))
            self._module_of_backward = OUTSIDE
        self._phase = phase
        self._phase_starts.append((phase, len(self.entries)))
        if phase != "forward":  # a recomputation that is broken off early may leave its modules open
            del self._module_stack[1:]
        self._note_phase_peak()

    def end_step(self) -> None:
        self._ends.append((len(self.blocks), self._live_bytes + self._outside.nbytes))

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Have an open ledger not take tensors for retained ones: batches that wait for their step."""
        self._outside.leave_out(tensors)

    def register(self, tensors: Iterable[torch.Tensor], category: Category, module: str = "") -> None:
        """Put tensors under a category, entering those that existed before the ledger was opened."""
        for tensor in map(local_of, tensors):
            block = self._enter(tensor, BEFORE, module or OUTSIDE) or self._known(tensor)
            if block is not None and block.category in {None, "collectives"}:
                block.category = category
            if block is not None and module and category != "collectives":
                block.owner = module

    def register_model(self, model: nn.Module) -> None:
        """Enter a model's parameters, buffers and quantisation state, each under its module."""
        for name, module in model.named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            self.register(own, "weights", name)
            for tensor in own:
                self.register(quantisation_state(tensor), "quantisation_state", name)
            for kept in ("state", "quant_state"):  # the latter where parameters have no more than data
                self.register(quantisation_state(getattr(module, kept, None)), "quantisation_state", name)

    def register_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Enter gradients as such, each under the module of its parameter."""
        for parameter in parameters:
            if parameter.grad is not None:
                of = self._known(local_of(parameter))
                self.register([parameter.grad], "gradients", "" if of is None else of.owner or of.module)

    def reading(self) -> LedgerReading:
        """Sum the closed books up."""
        modules = by_module((block, block.nbytes) for block in self._live_at(self._peak.entries))
        setter = self._peak_setter()
        return LedgerReading(
            device=self._device_type,
            peak_bytes=self._peak.live_bytes,
            peak_phase=setter.born_phase,
            peak_op=setter.op,
            peak_module=setter.module,
            categories_at_peak_bytes=summed(modules),
            phase_peaks_bytes=dict(self._phase_peaks_bytes),
            saved_for_backward_bytes=self._saved_bytes,
            op_count=self._op_count,
            allocation_count=sum(block.op != BEFORE for block in self.blocks),
            timeline=self._timeline(),
            modules_at_peak_bytes=modules,
            retained=self._retained() if self._outside.looked else UNSET,
        )

    def _retained(self) -> Retained:
        leaked: Counter[str] = Counter()
        found = self._leaked()
        for block in found.values():
            leaked[f"{block.op} in {block.module}"] += block.nbytes
        grown = self._ends[-1][1] - self._ends[0][1] if self._ends else 0
        per_step = max(0, min(grown, leaked.total())) // max(1, len(self._ends) - 1)
        holder = holder_of_storages(found.keys()) if per_step >= _LEAST_LEAK else ""
        return Retained(self._outside.by_holder(), per_step, dict(leaked), holder or UNSET)

    def _leaked(self) -> dict[int, Block]:
        """Return what all steps but the last left behind, by address: what lived on through a whole step.

        A value that each step replaces is not among it. Where old ones die for new ones, as in a queue of a
        fixed length, nothing grows, however long these live.
        """
        if len(self._ends) < 2:  # noqa: PLR2004 - the first, and one that it could have lived through
            return {}
        numbers = range(self._blocks_before, self._ends[-2][0])
        alive = {at: self.blocks[number] for at, number in self._live.items() if number in numbers}
        return {at: block for at, block in alive.items() if block.category != "inputs"}

    def __enter__(self) -> Self:
        self._settle()
        self._opened_at = len(self.entries)
        self._blocks_before = len(self.blocks)
        self._phase_starts.append((self._phase, self._opened_at))
        self._gc_was_on = gc.isenabled()
        gc.disable()  # when a cycle is collected must not move a peak
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
            Resizes(self._resized),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]  # the same
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # the same
        for hook in self._hooks:
            hook.remove()
        if self._gc_was_on:
            gc.enable()
        self._guards.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare each operator the wrapper that keeps the compiler out: nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and enter the storages it returns."""
        if types and desugars(types):
            return NotImplemented
        if is_composite(func):
            return self.composed(func, args, kwargs or {})
        self._op_count += 1
        module = self._module_of(args)
        result = self._run(func, args, kwargs or {})
        # Nearly every operator returns one tensor, and there are tens of thousands of calls.
        for tensor in (result,) if isinstance(result, torch.Tensor) else tensors_among((result,)):
            if type(tensor) is not torch.Tensor:
                tensor = local_of(tensor)  # noqa: PLW2901 - what counts of it
            block = self._enter(tensor, func._schema.name, module)  # noqa: SLF001 - the op's only name
            if block is not None and self._is_logits(tensor):
                block.category = "logits"
        if is_collective(func):
            self.register(tensors_among((*args, *(kwargs or {}).values(), result)), "collectives", module)
        return result

    def composed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator as those that it is made of, each of which is shown to this ledger."""
        super().__enter__()  # type: ignore[no-untyped-call]  # the same
        try:
            return func._op_dk(_COMPOSITE, *args, **kwargs)  # noqa: SLF001 - torch's way to reach one kernel
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # the same

    def _settle(self) -> None:
        """Free what is garbage but not yet collected, or that would happen in the middle of a step."""
        gc.collect()
        self._outside.look(self._counted_devices, self._live)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _enter(self, tensor: torch.Tensor, op: str, module: str) -> Block | None:
        """Enter the tensor's storage unless it is known or lies elsewhere; return it if it is new."""
        if tensor.device.type not in self._counted_devices:
            return None
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError as error:  # sparse tensors, and those under torch.func's transforms
            raise UnavailableError(
                f"the ledger counts storages, and a tensor has none ({first_line(error)}); measure without "
                "it (bench watch --no-ledger)"
            ) from error
        return self._enter_storage(storage, op, module)

    def _enter_storage(self, storage: torch.UntypedStorage, op: str, module: str) -> Block | None:
        address = address_of(storage)
        if address in self._live or storage.nbytes() == 0:
            return None
        self._outside.forget(address)
        recomputed = self._phase == "backward" and torch.is_grad_enabled()
        block = Block(storage.nbytes(), self._phase, op, module, recomputed)
        number = len(self.blocks)
        self.blocks.append(block)
        self._live[address] = number
        self._guard(storage, address, number)
        self._write(number, born=True)
        return block

    def _guard(self, storage: torch.UntypedStorage, address: int, number: int) -> None:
        self._guards[number] = weakref.ref(storage, lambda _: self._free(address, number))

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type in self._counted_devices:
            address = address_of(storage)
            if (number := self._live.get(address)) is not None:
                self._free(address, number)
            self._enter_storage(storage, "resize_", self._module_of(()))

    def _known(self, tensor: torch.Tensor) -> Block | None:
        number = self._live.get(address_of(tensor.untyped_storage()))
        return None if number is None else self.blocks[number]

    def _free(self, address: int, number: int) -> None:
        if self._live.get(address) == number:
            del self._live[address]
        self._guards.pop(number, None)
        self.blocks[number].died_phase = self._phase
        self._write(number, born=False)

    def _write(self, number: int, *, born: bool) -> None:
        self.entries.append(Entry(number, born))
        nbytes = self.blocks[number].nbytes
        if not born:
            self._live_bytes -= nbytes
            return
        self._live_bytes += nbytes
        if self._live_bytes > self._peak.live_bytes:
            self._peak = Peak(self._live_bytes, len(self.entries))
        self._note_phase_peak()

    def _note_phase_peak(self) -> None:
        peaks = self._phase_peaks_bytes
        peaks[self._phase] = max(peaks.get(self._phase, 0), self._live_bytes)

    def _live_at(self, entries: int) -> list[Block]:
        live: dict[int, None] = {}
        for entry in self.entries[:entries]:
            if entry.born:
                live[entry.block] = None
            else:
                del live[entry.block]
        return [self.blocks[number] for number in live]

    def _timeline(self) -> Timeline:
        """Return what was alive after each entry, from the moment at which the ledger was opened."""
        opened = self._opened_at
        changes = (self.blocks[entry.block].nbytes * (1 if entry.born else -1) for entry in self.entries)
        starts = [
            PhaseStart(phase=phase, entry=entry - opened)
            for phase, entry in self._phase_starts
            if entry >= opened
        ]
        return decimated(list(accumulate(changes))[opened:], starts)

    def _peak_setter(self) -> Block:
        """Return the block whose allocation made the peak."""
        if not self._peak.entries:
            return Block(0, "inputs", "none", OUTSIDE)
        return self.blocks[self.entries[self._peak.entries - 1].block]

    def _bytes_born_in(self, phase: StepPhase) -> int:
        blocks = (self.blocks[number] for number in self._live.values())
        return sum(block.nbytes for block in blocks if block.born_phase == phase and block.category is None)

    def _is_logits(self, tensor: torch.Tensor) -> bool:
        if tensor.is_nested:  # they have no shape
            return False
        shape = tensor.shape
        wide = len(shape) > 0 and shape[-1] == self._vocabulary_size
        return wide and tensor.is_floating_point() and self._phase in {"forward", "backward"}

    def _module_of(self, args: tuple[Any, ...]) -> str:
        """Name the module at work: by the forward stack, or in backward by whose tensors are read.

        An operator that reads gradients only comes after the last such module.
        """
        if self._phase == "forward" or len(self._module_stack) > 1:
            return self._module_stack[-1]
        if self._phase != "backward":
            return "optimizer" if self._phase == "optimizer_step" else OUTSIDE
        blocks = [block for tensor in tensors_among(args) if (block := self._known(tensor)) is not None]
        owners = [
            block.module for block in blocks if block.born_phase != "backward" and block.module != OUTSIDE
        ]
        if owners:
            self._module_of_backward = owners[0]
            return owners[0]
        return f"{self._module_of_backward} (gradients only)" if blocks else self._module_of_backward

    def _enter_module(self, module: nn.Module, _args: object) -> None:
        self._module_stack.append(self._module_names.get(id(module), type(module).__name__))

    def _leave_module(self, _module: nn.Module, _args: object, _result: object) -> None:
        self._module_stack.pop()


def name_of(operator: Any) -> str:
    """Return an operator's full name without its overload, such as aten::mm."""
    return str(operator._schema.name)  # noqa: SLF001 - it has no other


def is_composite(operator: Any) -> bool:
    """Tell whether an operator is shown whole that is made of others: in inference mode all are."""
    return torch.is_inference_mode_enabled() and _has_composite(operator)


@cache
def _has_composite(operator: Any) -> bool:
    return _dispatch_has_kernel_for_dispatch_key(operator.name(), _COMPOSITE)
