"""Runs another loop than the window's on meta tensors: a library's trainer, by its own code.

Real batches come from the loop's own collator and turn into meta tensors there. What a loop asks of values,
to log them or to look for NaN, is answered by dtype, and every line that asked is told.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from bench.errors import UntraceableError
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.meta_ledger import INDEXING, MetaLedger
from bench.predict.trace.values import KnownValues, asking_line, is_mask
from bench.probes.ledger import StepPhase
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.training.loops import without_modes
from bench.training.methods import trainable_parameters
from bench.training.parallel import launched
from bench.training.rows.data import Batch, PreparedData
from bench.training.step import optimizer_state
from bench.training.trainers import TRAINERS, Collate, Hooks
from bench.training.watcher import Listener, Script, StopLoop, Watcher
from bench.training.window import LEDGER_STEPS

_NONZERO, _COPY = torch.ops.aten.nonzero.default, torch.ops.aten._to_copy.default
_STEPS_BEFORE = 2  # that no ledger is read of: the optimizer's state appears in the first


class LoopLedger(MetaLedger):
    """A ledger of meta tensors for loops that look at values.

    ``known`` holds those that came from the batch, ``asked`` the lines that asked for others.
    """

    def __init__(self, *args: Any, known: KnownValues | None = None, **kwargs: Any) -> None:
        """Take what ``MetaLedger`` takes, and what is known already."""
        super().__init__(*args, **kwargs)
        self.known = known or KnownValues()
        self.asked: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, with what masks select in their place, and follow known values through it."""
        kwargs = kwargs or {}
        if func is _NONZERO and args[0].is_meta:
            return self._selected(args[0])
        if func is _COPY and args[0].is_meta and torch.device(kwargs.get("device") or "meta").type == "cpu":
            value = self.known.value_of(args[0])
            if value is not None:
                return func(value, **kwargs)
            kwargs = kwargs | {"device": torch.device("meta")}  # followed on the host without data
        selected = self._with_selected(args) if func in INDEXING else args
        result = super().__torch_dispatch__(func, types, selected, kwargs)
        self.known.follow(func, args, kwargs, result)
        return result

    def _with_selected(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return an index's arguments with positions for masks: [selected, dimensions] int64, as on a device.

        Source: pytorch aten/src/ATen/native/IndexingUtils.h, expandTensors.
        """
        indices: list[Any] = []
        for index in args[1]:
            if is_mask(index) and args[0].is_meta and (self._knows(index) or self._phase == "adapt"):
                indices += self._selected(index).unbind(1)
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def _knows(self, tensor: torch.Tensor) -> bool:
        return self.known.value_of(tensor) is not None

    def _selected(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the positions that a mask selects; all, where it is not known which."""
        value = self.known.value_of(mask)
        count = mask.numel() if value is None else int(value.count_nonzero())
        if value is None:
            self.asked.add(asking_line())
        positions = torch.empty((count, mask.dim()), dtype=torch.int64, device="meta")
        self._enter(positions, "aten::nonzero", self._module_of((mask,)))
        return positions

    def resolve(self, tensor: torch.Tensor) -> bool | float | int:
        """Answer what is known; else no for a truth value, and one for a number."""
        value = self.known.value_of(tensor)
        if value is not None:
            if (aside := self.known.aside(tensor)) is not None:
                self.asked.add(asking_line() + aside)
            return value.item()
        try:
            return super().resolve(tensor)
        except UntraceableError:
            self.asked.add(asking_line())
            if tensor.dtype == torch.bool:
                return False
            return 1.0 if tensor.is_floating_point() else 1


def read_loop_ledger(
    cell: Cell, model: Any, kernels: Kernels, batch: Batch, asked: set[str]
) -> LedgerReading:
    """Read the ledger of two steady steps of a cell's loop over an adapted model, as on the CPU."""
    vocabulary_size = int(model.config.get_text_config().vocab_size)
    loop = MetaLoop(cell, model, LoopLedger(model, vocabulary_size, kernels, phase="inputs"))

    def steps() -> Script:
        with loop.books:
            for _ in range(_STEPS_BEFORE):
                yield
        loop.books = books = LoopLedger(
            model, vocabulary_size, kernels, known=loop.books.known, phase="inputs"
        )
        for one in (model, *loop.beside):
            books.register_model(one)
        books.register(optimizer_state(loop.optimizer), "optimizer_state", "optimizer")
        books.register_gradients(trainable_parameters(model))
        with books:
            for _ in range(LEDGER_STEPS):
                yield

    loop.run(steps(), batch, _STEPS_BEFORE + LEDGER_STEPS)
    asked |= loop.books.asked
    return loop.books.reading()


class MetaLoop(Listener):
    """A cell's loop over an adapted model on the meta device, and what its ledger is told of it."""

    optimizer: torch.optim.Optimizer
    """Known from the first step on."""

    def __init__(self, cell: Cell, model: Any, books: LoopLedger) -> None:
        """Tell ``books``. Raises ``UntraceableError`` for a loop that cannot be run without data."""
        if cell.loop.is_function:
            raise UntraceableError(
                f"loop.driver {cell.loop.driver} is code of yours, which a prediction does not run; measure "
                "it with bench run --allow-code."
            )
        if cell.training.autocast == "fp16":
            raise UntraceableError(
                f"fp16 autocast in {cell.loop.driver} is not predicted, since accelerate's gradient scaler "
                "asks for a GPU; set training.autocast to bf16, or measure it with bench run."
            )
        self._cell, self._model, self.books = cell, model, books
        self.on_cpu = books.on_cpu
        self._script: Iterator[None] = iter(())
        self._begun = False
        self.beside: list[Any] = []

    def run(self, script: Script, batch: Batch, steps: int) -> None:
        """Let the loop take so many steps over a batch: one for each time that ``script`` yields."""
        self._script = script
        next(script)
        fed = steps + 1  # a loader fetches a batch ahead
        data = PreparedData(steps=((batch,) * self._cell.training.gradient_accumulation,) * fed, caveats=())
        on_host = self._cell.model_copy(update={"device": "cpu"})  # a trainer would look for the card
        hooks = Hooks(steps=fed, collate=self._collate, beside=self.beside.append)
        try:
            with self._launched(), Watcher(self, self._model).watching(), suppress(StopLoop):
                TRAINERS[on_host.loop.driver](on_host, self._model, _blank_tokenizer(), data, hooks)
                raise UntraceableError(f"loop {on_host.loop.driver} ended early; measure it with bench run.")
        finally:
            script.close()

    @contextmanager
    def _launched(self) -> Iterator[None]:
        """Be launched as the cell's rank; under FSDP weights come to the device in the trainer's set-up.

        Before, on the host, accelerate casts what is trained, and lists all weights for a way of loading that
        is not taken (fsdp2_prepare_model in its utils/fsdp_utils.py).
        """
        cell = self._cell
        with ExitStack() as stack:
            if cell.parallel.sharded:
                self.books.mark("load")
                stack.enter_context(patch.object(torch.nn.Module, "state_dict", lambda *_of: {}))
                if cell.training.autocast != "off" and cell.method.kind != "qlora":
                    with without_modes():
                        for parameter in trainable_parameters(self._model):
                            parameter.data = parameter.data.float()
            stack.enter_context(_patched(self))
            stack.enter_context(launched(cell, on="cpu" if self.on_cpu else "cuda", device="meta"))
            yield

    def _collate(self, collate: Collate) -> Collate:
        """Return a collator whose batches have no data, as far as they are made on the loop's device.

        For a card they are made on the host, as there; accelerate moves each as it hands it out, and the one
        that its loader fetched ahead stays behind (DataLoaderShard.__iter__ in its data_loader.py).
        """

        def on_meta(rows: Any) -> Any:
            with without_modes():
                batch = dict(collate(rows))
                tensors = {
                    name: value.to("meta") for name, value in batch.items() if isinstance(value, torch.Tensor)
                }
                for name, tensor in tensors.items():
                    self.books.known.know(tensor, batch[name])
            self.books.register(tensors.values(), "inputs")
            return {**batch, **tensors}

        return on_meta if self.on_cpu else collate

    def began(self, phase: StepPhase) -> None:
        """Mark the phase, and enter gradients as such once all are there; first what a trainer cast anew."""
        if not self._begun:
            self._begun = True
            self.books.learn(self._model, *self.beside)
        self.books.mark(phase)
        if phase == "optimizer_step":
            self.books.register_gradients(trainable_parameters(self._model))
            if self.books.step:
                self.books.know_state(self.optimizer)

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Enter what the collator did not make."""
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        self.books.register(tensors, "inputs")

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with the script; end the loop where that is over."""
        self.optimizer = optimizer
        if next(self._script, self) is self:
            raise StopLoop
        self.books.mark("inputs")


@contextmanager
def _patched(loop: MetaLoop) -> Iterator[None]:
    """Let accelerate, transformers and trl take the meta device for theirs, and forget it afterwards."""
    from transformers import TrainingArguments

    def device(self: Any) -> torch.device:
        self._setup_devices  # noqa: B018 - what the property does besides
        return torch.device("meta")

    with ExitStack() as stack:
        forget_state()
        stack.callback(forget_state)
        for one in (
            patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": "meta"}),
            patch.object(TrainingArguments, "device", property(device)),
            patch.object(torch.cuda, "empty_cache", loop.books.empty_cache),
            *(() if loop.on_cpu else trl_on_cuda()),
        ):
            stack.enter_context(one)
        yield


class _LaunchesNothing:
    """Stands for a Triton kernel that writes into tensors made before it."""

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return lambda *_args, **_options: None


def trl_on_cuda() -> Iterator[Any]:
    """Yield what lets trl take its way on CUDA: logits in tiles, each folded by a Triton kernel in place.

    Source: trl 1.16, kernels/chunked_logprob.py and trainer/utils.py (_fused_forward).
    """
    try:
        from trl.kernels import chunked_logprob
        from trl.trainer import utils
    except ImportError:
        return
    for kernel in ("_forward_kernel", "_backward_kernel"):
        yield patch.object(chunked_logprob, kernel, _LaunchesNothing())
    yield patch.object(chunked_logprob, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b)), create=True)
    for owner in (chunked_logprob, utils):
        yield patch.object(owner, "_use_triton", lambda _device: True)
    yield patch.object(chunked_logprob, "_addmm_fp32", _added_in_place)


def _added_in_place(total: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    """Add a product to an fp32 sum: of 16-bit matrices without a copy of either in fp32."""
    if one.dtype == total.dtype:
        total.addmm_(one, other)
    else:
        total.add_(0.0)  # torch.addmm(…, out_dtype=torch.float32, out=total), which makes no other tensor


def forget_state() -> None:
    """Let accelerate begin anew."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _blank_tokenizer() -> Any:
    """Return a tokenizer for trainers that ask for one and are given tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "<unk>")), **special)
