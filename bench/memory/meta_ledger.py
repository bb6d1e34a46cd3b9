"""The ledger over meta tensors: shapes flow, no data does, and what the device would do is filled in.

It adds to the dispatcher's view what a device allocates without telling it, and answers the questions
that code asks of data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.memory.kernels import Kernels
from bench.probes.ledger import OUTSIDE, Block, Ledger, StepPhase

_ITEM = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - what .item() dispatches to
EMPTY_CACHE = -1


@dataclass(frozen=True, slots=True)
class Mark:
    """A phase began after so many entries."""

    phase: StepPhase
    entries: int
    step: int


class MetaLedger(Ledger):
    """A ledger of meta tensors that stands for a device with the given kernels."""

    def __init__(self, model: nn.Module, vocabulary_size: int, kernels: Kernels) -> None:
        """Start in phase load."""
        super().__init__(model, "meta", vocabulary_size)
        self._kernels = kernels
        self.marks: list[Mark] = []
        self.step = 0
        self.cache_emptied_at: list[int] = []
        self.mark("load")

    def mark(self, phase: StepPhase) -> None:
        """Say which part begins, and note where in the stream."""
        super().mark(phase)
        self.marks.append(Mark(phase, len(self._books.entries), self.step))

    def rename(self, model: nn.Module) -> None:
        """Learn the module names of a model that has been adapted."""
        self._module_names = {id(module): name or "model" for name, module in model.named_modules()}

    def hold(self, nbytes: int, op: str) -> int:
        """Enter a block that no tensor stands for; it lives until ``release``."""
        block = Block(nbytes, self._phase, op, self._module_stack[-1])
        self._books.blocks.append(block)
        number = len(self._books.blocks) - 1
        self._write(number, born=True)
        return number

    def release(self, number: int) -> None:
        """End a block made by ``hold``."""
        self._books.blocks[number].died_phase = self._phase
        self._write(number, born=False)

    @contextmanager
    def scratch(self, nbytes: int, op: str) -> Iterator[None]:
        """Hold a block for as long as the ``with`` block runs."""
        number = self.hold(nbytes, op)
        yield
        self.release(number)

    def empty_cache(self) -> None:
        """Note that the allocator's cache was emptied here."""
        self.cache_emptied_at.append(len(self._books.entries))

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        """Run the operator and add what its kernel would take besides its result."""
        if func is _ITEM and args[0].device.type == "meta":
            return self._kernels.answer(args[0])
        for nbytes, op in self._kernels.kept_workspaces(func, in_backward=self._phase == "backward"):
            self.hold(nbytes, op)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        nbytes = self._kernels.scratch_bytes(func, args, kwargs or {}, result)
        if nbytes:
            with self.scratch(nbytes, f"{func._schema.name} (workspace)"):  # noqa: SLF001 - its only name
                pass
        return result


__all__ = ["EMPTY_CACHE", "OUTSIDE", "Mark", "MetaLedger"]
