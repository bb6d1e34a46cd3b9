"""Bounds by prediction: found exactly, predicted on both sides, in few steps whatever the curve."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from bench.commands.predict import FitTraining
from bench.errors import UntraceableError, UsageError
from bench.predict import fit
from bench.predict.fit import FitRequest, find_bounds, one_card, training_of
from bench.predict.pool import PredictionRequest, platform_of
from bench.predict.predict import predict
from bench.records.predictions import Bound, Prediction, Refusal
from bench.scenario.cell import Cell
from bench.scenario.load import limits_of, load_scenario, named_model
from bench.scenario.types import ModelSpec
from bench.training.loading.models import empty_causal_model
from bench.workers.launch import Launcher
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

    def predict(
        requests: list[PredictionRequest], *, launcher: Launcher, allocator: str
    ) -> list[Prediction | Refusal]:
        assert (launcher.start_method, allocator) == ("forkserver", "")
        return [make_prediction(need(request.cell)) for request in requests]

    monkeypatch.setattr(fit, "predict_cells", predict)
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


@pytest.mark.parametrize("more", [0.8, 1.0, 1.1, 2.0])
def test_batches_of_equal_length_tell_where_to_start(monkeypatch: pytest.MonkeyPatch, more: float) -> None:
    """What varied ones take decides, and is predicted a few times only, however far off the start is."""
    asked: list[str] = []

    def need(cell: Cell) -> int:
        equal = cell.data.source == "synthetic"
        asked.append(cell.data.source)
        return int(2 * GIB + (1.0 if equal else more) * cell.training.micro_batch * GIB / 8)

    batch, *_ = found(monkeypatch, need)
    usable = 24 * GIB - one_card(None, "24GiB").context_bytes
    fits = largest(lambda rows: int(2 * GIB + more * rows * GIB / 8) * 110 // 100 <= usable, 1, 4096)
    assert (batch.fits and batch.fits.value, batch.next and batch.next.value) == (fits, fits + 1)
    assert batch.predictions <= (2 if more == 1 else 6)
    assert "synthetic" in asked


def test_a_method_that_never_fits_and_one_that_always_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has only its next value; the second stops at the model's limits."""
    batch, *_ = found(monkeypatch, lambda _: 30 * GIB)
    assert (batch.fits, batch.next and batch.next.value) == (None, 1)
    _, length, rank = found(monkeypatch, lambda _: GIB)
    assert (length.fits and length.fits.value, length.next) == (4096, None)  # positions of Llama 2
    assert (rank.fits and rank.fits.value, rank.next) == (1024, None)


def test_a_refusal_ends_its_search_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on."""

    def predict(requests: list[PredictionRequest], *_: object, **__: object) -> list[Prediction | Refusal]:
        full = [request.cell.method.kind == "full" for request in requests]
        return [Refusal(message="aten::nonzero") if one else make_prediction(GIB) for one in full]

    monkeypatch.setattr(fit, "predict_cells", predict)
    bounds = find_bounds(request(methods=("full", "qlora")), lambda _done, _total: None).bounds
    assert [bound.refusal for bound in bounds if bound.method == "full"] == ["aten::nonzero"] * 2
    assert [bound.refusal for bound in bounds if bound.method == "qlora"] == [None] * 3


def test_a_search_for_the_length_ends_where_the_positions_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 1,000 positions bounds the length as memory would: in steps of 64, at 960."""

    def predict(requests: list[PredictionRequest], *_: object, **__: object) -> list[Prediction | Refusal]:
        lengths = [request.cell.training.sequence_length for request in requests]
        beyond = Refusal(message="beyond", longest_tokens=1000)
        return [make_prediction(GIB) if length <= 1000 else beyond for length in lengths]

    monkeypatch.setattr(fit, "predict_cells", predict)
    bounds = find_bounds(request(), lambda _done, _total: None).bounds
    (length,) = [bound for bound in bounds if bound.axis == "sequence_length"]
    assert (length.fits and length.fits.value, length.next, length.limit) == (960, None, 960)
    assert length.refusal is None


def test_the_search_runs_through_workers() -> None:
    """A replay worker takes a GiB for each sequence: 21 and a tenth of it and the context are 24."""
    launcher = Launcher(work=replay, preload=["bench.workers.child"])
    batch, *_ = find_bounds(request(), lambda _done, _total: None, launcher).bounds
    assert (batch.fits and batch.fits.value, batch.next and batch.next.value) == (21, 22)


def test_models_are_found_by_name_folder_and_hub_id(tmp_path: Path) -> None:
    """A folder needs its config only, which limits length and rank; an unknown name says the nearest."""
    config = {"max_position_embeddings": 2048, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert limits_of(named_model(str(tmp_path))[0]) == (2048, 64)
    assert named_model("mistralai/Mistral-7B-v0.1")[0].hub == "mistralai/Mistral-7B-v0.1"
    with pytest.raises(UsageError, match='Perhaps you meant "llama-2-7b"'):
        named_model("llama-2-7")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        limits_of(named_model(str(tmp_path))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("dora",)}, 'unknown method "dora"; choose from full, lora, qlora'),
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


@pytest.mark.parametrize(("text", "assumed"), [("Llama 2-7B", False), ("llama-2-7b-chat", True)])
def test_spelling_is_forgiven_and_derivatives_are_resolved(text: str, *, assumed: bool) -> None:
    """Offline, and what is assumed is said."""
    model, said = named_model(text)
    assert model.random == "llama-2-7b"
    assert assumed == ("is assumed to have the architecture of llama-2-7b" in str(said))


def test_a_derivative_on_the_hub_is_what_a_plan_takes_it_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own configuration where that is in the cache, else its relative's, which the prediction says."""
    name = "someone/Llama-2-7b-chat-hf"
    assert named_model(name) == (ModelSpec(name="Llama-2-7b-chat-hf", hub=name), None)
    assert limits_of(named_model(name)[0]) == (4096, 4096)
    cached = tmp_path / "config.json"
    cached.write_text('{"max_position_embeddings": 2048, "hidden_size": 64}', encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(cached))
    assert limits_of(named_model(name)[0]) == (2048, 64)


@pytest.mark.parametrize("path", ["./nowhere", "../nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere/"])
def test_a_path_that_is_not_there_is_no_name_on_the_hub(path: str) -> None:
    """The sentence says that no such folder exists."""
    with pytest.raises(UsageError, match=f"there is no folder {path}; check the path"):
        named_model(path)


def test_a_folder_without_a_configuration_is_refused_in_words(tmp_path: Path) -> None:
    """It is not taken for a name."""
    with pytest.raises(UsageError, match=r"has no config\.json; give the folder of a transformers model"):
        named_model(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "supported"), [("gpt_oss", "eager, flex_attention"), ("mpt", "eager"), ("bloom", "eager")]
)
def test_an_attention_that_a_model_lacks_is_refused_with_those_it_supports(kind: str, supported: str) -> None:
    """A kernel that transformers would put another in the place of is none of them."""
    with pytest.raises(UntraceableError, match=rf" to one it supports: {supported}\."):
        empty_causal_model(AutoConfig.for_model(kind), attn_implementation="sdpa")


SCENARIO = """
device = "cuda"
[models.tiny-llama-test]
random = "tiny-llama-test"
[methods.qlora]
rank = 16
kbit_preparation = false
[data]
{data}
[training]
sequence_length = 64
micro_batch = 3
attention = "eager"
loss = "chunked"
gradient_checkpointing = "non-reentrant"
"""


@pytest.mark.parametrize(
    ("data", "section"),
    [("padded", 'source = "jsonl"\npath = "rows.jsonl"'), ("full", 'source = "synthetic"')],
)
def test_fit_and_plan_predict_the_same_for_the_same_cell(tmp_path: Path, data: str, section: str) -> None:
    """To the byte, whatever the data's mask, attention, loss and preparation; fit says what it assumes."""
    path = tmp_path / "example.toml"
    path.write_text(SCENARIO.format(data=section), encoding="utf-8")
    (planned,) = load_scenario(path).cells
    training = training_of(data, attention="eager", loss="chunked", gradient_checkpointing="non-reentrant")
    options = {"training": training, "data": data, "methods": ("qlora",), "kbit_preparation": False}
    asked = request("tiny-llama-test", lengths=(64,), **options)
    line, *_ = fit._lines(asked, named_model(asked.model)[0], "qlora")
    platform = platform_of("cuda", asked.card.capability)
    assert predict(line.at(3), platform) == predict(planned, platform)
    assert f"data {data}" in asked.window
    assert "without peft's k-bit preparation" in asked.window


def test_a_method_that_does_not_fit_is_told_what_would_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only changes that fit, each with its verdict; where the first value fits none is tried."""

    def need(cell: Cell) -> int:
        return 12 * GIB if cell.training.loss == "chunked" else 30 * GIB

    batch, *_ = found(monkeypatch, need)
    assert [change.what for change in batch.changes or ()] == ["loss in chunks"]
    assert [bound.changes for bound in found(monkeypatch, lambda _: 12 * GIB)] == [None] * 3


def test_batches_are_searched_on_each_number_of_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """By fsdp2, of each number; QLoRA is held in bf16 there; length and rank are not asked for."""
    asked: list[Cell] = []

    def need(cell: Cell) -> int:
        asked.append(cell)
        return (16 + 8 * cell.training.micro_batch) * GIB // cell.parallel.gpus

    bounds = found(monkeypatch, need, methods=("full", "qlora"), gpus=(1, 2, 4))
    assert [("full", 1), ("full", 2), ("full", 4), ("qlora", 1), ("qlora", 2), ("qlora", 4)] == [
        (bound.method, bound.gpus) for bound in bounds
    ]
    assert {"micro_batch"} == {bound.axis for bound in bounds}
    one, two, four = (bound.fits.value if bound.fits else 0 for bound in bounds[:3])
    assert 0 == one < two < four
    assert {"fsdp2"} == {cell.parallel.strategy for cell in asked if cell.parallel.gpus > 1}
    assert {("bf16", True), ("uint8", False)} == {
        (cell.method.quant_storage, cell.parallel.several) for cell in asked if cell.method.kind == "qlora"
    }


def test_what_cannot_be_spread_is_said_of_the_number_of_cards() -> None:
    """A paged optimizer on two; one card alone is as ever."""
    with pytest.raises(UsageError, match=r"--gpus 2: fit cannot be spread: .*optimizer"):
        find_bounds(request(training=training_of(optimizer="paged-adamw-8bit"), gpus=(1, 2)), lambda *_: None)


@pytest.mark.parametrize(
    ("options", "autocast"),
    [
        ({}, "bf16"),
        ({"dtype": "fp32"}, "off"),
        ({"autocast": "off"}, "off"),
        ({"dtype": "fp32", "autocast": "bf16"}, "bf16"),
    ],
)
def test_bf16_weights_train_under_autocast_unless_told(options: dict[str, str], autocast: str) -> None:
    """As the Trainer's bf16 = true; weights that are asked for in another dtype are left as they are."""
    assert FitTraining(**options).spec().autocast == autocast  # type: ignore[arg-type]  # strings alone
