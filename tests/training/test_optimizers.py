"""Every optimizer that a scenario can name takes a real step, and keeps the state its name says."""

from typing import get_args

import pytest
import torch
from torch import nn

from bench.scenario.types import BitsandbytesOptimizer, Optimizer, TrainingSpec
from bench.training.step import build_optimizer, optimizer_state

SIZE = 4096  # elements from which bitsandbytes keeps 8-bit state
STATE_BYTES: dict[Optimizer, int] = {
    "sgd": 0,
    "sgd-momentum": 4,
    "adamw-fused": 8,
    "adamw-foreach": 8,
    "adamw-loop": 8,
    "adamw-32bit": 8,
    "adamw-8bit": 2,
    "paged-adamw-32bit": 8,
    "paged-adamw-8bit": 2,
    "lion-8bit": 1,
    "paged-lion-8bit": 1,
    "ademamix-8bit": 3,
}
"""Bytes of state per parameter, without the scales of blocks and adafactor's two vectors."""


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", get_args(Optimizer))
def test_a_step_goes_down_the_gradient(name: Optimizer) -> None:
    """All elements move against a gradient of ones, and the state has the expected size."""
    parameter = nn.Parameter(torch.ones(64, SIZE // 64))
    optimizer = build_optimizer([parameter], TrainingSpec(optimizer=name, learning_rate=1e-2))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert bool((parameter < 1).all())
    state = sum(tensor.nbytes for tensor in optimizer_state(optimizer) if tensor.numel() >= SIZE)
    assert STATE_BYTES.get(name, 0) * SIZE == state


def test_bitsandbytes_own_are_known_to_the_parent() -> None:
    """Whether the package is missing is told before anything is loaded, so the names are kept twice."""
    found = set()
    for name in get_args(Optimizer):
        optimizer = build_optimizer([nn.Parameter(torch.ones(1))], TrainingSpec(optimizer=name))
        if type(optimizer).__module__.startswith("bitsandbytes"):
            found.add(name)
    assert found == set(get_args(BitsandbytesOptimizer))
