"""Bounds by prediction: found exactly, predicted on both sides, in few steps whatever the curve."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.records.fits import Bound
from bench.records.predictions import Refusal
from bench.runner import fitting
from bench.runner.fitting import FitRequest, find_bounds, one_card, training_of
from bench.runner.prediction_pool import Answer, Question
from bench.scenario.types import Cell
from bench.workers.launch import Launcher, LocalLauncher
from records_factory import make_prediction
from replay_worker import replay

GIB = 1024**3


def request(model: str = "llama-2-7b", **changes: Any) -> FitRequest:
    """Return a request for the batch, length and rank of LoRA on 24 GiB."""
    fields: dict[str, Any] = {
        "model": model,
        "card": one_card(None, "24GiB"),
        "methods": ("lora",),
        "rank": 16,
        "micro_batch": 1,
        "lengths": (512,),
        "training": training_of(dtype="bf16"),
    }
    return FitRequest(**(fields | changes))


def found(monkeypatch: pytest.MonkeyPatch, need: Callable[[Cell], int], **changes: Any) -> list[Bound]:
    """Return the bounds where a cell allocates what ``need`` says, in bytes."""

    def predict(questions: list[Question], _launcher: Launcher, *, allocator: str) -> list[Answer]:
        assert allocator == ""
        return [make_prediction(need(question.cell)) for question in questions]

    monkeypatch.setattr(fitting, "predict_cells", predict)
    return list(find_bounds(request(**changes), lambda _done, _total: None).bounds)


def largest(fits: Callable[[int], bool], step: int, limit: int) -> int:
    """Return the largest multiple that fits, by trying them all."""
    return max(value for value in range(step, limit + 1, step) if fits(value))


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_bounds_are_those_of_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch, power: float) -> None:
    """Linear or not: both sides were predicted, next to each other, in a dozen or two predictions."""

    def need(cell: Cell) -> int:
        tokens = cell.training.micro_batch * cell.training.sequence_length
        rank = getattr(cell.method, "rank", 0)
        return int(2 * GIB + (tokens / 512) ** power * GIB // 3 + rank * GIB // 100)

    batch, length, rank = found(monkeypatch, need)
    usable = 24 * GIB - one_card(None, "24GiB").context_bytes
    for bound in (batch, length, rank):

        def fits(value: int, bound: Bound = bound) -> bool:
            tokens = {"micro_batch": value * 512, "sequence_length": value}.get(bound.axis, 512)
            ranks = value if bound.axis == "rank" else 16
            allocated = int(2 * GIB + (tokens / 512) ** power * GIB // 3 + ranks * GIB // 100)
            return allocated * 110 // 100 <= usable

        assert bound.fits is not None
        assert bound.fits.value == largest(fits, bound.step, bound.limit)
        if bound.next is None:
            assert bound.fits.value == bound.limit
        else:
            assert bound.next.value == bound.fits.value + bound.step
            assert bound.next.verdict.answer != "fits"
        assert bound.predictions <= 26


def test_a_method_that_never_fits_and_one_that_always_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has only its next value; the second stops at the model's limits."""
    batch, *_ = found(monkeypatch, lambda _: 30 * GIB)
    assert (batch.fits, batch.next and batch.next.value) == (None, 1)
    _, length, rank = found(monkeypatch, lambda _: GIB)
    assert (length.fits and length.fits.value, length.next) == (4096, None)  # positions of Llama 2
    assert (rank.fits and rank.fits.value, rank.next) == (1024, None)


def test_a_refusal_ends_its_search_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on."""

    def predict(questions: list[Question], *_: object, **__: object) -> list[Answer]:
        full = [question.cell.method.kind == "full" for question in questions]
        return [Refusal(message="aten::nonzero") if one else make_prediction(GIB) for one in full]

    monkeypatch.setattr(fitting, "predict_cells", predict)
    bounds = find_bounds(request(methods=("full", "qlora")), lambda _done, _total: None).bounds
    assert [bound.refusal for bound in bounds if bound.method == "full"] == ["aten::nonzero"] * 2
    assert [bound.refusal for bound in bounds if bound.method == "qlora"] == [None] * 3


def test_the_search_runs_through_workers() -> None:
    """A replay worker takes a GiB for each sequence: 21 and a tenth of it and the context are 24."""
    launcher = LocalLauncher(work=replay, preload=["bench.workers.child"])
    batch, *_ = find_bounds(request(), lambda _done, _total: None, launcher).bounds
    assert (batch.fits and batch.fits.value, batch.next and batch.next.value) == (21, 22)


def test_models_are_found_by_name_folder_and_hub_id(tmp_path: Path) -> None:
    """A folder needs its config only, which limits length and rank; an unknown name says the nearest."""
    config = {"max_position_embeddings": 2048, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert fitting._limits(fitting._model(str(tmp_path))) == (2048, 64)
    assert fitting._model("mistralai/Mistral-7B-v0.1").hub == "mistralai/Mistral-7B-v0.1"
    with pytest.raises(UsageError, match='Perhaps you meant "llama-2-7b"'):
        fitting._model("llama-2-7")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        fitting._limits(fitting._model(str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("dora",)}, 'there is no method "dora"; choose from full, lora, qlora'),
        ({"lengths": (8192,)}, "llama-2-7b has 4096 positions; give a --sequence of at most that"),
        ({"allocator": "nonsense:1"}, "nonsense"),
    ],
)
def test_wrong_requests_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    """What was wrong and what there is instead."""
    with pytest.raises(UsageError, match=message):
        find_bounds(request(**changes), lambda _done, _total: None)


def test_options_are_checked() -> None:
    """One card, and values that training knows."""
    with pytest.raises(UsageError, match="give one of --gpu NAME and --memory SIZE"):
        one_card(None, None)
    with pytest.raises(UsageError, match="optimizer = 'adam'"):
        training_of(optimizer="adam")
