"""What can be said of a trained adapter: its size on disk, and whether merging it changes the result."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.results.records import Caveat, MergeCheck
from bench.window.data import Batch


def adapter_file_bytes(model: Any) -> int:  # noqa: ANN401 - transformers ships no types
    """Save the adapter as safetensors and return the size of its weight files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))


def check_merge(model: Any, batch: Batch, device: torch.device) -> MergeCheck | Caveat:  # noqa: ANN401 - transformers ships no types
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


def _logits(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:  # noqa: ANN401 - transformers ships no types
    """Return fp32 logits [batch, sequence, vocabulary] in evaluation mode, on the CPU."""
    model.eval()
    inputs = batch.inputs_on(device)
    inputs.pop("labels")
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits.float().cpu()
