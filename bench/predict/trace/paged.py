"""Optimizer state in CUDA's managed memory, which torch's allocator never sees: counted apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes

from bench.scenario.platforms import Platform


@contextmanager
def staged_paging(platform: Platform) -> Iterator[None]:
    """Have bitsandbytes' paged optimizers page on CUDA, and use ordinary memory on the CPU, as they do."""
    from bitsandbytes import functional

    make = _managed if platform.device == "cuda" else _ordinary
    with (
        patch.object(functional, "get_paged", make),
        patch.object(functional, "fill", _do_nothing),
        patch.object(functional, "prefetch_tensor", _do_nothing),
    ):
        yield


def is_paged(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor lies in managed memory."""
    return bool(getattr(tensor, "is_paged", False))


def _managed(*shape: int, dtype: torch.dtype = torch.float32, device: object = None) -> torch.Tensor:  # noqa: ARG001 - bitsandbytes' own signature
    with _disable_current_modes():
        tensor: Any = torch.empty(shape, dtype=dtype, device="meta")
    tensor.is_paged = True  # as bitsandbytes marks them
    paged: torch.Tensor = tensor
    return paged


def _ordinary(*shape: int, dtype: torch.dtype = torch.float32, device: object = None) -> torch.Tensor:  # noqa: ARG001 - the same
    return torch.zeros(shape, dtype=dtype, device="meta")


def _do_nothing(*_args: object, **_options: object) -> None:
    """Stand in for what fills or moves pages."""
