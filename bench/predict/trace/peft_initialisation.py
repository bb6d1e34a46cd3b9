"""Initialisations of peft that read the tensors they have just made, done so that only sizes are asked for.

Neither guesses: UniLoRA's indices follow from its seed, and a permutation's matrix is as large as it is long.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.scenario.platforms import Platform


@contextmanager
def staged_initialisation(platform: Platform) -> Iterator[None]:
    """Let UniLoRA and BOFT be initialised without data while a ``with`` block runs."""
    from peft.tuners.boft.layer import BOFTLayer
    from peft.tuners.unilora.model import UniLoraModel

    name = "_assign_unilora_indices_and_scales"
    with ExitStack() as stack:
        stack.enter_context(patch.object(UniLoraModel, name, _on_cpu(getattr(UniLoraModel, name))))
        stack.enter_context(patch.object(BOFTLayer, "perm2mat", _permutation_matrix))
        if platform.device == "cuda":
            update = _leaving_permutations(BOFTLayer.update_layer)
            stack.enter_context(patch.object(BOFTLayer, "update_layer", update))
        yield


def _on_cpu(assign: Callable[..., None]) -> Callable[..., None]:
    """Draw and count indices on the CPU, as peft does; it moves them to the layer's device by itself."""

    def assign_on_cpu(self: Any, adapter_name: str) -> None:
        with torch.device("cpu"):
            assign(self, adapter_name)

    return assign_on_cpu


def _permutation_matrix(_self: object, indices: Tensor) -> Tensor:
    """Make BOFT's square matrix, which has one row for each index."""
    return torch.empty(len(indices), len(indices))


def _leaving_permutations(update: Callable[..., None]) -> Callable[..., None]:
    """Keep BOFT's permutations on the CPU: peft moves adapters to the device, but not this buffer.

    Each forward pass copies it to the device (``boft_P.to(x)`` in peft's tuners/boft/layer.py).
    """

    def update_and_leave(self: Any, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        self.boft_P = torch.empty_like(self.boft_P, device="cpu")

    return update_and_leave
