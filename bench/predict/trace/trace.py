"""Runs a cell's window on meta tensors and records the stream of allocations and frees. Replays nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from bench.predict.trace.calls import Calls
from bench.predict.trace.depth import Depth, shallow
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.loading import load_weights
from bench.predict.trace.loops import LoopLedger, MetaLoop, read_loop_ledger
from bench.predict.trace.meta_kernels import is_paged
from bench.predict.trace.meta_ledger import MetaLedger
from bench.predict.trace.patches import implementations_of, patched
from bench.predict.trace.ranks import one_of_several
from bench.predict.trace.stream import Stream, stream_of
from bench.predict.trace.values import KnownValues
from bench.predict.trace.variants import litgpt
from bench.predict.trace.variants.adapters import require_traceable
from bench.predict.trace.variants.liger import rotate
from bench.predict.trace.variants.litgpt_model import GPT
from bench.predict.trace.variants.older_computations import checkpoint_around, copies_logits
from bench.predict.trace.variants.older_models import check_model
from bench.probes.ledger import StepPhase
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform, version_of
from bench.scenario.types import SyntheticData
from bench.training.loading.models import build_empty_model, configuration_of, quantise_empty
from bench.training.methods import adapt
from bench.training.rows.data import Batch, prepare_batches
from bench.training.step import Trainer, build_trainer, empties_cache, optimizer_state, run_step
from bench.training.watcher import Script
from bench.training.weights_reached import Reached, reached_in
from bench.training.window import LEDGER_STEPS, read_ledger

TRACED_STEPS = 2  # optimizer state appears in the first; the second is often the peak


class _Adapted(NamedTuple):
    """A model ready to train, the books of how it came about, and what bitsandbytes remembers of that."""

    model: Any
    books: MetaLedger
    maps: dict[str, Any]
    reached: Reached


Adapted = dict[object, _Adapted]
"""Models by what was done to them."""


@dataclass(frozen=True)
class Tracer:
    """Traces cells of one model; what is loaded and adapted alike is so once.

    Where speed is asked for as well, what operators read and write is noted (``timed``).
    """

    platform: Platform
    config: Any
    adapted: Adapted = field(default_factory=dict)
    timed: bool = False

    def trace(self, cell: Cell, depth: Depth | None = None, steps: int = TRACED_STEPS) -> Stream:
        """Trace loading, adapting and so many steps as on CUDA, over batches of the full length.

        With ``depth`` the model is cut to so many layers, but what is sized by the number of its parameters
        is sized as in the whole. Raises ``UntraceableError`` naming what cannot be traced.
        """
        return self.trace_lengths(cell, steps * [cell.training.sequence_length], depth)

    def trace_rank(self, cell: Cell, rank: int) -> Stream:
        """Trace one of several GPUs, all layers; of its model nothing is kept."""
        with patched(self.platform), one_of_several(cell, self.platform, rank) as streams:
            made = self._adapted(cell, None)
            shapes = [parameter.shape for parameter in made.model.parameters()]
            batch = worst_batch(cell, self.vocabulary_size)
            with made.books.copied(**_hidden(batch)) as ledger:
                ledger.current_stream, streams.receive = streams.now, ledger.receive
                streams.offload = ledger.to_host
                optimizer = _run_steps(cell, made.model, TRACED_STEPS * [batch], ledger)
                ledger.register(optimizer_state(optimizer), "optimizer_state", "optimizer")
                reached = made.reached.saying(implementations_of())
                uneven = cell.parallel.strategy == "fsdp2" and any(
                    shape[0] % cell.parallel.gpus for shape in shapes if shape
                )
                asked = ledger.asked if isinstance(ledger, LoopLedger) else ()
                return stream_of(ledger, asked=asked, reached=reached, uneven=uneven)

    def trace_lengths(self, cell: Cell, lengths: Sequence[int], depth: Depth | None = None) -> Stream:
        """Trace as ``trace`` does, a step over each length; a library's loop takes the first for all."""
        from bitsandbytes.functional import name2qmap

        with patched(self.platform):
            training, window = cell.training, cell.loop.driver == "window"
            method = cell.method.model_dump_json(exclude={"name"})
            levers = training.dtype, training.gradient_checkpointing, training.attention, training.kernels
            key = method, *levers, depth, window
            made = self.adapted.pop(key, None) or self._adapted(cell, depth)
            name2qmap.update(made.maps)
            made.maps.update(name2qmap)
            if training.kernels == "liger":
                rotate(made.model)
            batches = [worst_batch(at_length(cell, each), self.vocabulary_size) for each in lengths]
            with made.books.copied(**_hidden(batches[0])) as ledger:
                optimizer = _run_steps(cell, made.model, batches, ledger)
                unpaged = (state for state in optimizer_state(optimizer) if not is_paged(state))
                ledger.register(unpaged, "optimizer_state", "optimizer")
                asked = ledger.asked if isinstance(ledger, LoopLedger) else ()
                paged = paged_bytes(optimizer, ledger)
                reached = made.reached.saying(implementations_of())
                stream = stream_of(ledger, paged_bytes=paged, asked=asked, reached=reached)
                optimizer.state.clear()
                if window and ledger.holds_just(made.books):
                    self.adapted[key] = made
        return stream

    @property
    def vocabulary_size(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    def _adapted(self, cell: Cell, depth: Depth | None) -> _Adapted:
        config = deepcopy(self.config) if depth is None else shallow(self.config, depth.traced)
        model = _built(cell, config, self.platform)
        ledger: MetaLedger | None = _of_adapters(cell, model, self.vocabulary_size, Kernels(self.platform))
        of_loop = MetaLedger if cell.loop.driver == "window" else LoopLedger
        if ledger is None:
            added, period = (depth.periods_added, depth.period) if depth else (0, 1)
            kernels = Kernels(self.platform)
            ledger = of_loop(model, self.vocabulary_size, kernels, periods_added=added, period=period)
        ledger.timed = self.timed
        if cell.parallel.sharded:  # what was adapted on the host comes to be sharded
            for module in model.modules():
                quantise_empty(module)
            with torch.device("meta"):
                model = _ready(model, cell)
            books = of_loop(model, self.vocabulary_size, Kernels(self.platform))
            books.timed = self.timed
            return _Adapted(model, books, {}, reached_in(model, cell))
        with ledger:
            load_weights(model, ledger, version_of(self.platform.transformers))
            ledger.mark("adapt")
            with torch.device("meta"), _adapting(ledger):
                model = _ready(model, cell)
            ledger.learn(model)
            books = ledger.copied(padded=False, packed=False)
            return _Adapted(model, books, {}, reached_in(model, cell, ledger.times))


def _built(cell: Cell, config: Any, platform: Platform) -> Any:
    """Return the empty model, transformers' or litgpt's, not adapted."""
    if platform.litgpt:
        return litgpt.build(cell, config, platform.litgpt)
    model = build_empty_model(cell, config)
    check_model(model, platform)
    if cell.training.loss == "full":
        copies_logits(model, platform)
    return model


def _ready(model: Any, cell: Cell) -> Any:
    return litgpt.adapt(model, cell) if isinstance(model, GPT) else adapt(model, cell)


def _run_steps(cell: Cell, model: Any, batches: Sequence[Batch], ledger: MetaLedger) -> torch.optim.Optimizer:
    """Take a step over each batch in the cell's loop; return the optimizer that made them."""
    if isinstance(ledger, LoopLedger) and cell.loop.driver != "window":
        loop = MetaLoop(cell, model, ledger)

        def script() -> Script:
            for ledger.step in range(len(batches)):
                ledger.mark("inputs")
                yield

        loop.run(script(), batches[0], len(batches))
        return loop.optimizer
    trainer = _trainer(model, cell)
    checkpoint_around(trainer.model, cell, ledger.platform)
    if cell.parallel.several:
        ledger.register_model(trainer.model)
    for ledger.step, batch in enumerate(batches):
        run_step(trainer, [batch] * cell.training.gradient_accumulation, _marker(ledger, trainer))
        if empties_cache(cell.training, ledger.step + 1):
            ledger.empty_cache()
    return trainer.optimizer


def read_cpu_ledger(
    cell: Cell,
    platform: Platform,
    config: Any | None = None,
    asked: set[str] | None = None,
    reached: list[Reached] | None = None,
    *,
    calls: list[Calls] | None = None,
    rank: int = 0,
) -> LedgerReading:
    """Read the ledger of two steady steps as on the CPU, after one that nothing watches.

    ``asked`` gets the lines of a loop that asked for values which a prediction does not have, ``reached``
    what the method did to the weights, ``calls`` those of each step in the window's own loop.
    """
    with patched(platform), one_of_several(cell, platform, rank):
        config = config or configuration_of(cell.model)
        model = _built(cell, config, platform)
        vocabulary_size = int(config.get_text_config().vocab_size)
        batch = worst_batch(cell, vocabulary_size)
        for module in model.modules():
            quantise_empty(module)
        kernels = Kernels(platform, **_hidden(batch))
        adapted_by = _of_adapters(cell, model, vocabulary_size, kernels)
        with torch.device("meta"), adapted_by or nullcontext():
            if adapted_by:
                adapted_by.mark("adapt")
            model = _ready(model, cell)
        if reached is not None:
            reached.append(reached_in(model, cell))
        if cell.loop.driver != "window":
            return read_loop_ledger(cell, model, kernels, batch, set() if asked is None else asked)
        trainer = _trainer(model, cell)
        step = [on_meta(batch)] * cell.training.gradient_accumulation
        of_step = partial(LoopLedger, known=adapted_by.known) if adapted_by else MetaLedger
        with of_step(model, vocabulary_size, kernels):
            run_step(trainer, step)
        books = of_step(model, vocabulary_size, kernels, phase="inputs")
        books.timed = calls is not None
        reading = read_ledger(trainer, [step] * LEDGER_STEPS, books)
        if calls is not None:
            calls += books.recorder.calls
        if asked is not None and isinstance(books, LoopLedger):
            asked |= books.asked
        return reading


def _of_adapters(cell: Cell, model: Any, vocabulary_size: int, kernels: Kernels) -> LoopLedger | None:
    """Return books for a method of peft, whose adapters may look at values of their own; None for others."""
    require_traceable(cell)
    if cell.method.kind != "peft":
        return None
    known = KnownValues(most_integers=1 << 25, most_floats=1 << 16)
    return LoopLedger(model, vocabulary_size, kernels, known=known)


def at_length(cell: Cell, length: int) -> Cell:
    return cell.model_copy(update={"training": cell.training.model_copy(update={"sequence_length": length})})


def worst_batch(cell: Cell, vocabulary_size: int) -> Batch:
    """Return the widest micro-batch that the cell's settings allow: every row at its full length.

    Of real data it is not known how sequences lie in it, only that packed rows hold more than one, and that
    of several rows, or of rows padded to a given length, some end in padding.
    """
    training = cell.training
    prepare = partial(prepare_batches, pairs=cell.loop.takes_pairs)
    if isinstance(cell.data, SyntheticData):
        return prepare(cell.data, training, None, vocabulary_size, 1).steps[0][0]  # of one, the longest
    batch = prepare(SyntheticData(), training, None, vocabulary_size, 1).steps[0][0]
    if training.batching == "pack":
        half = training.sequence_length // 2
        positions = torch.cat([torch.arange(half), torch.arange(training.sequence_length - half)])
        positions = positions.expand(batch.input_ids.shape).contiguous()
        if training.attention == "flash_attention_2":  # all rows in one, as they are laid out for it
            ids, labels, positions = (
                part.reshape(1, -1) for part in (batch.input_ids, batch.labels, positions)
            )
            return replace(batch, input_ids=ids, labels=labels, position_ids=positions)
        return replace(batch, position_ids=positions)
    if len(batch.input_ids) > 1 or training.batching == "pad-to-length":
        mask = torch.ones_like(batch.input_ids)
        mask[-1, training.sequence_length * 3 // 4 :] = 0
        return replace(batch, attention_mask=mask)
    return batch


def _hidden(batch: Batch) -> dict[str, bool]:
    """Tell what the batch's mask and positions hide."""
    padded = batch.attention_mask is not None and not bool(batch.attention_mask.all())
    return {"padded": padded, "packed": batch.position_ids is not None}


def on_meta(batch: Batch) -> Batch:
    """Return a batch without data, which its model then has no need to copy: as on the CPU."""
    changed: dict[str, Any] = dict(batch.inputs_on("meta"))
    return replace(batch, **changed)


def paged_bytes(optimizer: torch.optim.Optimizer, ledger: MetaLedger) -> int:
    """Return what of an optimizer's state lies in managed memory."""
    return sum(
        tensor.nbytes * ledger.times_of(parameter)
        for parameter, state in optimizer.state.items()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and is_paged(tensor)
    )


@contextmanager
def _adapting(ledger: MetaLedger) -> Iterator[None]:
    """Tell the ledger what peft is doing: at which module, and that it empties the allocator's cache.

    It does the latter after preparing quantised weights, but only where it sees a CUDA device.
    """
    from peft.tuners.lora import LoraModel

    replace_module = LoraModel._create_and_replace

    def replace_noted(tuner: Any, *args: Any, **kwargs: Any) -> None:
        ledger.work_on(kwargs["current_key"])
        replace_module(tuner, *args, **kwargs)
        ledger.work_on("")

    with (
        patch.object(LoraModel, "_create_and_replace", replace_noted),
        patch.object(torch.cuda, "is_available", return_value=True),
        patch.object(torch.cuda, "empty_cache", ledger.empty_cache),
    ):
        yield


def _trainer(model: Any, cell: Cell) -> Trainer:
    return build_trainer(model, cell.model_copy(update={"device": "meta"}), TRACED_STEPS)


def _marker(ledger: MetaLedger, trainer: Trainer) -> Callable[[StepPhase], None]:
    def mark(phase: StepPhase) -> None:
        ledger.mark(phase)
        if phase == "optimizer_step":
            ledger.register_gradients(trainer.parameters)
            ledger.know_state(trainer.optimizer)

    return mark
