"""The training window: load, adapt, first step, warm-up, measured steps, evaluate, then the ledger.

The same order for every method and device: ``prepare`` makes what a loop needs, whichever it is, ``train`` is
the loop. Nothing is timed after the first instrument that slows a step, and everything read is sent at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bench.probes.flops import count_flops
from bench.probes.ledger import Ledger, StepPhase
from bench.probes.machine import Allocator, allocator_of, ignore, read_facts, read_torch_settings
from bench.probes.phases import PhaseReader, mark_block, mark_quiescent
from bench.records.messages import ReadingMade, Send
from bench.records.readings import Caveat
from bench.records.records import FlopsReading, LedgerReading, ModelFacts, Phase, StepSample, TokenCounts
from bench.scenario.cell import Cell
from bench.scenario.types import WindowSpec
from bench.training.data import Batch, PreparedData, prepare_batches
from bench.training.evaluation import evaluate
from bench.training.methods import (
    adapt,
    adapter_file_bytes,
    check_merge,
    count_parameters,
    excess_ranks,
    method_caveats,
)
from bench.training.models import device_of, load_model
from bench.training.optimizers import optimizer_caveats
from bench.training.step import (
    Mark,
    Trainer,
    build_trainer,
    empties_cache,
    ignore_phase,
    optimizer_state,
    paged_memory,
    run_step,
)
from bench.training.weights import Weights, fetch_weights

DEFAULT_CONTEXT = 2048  # tokens, for evaluating the few models whose configuration states none
LEDGER_STEPS = 2  # a pair, so that whatever one step leaves behind is there in the next
_FIRST_STEP: dict[StepPhase, Phase] = {
    "forward": "first_forward",
    "backward": "first_backward",
    "optimizer_step": "first_optimizer_step",
}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a loop trains: model and optimizer, the tokenizer, and the micro-batches of every step."""

    trainer: Trainer
    tokenizer: Any
    data: PreparedData

    @property
    def vocabulary_size(self) -> int:
        """Ids that the model's embeddings have a row for."""
        return _vocabulary_size(self.trainer.model)


def run_window(
    cell: Cell, send: Send, *, trust_remote_code: bool = False, after_warmup: Callable[[], None] = ignore
) -> None:
    """Run one cell from nothing to its last reading; ``after_warmup`` is called before the measured steps.

    Raises what the libraries raise, and ``UnavailableError`` where this machine lacks something.
    """
    allocator = allocator_of(device_of(cell))
    phases = PhaseReader(send, allocator)
    phases.report(read_facts(), read_torch_settings())
    weights = fetch_weights(cell.model)
    torch.manual_seed(cell.training.seed)
    mark_block(send, allocator)
    prepared = prepare(cell, weights, phases, trust_remote_code=trust_remote_code)
    if cell.evaluation.tasks:
        with phases.phase("evaluate_before"):
            _evaluate(prepared, cell, "before", phases)
    train(prepared, cell.window, phases, after_warmup)
    mark_quiescent(send, allocator)
    if cell.evaluation.tasks:
        with phases.phase("evaluate_after"):
            _evaluate(prepared, cell, "after", phases)
    _instrument(prepared, cell, phases)


def prepare(cell: Cell, weights: Weights, phases: PhaseReader, *, trust_remote_code: bool) -> Prepared:
    """Load and adapt the model, build its optimizer, lay out the data, and report what they are."""
    device = device_of(cell)
    steps = 1 + cell.window.warmup_steps + cell.window.measured_steps
    with phases.phase("load"):
        model, tokenizer = load_model(cell, weights, device, trust_remote_code=trust_remote_code)
    with phases.phase("adapt"):
        model = adapt(model, cell)
        trainer = build_trainer(model, cell, steps)
    with phases.phase("prepare_data"):
        data = prepare_batches(cell.data, cell.training, tokenizer, _vocabulary_size(model), steps)
    adapter_bytes = None
    if cell.method.kind != "full":
        with phases.phase("save_adapter"):
            adapter_bytes = adapter_file_bytes(model)
    phases.report(_model_facts(trainer, cell, weights, adapter_bytes))
    phases.report(*method_caveats(cell), *excess_ranks(model), *data.caveats)
    phases.report(*optimizer_caveats(cell.training, device))
    return Prepared(trainer=trainer, tokenizer=tokenizer, data=data)


def train(
    prepared: Prepared, window: WindowSpec, phases: PhaseReader, after_warmup: Callable[[], None]
) -> None:
    """Take the first step phase by phase, then warm-up and measured steps."""
    timed = TimedSteps(prepared.trainer, phases.allocator, phases.send)
    batches = iter(prepared.data.steps)
    with _first_step_phases(phases) as mark:
        timed.run(next(batches), "first", mark)
    if prepared.trainer.device.type == "cuda":
        phases.report(paged_memory(prepared.trainer.optimizer))
    with phases.phase("warmup", total_steps=window.warmup_steps):
        for _ in range(window.warmup_steps):
            timed.run(next(batches), "warmup")
    after_warmup()
    with phases.phase("steady", total_steps=window.measured_steps, keep_heap=True):
        for _ in range(window.measured_steps):
            timed.run(next(batches), "measured")


class TimedSteps:
    """Runs steps, reads the clock around each, and sends the samples between them."""

    def __init__(self, trainer: Trainer, allocator: Allocator, send: Send) -> None:
        """Count steps from zero."""
        self._trainer, self._allocator, self._send = trainer, allocator, send
        self._index = 0

    def run(
        self,
        micro_batches: Sequence[Batch],
        stage: Literal["first", "warmup", "measured"],
        mark: Mark = ignore_phase,
    ) -> None:
        """Run one step; the clock is read when the device has nothing left to do."""
        self._allocator.synchronise()
        started_ns = time.perf_counter_ns()
        result = run_step(self._trainer, micro_batches, mark)
        if empties_cache(self._trainer.training, self._index + 1):
            self._allocator.empty_cache()
        self._allocator.synchronise()
        step_time_ns = time.perf_counter_ns() - started_ns
        sample = StepSample(
            index=self._index,
            stage=stage,
            step_time_ns=step_time_ns,
            tokens=_counts(micro_batches),
            loss=float(result.loss),
            skipped=result.skipped,
            gradient_norm=None if result.gradient_norm is None else float(result.gradient_norm),
        )
        self._send(ReadingMade(reading=sample))
        self._index += 1


@contextmanager
def _first_step_phases(phases: PhaseReader) -> Iterator[Mark]:
    """Turn the marks of one step into phases. Accumulation repeats forward and backward, a reading each."""
    with ExitStack() as open_phase:

        def mark(phase: StepPhase) -> None:
            if phase != "inputs":  # these belong to what went before
                open_phase.close()
                open_phase.enter_context(phases.phase(_FIRST_STEP[phase]))

        yield mark


def _instrument(prepared: Prepared, cell: Cell, phases: PhaseReader) -> None:
    """Take the steps that an instrument slows, and merge the adapter, after all that was timed."""
    trainer, steps = prepared.trainer, prepared.data.steps
    if cell.window.ledger:
        with phases.phase("ledger"):
            widest = max(steps, key=lambda step: max(batch.counts.computed for batch in step))  # has the peak
            books = Ledger(trainer.model, trainer.device.type, prepared.vocabulary_size)
            phases.report(read_ledger(trainer, [widest] * LEDGER_STEPS, books))
    if cell.window.flops:
        with phases.phase("flops"):
            counted = count_flops(lambda: run_step(trainer, steps[-1]))
            if counted.uncounted_operators:
                message = f"FLOPs leave out {', '.join(counted.uncounted_operators)}."
                phases.report(Caveat(code="flops-incomplete", message=message))
            phases.report(FlopsReading(step_flops=counted.flops, tokens=_counts(steps[-1])))
    if cell.window.merge_check and cell.method.kind != "full":
        with phases.phase("merge_check"):
            phases.report(check_merge(trainer.model, steps[0][0], trainer.device))


def read_ledger(trainer: Trainer, pair: Sequence[Sequence[Batch]], ledger: Ledger) -> LedgerReading:
    """Run the steps under a new ledger and sum it up."""
    ledger.register_model(trainer.model)
    ledger.register(optimizer_state(trainer.optimizer), "optimizer_state", "optimizer")

    def mark(phase: StepPhase) -> None:
        ledger.mark(phase)
        if phase == "optimizer_step":
            gradients = (parameter.grad for parameter in trainer.parameters)
            ledger.register((gradient for gradient in gradients if gradient is not None), "gradients")

    with ledger:
        for micro_batches in pair:
            for batch in micro_batches:
                ledger.register(batch.inputs_on(batch.input_ids.device).values(), "inputs")
            run_step(trainer, micro_batches, mark)
    return ledger.reading()


def _evaluate(prepared: Prepared, cell: Cell, when: Literal["before", "after"], phases: PhaseReader) -> None:
    model: Any = prepared.trainer.model
    context = getattr(model.config.get_text_config(), "max_position_embeddings", DEFAULT_CONTEXT)
    readings, caveats = evaluate(model, prepared.tokenizer, cell.evaluation, cell.data, when, context)
    phases.report(*readings, *caveats)


def _vocabulary_size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _counts(micro_batches: Sequence[Batch]) -> TokenCounts:
    return TokenCounts(
        raw=sum(batch.counts.raw for batch in micro_batches),
        non_padding=sum(batch.counts.non_padding for batch in micro_batches),
        loss_bearing=sum(batch.counts.loss_bearing for batch in micro_batches),
        computed=sum(batch.counts.computed for batch in micro_batches),
    )


def _model_facts(trainer: Trainer, cell: Cell, weights: Weights, adapter_bytes: int | None) -> ModelFacts:
    model: Any = trainer.model
    return ModelFacts(
        source=weights.source,
        weights_note=weights.note,
        parameters_total=count_parameters(model),
        parameters_trainable=sum(parameter.numel() for parameter in trainer.parameters),
        weights_dtype=cell.training.dtype,
        attention=model.config._attn_implementation,  # noqa: SLF001 - has no public name
        optimizer_class=f"{type(trainer.optimizer).__module__}.{type(trainer.optimizer).__name__}",
        adapter_file_bytes=adapter_bytes,
    )
