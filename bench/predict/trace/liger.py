"""Liger's fused linear cross-entropy on tensors without data: what its kernel allocates, in its order.

Source: Liger-Kernel src/liger_kernel/ops/fused_linear_cross_entropy.py (0.6), by default settings; its Triton
kernels work in place and allocate nothing.
"""

from typing import Any

import torch
from torch import Tensor

from bench.training.batches import IGNORED_LABEL


def empty_liger_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Stand for ``bench.training.losses.liger_loss``: the same arguments, a loss without a value."""
    loss: Tensor = _FusedLoss.apply(hidden.flatten(0, 1), weight, targets.flatten())  # type: ignore[no-untyped-call]  # torch's own
    return loss


class _FusedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, chunk by chunk, and only scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        tokens, width = hidden.shape
        vocabulary = weight.shape[0]
        chunk = _next_power_of_two(-(-tokens // -(-vocabulary // width)))
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        counted = (targets != IGNORED_LABEL).sum()
        for start in range(0, tokens, chunk):
            part = hidden[start : start + chunk]
            logits = (part @ weight.t()).contiguous()  # becomes its own gradient
            hidden_gradient[start : start + chunk] = logits @ weight
            if weight_gradient is not None:
                weight_gradient += torch.mm(logits.t(), part).float()
        del counted, logits, part
        ctx.save_for_backward(hidden_gradient.detach(), weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient, weight_gradient, None


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
