"""The training window: adapt, first step, warm-up, measured steps, evaluate, then the ledger.

The same order for every method and device. Nothing is timed after the first instrument that slows a step, and
everything read is sent at once.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch

from bench.probes.flops import FlopCounter
from bench.probes.heap import held_now
from bench.probes.ledger import Ledger, StepPhase
from bench.probes.machine import Allocator, ignore
from bench.probes.phases import PhaseReader, mark_quiescent
from bench.records.messages import EvaluationProgress, Reading, ReadingMade, Send
from bench.records.readings import Caveat
from bench.records.records import (
    FlopsReading,
    LedgerReading,
    ModelFacts,
    Phase,
    StepSample,
    TextLoss,
    TokenCounts,
)
from bench.scenario.cell import Cell
from bench.scenario.types import WindowSpec
from bench.training.evaluation import evaluate, read_text_loss
from bench.training.loading.models import device_of, stored_caveats
from bench.training.loading.reach import require_reach
from bench.training.loading.weights import Weights
from bench.training.methods import (
    adapt,
    adapter_file_bytes,
    check_merge,
    count_parameters,
    excess_ranks,
    method_caveats,
    trainable_parameters,
)
from bench.training.rows.data import Batch, PreparedData, prepare_batches
from bench.training.step import (
    Mark,
    Trainer,
    build_trainer,
    empties_cache,
    ignore_phase,
    optimizer_caveats,
    optimizer_state,
    paged_memory,
    run_step,
)
from bench.training.weights_reached import reached_in

DEFAULT_CONTEXT = 2048  # tokens, for evaluating the few models whose configuration states none
LEDGER_STEPS = 2  # a pair, so that whatever one step leaves behind is there in the next
_FIRST_STEP: dict[StepPhase, Phase] = {
    "forward": "first_forward",
    "backward": "first_backward",
    "optimizer_step": "first_optimizer_step",
}


@dataclass(kw_only=True)
class Setting:
    """What a loop is given: the cell, its loaded model and tokenizer, and where readings go."""

    cell: Cell
    model: Any
    tokenizer: Any
    weights: Weights
    phases: PhaseReader
    after_warmup: Callable[[], None] = ignore
    rank: int = 0
    text_losses: list[tuple[float, int]] = field(default_factory=list)

    @property
    def vocabulary_size(self) -> int:
        """Ids that the model's embeddings have a row for."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def timed_steps(self) -> int:
        """The first step, the warm-up's and the measured ones."""
        return 1 + self.cell.window.warmup_steps + self.cell.window.measured_steps

    def adapt(self) -> None:
        self.model = adapt(self.model, self.cell)

    def prepare_data(self) -> PreparedData:
        """Lay out the batches, for each rank others."""
        cell = self.cell
        return prepare_batches(
            cell.data,
            cell.training.model_copy(update={"seed": cell.training.seed + self.rank}),
            self.tokenizer,
            self.vocabulary_size,
            self.timed_steps,
            pairs=cell.loop.takes_pairs,
        )

    def evaluate(self, when: Literal["before", "after"]) -> None:
        asked = self.cell.evaluation
        if not asked.tasks and asked.text is None:
            return
        config = self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", DEFAULT_CONTEXT)
        with self.phases.phase("evaluate_before" if when == "before" else "evaluate_after"):
            if asked.tasks:
                readings, caveats = evaluate(
                    self.model, self.tokenizer, asked, self.cell.data, when, context, self._tell_requests
                )
                self.phases.report(*readings, *caveats)
            if asked.text is not None:
                self.text_losses.append(read_text_loss(self.model, self.tokenizer, asked.text, context))
            if len(self.text_losses) > 1:
                (before, tokens), (after, _) = self.text_losses
                self.phases.report(TextLoss(str(asked.text), tokens, before, after))

    def _tell_requests(self, task: str, done: int, total: int) -> None:
        self.phases.send(EvaluationProgress(task=task, done=done, total=total))

    def save_adapter(self) -> int | None:
        if self.cell.method.kind == "full" or self.cell.parallel.several:  # of which each rank has a part
            return None
        with self.phases.phase("save_adapter"):
            return adapter_file_bytes(self.model)

    def report_facts(self, optimizer: torch.optim.Optimizer, adapter_bytes: int | None) -> None:
        """Report what was loaded, what is trained and by which optimizer, and what to know of these."""
        model, cell = self.model, self.cell
        reached = reached_in(model, cell)
        self.phases.report(
            ModelFacts(
                source=self.weights.source,
                weights_note=self.weights.note,
                parameters_total=count_parameters(model),
                parameters_trainable=sum(parameter.numel() for parameter in trainable_parameters(model)),
                weights_dtype=cell.training.dtype,
                attention=model.config._attn_implementation,  # noqa: SLF001 - has no public name
                optimizer_class=f"{type(optimizer).__module__}.{type(optimizer).__name__}",
                adapter_file_bytes=adapter_bytes,
                reach=reached.weights,
            ),
            *method_caveats(cell),
            *stored_caveats(cell, model.config),
            *reached.caveats,
            *excess_ranks(model),
            *optimizer_caveats(cell.training, device_of(cell)),
        )


def run_window(setting: Setting) -> None:
    """Train in the window's own loop, from a loaded model to the last reading."""
    cell, phases = setting.cell, setting.phases
    trainer, data = prepare(setting)
    setting.evaluate("before")
    train(setting, trainer, data)
    mark_quiescent(phases.send, phases.allocator)
    setting.evaluate("after")
    _instrument(setting, trainer, data, cell.window)


def prepare(setting: Setting) -> tuple[Trainer, PreparedData]:
    """Build the optimizer, lay out the data, and report what they are."""
    cell, phases = setting.cell, setting.phases
    with phases.phase("adapt"):
        setting.adapt()
        trainer = build_trainer(setting.model, cell, setting.timed_steps)
    with phases.phase("prepare_data"):
        data = setting.prepare_data()
    require_reach(cell, setting.model.config, chain.from_iterable(data.steps))
    setting.report_facts(trainer.optimizer, setting.save_adapter())
    phases.report(*data.caveats)
    return trainer, data


def train(setting: Setting, trainer: Trainer, data: PreparedData) -> None:
    """Take the first step phase by phase, then warm-up and measured steps."""
    window, phases = setting.cell.window, setting.phases
    timed = TimedSteps(trainer, phases.allocator, phases.send)
    batches = iter(data.steps)
    with first_step_phases(phases) as mark:
        timed.run(next(batches), "first", mark)
    if trainer.device.type == "cuda":
        phases.report(paged_memory(trainer.optimizer))
    with phases.phase("warmup", total_steps=window.warmup_steps):
        for _ in range(window.warmup_steps):
            timed.run(next(batches), "warmup")
    setting.after_warmup()
    with phases.phase("steady", total_steps=window.measured_steps, keep_heap=True):
        for _ in range(window.measured_steps):
            timed.run(next(batches), "measured")


class TimedSteps:
    """Runs steps, reads the clock around each, and sends the samples between them."""

    def __init__(self, trainer: Trainer, allocator: Allocator, send: Send) -> None:
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
            tokens=token_counts(micro_batches),
            loss=float(result.loss),
            skipped=result.skipped,
            gradient_norm=None if result.gradient_norm is None else float(result.gradient_norm),
            held=held_now(self._allocator.use()),
        )
        self._send(ReadingMade(reading=sample))
        self._index += 1


@contextmanager
def first_step_phases(phases: PhaseReader, until_then: Phase | None = None) -> Iterator[Mark]:
    """Turn the marks of one step into phases. Accumulation repeats forward and backward, a reading each."""
    with ExitStack() as open_phase:
        if until_then is not None:
            open_phase.enter_context(phases.phase(until_then))

        def mark(phase: StepPhase) -> None:
            if phase != "inputs":  # these belong to what went before
                open_phase.close()
                open_phase.enter_context(phases.phase(_FIRST_STEP[phase]))

        yield mark


def widest_of(steps: Sequence[tuple[Batch, ...]]) -> tuple[Batch, ...]:
    """Return the step with the widest micro-batch, which has the peak."""
    return max(steps, key=lambda step: max(batch.counts.computed for batch in step))


def _instrument(setting: Setting, trainer: Trainer, data: PreparedData, window: WindowSpec) -> None:
    phases, steps = setting.phases, data.steps
    if window.ledger:
        with phases.phase("ledger"):
            books = Ledger(trainer.model, trainer.device.type, setting.vocabulary_size)
            waiting = tensors_of(chain.from_iterable(steps))
            phases.report(read_ledger(trainer, [widest_of(steps)] * LEDGER_STEPS, books, waiting))
    if window.flops:
        with phases.phase("flops"):
            with FlopCounter() as counter:
                run_step(trainer, steps[-1])
            phases.report(*flops_readings(counter, token_counts(steps[-1])))
    if window.merge_check and setting.cell.method.kind != "full":
        with phases.phase("merge_check"):
            phases.report(check_merge(trainer.model, steps[0][0], trainer.device))


def flops_readings(counter: FlopCounter, tokens: TokenCounts) -> Iterator[Reading]:
    """Yield the FLOPs of a step, and what they leave out."""
    counted = counter.counted()
    if counted.uncounted_operators:
        message = f"FLOPs leave out {', '.join(counted.uncounted_operators)}."
        yield Caveat(code="flops-incomplete", message=message)
    yield FlopsReading(step_flops=counted.flops, tokens=tokens)


def tensors_of(batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """Yield what batches are made of, as it lies."""
    return chain.from_iterable(batch.inputs_on(batch.input_ids.device).values() for batch in batches)


def read_ledger(
    trainer: Trainer,
    pair: Sequence[Sequence[Batch]],
    ledger: Ledger,
    waiting: Iterable[torch.Tensor] = (),
) -> LedgerReading:
    """Run the steps under a new ledger and sum it up; what is ``waiting`` for other steps is not retained."""
    ledger.register_model(trainer.model)
    ledger.register(optimizer_state(trainer.optimizer), "optimizer_state", "optimizer")

    def mark(phase: StepPhase) -> None:
        ledger.mark(phase)
        if phase == "optimizer_step":
            ledger.register_gradients(trainer.parameters)

    with ledger:
        ledger.leave_out(waiting)
        for micro_batches in pair:
            ledger.register(tensors_of(micro_batches), "inputs")
            run_step(trainer, micro_batches, mark)
            ledger.end_step()
    return ledger.reading()


def token_counts(micro_batches: Sequence[Batch]) -> TokenCounts:
    return TokenCounts(
        raw=sum(batch.counts.raw for batch in micro_batches),
        non_padding=sum(batch.counts.non_padding for batch in micro_batches),
        loss_bearing=sum(batch.counts.loss_bearing for batch in micro_batches),
        computed=sum(batch.counts.computed for batch in micro_batches),
    )
