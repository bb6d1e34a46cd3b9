"""What a prediction says besides bytes of the allocator: requested, computed, saved, trained, traced with."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from bench.errors import library_at_fault
from bench.predict.predict import predict, predict_all
from bench.predict.trace import depth, repeat
from bench.predict.trace.trace import Tracer
from bench.records.predictions import Prediction
from bench.records.records import FlopsReading, ModelFacts
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.models import configuration_of
from tiny_cells import of_type, readings_of, tiny_cell

DEEP = {"name": "deep", "random": "tiny-llama-test", "overrides": {"num_hidden_layers": 7}}


def cuda_cell(method: dict[str, Any], **training: object) -> Cell:
    """Return a cell on seven toy layers."""
    return tiny_cell(method, device="cuda", model=DEEP, training=training)


@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora"}, {"kind": "qlora"}])
def test_repeated_layers_compute_and_save_what_all_of_them_do(
    monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], checkpointing: str
) -> None:
    """Operators, FLOPs, saved bytes and trained parameters of seven layers, from four and from all."""
    cell = cuda_cell(method, gradient_checkpointing=checkpointing, dtype="bf16")
    monkeypatch.setattr(depth, "_found", {})
    repeated = predict(cell, Platform())
    depth.trace_whole(configuration_of(cell.model))
    whole = predict(cell, Platform())
    assert ("repeated layers", "full trace") == (repeated.method, whole.method)
    assert whole.step_flops
    assert whole.saved_for_backward_bytes
    assert repeated.model_copy(update={"method": "full trace"}) == whole


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora"}])
def test_flops_and_trained_parameters_are_those_of_a_real_step(method: dict[str, Any]) -> None:
    """Eager attention computes the same on every device, so torch's counter over a real step agrees."""
    training = {"attention": "eager"}
    real = readings_of(tiny_cell(method, model=DEEP, training=training))
    prediction = predict(cuda_cell(method, **training), Platform())
    (flops,), (facts,) = of_type(real, FlopsReading), of_type(real, ModelFacts)
    assert prediction.step_flops == flops.step_flops
    assert sum(prediction.trainable_parameters.values()) == facts.parameters_trainable


def test_what_is_requested_is_what_tensors_ask_for() -> None:
    """The most live bytes of the stream, over all and in each phase, below what blocks are rounded up to."""
    cell = tiny_cell({"kind": "lora"}, device="cuda")
    stream = Tracer(Platform(), configuration_of(cell.model)).trace(cell)
    prediction = predict(cell, Platform())
    assert prediction.requested_peak_bytes == stream.live_bytes().max()
    assert max(prediction.phase_requested_bytes.values()) == prediction.requested_peak_bytes
    assert prediction.requested_peak_bytes < prediction.allocated_peak_bytes
    assert prediction.phase_ends_reserved_bytes["load"] >= prediction.phase_ends_bytes["load"]


def test_a_stream_that_follows_from_others_has_no_flops_of_its_own() -> None:
    """Of cells that differ in batch only some are traced; the others say nothing of FLOPs."""
    cells = [
        tiny_cell({"kind": "lora"}, id=str(batch), device="cuda", training={"micro_batch": batch})
        for batch in (2, 3, 4, 5, 6, 8)
    ]
    found = {int(cell.id): answer for cell, answer in predict_all(cells, Platform())}
    alone = {batch: predict(cell, Platform()) for batch, cell in zip((2, 3, 4, 5, 6, 8), cells, strict=True)}
    known = [
        batch for batch, one in found.items() if isinstance(one, Prediction) and one.step_flops is not None
    ]
    assert 0 < len(known) < len(found)
    for batch, one in found.items():
        assert isinstance(one, Prediction)
        assert one.step_flops in {None, alone[batch].step_flops}
        assert one.op_count == alone[batch].op_count
        assert one.requested_peak_bytes == alone[batch].requested_peak_bytes


def test_a_prediction_names_the_versions_that_were_traced() -> None:
    """Those of the libraries that are loaded; an adapter's parameters are under the layer they adapt."""
    prediction = predict(cuda_cell({"kind": "lora", "target_modules": ["q_proj"]}), Platform())
    expected = {
        name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    }
    assert {name: prediction.traced_with[name] for name in expected} == expected
    assert list(prediction.trainable_parameters) == ["model.layers.*.self_attn.q_proj"]


def test_a_library_is_blamed_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of a checkout are no site-packages; torch and the standard library are asked by others."""
    (tmp_path / "madeup.py").write_text("import json\n\ndef fail():\n    json.loads('{')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import madeup  # type: ignore[import-not-found]  # written a line above

    with pytest.raises(ValueError, match="Expecting property name") as told:
        madeup.fail()
    monkeypatch.delitem(sys.modules, "madeup")
    assert library_at_fault(told.value) == ("madeup", f"{tmp_path.name}/madeup.py, line 4")
    with pytest.raises(AttributeError) as ours:
        repeat.deepen(object(), 1, 1)  # type: ignore[arg-type]  # on purpose
    assert library_at_fault(ours.value) is None
