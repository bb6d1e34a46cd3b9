"""Watches any training loop from outside, through torch's own hooks: its phases, its steps, its inputs.

Nothing of the loop is changed. Forward is a call of the model with gradients on; backward is one of
``torch.autograd.backward``, which every way to it makes; a step ends with the first optimizer's after it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bench.probes.ledger import StepPhase


class StopLoop(BaseException):
    """Ends a loop from inside its last step."""


class Listener(Protocol):
    """What a watcher tells, in the order in which it happens."""

    def began(self, phase: StepPhase) -> None:
        """Hear that the forward pass, the backward pass or the optimizer's part began."""

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Hear what a forward pass was given."""

    def lost(self, loss: torch.Tensor) -> None:
        """Hear of the loss that a backward pass begins with, not scaled, still on its device."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Hear that an optimizer made a step; raise ``StopLoop`` to end the loop."""


class Watcher:
    """Tells a listener what the loop does with a model that runs inside ``watching``."""

    def __init__(self, listener: Listener, model: nn.Module) -> None:
        """Tell ``listener``."""
        self._listener, self._model = listener, model
        self._in_forward = self._in_backward = self._has_gradients = False
        self._unscaled: torch.Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside; every hook is gone afterwards."""
        hooks: list[Any] = [register_optimizer_step_post_hook(self._stepped)]
        hooks += [
            self._model.register_forward_pre_hook(self._entered, with_kwargs=True, prepend=True),
            self._model.register_forward_hook(self._left, always_call=True),
        ]
        backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale

        def scaled(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            self._unscaled = outputs if isinstance(outputs, torch.Tensor) else None
            return scale(scaler, outputs)

        try:
            with (
                patch.object(torch.autograd, "backward", self._telling(backward)),
                patch.object(torch.amp.GradScaler, "scale", scaled),
            ):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entered(self, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and not self._in_backward and not self._in_forward:
            self._in_forward = True
            self._listener.given({**{str(place): value for place, value in enumerate(args)}, **kwargs})
            self._listener.began("forward")

    def _left(self, _root: nn.Module, _args: object, _result: object) -> None:
        self._in_forward = False

    def _telling(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def telling(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if self._in_backward:  # reentrant checkpointing calls it again inside
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
        if self._has_gradients:  # else another optimizer's step over the same gradients
            self._has_gradients = False
            self._listener.stepped(optimizer)
