"""What can be said of a trained adapter: its size on disk, and whether merging it changes the result."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.results.records import MergeCheck
from bench.window.data import Batch

# Of the largest logit. A merge rounds each weight once to the weights' dtype and the sums run in another
# order; on SmolLM2-135M (30 layers) that moved logits by 0.3e-5, 1.5e-2 of the largest in fp32 and bf16.
_RELATIVE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def adapter_file_bytes(model: Any) -> int:  # noqa: ANN401 - transformers ships no types
    """Save the adapter as safetensors and return the size of its weight files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))


def check_merge(model: Any, batch: Batch, device: torch.device, dtype: torch.dtype) -> MergeCheck:  # noqa: ANN401 - transformers ships no types
    """Merge the adapter into the base, for good, and compare logits on one batch.

    The tolerance is a share of the largest logit, by ``dtype``, the dtype of the weights.
    """
    apart = _logits(model, batch, device)
    merged = _logits(model.merge_and_unload(), batch, device)
    reference = float(apart.abs().max())
    difference = float((apart - merged).abs().max())
    tolerance = _RELATIVE_TOLERANCE[dtype] * reference
    return MergeCheck(
        max_abs_difference=difference,
        reference_max_abs=reference,
        tolerance=tolerance,
        within_tolerance=difference <= tolerance,
    )


def _logits(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:  # noqa: ANN401 - transformers ships no types
    """Return fp32 logits [batch, sequence, vocabulary] in evaluation mode, on the CPU."""
    model.eval()
    inputs = batch.inputs_on(device)
    inputs.pop("labels")
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits.float().cpu()
