"""Optimizers and schedules by name. The one place that knows how each is built."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from bench.records.readings import Caveat
from bench.scenario.types import SeenOptimizer, TrainingSpec

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
    """Build the learning-rate schedule over ``steps`` optimizer steps."""
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
