"""One optimizer step, the same lines under every instrument: the clock, the ledger, the FLOP counter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bench.probes.ledger import StepPhase
from bench.records.cuda import PagedMemory
from bench.scenario.types import TrainingSpec
from bench.training.data import Batch
from bench.training.losses import forward_pass, loss_of
from bench.training.models import DTYPES


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What a step works on; ``kept_outputs`` is what ``keep_outputs`` carries from one step into the next."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    training: TrainingSpec
    device: torch.device
    kept_outputs: list[object] = field(default_factory=list)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast region of the forward pass, or one that does nothing."""
        if self.training.autocast == "off":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.training.autocast])


@dataclass(frozen=True)
class StepResult:
    """Loss (mean over loss-bearing tokens) and gradient norm before clipping, still on the device.

    ``skipped`` says that the gradient scaler found an overflow and left the optimizer out.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor | None
    skipped: bool


def ignore_phase(_phase: StepPhase) -> None:
    """Listen to no phase."""


def run_step(
    trainer: Trainer, micro_batches: Sequence[Batch], mark: Callable[[StepPhase], None] = ignore_phase
) -> StepResult:
    """Run forward and backward over the micro-batches, then the optimizer.

    The loss of each micro-batch is weighted by its share of loss-bearing tokens, so accumulating
    gradients gives what one large batch would. ``mark`` is told as each part begins.
    """
    loss_tokens = sum(batch.counts.loss_bearing for batch in micro_batches)
    losses = []
    for batch in micro_batches:
        mark("inputs")
        inputs = batch.inputs_on(trainer.device)
        mark("forward")
        with trainer.autocast():
            outputs = forward_pass(trainer.model, inputs, trainer.training)
            # As in a loop that assigns to one name: the last outputs die once the new ones are there.
            trainer.kept_outputs[:] = [outputs] if trainer.training.keep_outputs else []
            loss = loss_of(outputs, inputs["labels"])
        del outputs  # or the logits would live through backward
        loss = loss * (batch.counts.loss_bearing / loss_tokens)
        mark("backward")
        trainer.scaler.scale(loss).backward()
        losses.append(loss.detach())
        del inputs, loss
    mark("optimizer_step")
    norm, skipped = _update(trainer)
    return StepResult(torch.stack(losses).sum(), norm, skipped)


def empties_cache(training: TrainingSpec, finished_steps: int) -> bool:
    """Tell whether ``empty_cache_steps`` asks for an empty_cache() after that many optimizer steps."""
    return training.empty_cache_steps > 0 and finished_steps % training.empty_cache_steps == 0


def _update(trainer: Trainer) -> tuple[torch.Tensor | None, bool]:
    """Clip, step, advance the schedule, drop the gradients; return the norm, and whether it was skipped."""
    norm = None
    if trainer.training.max_grad_norm > 0:
        trainer.scaler.unscale_(trainer.optimizer)
        norm = nn.utils.clip_grad_norm_(trainer.parameters, trainer.training.max_grad_norm)
    scale_before = trainer.scaler.get_scale()
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    skipped = trainer.scaler.get_scale() < scale_before
    if not skipped:
        trainer.schedule.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return norm, skipped


def paged_memory(optimizer: torch.optim.Optimizer) -> PagedMemory:
    """Return what bitsandbytes keeps in managed memory, which it marks on each tensor."""
    tensors = [tensor for tensor in optimizer_state(optimizer) if getattr(tensor, "is_paged", False)]
    return PagedMemory(paged_bytes=sum(tensor.nbytes for tensor in tensors), paged_tensors=len(tensors))


def optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield every tensor in an optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
