"""The reserved band where batches differ in length: traced once for each length, replayed in any order."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.errors import ScenarioError
from bench.predict import jobs, varying
from bench.predict.allocator.replay import DEFAULT_SETTINGS, replay
from bench.predict.predict import predict, predict_all
from bench.predict.trace.trace import Tracer
from bench.predict.validate import predict_row
from bench.records.messages import Message, PlanJob, PredictionMade
from bench.records.predictions import Prediction, Refusal, check_fit
from bench.records.published import read_rows
from bench.scenario.catalogue import card_of_memory
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training import jobs as of_training
from bench.training.loading.models import configuration_of
from tiny_cells import tiny_cell

A100 = Platform(capability=(8, 0))
QWEN = {"name": "qwen", "random": "qwen2.5-0.5b", "overrides": {"num_hidden_layers": 4}}


def varied_cell(*, lengths: str = "vary", **training: Any) -> Cell:
    """Return LoRA of four layers of a real architecture, whose loop keeps outputs to the next step."""
    return tiny_cell(
        {"kind": "lora"},
        device="cuda",
        model=QWEN,
        data={"lengths": lengths},
        training={"sequence_length": 512, "micro_batch": 4, "keep_outputs": True, **training},
    )


@cache
def predicted_of_varied() -> Prediction:
    """Return what is predicted of the cell on an A100, as several tests ask."""
    return predict(varied_cell(), A100)


def test_steps_in_another_order_are_what_a_trace_in_that_order_gives() -> None:
    """Composed of steps traced as 64, 96, 128, the order 128, 64, 96 has the counters of its own trace."""
    cell = varied_cell()
    config = configuration_of(cell.model)

    def traced(*lengths: int) -> list[varying._Step]:
        found = varying._steps(varying._deep(cell, Tracer(A100, config), lengths))
        assert found is not None
        return found

    before, *steps = traced(64, 64, 96, 128, 64)
    first, *others = traced(64, 128, 64, 96, 64)
    composed = replay(*varying._in_order(before, [steps[2], steps[0], steps[1]]))
    truth = replay(*varying._in_order(first, others))
    assert composed.allocated_bytes.tolist() == truth.allocated_bytes.tolist()
    assert composed.reserved_bytes.tolist() == truth.reserved_bytes.tolist()
    assert composed.reserved_peak_bytes > replay(*varying._in_order(before, [steps[0]])).reserved_peak_bytes


def test_lengths_that_vary_widen_the_band_and_equal_ones_keep_it() -> None:
    """The point stays that of equal batches; the band begins at what is allocated and says why."""
    equal, varied = predict(varied_cell(lengths="equal"), A100), predicted_of_varied()
    assert varied.reserved_peak_bytes == equal.reserved_peak_bytes
    assert varied.reserved_low_bytes is not None
    assert equal.reserved_high_bytes is not None
    assert varied.reserved_high_bytes is not None
    assert varied.reserved_low_bytes <= equal.allocated_peak_bytes
    assert varied.reserved_high_bytes > 1.05 * equal.reserved_high_bytes
    assert not equal.caveats
    (caveat,) = varied.caveats
    assert caveat.code == "lengths-vary"
    assert "6 other orders of 4 steps" in caveat.message  # the window's: first, warm-up and two measured


def test_emptying_the_cache_bounds_how_many_steps_matter() -> None:
    """Between two empty_cache() lie so many steps, and the caveat says so; else those of the window do."""
    assert varying.steps_that_matter(varied_cell()) == 4
    cell = varied_cell(empty_cache_steps=10)
    assert varying.steps_that_matter(cell) == 10
    assert "emptied every 10" in predict(cell, A100).caveats[0].message


def test_what_suffices_runs_and_decides_what_fits() -> None:
    """Cached blocks are given back where memory is short, so less than the top of the band is needed."""
    cell = varied_cell()
    prediction = predicted_of_varied()
    assert prediction.reserved_high_bytes is not None
    assert prediction.needed_bytes == prediction.sufficient_bytes
    assert prediction.allocated_peak_bytes < prediction.needed_bytes < prediction.reserved_high_bytes
    tracer = Tracer(A100, configuration_of(cell.model))
    steps = varying._steps(varying._deep(cell, tracer, [128, 512, 256, 384, 512, 128]))
    assert steps is not None
    before, *of_lengths = steps
    events, sizes = varying._in_order(before, of_lengths)
    limited = replay(events, sizes, DEFAULT_SETTINGS, capacity_bytes=prediction.needed_bytes)
    assert limited.out_of_memory is None
    card = card_of_memory("80GiB")
    assert check_fit(prediction, card).needed_bytes == prediction.needed_bytes + card.context_bytes


def test_a_plan_lends_the_wide_band_to_relatives() -> None:
    """Of cells of one family one is replayed over lengths; the others' bands are as wide in proportion."""
    cells = [varied_cell(micro_batch=rows) for rows in (2, 3, 4)]
    found = [answer for _, answer in predict_all(cells, A100, reuse_ranges=True)]
    shares = []
    for one in found:
        assert isinstance(one, Prediction)
        assert one.reserved_high_bytes is not None
        assert one.reserved_peak_bytes is not None
        shares.append(one.reserved_high_bytes / one.reserved_peak_bytes)
    assert min(shares) == pytest.approx(max(shares), rel=1e-6)
    assert min(shares) > 1.05


ROWS = """
[source]
name = "mine"
title = "Mine"
repository = "none"
licence = "none"

[[rows]]
name = "one"
tier = {tier}
reference = "page 1"
date = "2026"
gpu = "any"
software = "any"
model = {{ random = "qwen2.5-0.5b", overrides = {{ num_hidden_layers = 4 }} }}
method = {{ kind = "lora" }}
data = {{ {data} }}
training = {{ sequence_length = 256, micro_batch = 2, {training} }}
measured = [{measured}]
"""
RESERVED = '{ metric = "reserved", size_bytes = 3_000_000_000 }'


def _answer(folder: Path, **parts: Any) -> Prediction | Refusal:
    path = folder / "rows.toml"
    given = {"tier": 3, "data": 'source = "synthetic"', "training": 'dtype = "bf16"', "measured": RESERVED}
    path.write_text(ROWS.format(**(given | parts)), encoding="utf-8")
    (row,) = read_rows(path).rows
    return predict_row(row)


def test_of_a_loose_row_only_the_longest_batch_is_known(tmp_path: Path) -> None:
    """Tier 3 has a wide band where the cache is emptied; tiers 1 and 2, and equal lengths, a narrow one."""
    emptied = {"training": "empty_cache_steps = 10"}
    loose = _answer(tmp_path, **emptied)
    for tight in (
        _answer(tmp_path, tier=1),
        _answer(tmp_path, data='source = "synthetic", lengths = "equal"'),
    ):
        assert isinstance(tight, Prediction)
        assert not tight.caveats
    assert isinstance(loose, Prediction)
    assert [caveat.code for caveat in loose.caveats] == ["lengths-vary"]


def test_a_library_s_loop_is_not_asked_what_lengths_that_vary_reserve(tmp_path: Path) -> None:
    """It is replayed over equal batches: of a loose row that is refused, and of a known one answered."""
    for tier, kind in ((3, Refusal), (1, Prediction)):
        path = tmp_path / "rows.toml"
        given = {"data": 'source = "synthetic"', "training": "empty_cache_steps = 10", "measured": RESERVED}
        loop = 'loop.driver = "hf-trainer"\n'
        path.write_text(ROWS.format(tier=tier, **given) + loop, encoding="utf-8")
        (row,) = read_rows(path).rows
        assert row.looped is not None
        answer = predict_row(row.each_loop[1])
        assert isinstance(answer, kind)
        assert not isinstance(answer, Refusal) or "over equal ones alone" in answer.message


def test_a_loose_row_whose_loop_keeps_its_cache_is_refused(tmp_path: Path) -> None:
    """What thousands of steps reserve depends on their order; what is allocated does not."""
    refused = _answer(tmp_path)
    assert isinstance(refused, Refusal)
    assert "never empties" in refused.message
    both = _answer(tmp_path, measured=RESERVED + ', { metric = "allocated", size_bytes = 2_000_000_000 }')
    assert isinstance(both, Prediction)
    assert both.reserved_peak_bytes is None
    assert both.allocated_peak_bytes > 0


def test_other_loops_make_their_own_batches(tmp_path: Path) -> None:
    """Lengths that vary are the window's own; a library's loop is refused with the place, before any run."""
    del tmp_path
    with pytest.raises((ScenarioError, ValueError), match="lengths"):
        tiny_cell({"kind": "lora"}, data={"lengths": "vary"}, loop={"driver": "hf-trainer"})


def test_real_data_under_another_loop_says_that_its_band_is_of_equal_batches() -> None:
    """Where the steps are a library's, lengths are not replayed, and the prediction says so."""
    cell = tiny_cell(
        {"kind": "lora"},
        device="cuda",
        model=QWEN,
        data={"source": "task", "task": "longest-word"},
        loop={"driver": "hf-trainer"},
    )
    assert "lengths-not-replayed" in {caveat.code for caveat in predict(cell, A100).caveats}


@pytest.fixture
def as_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Prediction]:
    """Return what a worker says of a cell whose data is a file of two rows, of which one is longer."""
    rows = (
        ("Two and two?", "Four."),
        ("What is the capital of the country that Lyon and Nice lie in?", "Paris."),
    )
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": asked, "completion": told}) + "\n" for asked, told in rows)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gc.disable", lambda: None)
    monkeypatch.setattr(jobs, "quiet_libraries", lambda: None)
    monkeypatch.setattr(of_training, "_read", {})

    def predicted(data: dict[str, str], **training: Any) -> Prediction:
        cell = tiny_cell({"kind": "lora"}, training=training).model_dump() | {"device": "cuda", "data": data}
        heard: list[Message] = []
        job = PlanJob(cells_json=(Cell.model_validate(cell).model_dump_json(),), platform=A100)
        jobs.run_plan(job, heard.append)
        (said,) = heard
        assert isinstance(said, PredictionMade)
        assert isinstance(said.answer, Prediction)
        return said.answer

    return predicted


OWN_ROWS = {"source": "jsonl", "path": "rows.jsonl"}


def told_of_length(prediction: Prediction) -> list[str]:
    """Return what a prediction says of the length that it is for."""
    codes = {"longest-row", "full-length-batch"}
    return [caveat.message for caveat in prediction.caveats if caveat.code in codes]


def test_rows_at_hand_decide_how_long_a_batch_is(as_a_worker: Callable[..., Prediction]) -> None:
    """The longest of them, where batches are padded to it; it is said, and a length below it cuts it."""
    long, longer = (as_a_worker(OWN_ROWS, sequence_length=length) for length in (128, 512))
    assert long == longer
    (said,) = told_of_length(long)
    length = int(said.split()[-2])
    alike = as_a_worker(OWN_ROWS, sequence_length=length, batching="pad-to-length")
    assert long.allocated_peak_bytes == alike.allocated_peak_bytes
    shorter = as_a_worker(OWN_ROWS, sequence_length=32)
    assert shorter.allocated_peak_bytes < long.allocated_peak_bytes
    assert told_of_length(shorter) != [said]  # of the longer row nothing to learn is left
    padded = as_a_worker(OWN_ROWS, sequence_length=512, batching="pad-to-length")
    assert padded.allocated_peak_bytes > long.allocated_peak_bytes


@pytest.mark.parametrize("why", ["missing", "large"])
def test_rows_that_are_not_read_are_taken_for_full(
    why: str, as_a_worker: Callable[..., Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there, and one that would take long."""
    if why == "missing":
        Path("rows.jsonl").unlink()
    else:
        monkeypatch.setattr(of_training, "MOST_READ_BYTES", 10)
    found = as_a_worker(OWN_ROWS, sequence_length=512)
    assert told_of_length(found) == ["Predicted for sequences of the full length. Shorter ones need less."]
