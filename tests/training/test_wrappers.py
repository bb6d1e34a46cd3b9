"""Language models inside a wrapper: built by the class that the checkpoint names, trained on text alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from bench.errors import UnavailableError
from bench.predict.predict import predict, predict_all
from bench.predict.trace.depth import depth_of
from bench.predict.trace.repeat import deepen
from bench.predict.trace.trace import Tracer
from bench.records.predictions import Prediction, Refusal
from bench.records.readings import Caveat
from bench.records.records import LedgerReading, ModelFacts
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.weights import byte_tokenizer
from bench.training.loading.wrappers import beside_text, class_of
from tiny_cells import of_type, readings_of, tiny_cell

LAYERS, WIDTH = 12, 32
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_VISUAL = {
    "depth": 3,
    "hidden_size": WIDTH,
    "num_heads": 4,
    "out_hidden_size": WIDTH,
    "intermediate_size": 48,
}
SORTS: dict[str, dict[str, Any]] = {
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 8, **TEXT},
        "vision_config": {"model_type": "pixtral", **TOWER},
    },
    "gemma3": {
        "text_config": {"head_dim": 8, "layer_types": None, **TEXT},
        "vision_config": TOWER,
        "mm_tokens_per_image": 4,
    },
    "qwen2_5_vl": {"text_config": {"rope_parameters": _ROPE, **TEXT}, "vision_config": _VISUAL},
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **TOWER},
    },
}
BESIDE = {
    "mistral3": ["model.vision_tower", "model.multi_modal_projector"],
    "gemma3": ["model.vision_tower", "model.multi_modal_projector"],
    "qwen2_5_vl": ["model.visual"],
    "llava": ["model.vision_tower", "model.multi_modal_projector"],
}


def _saved(folder: Path, sort: str) -> Path:
    """Write a small wrapper with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(sort, **SORTS[sort])
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    byte_tokenizer(64).save_pretrained(folder)
    return folder


def _cell(folder: Path, method: dict[str, Any], **changes: Any) -> Cell:
    window = {"warmup_steps": 0, "measured_steps": 1, "flops": False}
    cell = tiny_cell(method, window=window, **changes)
    return Cell.model_validate(cell.model_dump() | {"model": {"name": "wrapper", "path": str(folder)}})


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_wrapper_runs_on_text_and_is_predicted_to_the_byte(tmp_path: Path, sort: str, kind: str) -> None:
    """The named class is built and loaded, its other parts are never trained, and the record says so."""
    method = {"kind": kind} | ({} if kind == "full" else {"target_modules": ["q_proj", "o_proj"]})
    cell = _cell(_saved(tmp_path, sort), method)
    readings = readings_of(cell)
    (ledger,), (facts,) = of_type(readings, LedgerReading), of_type(readings, ModelFacts)
    prediction = predict(cell, Platform(device="cpu"))
    assert prediction.allocated_peak_bytes == ledger.peak_bytes
    assert prediction.categories_at_peak_bytes == ledger.categories_at_peak_bytes
    assert facts.reach == prediction.reach
    beside = next(one for one in facts.reach.kinds if one.kind == "parts beside the language model")
    assert beside.parameters > 0
    if kind == "full":
        assert facts.parameters_trainable == facts.parameters_total - beside.parameters
    said = {one.code: one.message for one in of_type(readings, Caveat)}
    assert " and ".join(BESIDE[sort]) in said["text-alone"]
    assert ("adapters-beside-text" in said) == (beside.adapted > 0)


@pytest.mark.parametrize(
    "sort", ["llava", *(pytest.param(sort, marks=pytest.mark.slow) for sort in ("mistral3", "qwen2_5_vl"))]
)
def test_a_wrapper_s_layers_are_repeated_though_its_tower_has_layers_too(tmp_path: Path, sort: str) -> None:
    """The cut model's stream, deepened, is the whole one's: the tower is in it once, and whole."""
    for method in ({"kind": "qlora"}, {"kind": "full"}):
        cell = _cell(_saved(tmp_path, sort), method, device="cuda")
        tracer = Tracer(Platform(), AutoConfig.from_pretrained(tmp_path))
        depth = depth_of(cell, tracer.config)
        assert depth is not None
        whole, cut = tracer.trace(cell), tracer.trace(cell, depth)
        deep = deepen(cut, depth.period, depth.periods_added)
        assert (whole.live_bytes() == deep.live_bytes()).all()
        assert whole.reached is not None
        assert whole.reached.weights == cut.reached.weights  # type: ignore[union-attr]  # both are traced


def test_adapters_on_a_tower_are_never_without_a_word(tmp_path: Path) -> None:
    """all-linear reaches it; what the caveat advises keeps them out."""
    folder = _saved(tmp_path, "mistral3")
    prediction = predict(_cell(folder, {"kind": "lora"}, device="cuda"), Platform())
    (message,) = [one.message for one in prediction.caveats if one.code == "adapters-beside-text"]
    assert message.startswith("24 adapted layers are in model.vision_tower and model.multi_modal_projector")
    advised = message.rpartition("exclude_modules = ")[2].rstrip(".").strip('"')
    method = {"kind": "lora", "peft": {"exclude_modules": advised}}
    without = predict(_cell(folder, method, device="cuda"), Platform())
    assert "adapters-beside-text" not in {one.code for one in without.caveats}
    assert without.allocated_peak_bytes < prediction.allocated_peak_bytes


@pytest.mark.parametrize(
    ("named", "built"),
    [
        ("Llama4ForConditionalGeneration", "Llama4ForConditionalGeneration"),
        ("Llama4ForCausalLM", "Llama4ForCausalLM"),
        (None, "Llama4ForCausalLM"),
    ],
)
def test_the_class_that_a_checkpoint_names_is_built(named: str | None, built: str) -> None:
    """Where it names none, what transformers builds for a causal language model."""
    config = AutoConfig.for_model("llama4")
    config.architectures = None if named is None else [named]
    assert class_of(config).kind.__name__ == built


def test_what_another_class_leaves_out_is_said(tmp_path: Path) -> None:
    """A classifier's configuration is built as a language model, and its head is in no figure."""
    config = AutoConfig.for_model("llama", **TEXT)
    config.architectures = ["LlamaForSequenceClassification"]
    config.save_pretrained(tmp_path)
    prediction = predict(_cell(tmp_path, {"kind": "lora"}, device="cuda"), Platform())
    (message,) = [one.message for one in prediction.caveats if one.code == "another-class"]
    assert message.startswith("config.json names LlamaForSequenceClassification, LlamaForCausalLM is built")


def test_what_is_no_causal_language_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Neither transformers nor a missing operator is to blame."""
    config = AutoConfig.for_model("t5", num_layers=2, d_model=32)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    ((_, answer),) = predict_all([_cell(tmp_path, {"kind": "lora"}, device="cuda")], Platform())
    assert isinstance(answer, Refusal)
    assert answer.message.startswith(
        "T5ForConditionalGeneration (model_type t5) is no language model that predicts the next token"
    )
    with pytest.raises(UnavailableError):
        class_of(config)


def test_a_plain_model_has_nothing_beside_its_language_model(tmp_path: Path) -> None:
    """No caveat is made of what every model is."""
    config = AutoConfig.for_model("llama", **TEXT)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        assert beside_text(class_of(config).auto.from_config(config)) == {}
    prediction = predict(_cell(tmp_path, {"kind": "full"}, device="cuda"), Platform())
    assert isinstance(prediction, Prediction)
    assert not {"text-alone", "another-class"} & {one.code for one in prediction.caveats}
