"""The training window: load, adapt, first step, warm-up, measured steps, evaluate, then the ledger.

One linear function for every method and device. Nothing is timed after the first instrument that
slows a step, and everything read is sent at once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Self

import torch

from bench.probes.allocator import Allocator, allocator_of
from bench.probes.ledger import Ledger, StepPhase
from bench.probes.marks import mark_block, mark_quiescent
from bench.probes.out_of_memory import ignore
from bench.probes.phases import PhaseReader, Send
from bench.probes.torch_settings import read_torch_settings
from bench.records.messages import ReadingMade
from bench.records.records import (
    Caveat,
    FlopsReading,
    LedgerReading,
    ModelFacts,
    Phase,
    StepSample,
    TokenCounts,
)
from bench.scenario.types import Cell
from bench.training.data import Batch, PreparedData, prepare_batches
from bench.training.evaluation import evaluate
from bench.training.facts import read_facts
from bench.training.flops import count_flops
from bench.training.methods import (
    adapt,
    adapter_file_bytes,
    check_merge,
    count_parameters,
    excess_ranks,
    method_caveats,
    trainable_parameters,
)
from bench.training.models import device_of, load_model
from bench.training.optimizers import build_optimizer, build_schedule, optimizer_caveats
from bench.training.step import Trainer, empties_cache, ignore_phase, optimizer_state, paged_memory, run_step
from bench.training.weights import Weights, fetch_weights

DEFAULT_CONTEXT = 2048  # tokens, for evaluating the few models whose configuration states none
LEDGER_STEPS = 2  # a pair, so that whatever one step leaves behind is there in the next
_FIRST_STEP: dict[StepPhase, Phase] = {
    "forward": "first_forward",
    "backward": "first_backward",
    "optimizer_step": "first_optimizer_step",
}


def run_window(
    cell: Cell,
    send: Send,
    *,
    trust_remote_code: bool = False,
    after_warmup: Callable[[], None] = ignore,
) -> None:
    """Run one cell from nothing to its last reading; ``after_warmup`` is called before the measured steps.

    Raises what the libraries raise, and ``UnavailableError`` where this machine lacks something.
    """
    device = device_of(cell)
    allocator = allocator_of(device)
    phases = PhaseReader(send, allocator)
    window = cell.window
    timed_steps = 1 + window.warmup_steps + window.measured_steps

    send(ReadingMade(reading=read_facts()))
    send(ReadingMade(reading=read_torch_settings()))
    weights = fetch_weights(cell.model)
    torch.manual_seed(cell.training.seed)
    mark_block(send, allocator)
    with phases.phase("load"):
        model, tokenizer = load_model(cell, weights, device, trust_remote_code=trust_remote_code)
    with phases.phase("adapt"):
        model = adapt(model, cell)
        trainer = build_trainer(model, cell, timed_steps)
    with phases.phase("prepare_data"):
        data = prepare_batches(cell.data, cell.training, tokenizer, _vocabulary_size(model), timed_steps)
    adapter_bytes = None
    if cell.method.kind != "full":
        with phases.phase("save_adapter"):
            adapter_bytes = adapter_file_bytes(model)
    send(ReadingMade(reading=_model_facts(trainer, cell, weights, adapter_bytes)))
    caveats = (*method_caveats(cell), *excess_ranks(model), *data.caveats)
    for caveat in (*caveats, *optimizer_caveats(cell.training, device)):
        send(ReadingMade(reading=caveat))

    if cell.evaluation.tasks:
        with phases.phase("evaluate_before"):
            _evaluate(model, tokenizer, cell, "before", send)

    timed = TimedSteps(trainer, allocator, send)
    batches = iter(data.steps)
    with PhaseSwitch(phases) as switch:
        timed.run(next(batches), "first", switch)
    if device.type == "cuda":
        send(ReadingMade(reading=paged_memory(trainer.optimizer)))
    with phases.phase("warmup", total_steps=window.warmup_steps):
        for _ in range(window.warmup_steps):
            timed.run(next(batches), "warmup")
    after_warmup()
    with phases.phase("steady", total_steps=window.measured_steps, keep_heap=True):
        for _ in range(window.measured_steps):
            timed.run(next(batches), "measured")
    mark_quiescent(send, allocator)

    if cell.evaluation.tasks:
        with phases.phase("evaluate_after"):
            _evaluate(model, tokenizer, cell, "after", send)
    _instrument(trainer, data, cell, phases, send)


def build_trainer(model: Any, cell: Cell, steps: int) -> Trainer:
    """Put optimizer, schedule and gradient scaler around an adapted model."""
    training = cell.training
    parameters = trainable_parameters(model)
    optimizer = build_optimizer(parameters, training)
    return Trainer(
        model=model,
        parameters=parameters,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, training, steps),
        scaler=torch.amp.GradScaler(cell.device, enabled=training.autocast == "fp16"),
        training=training,
        device=device_of(cell),
    )


class TimedSteps:
    """Runs steps, reads the clock around each, and sends the samples between them."""

    def __init__(self, trainer: Trainer, allocator: Allocator, send: Send) -> None:
        """Count steps from zero."""
        self._trainer = trainer
        self._allocator = allocator
        self._send = send
        self._index = 0

    def run(
        self,
        micro_batches: Sequence[Batch],
        stage: Literal["first", "warmup", "measured"],
        mark: Callable[[StepPhase], None] = ignore_phase,
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


class PhaseSwitch:
    """Turns the marks of one step into phases. Accumulation repeats forward and backward, a reading each."""

    def __init__(self, phases: PhaseReader) -> None:
        """Open no phase yet."""
        self._phases = phases
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, phase: StepPhase) -> None:
        """Close the phase that is open and begin the next; inputs belong to what went before."""
        if phase != "inputs":
            self._open.close()
            self._open.enter_context(self._phases.phase(_FIRST_STEP[phase]))


def _instrument(trainer: Trainer, data: PreparedData, cell: Cell, phases: PhaseReader, send: Send) -> None:
    """Take the steps that an instrument slows, and merge the adapter, after all that was timed."""
    window = cell.window
    if window.ledger:
        with phases.phase("ledger"):
            pair = [max(data.steps, key=_widest)] * LEDGER_STEPS
            books = Ledger(trainer.model, trainer.device.type, _vocabulary_size(trainer.model))
            send(ReadingMade(reading=read_ledger(trainer, pair, books)))
    if window.flops:
        with phases.phase("flops"):
            _send_flops(trainer, data.steps[-1], send)
    if window.merge_check and cell.method.kind != "full":
        with phases.phase("merge_check"):
            send(ReadingMade(reading=check_merge(trainer.model, data.steps[0][0], trainer.device)))


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


def _send_flops(trainer: Trainer, micro_batches: Sequence[Batch], send: Send) -> None:
    counted = count_flops(lambda: run_step(trainer, micro_batches))
    if counted.uncounted_operators:
        names = ", ".join(counted.uncounted_operators)
        send(ReadingMade(reading=Caveat(code="flops-incomplete", message=f"FLOPs leave out {names}.")))
    send(ReadingMade(reading=FlopsReading(step_flops=counted.flops, tokens=_counts(micro_batches))))


def _vocabulary_size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _widest(micro_batches: Sequence[Batch]) -> int:
    """Return the positions of a step's largest forward pass, which decides its peak."""
    return max(batch.counts.computed for batch in micro_batches)


def _counts(micro_batches: Sequence[Batch]) -> TokenCounts:
    """Add the token counts of micro-batches."""
    return TokenCounts(
        raw=sum(batch.counts.raw for batch in micro_batches),
        non_padding=sum(batch.counts.non_padding for batch in micro_batches),
        loss_bearing=sum(batch.counts.loss_bearing for batch in micro_batches),
        computed=sum(batch.counts.computed for batch in micro_batches),
    )


def _evaluate(
    model: Any,
    tokenizer: Any,
    cell: Cell,
    when: Literal["before", "after"],
    send: Send,
) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", DEFAULT_CONTEXT)
    readings, caveats = evaluate(model, tokenizer, cell.evaluation, cell.data, when, context)
    for reading in (*readings, *caveats):
        send(ReadingMade(reading=reading))


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
