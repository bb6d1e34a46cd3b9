"""How much of a model a method reached: counted by kind, said where it is little, alike run or predicted."""

from typing import Any

import pytest
from transformers import AutoConfig

from bench.predict.predict import predict
from bench.records.predictions import Prediction
from bench.records.readings import Caveat, WeightKind, WeightsOfKind, WeightsReached
from bench.records.records import ModelFacts
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from tiny_cells import of_type, readings_of, tiny_cell

LAYERS, WIDTH, EXPERTS, INNER, VOCABULARY = 12, 64, 8, 32, 96


@pytest.fixture
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a mixture of experts whose configuration is in a folder."""
    config = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        moe_intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
    )
    folder = tmp_path_factory.mktemp("mixture")
    config.save_pretrained(folder)
    return {"name": "mixture", "path": str(folder)}


def _predicted(model: dict[str, Any], method: dict[str, Any], **changes: Any) -> Prediction:
    cell = tiny_cell(method, device="cuda", **changes)
    return predict(Cell.model_validate(cell.model_dump() | {"model": model}), Platform())


def _kinds(prediction: Prediction) -> dict[WeightKind, WeightsOfKind]:
    assert prediction.reach is not None
    return {one.kind: one for one in prediction.reach.kinds}


def _caveat(caveats: tuple[Caveat, ...], code: str) -> str | None:
    return next((one.message for one in caveats if one.code == code), None)


def test_experts_that_qlora_passes_over_are_counted_and_said(mixture: dict[str, Any]) -> None:
    """In all layers though few were traced, with the bytes of their copies in fp32."""
    targets = ["q_proj", "v_proj"]
    prediction = _predicted(mixture, {"kind": "qlora", "target_modules": targets})
    assert prediction.method == "repeated layers"
    kinds = _kinds(prediction)
    experts, attention = LAYERS * EXPERTS * 3 * WIDTH * INNER, LAYERS * 4 * WIDTH * WIDTH
    assert kinds["experts in one tensor"] == WeightsOfKind(
        "experts in one tensor", experts, 0, 0, 4 * experts
    )
    assert kinds["linear layers"] == WeightsOfKind("linear layers", attention, attention, attention // 2, 0)
    assert kinds["output layer"].parameters == kinds["embeddings"].parameters == VOCABULARY * WIDTH
    message = _caveat(prediction.caveats, "left-unquantised")
    assert message is not None
    assert "experts in one tensor 2.25 MiB" in message
    assert "kbit_preparation = false saves" in message
    plain = _predicted(mixture, {"kind": "qlora", "target_modules": targets, "kbit_preparation": False})
    assert _kinds(plain)["experts in one tensor"].left_bytes == 2 * experts
    assert "kbit_preparation" not in (_caveat(plain.caveats, "left-unquantised") or "")
    saved = prediction.phase_ends_bytes["adapt"] - plain.phase_ends_bytes["adapt"]
    left = sum(one.left_bytes for one in _kinds(plain).values())
    assert saved == pytest.approx(left, rel=0.02)  # small vectors take 512 bytes in either dtype


def test_a_method_that_quantises_nothing_by_its_name_is_not_blamed(mixture: dict[str, Any]) -> None:
    """LoRA and full fine-tuning leave weights in 16 bits, as they say."""
    for method in ({"kind": "lora", "target_modules": ["q_proj"]}, {"kind": "full"}):
        prediction = _predicted(mixture, method)
        assert prediction.reach is not None
        assert prediction.reach.quantised == 0
        assert _caveat(prediction.caveats, "left-unquantised") is None


def test_layers_of_another_class_and_the_output_layer_are_named() -> None:
    """Falcon's layers are a subclass that transformers quantises before 5.5 only."""
    model = {
        "random": "falcon-7b",
        "overrides": {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8},
    }
    model |= {"name": "falcon"}
    method = {"kind": "qlora", "target_modules": ["query_key_value"]}
    prediction = _predicted(model, method)
    subclasses = 6 * (512 * (512 + 2 * 64) + 512 * 512 + 8 * 512 * 512)
    assert _kinds(prediction)["subclasses of linear layers"].parameters == subclasses
    message = _caveat(prediction.caveats, "left-unquantised")
    assert message is not None
    assert message.startswith("100 % of the weights stay in 16 or 32 bits")
    assert "before 5.5 only" in message


def test_a_small_rest_is_no_caveat() -> None:
    """Embeddings, output layer and norms of Mistral 7B are 4 % of it."""
    model = {"name": "m", "random": "mistral-7b"}
    prediction = _predicted(model, {"kind": "qlora"}, training={"sequence_length": 64, "micro_batch": 1})
    assert _caveat(prediction.caveats, "left-unquantised") is None
    kinds = _kinds(prediction)
    assert sum(one.parameters for one in kinds.values()) == 7_241_732_096
    assert kinds["linear layers"].quantised == 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    assert kinds["linear layers"].adapted == kinds["linear layers"].parameters


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
def test_all_linear_that_misses_much_is_said(mixture: dict[str, Any]) -> None:
    """Three-dimensional parameters are no linear layers for adapters either."""
    method = {"kind": "lora", "peft": {"exclude_modules": ["q_proj", "k_proj"]}}
    message = _caveat(_predicted(mixture, method).caveats, "left-unadapted")
    assert message is not None
    assert "% of the weights besides embeddings and output layer" in message
    assert _caveat(_predicted(mixture, {"kind": "lora"}).caveats, "left-unadapted") is None


@pytest.mark.parametrize("method", [{"kind": "qlora"}, {"kind": "full"}, {"kind": "lora", "base": "int8"}])
def test_a_run_records_what_was_predicted(method: dict[str, Any]) -> None:
    """The loaded model is counted as the empty one is, and its caveat is the same."""
    cell = tiny_cell(method, window={"ledger": False, "flops": False, "warmup_steps": 0})
    readings = readings_of(cell)
    (facts,) = of_type(readings, ModelFacts)
    prediction = predict(cell, Platform(device="cpu"))
    assert isinstance(facts.reach, WeightsReached)
    assert facts.reach == prediction.reach
    assert facts.reach.parameters + (0 if method["kind"] == "full" else facts.parameters_trainable) == (
        facts.parameters_total
    )
    said = [one for one in of_type(readings, Caveat) if one.code == "left-unquantised"]
    assert said == [one for one in prediction.caveats if one.code == "left-unquantised"]
