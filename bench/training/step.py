"""One training step, the same lines under every instrument: the clock, the ledger, the FLOP counter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from bench.probes.ledger import StepPhase
from bench.records.readings import Caveat, PagedMemory
from bench.scenario.cell import Cell
from bench.scenario.types import SeenOptimizer, TrainingSpec
from bench.training.loading.models import DTYPES, device_of
from bench.training.losses import forward_pass, loss_of
from bench.training.methods import trainable_parameters
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
    if cell.parallel.several:
        from bench.training.parallel import spread

        model = spread(model, cell)
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
        norm = _clipped(trainer)
    scale_before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped = scaler.get_scale() < scale_before
    if not skipped:
        trainer.schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(torch.stack(losses).sum(), norm, skipped)


def _clipped(trainer: Trainer) -> torch.Tensor:
    """Clip gradients; of flat parameters FSDP1 alone knows the norm over all ranks."""
    own = getattr(trainer.model, "clip_grad_norm_", partial(nn.utils.clip_grad_norm_, trainer.parameters))
    norm: torch.Tensor = own(trainer.training.max_grad_norm)
    return norm


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


OPTIMIZERS: dict[SeenOptimizer, tuple[str, dict[str, Any]]] = {
    "adamw-fused": ("torch.optim.AdamW", {"fused": True, "foreach": False}),
    "adamw-foreach": ("torch.optim.AdamW", {"fused": False, "foreach": True}),
    "adamw-loop": ("torch.optim.AdamW", {"fused": False, "foreach": False}),
    "sgd": ("torch.optim.SGD", {"momentum": 0.0}),
    "sgd-momentum": ("torch.optim.SGD", {"momentum": 0.9}),  # what nearly every recipe with momentum takes
    # With the schedule's learning rate, as transformers' Trainer has it.
    "adafactor": ("transformers.Adafactor", {"scale_parameter": False, "relative_step": False}),
    "adamw-32bit": ("bitsandbytes.optim.AdamW32bit", {}),
    "adamw-8bit": ("bitsandbytes.optim.AdamW8bit", {}),
    "paged-adamw-32bit": ("bitsandbytes.optim.PagedAdamW32bit", {}),
    "paged-adamw-8bit": ("bitsandbytes.optim.PagedAdamW8bit", {}),
    "lion-8bit": ("bitsandbytes.optim.Lion8bit", {}),
    "paged-lion-8bit": ("bitsandbytes.optim.PagedLion8bit", {}),
    "ademamix-8bit": ("bitsandbytes.optim.AdEMAMix8bit", {}),
}
"""Each optimizer's class, and what it is given beside learning rate and weight decay."""


def build_optimizer(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
    """Build the optimizer named by ``training.optimizer``; betas and epsilon are each library's defaults."""
    kind, settings = optimizer_class(training)
    return kind(parameters, weight_decay=training.weight_decay, **settings)


def optimizer_class(training: TrainingSpec) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """Return the class, and what it is given beside parameters and weight decay."""
    path, settings = OPTIMIZERS[training.optimizer]
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name), {"lr": training.learning_rate, **settings}


def build_schedule(optimizer: torch.optim.Optimizer, training: TrainingSpec, steps: int) -> LRScheduler:
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    schedule: LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=training.schedule_warmup_steps, num_training_steps=steps
    )
    return schedule


def optimizer_caveats(training: TrainingSpec, device: torch.device) -> list[Caveat]:
    """Say where an optimizer runs but does not do what its name says."""
    if not training.optimizer.startswith("paged-") or device.type == "cuda":
        return []
    message = (
        f"{training.optimizer} pages nothing on {device.type}: bitsandbytes falls back to ordinary memory "
        "there, so this cell shows its arithmetic, not its memory saving."
    )
    return [Caveat(code="optimizer-pages-nothing", message=message)]
