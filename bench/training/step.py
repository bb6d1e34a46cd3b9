"""One training step, the same lines under every instrument: the clock, the ledger, the FLOP counter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bench.probes.ledger import StepPhase
from bench.records.readings import PagedMemory
from bench.scenario.cell import Cell
from bench.scenario.types import TrainingSpec
from bench.training.loading.models import DTYPES, device_of
from bench.training.losses import forward_pass, loss_of
from bench.training.methods import trainable_parameters
from bench.training.optimizers import build_optimizer, build_schedule
from bench.training.rows.data import Batch

Mark = Callable[[StepPhase], None]


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
        if self.training.autocast == "off":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.training.autocast])


def build_trainer(model: nn.Module, cell: Cell, steps: int) -> Trainer:
    """Put optimizer, schedule over so many optimizer steps and gradient scaler around an adapted model."""
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


@dataclass(frozen=True)
class StepResult:
    """Loss (mean over loss-bearing tokens) and gradient norm before clipping, still on the device.

    ``skipped``: the gradient scaler found an overflow and left the optimizer out.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor | None
    skipped: bool


def ignore_phase(_phase: StepPhase) -> None:
    """Listen to no phase."""


def run_step(trainer: Trainer, micro_batches: Sequence[Batch], mark: Mark = ignore_phase) -> StepResult:
    """Run forward and backward over the micro-batches, then the optimizer; ``mark`` is told as each begins.

    The loss of each micro-batch is weighted by its share of loss-bearing tokens, so accumulating
    gradients gives what one large batch would.
    """
    training, scaler, optimizer = trainer.training, trainer.scaler, trainer.optimizer
    loss_tokens = sum(batch.counts.loss_bearing for batch in micro_batches)
    losses = []
    for batch in micro_batches:
        mark("inputs")
        inputs = batch.inputs_on(trainer.device)  # each [rows, positions], int64
        mark("forward")
        with trainer.autocast():
            outputs = forward_pass(trainer.model, inputs, training)  # logits [rows, positions, vocabulary]
            # As in a loop that assigns to one name: the last outputs die once the new ones are there.
            trainer.kept_outputs[:] = [outputs] if training.keep_outputs else []
            loss = loss_of(outputs, inputs["labels"])  # []
        del outputs  # or the logits would live through backward
        loss = loss * (batch.counts.loss_bearing / loss_tokens)
        mark("backward")
        scaler.scale(loss).backward()
        losses.append(loss.detach())
        del inputs, loss
    mark("optimizer_step")
    norm = None
    if training.max_grad_norm > 0:
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(trainer.parameters, training.max_grad_norm)
    scale_before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped = scaler.get_scale() < scale_before
    if not skipped:
        trainer.schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(torch.stack(losses).sum(), norm, skipped)


def empties_cache(training: TrainingSpec, finished_steps: int) -> bool:
    """Say whether ``empty_cache_steps`` asks for an empty_cache() after that many optimizer steps."""
    return training.empty_cache_steps > 0 and finished_steps % training.empty_cache_steps == 0


def optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def paged_memory(optimizer: torch.optim.Optimizer) -> PagedMemory:
    """Return what bitsandbytes keeps in managed memory, which it marks on each tensor."""
    tensors = [tensor for tensor in optimizer_state(optimizer) if getattr(tensor, "is_paged", False)]
    return PagedMemory(paged_bytes=sum(tensor.nbytes for tensor in tensors), paged_tensors=len(tensors))
