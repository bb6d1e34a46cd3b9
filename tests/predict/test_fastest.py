"""The fastest settings that fit: what is tried is what fits, and its speed is that of a plan."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.predict import fastest, fit
from bench.predict.fastest import find_fastest
from bench.predict.fit import FitRequest, one_card, training_of
from bench.predict.pool import PredictionRequest, platform_of
from bench.predict.predict import predict
from bench.records.predictions import Fit, Prediction, Speed
from bench.scenario.load import named_model
from records_factory import make_prediction

GIB = 1024**3


def fast_request(**changes: Any) -> FitRequest:
    """Return a request for LoRA on an RTX 4090 with 23.6 GiB."""
    fields: dict[str, Any] = {
        "model": "llama-2-7b",
        "card": one_card("rtx4090", None),
        "methods": ("lora",),
        "rank": 16,
        "micro_batch": 1,
        "lengths": (512,),
        "training": training_of(dtype="bf16", gradient_checkpointing="non-reentrant"),
    }
    return FitRequest(**(fields | changes))


def test_batches_up_to_the_largest_are_tried_with_and_without_checkpointing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row takes a GiB with checkpointing and four without, which is faster: 21 rows fit, or 5."""

    def predicted(requests: list[PredictionRequest], *_: object, **__: object) -> list[Prediction]:
        found = []
        for request in requests:
            off = request.cell.training.gradient_checkpointing == "off"
            rows = request.cell.training.micro_batch
            point = rows * (200.0 if off else 100.0)
            speeds = tuple(
                Speed(card=card.name, low=point, point=point, high=point) for card in request.cards
            )
            prediction = make_prediction(int(rows * GIB * (4 if off else 1)))
            found.append(prediction.model_copy(update={"speeds": speeds}))
        return found

    monkeypatch.setattr(fit, "predict_cells", predicted)
    monkeypatch.setattr(fastest, "predict_cells", predicted)
    made = find_fastest(fast_request(), lambda _done, _total: None)

    tried = [(one.gradient_checkpointing, one.micro_batch, one.speed.point) for one in made.settings]
    assert tried == [
        *(("non-reentrant", rows, rows * 100.0) for rows in (1, 2, 4, 8, 16, 21)),
        *(("off", rows, rows * 200.0) for rows in (1, 2, 4, 5)),
    ]
    assert [(bound.axis, bound.fits and bound.fits.value) for bound in made.bounds] == [("micro_batch", 21)]


def test_settings_are_searched_on_each_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell is spread by fsdp2 for its bound and for its speed, and a setting says over how many."""
    asked: list[PredictionRequest] = []

    def predicted(requests: list[PredictionRequest], *_: object, **__: object) -> list[Prediction]:
        asked.extend(requests)
        found = []
        for request in requests:
            gpus, rows = request.cell.parallel.gpus, request.cell.training.micro_batch
            speeds = (Speed(card="rtx4090", gpus=gpus, low=rows, point=rows * gpus, high=rows * gpus),)
            prediction = make_prediction(int(rows * 8 * GIB / gpus))
            found.append(prediction.model_copy(update={"speeds": speeds}))
        return found

    monkeypatch.setattr(fit, "predict_cells", predicted)
    monkeypatch.setattr(fastest, "predict_cells", predicted)
    made = find_fastest(fast_request(gpus=(1, 2)), lambda _done, _total: None)
    largest = {one.gpus: one.micro_batch for one in made.settings}
    assert {1: 2, 2: 5} == largest
    assert {("none", 1), ("fsdp2", 2)} == {
        (one.cell.parallel.strategy, one.cell.parallel.gpus) for one in asked
    }


def test_speed_is_that_of_a_plan() -> None:
    """Though rows are taken for equally long, the stream of the full length is the same."""
    asked = fast_request(model="tiny-llama-test", lengths=(64,))
    card = asked.card
    platform = platform_of("cuda", card.capability)
    planned = asked.cell(named_model("tiny-llama-test")[0], "lora", 64, 3)
    line, *_ = fit._lines(asked, named_model("tiny-llama-test")[0], "lora")
    rough = fit.Line(cell=line.cell, axis="micro_batch", step=1, limit=8, rough=True).at(3)
    speeds = [predict(one, platform, cards=(card,)).speeds[0].point for one in (planned, rough)]
    assert speeds[0] == speeds[1] > 0


@pytest.mark.slow
def test_command_shows_the_fastest_setting_beside_the_largest() -> None:
    """A tiny model fits in thousands of rows, of which the fastest is told with a range."""
    line = "fit tiny-llama-test --gpu rtx4090 --method lora --sequence 64 --for speed --data full"
    answer = CliRunner().invoke(app, [*line.split(), "--json"])
    assert answer.exit_code == 0, answer.output
    found = Fit.model_validate(json.loads(answer.stdout))
    batches = [one.micro_batch for one in found.settings if one.gradient_checkpointing == "off"]
    assert batches[:4] == [1, 2, 4, 8]
    assert all(0 < one.speed.low < one.speed.point < one.speed.high for one in found.settings)
    best = max(found.settings, key=lambda one: one.speed.point)
    assert best.micro_batch > 8
