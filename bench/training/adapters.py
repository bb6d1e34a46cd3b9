"""What can be said of an adapter: ranks that no layer can use, its size on disk, what merging it changes."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.records.records import Caveat, MergeCheck
from bench.training.data import Batch


def excess_ranks(model: Any) -> tuple[Caveat, ...]:
    """Say where LoRA's rank is above the smaller side of a layer, which bounds the rank of any update."""
    from peft.tuners.lora import LoraLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    narrow: dict[tuple[int, int], list[str]] = {}
    for name, layer in layers:
        side = min(layer.in_features, layer.out_features)
        for rank in layer.r.values():
            if rank > side:
                narrow.setdefault((rank, side), []).append(name.rpartition(".")[2])
    return tuple(
        Caveat(
            code="excess-rank",
            message=f"Rank {rank} is more than {len(names)} of the {len(layers)} adapted layers can use "
            f"({', '.join(sorted(set(names)))}: {side}, the smaller side of their weights); what they train "
            "beyond that adds memory and no freedom.",
        )
        for (rank, side), names in sorted(narrow.items())
    )


def adapter_file_bytes(model: Any) -> int:
    """Save the adapter as safetensors and return the size of its weight files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))


def check_merge(model: Any, batch: Batch, device: torch.device) -> MergeCheck | Caveat:
    """Merge the adapter into the base, for good, and compare logits on one batch.

    Returns a caveat for an adapter that no base can take in, such as a learned prompt.
    """
    if not hasattr(model, "merge_and_unload"):
        return _not_mergeable("peft has no merge for it")
    apart = _logits(model, batch, device)
    try:
        model = model.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        refused = isinstance(error, NotImplementedError | ValueError) or "Impossible to merge" in str(error)
        if not refused:
            raise
        return _not_mergeable(" ".join(str(error).split()).rstrip("."))
    merged = _logits(model, batch, device)
    return MergeCheck(
        max_abs_difference=float((apart - merged).abs().max()), reference_max_abs=float(apart.abs().max())
    )


def _not_mergeable(reason: str) -> Caveat:
    return Caveat(
        code="not-mergeable", message=f"This adapter cannot be merged ({reason}), so none was checked."
    )


def _logits(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return fp32 logits [batch, sequence, vocabulary] in evaluation mode, on the CPU."""
    model.eval()
    inputs = batch.inputs_on(device)
    inputs.pop("labels")
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits.float().cpu()
