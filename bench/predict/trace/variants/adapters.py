"""What peft's methods work out of real weights as they are made, without data; and which cannot go without.

Sources are peft 0.18 to 0.21, tuners/. Which rows or weights are chosen changes no size here; how many, does.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.errors import UntraceableError
from bench.records.readings import Caveat
from bench.scenario.cell import Cell, peft_type
from bench.scenario.platform import Platform

_SPARSE = "multiplies by sparse tensors, whose kernels and buffers are not modelled here"
_UNTRACED = {
    "CPT": "weighs tokens by their values, one label after the other",
    "FROD": _SPARSE,
    "SHIRA": _SPARSE,
}


def require_traceable(cell: Cell) -> None:
    """Raise ``UntraceableError`` for a method of peft whose memory is not known without data."""
    method = cell.method
    if method.kind == "peft" and (reason := _UNTRACED.get(peft_type(method.type))):
        raise UntraceableError(f"peft's {method.type} {reason}; measure it with bench run.")


def assumed_of_adapter(cell: Cell) -> Iterator[Caveat]:
    """Yield what a prediction takes for granted of a method's adapter."""
    if cell.method.kind == "peft" and peft_type(cell.method.type) == "ADAMSS":
        message = "AdaMSS's subspaces are taken to be of equal size, where k-means finds them in the weights."
        yield Caveat(code="adapter-of-no-weights", message=message)


def of_peft(module: str) -> Any:
    """Return a module of peft's; None in a version that has none of this name yet."""
    try:
        return import_module(f"peft.{module}")
    except ModuleNotFoundError:
        return None


def patched_adapters(_platform: Platform) -> Iterator[Any]:
    """Yield what lets adapters be made of weights without values."""
    if layer := of_peft("tuners.adamss.layer"):
        yield patch.object(layer, "slice_pca", _components)
        yield patch.object(layer, "clustering_Z", _equal_clusters)
    # accelerate's is_bf16_available asks the card; torch emulates bf16 where it lacks it (torch/cuda).
    yield patch.object(torch.cuda, "is_bf16_supported", return_value=True)


def _components(
    tensor: Tensor, r: int, device: torch.device, dtype: torch.dtype, **_seed: int
) -> tuple[Tensor, Tensor]:
    """Return a matrix's right and left singular vectors, [1, 1, r, columns] and [1, 1, rows, r]."""
    *outer, rows, columns = tensor.shape
    rank = min(r, rows, columns)
    return (
        torch.zeros((*outer, rank, columns), dtype=dtype, device=device),
        torch.zeros((*outer, rows, rank), dtype=dtype, device=device),
    )


def _equal_clusters(vectors: Tensor, clusters: int, _iterations: int) -> tuple[Tensor, int]:
    """Return a cluster for each row, in turn: an index on the host, as scikit-learn gives it."""
    rows = vectors.shape[0]
    found = min(clusters, rows)
    return torch.arange(rows, device="cpu") % found, found
