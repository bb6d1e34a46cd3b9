"""One rank of several on a card: what it holds, what it sends, its speed, what is offloaded."""

from typing import Any

import pytest

from bench.errors import UsageError
from bench.predict.plan import spread_over
from bench.predict.predict import predict
from bench.predict.speed.kernels import work_of
from bench.predict.speed.predict import speeds_of
from bench.predict.trace.trace import Tracer
from bench.predict.validate import predict_row
from bench.records.published import Measured, MeasuredSpeed, Row
from bench.records.published.score import score
from bench.runner.schedule import require_one_gpu
from bench.scenario.catalogue import CardLink, card
from bench.scenario.cell import Cell
from bench.scenario.parallel import ParallelSpec
from bench.scenario.platform import Platform
from rank_cells import METHODS, STRATEGIES, begin_of, cell_of_ranks, weights_bytes
from tiny_cells import tiny_cell
from toy_families import configuration


@pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor.*:FutureWarning")
@pytest.mark.parametrize("autocast", ["off", "bf16"])
@pytest.mark.parametrize("driver", ["hf-trainer", "trl-sft"])
def test_a_library_s_loop_never_has_the_whole_model_on_a_card(driver: str, autocast: str) -> None:
    """Layers arrive one by one, those trained in fp32 under bf16; accelerate's list of all is the host's."""
    pytest.importorskip("trl")
    config = configuration("llama")
    config.num_hidden_layers = 12
    cell = tiny_cell(
        training={"dtype": "bf16", "autocast": autocast, "sequence_length": 16},
        parallel={"strategy": "fsdp2", "gpus": 8},
        loop={"driver": driver},
        device="cuda",
    )
    tracer = Tracer(Platform(device="cuda"), config)
    stream = tracer.trace_rank(cell, 0)
    alone = tracer.trace(cell.model_copy(update={"parallel": ParallelSpec()}))
    arriving, whole = (int(one.live_bytes()[: begin_of(one, 0)].max()) for one in (stream, alone))
    assert arriving < whole / 2
    held = int(stream.live_bytes()[begin_of(stream, 0) - 1])
    assert held == pytest.approx(whole / 8 * (2 if autocast == "bf16" else 1), rel=0.2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_card_holds_its_share(strategy: str) -> None:
    """The worst rank's weights are its share of all; speed is a bound, and assumptions are told."""
    card_of = card("rtx4090")
    cell = cell_of_ranks("full", strategy, 3, low=False, checkpointing="off").model_copy(
        update={"device": "cuda"}
    )
    found = predict(cell, Platform(device="cuda"), cards=(card_of,))
    alone = predict(cell.model_copy(update={"parallel": ParallelSpec()}), Platform(device="cuda"))
    shares = {"ddp": 1, "fsdp2": 3}[strategy]
    weights = [one.categories_at_peak_bytes["weights"] for one in (found, alone)]
    assert abs(weights[0] * shares - weights[1]) < 0.1 * weights[1]
    assert found.categories_at_peak_bytes["collectives"] > 0
    (speed,) = found.speeds
    assert (3, "") == (speed.gpus, speed.refused)
    assert 0 < speed.links_s < speed.step_s
    assert "over several GPUs the range is a bound" in speed.assumed
    assert "one-of-several-gpus" in [caveat.code for caveat in found.caveats]
    assert found.reserved_peak_bytes is not None
    assert found.reserved_peak_bytes >= found.allocated_peak_bytes
    assert found.reserved_high_bytes is not None
    assert found.reserved_high_bytes > 1.12 * found.reserved_peak_bytes


_SENT = {"ddp": {2: 1}, "fsdp2": {1: 3}, "kept": {1: 2}, "offloaded": {1: 3}}
"""How often all weights go around, by rounds of a collective: FSDP gathers them once or twice, then sums."""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_collectives_of_a_step_move_each_weight(strategy: str) -> None:
    """DDP reduces gradients to all; FSDP gathers weights for each pass that has none, and scatters sums."""
    cell = cell_of_ranks("full", strategy, 2, low=False, checkpointing="off").model_copy(
        update={"device": "cuda"}
    )
    stream = Tracer(Platform(), configuration("llama"), timed=True).trace_rank(cell, 0)
    sent: dict[int, float] = {}
    for call in stream.calls[-1].distinct():
        work = work_of(call)
        if work.rounds and call.form.phase != "optimizer_step":
            sent[work.rounds] = sent.get(work.rounds, 0) + work.gathered * call.times
    whole = weights_bytes(cell)
    assert {rounds: round(nbytes / whole, 2) for rounds, nbytes in sent.items()} == _SENT[strategy]


@pytest.mark.parametrize("gpus", [2, 8])
def test_speed_reaches_from_no_collective_hidden_to_all(gpus: int) -> None:
    """By hand: (n-1)/n of all that is gathered or reduced, over 69, 80 and 82 % of NVLink's 300 GB/s."""
    cell = cell_of_ranks("full", "fsdp2", gpus, low=False, checkpointing="off").model_copy(
        update={"device": "cuda"}
    )
    tracer = Tracer(Platform(capability=(8, 0)), configuration("llama"), timed=True)
    stream = tracer.trace_rank(cell, 0)
    slow = card("a100-80gb-sxm").model_copy(
        update={"link": CardLink(name="NVLink", gb_per_s=1e-3, source="none")}
    )
    fast, bound = speeds_of(stream, cell, tracer.config, (card("a100-80gb-sxm"), slow))
    tokens = gpus * cell.training.micro_batch * cell.training.sequence_length
    works = [(work_of(call), call.times) for call in stream.calls[-1].distinct()]
    nbytes = sum(work.gathered * work.rounds * times for work, times in works)
    waiting = sum((8.4 + work.rounds * (gpus - 1) * 3.4) * times for work, times in works if work.rounds)
    sent = nbytes * (gpus - 1) / gpus
    usual = sent / 0.8e6 + waiting * 1e-6
    assert bound.links_s == pytest.approx(usual)
    assert bound.high == pytest.approx(tokens / (sent / 0.82e6 + waiting * 1e-6))
    alone_s = bound.step_s - usual
    assert 0 < 2 * alone_s < 0.1 * usual  # half of what runs beside collectives
    assert bound.low < tokens / (usual / 0.69 * 0.8) < bound.point < bound.high
    assert ("links", True) == (bound.bound_by, fast.high > 10 * bound.high)


def test_more_gpus_than_a_machine_has_are_refused_and_unlinked_cards() -> None:
    """Nothing is known of links between machines, nor of a card whose links no source was read of."""
    cell = cell_of_ranks("full", "fsdp2", 9, low=False, checkpointing="off").model_copy(
        update={"device": "cuda"}
    )
    tracer = Tracer(Platform(capability=(8, 9)), configuration("llama"), timed=True)
    stream = tracer.trace_rank(cell, 0)
    (refused,) = speeds_of(stream, cell, tracer.config, (card("rtx4090"),))
    assert "at most 8 GPUs" in refused.refused
    two = cell.model_copy(update={"parallel": cell.parallel.model_copy(update={"gpus": 2})})
    (refused,) = speeds_of(stream, two, tracer.config, (card("rtx4090").model_copy(update={"link": None}),))
    assert "how such cards are linked" in refused.refused


def test_a_published_row_of_several_gpus_is_predicted_as_its_cell_is() -> None:
    """Its name tells strategy and number; counters may be of later steps alone; its speed is of one GPU."""
    cell = cell_of_ranks("full", "fsdp2", 2, low=False, checkpointing="off").model_copy(
        update={"device": "cuda"}
    )
    sizes = Measured(metric="allocated", size_bytes=1, low_bytes=1, high_bytes=1)
    speed = MeasuredSpeed(metric="tokens_per_second", value=9.0, low=9.0, high=9.0)
    told = {"reference": "page", "date": "2025", "gpu": "RTX 4090", "software": "torch"}
    row = Row(name="a", source="lab", tier=1, cell=cell, measured=(sizes, speed), **told)
    whole = predict(cell, Platform())
    (scored, later) = score([row, row.model_copy(update={"name": "b", "steps": (2, 2)})], predict_row)
    assert "a (fsdp2 × 2)" == scored.run  # noqa: RUF001 - the sign
    assert whole.allocated_peak_bytes == scored.measurements[0].predicted_bytes
    (of_speed,) = scored.speeds
    assert of_speed.told is not None
    assert (18.0, 2) == (of_speed.measured_rate, of_speed.told.gpus)
    assert of_speed.told.point == predict(cell, Platform(), cards=(card("rtx4090"),)).speeds[0].point
    assert later.measurements[0].predicted_bytes is not None


def test_checkpoints_around_flat_layers_keep_inputs_and_gradients_of_all() -> None:
    """So did transformers before 4.52: what FSDP1 hooks to a frozen layer's input keeps it, and its gradient.

    That is the input's own size and as much again for each layer but the first of the backward pass.
    """
    training = {"dtype": "bf16", "gradient_checkpointing": "reentrant", "sequence_length": 256}
    parallel = {"strategy": "fsdp1", "gpus": 2}
    cell = tiny_cell({"kind": "lora", "rank": 2}, training=training, parallel=parallel, device="cuda")
    deep = configuration("llama")
    deep.num_hidden_layers = 9
    inside = cell.model_copy(
        update={"parallel": cell.parallel.model_copy(update={"activation_checkpointing": True})}
    )
    ends = {}
    for name, one in (("around", cell), ("inside", inside)):
        stream = Tracer(Platform(transformers="4.48"), deep).trace_rank(one, 0)
        end = [mark.entries for mark in stream.marks if mark.phase == "optimizer_step"][-1]
        ends[name] = int(stream.live_bytes()[end - 300 : end].max())
    kept = 2 * 256 * deep.hidden_size * cell.training.micro_batch * 2
    assert kept * 6 <= ends["around"] - ends["inside"] <= kept * 10


def test_streams_that_gather_have_pools_of_their_own() -> None:
    """A rank's stream of events tells on which CUDA stream each block is made; one GPU has but one."""
    cell = cell_of_ranks("lora", "fsdp2", 2, low=True, checkpointing="off").model_copy(
        update={"device": "cuda"}
    )
    tracer = Tracer(Platform(device="cuda"), configuration("llama"))
    stream = tracer.trace_rank(cell, 0)
    assert stream.streams is not None
    assert len(set(stream.streams.tolist())) > 2
    assert tracer.trace(cell.model_copy(update={"parallel": ParallelSpec()})).streams is None


def test_a_plan_spreads_cells_over_numbers_of_gpus() -> None:
    """Bench plan --gpus 1,8: the cell itself, and over eight; what cannot be spread is the user's mistake."""
    cell = tiny_cell({"kind": "lora"})
    assert spread_over(cell, 1) == cell
    spread = spread_over(cell, 8)
    assert spread_over(tiny_cell(loop={"driver": "trl-sft"}), 8).parallel == spread.parallel
    assert (spread.id, spread.parallel) == (f"{cell.id}-fsdp2-x8", ParallelSpec(strategy="fsdp2", gpus=8))
    cell = tiny_cell({"kind": "lora"}, training={"autocast": "bf16"}, id="m/lora/b1-s8-autocast-bf16-ckpt")
    mixed = spread_over(cell, 8)
    assert "m/lora/b1-s8-ckpt-fsdp2-x8-params-bf16" == mixed.id
    assert (mixed.training.autocast, mixed.parallel.param_dtype) == ("off", "bf16")
    trl = spread_over(tiny_cell(training={"autocast": "bf16"}, loop={"driver": "trl-sft"}), 8)
    assert (trl.training.autocast, trl.parallel.param_dtype) == ("bf16", "as-trained")
    packed = spread_over(tiny_cell({"kind": "qlora"}), 8)
    assert getattr(packed.method, "quant_storage", "") == "bf16"
    with pytest.raises(UsageError, match="int8 cannot be sharded"):
        spread_over(tiny_cell({"kind": "lora", "base": "int8"}), 8)
    with pytest.raises(UsageError, match="leave --gpus out"):
        spread_over(spread, 2)


def test_cells_over_several_gpus_are_not_gated() -> None:
    """Bench gate says so before anything is loaded."""
    with pytest.raises(UsageError, match="and no gate"):
        require_one_gpu([tiny_cell(parallel={"strategy": "ddp", "gpus": 2})])


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_what_is_offloaded_takes_no_memory_of_the_card(method: str) -> None:
    """Shards, gradients and optimizer state are the host's, by their sizes; steps compute as before."""
    config = configuration("llama")
    tracer = Tracer(Platform(device="cuda"), config)
    kept, offloaded = (
        tracer.trace_rank(_on_card(METHODS[method], STRATEGIES[strategy]), 0)
        for strategy in ("fsdp2", "offloaded")
    )
    held, left = (int(stream.live_bytes()[begin_of(stream, 1) - 1]) for stream in (kept, offloaded))
    assert kept.host_bytes == 0
    assert held - left <= offloaded.host_bytes
    if method == "full":  # weights, gradients, two moments, and what foreach holds of all gradients
        share = weights_bytes(_on_card(METHODS[method], STRATEGIES["offloaded"])) / 2
        assert held - left == pytest.approx(3 * share, rel=0.02)
        assert offloaded.host_bytes == pytest.approx(5 * share, rel=0.02)


def test_speed_is_not_told_where_the_optimizer_runs_on_the_host() -> None:
    """Of an offloaded cell the memory is predicted, with what the host holds, and no tokens per second."""
    cell = _on_card(METHODS["full"], STRATEGIES["offloaded"])
    prediction = predict(cell, Platform(device="cuda"), cards=[card("a100-80gb-sxm")])
    assert "GiB in pinned memory of the host" in prediction.caveats[-1].message
    assert [speed.refused for speed in prediction.speeds or ()] == [
        "the optimizer runs on the host's CPU, whose time is not known"
    ]


def _on_card(method: dict[str, Any], strategy: dict[str, Any]) -> Cell:
    return tiny_cell(
        method,
        training={
            "dtype": "fp32" if method["kind"] == "full" else "bf16",
            "sequence_length": 16,
            "optimizer": "adamw-foreach",
        },
        parallel=strategy | {"gpus": 2},
        device="cuda",
    )
