"""One cell, in whichever loop: the window's own, a library's trainer, or a function of the user's.

Another loop than the window is run once, unchanged. What happens between its steps stands in ``LoopRun``: its
script reads like the window's own loop, and each ``yield`` in it lets the loop take one step.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from bench.errors import UsageError
from bench.probes.flops import FlopCounter
from bench.probes.ledger import Ledger, StepPhase
from bench.probes.machine import allocator_of, ignore, read_facts, read_torch_settings
from bench.probes.phases import PhaseReader, mark_block, mark_quiescent
from bench.records.messages import ReadingMade, Send
from bench.records.readings import Caveat
from bench.records.records import StepSample, TokenCounts
from bench.scenario.cell import Cell
from bench.training.data import PreparedData, prepare_batches
from bench.training.methods import trainable_parameters
from bench.training.models import device_of, load_model
from bench.training.step import Mark, ignore_phase, optimizer_state, paged_memory
from bench.training.trainers import TRAINERS, Collate, Hooks
from bench.training.watcher import StopLoop, Watcher
from bench.training.weights import fetch_weights
from bench.training.window import (
    LEDGER_STEPS,
    Setting,
    first_step_phases,
    flops_readings,
    run_window,
    token_counts,
    widest_of,
)

Script = Generator[None, None, None]
"""What happens around a loop's steps; it lets the loop take one at each ``yield``."""


def run_cell(
    cell: Cell, send: Send, *, trust_remote_code: bool = False, after_warmup: Callable[[], None] = ignore
) -> None:
    """Run one cell; ``after_warmup`` is called before the measured steps.

    Raises what the libraries raise, and ``UnavailableError`` where this machine lacks something.
    """
    device = device_of(cell)
    allocator = allocator_of(device)
    phases = PhaseReader(send, allocator)
    phases.report(read_facts(), read_torch_settings())
    weights = fetch_weights(cell.model)
    torch.manual_seed(cell.training.seed)
    mark_block(send, allocator)
    with phases.phase("load"):
        model, tokenizer = load_model(cell, weights, device, trust_remote_code=trust_remote_code)
    setting = Setting(
        cell=cell,
        model=model,
        tokenizer=tokenizer,
        weights=weights,
        phases=phases,
        after_warmup=after_warmup,
    )
    del model  # or what a method replaces would stay alive
    if cell.loop.driver == "window":
        run_window(setting)
    else:
        run_loop(setting)


def run_loop(setting: Setting) -> None:
    """Train in the cell's loop, from a loaded model to the last reading."""
    cell, phases = setting.cell, setting.phases
    with phases.phase("adapt"):
        setting.adapt()
    adapter_bytes = setting.save_adapter()
    setting.evaluate("before")
    run = LoopRun(setting, adapter_bytes)
    script = run.script()
    next(script)
    try:
        with Watcher(run, setting.model).watching():
            drive(setting, run.data, run.hooks)
    except StopLoop:
        return
    except BaseException as error:  # noqa: BLE001 - raised again by the script, an interrupt too
        script.throw(error)  # so that the phase it happened in is read
    script.close()
    raise UsageError(
        f"loop {cell.loop.driver} ended by itself after {run.steps_taken} of {run.hooks.steps} optimizer "
        "steps; let it run on (a larger max_steps, more epochs), or shorten the scenario's window."
    )


def drive(setting: Setting, data: PreparedData, hooks: Hooks) -> None:
    """Run the cell's loop. Code of the user's is imported here, and nowhere else."""
    loop = setting.cell.loop
    if not loop.is_function:
        TRAINERS[loop.driver](setting.cell, setting.model, setting.tokenizer, data, hooks)
        return
    module, _, name = loop.driver.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: the folder that bench was started in
    try:
        train = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"loop.driver {loop.driver} cannot be imported: {error}") from error
    train(setting.cell, setting.model, setting.tokenizer, data, hooks, **loop.args)


OTHER_BATCHES = Caveat(
    code="batches-not-the-data-s",
    message="The loop gave the model other batches than the data's in its order: tokens are all positions of "
    "what the model was given, padding included.",
)


class LoopRun:
    """Turns what a watcher tells of one loop into the readings of a record."""

    def __init__(self, setting: Setting, adapter_bytes: int | None) -> None:
        """Lay out the data: the timed steps', then the widest again under the ledger, then the last."""
        self._setting, self._adapter_bytes = setting, adapter_bytes
        cell = setting.cell
        data = prepare_batches(
            cell.data, cell.training, setting.tokenizer, setting.vocabulary_size, setting.timed_steps
        )
        widest, last = widest_of(data.steps), data.steps[-1]
        more = [widest] * LEDGER_STEPS * cell.window.ledger + [last] * cell.window.flops
        # One more than is trained on, since a loader fetches a batch ahead.
        self.data = PreparedData(steps=(*data.steps, *more, last), caveats=data.caveats)
        self.hooks = Hooks(steps=len(data.steps) + len(more), collate=self._collate)
        self.steps_taken = 0
        self._script: Iterator[None] = iter(())
        self._mark: Mark = ignore_phase
        self._ledger: Ledger | None = None
        self._losses: list[torch.Tensor] | None = []
        self._positions = 0  # that the model was given in this step
        self._other_batches = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._started_ns = 0

    def script(self) -> Script:
        """Yield once before the loop begins, and then once for each of its steps."""
        self._script = script = self._steps()
        return script

    def _steps(self) -> Script:
        setting, window, phases = self._setting, self._setting.cell.window, self._setting.phases
        phases.report(*self.data.caveats, *_caveats(setting.cell))
        with first_step_phases(phases, until_then="prepare_data") as self._mark:
            yield from self._timed("first")
        self._mark = ignore_phase
        optimizer = self._stepping()
        setting.report_facts(optimizer, self._adapter_bytes)
        if setting.cell.device == "cuda":
            phases.report(paged_memory(optimizer))
        with phases.phase("warmup", total_steps=window.warmup_steps):
            for _ in range(window.warmup_steps):
                yield from self._timed("warmup")
        setting.after_warmup()
        with phases.phase("steady", total_steps=window.measured_steps, keep_heap=True):
            for _ in range(window.measured_steps):
                yield from self._timed("measured")
        self._losses = None
        if self._other_batches:
            phases.report(OTHER_BATCHES)
        mark_quiescent(phases.send, phases.allocator)
        setting.evaluate("after")
        if window.ledger:
            with phases.phase("ledger"):
                books = Ledger(setting.model, setting.cell.device, setting.vocabulary_size)
                yield from self.under_ledger(books)
                phases.report(books.reading())
        if window.flops:
            with phases.phase("flops"):
                with FlopCounter() as counter:
                    yield
                phases.report(*flops_readings(counter, self.data.steps[-1]))

    def _timed(self, stage: Literal["first", "warmup", "measured"]) -> Iterator[None]:
        """Let one step pass; the clock is read when the device has nothing left to do."""
        allocator = self._setting.phases.allocator
        allocator.synchronise()
        self._losses, self._positions = [], 0
        self._started_ns = time.perf_counter_ns()
        yield
        allocator.synchronise()
        step_time_ns = time.perf_counter_ns() - self._started_ns
        sample = StepSample(
            index=self.steps_taken - 1,
            stage=stage,
            step_time_ns=step_time_ns,
            tokens=self._counts(),
            loss=float(torch.stack([loss.float() for loss in self._losses]).sum()),
        )
        self._losses = []
        self._setting.phases.send(ReadingMade(reading=sample))

    def under_ledger(self, books: Ledger) -> Iterator[None]:
        """Let a pair of steps pass under a ledger."""
        model = self._setting.model
        books.register_model(model)
        books.register(optimizer_state(self._stepping()), "optimizer_state", "optimizer")
        register_gradients(books, model)
        self._ledger = books
        with books:
            for _ in range(LEDGER_STEPS):
                books.mark("inputs")
                yield
        self._ledger = None

    def _counts(self) -> TokenCounts:
        """Return the tokens of the last step: the data's, if the model was given as many positions."""
        expected, seen = token_counts(self.data.steps[self.steps_taken - 1]), self._positions
        if not seen:
            raise UsageError(
                f"loop {self._setting.cell.loop.driver} made a step in which the model that it was given was "
                "not called with token ids; train that model."
            )
        if seen == expected.computed:
            return expected
        self._other_batches = True
        return TokenCounts(raw=seen, non_padding=seen, loss_bearing=seen, computed=seen)

    def _collate(self, collate: Collate) -> Collate:
        """Return a collator whose work no instrument sees; its batches are the ledger's inputs."""

        def collated(rows: Any) -> Any:
            with without_modes():
                batch = collate(rows)
            self._register_inputs(tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch))
            return batch

        return collated

    def began(self, phase: StepPhase) -> None:
        """Tell phase or ledger; the first step is timed from its first forward pass on."""
        if self.steps_taken == 0 and not self._losses and phase == "forward":
            self._started_ns = time.perf_counter_ns()
        self._mark(phase)
        if self._ledger is not None:
            self._ledger.mark(phase)
            if phase == "optimizer_step":
                register_gradients(self._ledger, self._setting.model)

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Count positions, and enter the inputs under their category."""
        ids = inputs.get("input_ids", inputs.get("0"))
        self._positions += ids.numel() if isinstance(ids, torch.Tensor) else 0
        self._register_inputs(inputs.values())

    def _register_inputs(self, values: Iterable[Any]) -> None:
        if self._ledger is not None:
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            self._ledger.register(tensors, "inputs")

    def lost(self, loss: torch.Tensor) -> None:
        """Keep the loss until the step is over."""
        if self._losses is not None:
            self._losses.append(loss.detach())

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with the script; end the loop where that is over."""
        self._optimizer = optimizer
        self.steps_taken += 1
        if next(self._script, self) is self:
            raise StopLoop

    def _stepping(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            raise AssertionError("no step was taken yet")
        return self._optimizer


def _caveats(cell: Cell) -> Iterator[Caveat]:
    if cell.training.autocast == "fp16":
        message = "A step that the gradient scaler leaves out is counted and timed with the next one."
        yield Caveat(code="scaler-skips-merged", message=message)


def register_gradients(books: Ledger, model: nn.Module) -> None:
    """Enter the gradients that a model's parameters have."""
    gradients = (parameter.grad for parameter in trainable_parameters(model))
    books.register((gradient for gradient in gradients if gradient is not None), "gradients")


def without_modes() -> AbstractContextManager[Any]:
    """Hide what runs inside from ledger and counters."""
    return _disable_current_modes()
