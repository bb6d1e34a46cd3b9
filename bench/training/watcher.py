"""Watches any training loop from outside, through torch's own hooks: its phases, its steps, its inputs.

Nothing of the loop is changed. Forward is a call of the model with gradients on; backward is one of
``torch.autograd.backward``, which every way to it makes; a step ends with the first optimizer's after it.
What happens between the steps stands in one generator, which reads like the window's own loop: each ``yield``
in it lets the watched loop take one step.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, Literal
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bench.errors import UsageError
from bench.probes.heap import held_now
from bench.probes.ledger import Ledger, StepPhase
from bench.probes.phases import PhaseReader
from bench.records.messages import ReadingMade
from bench.records.records import StepSample, TokenCounts
from bench.training.methods import trainable_parameters
from bench.training.step import Mark, ignore_phase, optimizer_state
from bench.training.window import LEDGER_STEPS

Script = Generator[None, None, None]
"""What happens around a loop's steps; it lets the loop take one at each ``yield``."""

_MOST_OF_OTHERS = 20


class StopLoop(BaseException):
    """Ends a loop from inside its last step."""


class Listener:
    """What a watcher tells, in the order in which it happens; what is not listened to is passed over."""

    def found(self, model: nn.Module) -> None:
        """Hear which model a loop trains, where the watcher had to look for it."""

    def set_aside(self) -> None:
        """Hear that the model runs without gradients, as in an evaluation."""

    def began(self, phase: StepPhase) -> None:
        """Hear that the forward pass, the backward pass or the optimizer's part began."""

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Hear what a forward pass was given."""

    def lost(self, loss: torch.Tensor) -> None:
        """Hear of the loss that a backward pass begins with, not scaled, still on its device."""

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        """Hear that an optimizer made a step, of which one step of the loop may have several."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Hear of the first such step after a backward pass; raise ``StopLoop`` to end the loop."""


class Watcher:
    """Tells a listener what the loop does that runs inside ``watching``, with one model."""

    def __init__(self, listener: Listener, model: nn.Module | None = None) -> None:
        """Tell ``listener`` of ``model``; without one, of the first that runs with gradients to compute."""
        self._listener, self._model = listener, model
        self._was_named = model is not None
        self._in_forward = self._in_backward = self._has_gradients = self._has_run = False
        self._others_steps = 0  # in a row, over gradients of other models
        self._unscaled: torch.Tensor | None = None
        self._hooks: list[Any] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside; every hook is gone afterwards."""
        backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale

        def scaled(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            self._unscaled = outputs if isinstance(outputs, torch.Tensor) else None
            return scale(scaler, outputs)

        with ExitStack() as stack:
            stack.callback(lambda: [hook.remove() for hook in self._hooks])
            stack.enter_context(patch.object(torch.autograd, "backward", self._telling(backward)))
            stack.enter_context(patch.object(torch.amp.GradScaler, "scale", scaled))
            if self._model is None:
                stack.enter_context(self._looking())
            else:
                self._follow(self._model)
            self._hooks.append(register_optimizer_step_post_hook(self._stepped))
            yield

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Take the outermost module that runs with something to train; what it calls is not looked at.

        Not by torch's global hooks: they are told no keyword arguments, and compiled modules warn of them.
        """
        call, process = nn.Module.__call__, os.getpid()

        def looked_at(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            trains = torch.is_grad_enabled() and any(one.requires_grad for one in module.parameters())
            if trains and os.getpid() == process:  # a fork has the patches, and nobody who listens
                search.close()
                self._model = module
                self._listener.found(module)
                self._follow(module)
            return call(module, *args, **kwargs)

        with ExitStack() as search:
            search.enter_context(patch.object(nn.Module, "__call__", looked_at))
            yield

    def _follow(self, model: nn.Module) -> None:
        self._hooks += [
            model.register_forward_pre_hook(self._entered, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._left, always_call=True),
        ]

    def _entered(self, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._in_backward or self._in_forward:
            return
        if not torch.is_grad_enabled():
            self._listener.set_aside()
        else:
            self._in_forward = self._has_run = True
            self._listener.given({**{str(place): value for place, value in enumerate(args)}, **kwargs})
            self._listener.began("forward")

    def _left(self, _root: nn.Module, _args: object, _result: object) -> None:
        self._in_forward = False

    def _telling(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def telling(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            # Reentrant checkpointing calls it again inside; before there is a model it is somebody else's.
            if self._in_backward or self._model is None:
                return backward(tensors, *args, **kwargs)
            self._in_backward = True
            loss = tensors if isinstance(tensors, torch.Tensor) else tensors[0]
            self._listener.lost(loss if self._unscaled is None else self._unscaled)
            self._unscaled = loss = None
            self._listener.began("backward")
            try:
                return backward(tensors, *args, **kwargs)
            finally:
                self._in_backward, self._has_gradients = False, True
                self._listener.began("optimizer_step")

        return telling

    def _stepped(self, optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        if self._in_backward:
            raise UsageError(
                "an optimizer steps inside the backward pass, so where a step ends cannot be seen; "
                "let it step after loss.backward()"
            )
        self._listener.updated(optimizer)
        if not self._has_gradients:  # another optimizer's step over the same gradients
            return
        self._has_gradients = False
        if self._has_run or self._was_named:
            self._has_run, self._others_steps = False, 0
            self._listener.stepped(optimizer)
            return
        self._others_steps += 1  # as a critic's steps, which are part of the next step
        if self._others_steps == _MOST_OF_OTHERS:
            raise UsageError(
                f"the model that was watched ({type(self._model).__name__}) has not run for "
                f"{_MOST_OF_OTHERS} optimizer steps: the script went on to another, merged or made anew, and "
                "a record is of one; give fewer --steps and --warmup, which end before that"
            )


class WatchedLoop(Listener, ABC):
    """Turns what a watcher tells of one loop into timed steps, and into a ledger's.

    ``model`` is what is trained, ``steps_taken`` counts optimizer steps, ``optimizer`` made the last of them.
    """

    model: Any
    optimizer: torch.optim.Optimizer

    def __init__(self, phases: PhaseReader) -> None:
        self.phases = phases
        self.steps_taken = 0
        self.optimizers: WeakKeyDictionary[torch.optim.Optimizer, None] = WeakKeyDictionary()
        self.beside: list[nn.Module] = []  # models that the loop keeps beside the one it trains
        self.mark: Mark = ignore_phase
        self.evaluates = False  # between steps
        self.positions = 0  # that the model was given in this step
        self._script: Iterator[None] = iter(())
        self._ledger: Ledger | None = None
        self._losses: list[torch.Tensor] | None = []
        self._started_ns = 0

    @abstractmethod
    def steps(self) -> Script:
        """Yield once before the loop begins, and then once for each of its steps."""

    @abstractmethod
    def counts(self) -> TokenCounts:
        """Return the tokens of the step that was just made."""

    def script(self) -> Script:
        """Begin with what stands before the loop's first step, and return the rest of it."""
        self._script = script = self.steps()
        next(script)
        return script

    def timed(self, stage: Literal["first", "warmup", "measured"]) -> Iterator[None]:
        """Let one step pass; the clock is read when the device has nothing left to do."""
        self.phases.allocator.synchronise()
        self._losses, self.positions = [], 0
        self._started_ns = time.perf_counter_ns()
        yield
        self.phases.allocator.synchronise()
        step_time_ns = time.perf_counter_ns() - self._started_ns
        sample = StepSample(
            index=self.steps_taken - 1,
            stage=stage,
            step_time_ns=step_time_ns,
            tokens=self.counts(),
            loss=float(torch.stack([loss.float() for loss in self._losses]).sum()),
            held=held_now(self.phases.allocator.use()),
        )
        self._losses = []
        self.phases.send(ReadingMade(reading=sample))

    def under_ledger(self, books: Ledger, waiting: Iterable[torch.Tensor] = ()) -> Iterator[None]:
        """Let a pair of steps pass under a ledger, after the last timed one.

        Batches that are ``waiting`` for other steps are not told as retained.
        """
        self._losses = None
        for model in (self.model, *self.beside):
            books.register_model(model)
        for optimizer in self.optimizers:
            books.register(optimizer_state(optimizer), "optimizer_state", "optimizer")
            books.register(parameters_of(optimizer), "weights")
        self._register_gradients(books)
        self._ledger = books
        with books:
            books.leave_out(waiting)
            for _ in range(LEDGER_STEPS):
                books.mark("inputs")
                yield
                books.end_step()
        self._ledger = None

    def register_inputs(self, values: Iterable[Any]) -> None:
        if self._ledger is not None:
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            self._ledger.register(tensors, "inputs")

    def set_aside(self) -> None:
        """Remember it: the time of the step includes it."""
        self.evaluates = True

    def began(self, phase: StepPhase) -> None:
        """Tell phase or ledger; the first step is timed from its first forward pass on."""
        if self.steps_taken == 0 and not self._losses and phase == "forward":
            self._started_ns = time.perf_counter_ns()
        self.mark(phase)
        if self._ledger is not None:
            self._ledger.mark(phase)
            if phase == "optimizer_step":
                self._register_gradients(self._ledger)

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Count positions, and enter the inputs under their category."""
        ids = token_ids(inputs)
        self.positions += 0 if ids is None else ids.numel()
        self.register_inputs(inputs.values())

    def lost(self, loss: torch.Tensor) -> None:
        """Keep the loss until the step is over."""
        if self._losses is not None:
            self._losses.append(loss.detach())

    def _register_gradients(self, books: Ledger) -> None:
        """Enter the gradients of what is trained: of the model, and of what else the optimizers have."""
        books.register_gradients(
            chain(trainable_parameters(self.model), *map(parameters_of, self.optimizers))
        )

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the optimizer, since it may not be the only one."""
        self.optimizers[optimizer] = None

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with the script; end the loop where that is over."""
        self.optimizer = optimizer
        self.steps_taken += 1
        if next(self._script, self) is self:
            raise StopLoop


def token_ids(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the ids a model was given, [rows, positions], else its first tensor; None without one."""
    named = inputs.get("input_ids")
    for value in (named, *inputs.values()):
        found = token_ids(value) if isinstance(value, Mapping) else value
        if isinstance(found, torch.Tensor):
            return found
    return None


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
