"""Layers with kernels that may be installed: what was traced is named, and no verdict goes beyond it."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.predict.predict import predict_all
from bench.records.predictions import Prediction, check_fit
from bench.scenario.catalogue import card_of_memory
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
DELTA = {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
DELTA |= {f"linear_num_{name}_heads": 2 for name in ("key", "value")}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "bamba": ({**SIZES, **MAMBA, "attn_layer_indices": [1]}, "causal-conv1d and mamba-ssm"),
    "qwen3_next": (
        {**SIZES, **DELTA, "head_dim": 8, "num_experts": 0},
        "causal-conv1d and flash-linear-attention",
    ),
}


def predicted(folder: Path, kind: str, fields: dict[str, Any]) -> Prediction:
    """Predict two layers of a kind of model."""
    own = {"model_type": kind, "num_hidden_layers": 2, "vocab_size": 64, **fields}
    (folder / "config.json").write_text(json.dumps(own))
    model = {"name": kind, "random": None, "path": str(folder)}
    ((_, found),) = predict_all([tiny_cell(model=model, device="cuda")], Platform())
    assert isinstance(found, Prediction), found
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_what_ran_in_the_place_of_kernels_is_named_and_never_decides(tmp_path: Path, kind: str) -> None:
    """A card on which the reference does not fit is too close to call; with room for it, it fits."""
    fields, packages = MODELS[kind]
    found = predicted(tmp_path, kind, fields)
    (said,) = [one.message for one in found.caveats if one.code == "kernels-not-traced"]
    assert said.startswith(f"Traced as without {packages}: causal_conv1d_fn, ")
    small, large = (check_fit(found, card_of_memory(size)).answer for size in ("0.7GiB", "4GiB"))
    assert (small, large) == ("too close to call", "fits")


def test_models_without_such_layers_have_no_such_caveat(tmp_path: Path) -> None:
    """Llama's layers are torch's on every card, and a small card is said to be too small."""
    found = predicted(tmp_path, "llama", SIZES)
    assert [one.code for one in found.caveats] == []
    assert check_fit(found, card_of_memory("0.7GiB")).answer == "does not fit"


def test_the_products_of_experts_are_named(tmp_path: Path) -> None:
    """Transformers has several; the one that a run would take by default was traced."""
    found = predicted(tmp_path, "mixtral", {**SIZES, "num_local_experts": 4})
    (said,) = [one.message for one in found.caveats if one.code == "experts-implementation"]
    assert said.startswith("Products of experts were traced as transformers' grouped_mm")
