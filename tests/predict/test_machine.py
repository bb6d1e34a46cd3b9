"""This machine's card: measured by microbenchmarks, read back, and what speeds follow from it."""

import gc
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench.cli import app
from bench.predict import jobs
from bench.predict.predict import predict
from bench.predict.speed import calibrate
from bench.predict.speed.cpu import cpu_time, this_machine
from bench.predict.speed.kernels import work_of
from bench.predict.trace.calls import Call, Form, Part
from bench.records.machine_card import THIS_CPU, MachineCard, card_of
from bench.records.messages import PlanJob
from bench.records.predictions import Plan, PlannedCell, Prediction
from bench.report.predicted.plan import render_markdown
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell

CPU = Platform(device="cpu")


def called(op: str, *shapes: tuple[int, ...], transposed: int = -1) -> Call:
    """Return a call on tensors in fp32, the last of which is its result; one may lie transposed."""
    places = range(len(shapes))
    parts = [
        Part(torch.float32, (False,) * len(shapes[at]), at != transposed, on_host=False) for at in places
    ]
    form = Form("forward", False, op, "model", False, tuple(parts[:-1]), tuple(parts[-1:]))  # noqa: FBT003 - a record
    return Call(form, list(zip(parts, shapes, strict=True)), 1)


def card(**changes: object) -> MachineCard:
    """Return a card of this machine: products of one shape, and products of elements at two sizes."""
    layouts = {"nn": 1e-3, "nt": 2e-3, "tn": 4e-3, "attention": 1e-3, "attention backward": 3e-3}
    shapes = {
        f"{dtype} {layout}": ((64, 64, 64, seconds),)
        for dtype in ("float32", "bfloat16")
        for layout, seconds in layouts.items()
    }
    curves = {"mul vector float32": ((1e4, 1e-5), (1e6, 1e-3))}
    fields = {"key": this_machine(), "products": shapes, "curves": curves, "host": 1, "spread": 0}
    return MachineCard.model_validate(fields | {"peak_flops": 1e9} | changes)


def seconds_of(call: Call) -> float:
    """Return how long a call takes by that card."""
    return cpu_time(call, work_of(call), card()).seconds


def test_products_take_the_rate_of_their_layout() -> None:
    """Of twice the depth twice as long; where the second factor lies transposed by the rate of such."""
    assert seconds_of(called("aten::mm", (64, 64), (64, 64), (64, 64))) == pytest.approx(1e-3)
    assert seconds_of(called("aten::mm", (64, 128), (128, 64), (64, 64))) == pytest.approx(2e-3)
    assert seconds_of(called("aten::mm", (64, 64), (64, 64), (64, 64), transposed=1)) == pytest.approx(2e-3)
    assert seconds_of(called("aten::mm", (64, 64), (64, 64), (64, 64), transposed=0)) == pytest.approx(4e-3)


def test_bytes_take_what_was_measured_around_them() -> None:
    """Between two sizes by a power, beyond them in proportion; operators without a curve take another's."""
    between, beyond = (25_000 // 3, (10_000_000 // 12,))
    assert seconds_of(called("aten::mul", *([(between,)] * 3))) == pytest.approx(1e-5 * between * 12 / 1e4)
    assert seconds_of(called("aten::add", *([beyond] * 3))) == pytest.approx(1e-3 * beyond[0] * 12 / 1e6)


def test_measuring_finds_what_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product's time is near that of the same product timed here, and more bytes take longer."""
    monkeypatch.setattr(calibrate, "_PRODUCTS", [(64, 256, 256), (256, 256, 256)])
    monkeypatch.setattr(calibrate, "_ELEMENTS", (1 << 14, 1 << 18))
    monkeypatch.setattr(calibrate, "_LEAST_S", 0.001)

    made = calibrate.measure()

    one = torch.ones((256, 256))
    started = time.perf_counter()
    for _ in range(20):
        one @ one
    here = (time.perf_counter() - started) / 20
    small, large = (each[3] for each in made.products["float32 nn"])
    assert here / 10 < large < here * 10
    assert small < large
    for name in ("mul vector float32", "silu vector float32", "_log_softmax vector bfloat16"):
        (_, fast), (_, slow) = made.curves[name]
        assert fast < slow, name
    assert 0.05 < made.host < 500  # many times a usual host's where others take the processor
    assert made.key == this_machine()


def test_a_plan_tells_speed_where_there_is_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card in the cache gives a band on this CPU, at half the rates a lower one; none gives none."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    cell = tiny_cell(training={"dtype": "fp32", "sequence_length": 512})
    key = this_machine()
    assert predict(cell, CPU).speeds == ()

    def speed(made: MachineCard) -> float:
        key.path.parent.mkdir(exist_ok=True)
        key.path.write_text(made.model_dump_json())
        (told,) = predict(cell, CPU).speeds
        assert told.card == THIS_CPU
        assert told.low < told.point < told.high
        return told.point

    slow = {
        name: tuple((*shape, 2 * seconds) for *shape, seconds in several)
        for name, several in card().products.items()
    }
    assert speed(card()) > 1.2 * speed(card(products=slow))

    (sure,) = predict(cell, CPU).speeds
    speed(card(busy="Others ran."))
    answer = predict(cell, CPU)
    (unsure,) = answer.speeds
    assert unsure.high / unsure.low > 2 * sure.high / sure.low
    assert "others ran" in unsure.assumed
    plan = Plan(
        scenario="s", title="t", cards=(), cells=(PlannedCell(cell=cell, answer=answer),), allocator=""
    )
    assert "| Tokens/s |" in render_markdown(plan)
    assert card_of(key.model_copy(update={"threads": key.threads + 1})) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"machine_version": 1}, "machine_version"),
        ({"products": {}}, "without bfloat16 attention"),
        ({"curves": {"mul vector float32": []}}, "curves.mul vector float32"),
        ({"curves": {"mul vector float32": [[0, 0]]}}, "curves.mul vector float32"),
        ({"host": 0}, "host"),
    ],
)
def test_a_card_that_is_none_costs_the_speed_and_not_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], why: str
) -> None:
    """An earlier version of bench may have left it, or a crash; what to do is told."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    cell = tiny_cell(training={"dtype": "fp32", "sequence_length": 512})
    peak_bytes = predict(cell, CPU).allocated_peak_bytes
    path = this_machine().path
    path.parent.mkdir()
    path.write_text(json.dumps(card().model_dump(mode="json") | change))
    found = predict(cell, CPU)
    assert found.allocated_peak_bytes == peak_bytes
    (speed,) = found.speeds
    assert why in speed.refused
    assert speed.refused.endswith("make one with bench calibrate --machine")


def test_a_worker_tells_the_speed_that_this_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job for the CPU leaves it its threads, for which the card holds; one for a GPU takes one."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(gc, "disable", lambda: None)
    taken = list[int]()
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    this_machine().path.parent.mkdir()
    this_machine().path.write_text(card().model_dump_json())
    told = list[Any]()

    cells = (tiny_cell().model_dump_json(),)
    jobs.run_plan(PlanJob(cells_json=cells, platform=CPU), told.append)
    assert isinstance(told[0].answer, Prediction)
    assert [speed.card for speed in told[0].answer.speeds] == [THIS_CPU]
    assert not taken
    jobs.run_plan(PlanJob(cells_json=cells, platform=Platform(device="cuda")), told.append)
    assert taken == [1]


def test_attention_takes_the_time_of_its_direction() -> None:
    """Twice the tokens take four times as long; the backward pass what was measured of it."""
    attend, back = "_scaled_dot_product_flash_attention_for_cpu", "_for_cpu_backward"
    short, long = ((1, 64, length, 64) for length in (8, 16))
    assert seconds_of(called(f"aten::{attend}", short, short, short, short)) == pytest.approx(1e-3)
    assert seconds_of(called(f"aten::{attend}", long, long, long, long)) == pytest.approx(4e-3)
    backward = called(f"aten::{attend.removesuffix('_for_cpu')}{back}", *[short] * 5)
    assert seconds_of(backward) == pytest.approx(3e-3)


def test_calibrate_takes_a_scenario_or_the_machine() -> None:
    """Neither, and both, are a user's mistake, said in a sentence."""
    for given in ([], ["--machine", "s.toml"]):
        found = CliRunner().invoke(app, ["calibrate", *given])
        assert "give --machine" in str(found.exception)


@pytest.mark.parametrize(("spread", "busy"), [(0.0, ""), (0.4, "what was measured differ by 40 %")])
def test_the_command_keeps_the_card_and_says_what_it_holds_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: float, busy: str
) -> None:
    """In the cache, by this machine's key; that others ran stands in the card and is told with what to do."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "measure", lambda: card(spread=spread))
    done = CliRunner().invoke(app, ["calibrate", "--machine"])
    assert done.exit_code == 0, done.output
    kept = card_of(this_machine())
    assert kept is not None
    assert busy in kept.busy
    assert f"{this_machine().threads} thread" in done.output
    assert ("again when nothing else runs" in done.output) == bool(kept.busy)
