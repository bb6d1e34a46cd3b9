"""Operators of a step: repeated layers, traced once, sum up to what tracing each alone gives, exactly."""

from collections import defaultdict
from typing import Any

import pytest

from bench.predict.predict import predict, predict_all
from bench.predict.speed.kernels import work_of
from bench.predict.trace.depth import depth_of
from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import Tracer
from bench.records.predictions import Prediction
from bench.scenario.catalogue import card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.models import configuration_of
from tiny_cells import tiny_cell

PLATFORM = Platform(device="cuda", capability=(8, 0))
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 7,
    "vocab_size": 512,
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "target_modules": "all-linear", "dropout": 0.05},
    "qlora": {"kind": "qlora"},
}


def cell(method: str, *, loop: str = "window", **training: Any) -> Cell:
    """Return a cell of a toy Llama of seven layers, of which a shallow trace takes four."""
    return tiny_cell(
        METHODS[method],
        device="cuda",
        model={"name": "m", "random": "llama-2-7b", "overrides": LLAMA},
        loop={"driver": loop},
        training={"sequence_length": 128, "micro_batch": 2, "max_grad_norm": 1.0} | training,
    )


def totals(stream: Stream) -> dict[tuple[str, bool, str], list[float]]:
    """Return the last step's calls, FLOPs and bytes by phase, whether recomputed, and class of kernels."""
    found: dict[tuple[str, bool, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for call in stream.calls[-1].distinct():
        work = work_of(call)
        sums = found[call.form.phase, call.form.recomputed, work.kind]
        for index, each in enumerate((1, work.flops, work.nbytes)):
            sums[index] += each * call.times
    return dict(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointing", ["off", "reentrant", "non-reentrant"])
def test_repeated_layers_count_as_often_as_they_run(method: str, checkpointing: str) -> None:
    """Calls, FLOPs and bytes of each class are those of a trace of every layer, the recomputation's, too."""
    optimizer = {"off": "adamw-foreach", "reentrant": "adamw-fused", "non-reentrant": "adamw-8bit"}[
        checkpointing
    ]
    one = cell(method, gradient_checkpointing=checkpointing, optimizer=optimizer)
    config = configuration_of(one.model)
    depth = depth_of(one, config)
    assert depth is not None
    assert depth.periods_added == 3

    each = totals(Tracer(PLATFORM, config, timed=True).trace(one))
    assert totals(Tracer(PLATFORM, config, timed=True).trace(one, depth)) == each
    recomputed = sum(sums[1] for (_, again, _), sums in each.items() if again)
    assert bool(recomputed) == (checkpointing != "off")


@pytest.mark.parametrize("method", ["full", "lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_what_the_model_computes_is_the_same_with_checkpoints(method: str) -> None:
    """MFU leaves recomputation out, also in functions that turn gradients off, as 4-bit products do.

    With checkpoints the first layer's input has a gradient, a hundredth more.
    """

    def computed(checkpointing: str) -> float:
        one = cell(method, gradient_checkpointing=checkpointing, optimizer="adamw-fused")
        found = totals(Tracer(PLATFORM, configuration_of(one.model), timed=True).trace(one))
        return sum(flops for (_, again, _), (_, flops, _) in found.items() if not again)

    for checkpointing in ("reentrant", "non-reentrant"):
        assert computed(checkpointing) == pytest.approx(computed("off"), rel=0.02)


def test_a_library_loop_counts_likewise() -> None:
    """The counters of steps belong to the layers in a loop, too, whose optimizer is its own."""
    one = cell("lora", loop="hf-trainer", optimizer="adamw-foreach")
    config = configuration_of(one.model)
    tracer = Tracer(PLATFORM, config, timed=True)
    short, whole = (tracer.trace(one, depth) for depth in (depth_of(one, config), None))
    assert totals(short) == totals(whole)
    assert not Tracer(PLATFORM, config).trace(one).calls  # where no speed is asked for, nothing is noted


@pytest.mark.parametrize("optimizer", ["adamw-fused", pytest.param("adamw-loop", marks=pytest.mark.slow)])
def test_many_cells_are_as_fast_as_each_alone(optimizer: str) -> None:
    """Tokens/s of cells that share their traces are those of each cell predicted by itself."""
    a100 = card("a100-80gb-sxm")
    cells = [
        cell("lora", micro_batch=rows, sequence_length=length, optimizer=optimizer)
        for rows in (1, 2, 4)
        for length in (128, 256, 384)
    ]
    cells = [one.model_copy(update={"id": str(index)}) for index, one in enumerate(cells)]
    together = {one.id: answer for one, answer in predict_all(cells, PLATFORM, cards=[a100])}
    assert len(together) == len(cells)
    for one in cells[::8]:
        many = together[one.id]
        assert isinstance(many, Prediction)
        assert many.speeds[0].point > 0, many.speeds[0].refused
        assert many.speeds == predict(one, PLATFORM, cards=[a100]).speeds
