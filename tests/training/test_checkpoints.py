"""Checkpoints whose weights are stored quantised: run over as they are, counted so, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import UNSET
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from bench.errors import UnavailableError
from bench.predict.predict import predict, predict_all
from bench.predict.trace.trace import read_cpu_ledger
from bench.records.predictions import Prediction, Refusal
from bench.scenario.catalogue import architecture_within
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.models import load_model
from bench.training.loading.weights import Weights, byte_tokenizer
from tiny_cells import tiny_cell
from toy_families import reading_over

WIDTH, LAYERS, VOCABULARY = 128, 6, 320
STORED: dict[str, BitsAndBytesConfig] = {
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "down_proj"]),
}


def _saved(folder: Path, stored: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a small model's weights as bitsandbytes stores them."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
    )
    whole, packed = folder / "16-bit", folder / stored
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(whole)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=dtype, quantization_config=STORED[stored])
    model.save_pretrained(packed)
    byte_tokenizer(64).save_pretrained(packed)
    return packed


def _cell(folder: Path, method: dict[str, Any], **changes: Any) -> Cell:
    cell = tiny_cell(method, **changes)
    spec = {"name": "stored", "path": str(folder)}
    return Cell.model_validate(cell.model_dump() | {"model": spec})


@pytest.mark.parametrize(
    ("stored", "dtype"), [("nf4", torch.bfloat16), ("fp4", torch.float16), ("int8", torch.bfloat16)]
)
def test_lora_over_a_stored_checkpoint_is_predicted_to_the_byte(
    tmp_path: Path, stored: str, dtype: torch.dtype
) -> None:
    """Loaded as transformers does by itself, and traced from its configuration alone."""
    folder = _saved(tmp_path, stored, dtype)
    cell = _cell(folder, {"kind": "lora", "rank": 4})
    device = torch.device("cpu")
    model = load_model(cell, Weights(folder, "", None), device, trust_remote_code=False).model
    kind = type(model.get_submodule("model.layers.0.self_attn.q_proj")).__name__
    assert kind == ("Linear8bitLt" if stored == "int8" else "Linear4bit")
    assert ("Linear" == type(model.get_submodule("model.layers.0.mlp.down_proj")).__name__) == (
        stored == "int8"
    )
    truth = reading_over(model, cell)
    predicted = read_cpu_ledger(cell, Platform(device="cpu"))
    beside = {"device": "", "timeline": None, "retained": UNSET}
    assert truth.replace(**beside) == predicted.replace(**beside)


def test_weights_come_onto_a_card_packed(tmp_path: Path) -> None:
    """Half a byte an element with its scales, in the layers' order, and no 16-bit copy on the way."""
    folder = _saved(tmp_path, "nf4")
    prediction = predict(_cell(folder, {"kind": "lora", "rank": 4}, device="cuda"), Platform())
    own = predict(_cell(tmp_path / "16-bit", {"kind": "qlora", "rank": 4}, device="cuda"), Platform())
    scales_map = 256 * 4  # bitsandbytes keeps one for whatever it quantises, and has nothing to quantise here
    without = {phase: size - scales_map for phase, size in own.phase_ends_bytes.items()}
    assert prediction.phase_ends_bytes == without
    assert prediction.method == "repeated layers"
    assert "stored-quantised" in {caveat.code for caveat in prediction.caveats}


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"kind": "full"}, r"stored in 4 bits by bitsandbytes, and such weights cannot be trained in full"),
        ({"kind": "qlora"}, r"stored in 4 bits by bitsandbytes and are not quantised again by qlora"),
        ({"kind": "lora", "base": "int8"}, r"not quantised again by lora; choose lora with base as-trained"),
    ],
)
def test_what_cannot_be_done_over_stored_weights_is_refused(
    tmp_path: Path, method: dict[str, Any], named: str
) -> None:
    """Before anything is loaded, in runs and in predictions alike."""
    folder = _saved(tmp_path, "nf4")
    for device in ("cpu", "cuda"):
        cell = _cell(folder, method, device=device)
        ((_, answer),) = predict_all([cell], Platform(device=device))
        assert isinstance(answer, Refusal)
        with pytest.raises(UnavailableError, match=named) as refusal:
            load_model(cell, Weights(folder, "", None), torch.device("cpu"), trust_remote_code=False)
        assert str(refusal.value) == answer.message


@pytest.mark.parametrize(
    "told",
    [
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {"quantization_config": {"quant_method": "mxfp4"}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_weights_stored_in_other_ways_are_refused_by_name(
    tmp_path: Path, told: dict[str, Any], method: str
) -> None:
    """None is taken for a 16-bit checkpoint."""
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields | told))
    ((_, answer),) = predict_all([_cell(tmp_path, {"kind": method}, device="cuda")], Platform())
    assert isinstance(answer, Refusal)
    expected = next(iter(told.values())).get("quant_method", "4 bits of an unnamed kind")
    assert f"the weights of stored are stored quantised ({expected})" in answer.message


@pytest.mark.parametrize(("file", "kind"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_an_older_checkpoint_tells_of_packed_weights_in_a_file_of_its_own(
    tmp_path: Path, file: str, kind: str
) -> None:
    """Nothing else does: its weights would be missed, and made anew at random, in 16 bits."""
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / file).write_text('{"bits": 4}')
    ((_, answer),) = predict_all([_cell(tmp_path, {"kind": "lora"}, device="cuda")], Platform())
    assert isinstance(answer, Refusal)
    assert f"the weights of stored are stored quantised ({kind})" in answer.message


@pytest.mark.parametrize(
    "name",
    [
        "Llama-2-7b-AWQ",
        "llama-2-7b-bnb-4bit",
        "Llama-2-7b-GPTQ",
        "Llama-2-7b-FP8",
        "llama-2-7b-w4a16",
        "Llama-2-7b-4bit",
    ],
)
def test_a_name_that_tells_of_packed_weights_is_no_16_bit_relative(name: str) -> None:
    """Its configuration has to be read: the catalogue's describes other weights."""
    assert architecture_within(f"someone/{name}") is None
    assert architecture_within("someone/Llama-2-7b-chat") is not None


def test_a_16_bit_checkpoint_is_as_before(tmp_path: Path) -> None:
    """Nothing is said of storage that is nothing special."""
    _saved(tmp_path, "nf4")
    prediction = predict(_cell(tmp_path / "16-bit", {"kind": "full"}, device="cuda"), Platform())
    assert isinstance(prediction, Prediction)
    assert "stored-quantised" not in {caveat.code for caveat in prediction.caveats}
