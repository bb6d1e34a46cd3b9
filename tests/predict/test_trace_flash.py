"""flash-attn, which is not installed: transformers' own way to it, and torch's kernel in its place."""

from typing import Any

import pytest

from bench.errors import UntraceableError
from bench.predict.predict import predict
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell

CUDA = Platform(capability=(8, 0))
MISTRAL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
SMALL: dict[str, Any] = {"num_key_value_heads": 2, "vocab_size": 256, "sliding_window": 64}


def _peak_bytes(
    attention: str, model: str = "mistral-7b", sizes: dict[str, int] = MISTRAL, **overrides: int
) -> int:
    """Return what a forward pass of 256 positions takes, the loss not counted: its vocabulary is small."""
    cell = tiny_cell(
        model={"random": model, "overrides": {**sizes, **SMALL, **overrides}},
        device="cuda",
        data={"attention_mask": "ones"},
        training={"attention": attention, "sequence_length": 256, "micro_batch": 2},
    )
    return predict(cell, CUDA).phase_peaks_bytes["forward"]


def test_a_window_of_flash_attention_takes_no_mask() -> None:
    """It is an argument of the kernel; torch's own attention is given a mask, and takes another kernel."""
    windowed = _peak_bytes("flash_attention_2")
    assert windowed == _peak_bytes("flash_attention_2", sliding_window=1024)
    assert windowed + 2 * 256 * 256 <= _peak_bytes("sdpa")


def test_without_a_window_it_takes_what_torch_s_flash_kernel_takes() -> None:
    """The same kernel on the same tensors; no mask is made where the batch's hides nothing."""
    assert _peak_bytes("flash_attention_2", sliding_window=1024) == _peak_bytes("sdpa", sliding_window=1024)


def test_a_cap_on_scores_is_the_kernel_s_as_well() -> None:
    """Gemma 2 has one, which torch's own attention does not know."""
    small = {"head_dim": 16, **MISTRAL}
    assert _peak_bytes("flash_attention_2", "gemma-2-2b", small) < _peak_bytes("eager", "gemma-2-2b", small)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"attention_mask": "padded"}},
        {"data": {"source": "jsonl", "path": "rows.jsonl"}},
        {"data": {"source": "jsonl", "path": "rows.jsonl"}, "training": {"batching": "pack"}},
    ],
    ids=["padded", "lengths", "packed"],
)
def test_rows_of_several_lengths_are_refused(changes: dict[str, Any]) -> None:
    """Which tokens the kernel is given is the data's; so says the sentence, and what to do instead."""
    training = {"attention": "flash_attention_2", **changes.get("training", {})}
    cell = tiny_cell(device="cuda", **{**changes, "training": training})
    with pytest.raises(UntraceableError, match="over padded or packed rows cannot be traced"):
        predict(cell, CUDA)
