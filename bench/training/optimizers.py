"""Optimizers and schedules by name. The one place that knows how each is built."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Adafactor, get_scheduler

from bench.records.records import Caveat
from bench.scenario.types import Optimizer, TrainingSpec

_Builder = Callable[[Sequence[nn.Parameter], TrainingSpec], torch.optim.Optimizer]


def build_optimizer(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
    """Build the optimizer named by ``training.optimizer``; betas and epsilon are each library's defaults."""
    return _BUILDERS[training.optimizer](parameters, training)


def build_schedule(optimizer: torch.optim.Optimizer, training: TrainingSpec, steps: int) -> LRScheduler:
    """Build the learning-rate schedule over ``steps`` optimizer steps."""
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    schedule: LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=training.schedule_warmup_steps, num_training_steps=steps
    )
    return schedule


def optimizer_caveats(training: TrainingSpec, device: torch.device) -> list[Caveat]:
    """Say where an optimizer runs but does not do what its name says."""
    if training.optimizer.startswith("paged-") and device.type != "cuda":
        return [
            Caveat(
                code="optimizer-pages-nothing",
                message=(
                    f"{training.optimizer} pages nothing on {device.type}: bitsandbytes falls back to "
                    "ordinary memory there, so this cell shows its arithmetic, not its memory saving."
                ),
            )
        ]
    return []


def _torch_adamw(*, fused: bool, foreach: bool) -> _Builder:
    def build(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=fused,
            foreach=foreach,
        )

    return build


def _sgd(momentum: float) -> _Builder:
    def build(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr=training.learning_rate, momentum=momentum, weight_decay=training.weight_decay
        )

    return build


def _adafactor(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
    """Build transformers' own with the schedule's learning rate, as its Trainer does."""
    optimizer: torch.optim.Optimizer = Adafactor(
        parameters,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        scale_parameter=False,
        relative_step=False,
    )
    return optimizer


def _bitsandbytes(name: str) -> _Builder:
    def build(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
        import bitsandbytes

        optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, name)(
            parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        )
        return optimizer

    return build


_BUILDERS: dict[Optimizer, _Builder] = {
    "adamw-fused": _torch_adamw(fused=True, foreach=False),
    "adamw-foreach": _torch_adamw(fused=False, foreach=True),
    "adamw-loop": _torch_adamw(fused=False, foreach=False),
    "sgd": _sgd(momentum=0.0),
    "sgd-momentum": _sgd(momentum=0.9),  # what nearly every recipe with momentum takes
    "adafactor": _adafactor,
    "adamw-32bit": _bitsandbytes("AdamW32bit"),
    "adamw-8bit": _bitsandbytes("AdamW8bit"),
    "paged-adamw-32bit": _bitsandbytes("PagedAdamW32bit"),
    "paged-adamw-8bit": _bitsandbytes("PagedAdamW8bit"),
    "lion-8bit": _bitsandbytes("Lion8bit"),
    "paged-lion-8bit": _bitsandbytes("PagedLion8bit"),
    "ademamix-8bit": _bitsandbytes("AdEMAMix8bit"),
}
