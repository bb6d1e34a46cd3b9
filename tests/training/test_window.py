"""The window from load to ledger, on random weights, for every method and most levers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.metrics import MERGE_TOLERANCES
from bench.records.readings import Caveat
from bench.records.records import (
    EvaluationReading,
    FlopsReading,
    LedgerReading,
    MergeCheck,
    ModelFacts,
    PhaseReading,
    StepSample,
    TextLoss,
)
from bench.scenario.cell import Cell
from tiny_cells import of_type, tiny_cell
from tiny_cells import readings_of as train

pytestmark = pytest.mark.usefixtures("tiny_weights")

LORA: dict[str, Any] = {"kind": "lora", "rank": 4}
INT8: dict[str, Any] = {"kind": "lora", "rank": 4, "base": "int8"}
NF4: dict[str, Any] = {"kind": "qlora", "rank": 4}
FP4: dict[str, Any] = {"kind": "qlora", "rank": 4, "quantisation": "fp4", "double_quantisation": False}
FULL: dict[str, Any] = {"kind": "full"}
METHODS = {"full": FULL, "lora": LORA, "int8": INT8, "nf4-dq": NF4, "fp4": FP4}


READ: dict[str, list[Any]] = {}


def readings_of(cell: Cell) -> list[Any]:
    """Return what was read of a cell, which is run once for all tests that look at it."""
    key = cell.model_dump_json()
    if key not in READ:
        READ[key] = train(cell)
    return READ[key]


def _one(readings: list[Any], kind: type[Any]) -> Any:
    (reading,) = of_type(readings, kind)
    return reading


def _ledger(cell: Cell) -> LedgerReading:
    reading = _one(readings_of(cell), LedgerReading)
    assert isinstance(reading, LedgerReading)
    return reading


def _losses(readings: list[Any]) -> list[float]:
    return [step.loss for step in of_type(readings, StepSample)]


def test_phases_come_in_the_order_of_the_window() -> None:
    """A LoRA cell with evaluation and merge check passes every phase once, and steps are numbered through."""
    cell = tiny_cell(
        LORA,
        data={"source": "task", "task": "largest-number"},
        training={"sequence_length": 128},
        window={"merge_check": True},
        evaluation={"tasks": ["held-out"], "limit": 4},
    )
    readings = readings_of(cell)
    assert [
        "load",
        "adapt",
        "prepare_data",
        "save_adapter",
        "evaluate_before",
        "first_forward",
        "first_backward",
        "first_optimizer_step",
        "warmup",
        "steady",
        "evaluate_after",
        "ledger",
        "flops",
        "merge_check",
    ] == [reading.name for reading in of_type(readings, PhaseReading)]
    steps = of_type(readings, StepSample)
    assert [(step.index, step.stage) for step in steps] == [
        (0, "first"),
        (1, "warmup"),
        (2, "measured"),
        (3, "measured"),
    ]
    evaluations = of_type(readings, EvaluationReading)
    assert [(reading.when, len(reading.items)) for reading in evaluations] == [("before", 4), ("after", 4)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_learns_a_repeated_batch(method: dict[str, Any]) -> None:
    """Real steps: on a tiny task the loss falls, whatever the method."""
    cell = tiny_cell(
        method,
        data={"source": "task", "task": "largest-number", "train_items": 2},
        training={"learning_rate": 5e-2, "sequence_length": 128},
        window={"measured_steps": 12, "ledger": False, "flops": False},
    )
    losses = _losses(readings_of(cell))
    assert losses[-1] < 0.9 * losses[0]


def test_the_loss_on_a_text_falls_with_what_is_learnt_and_rises_with_what_is_forgotten(
    tmp_path: Path,
) -> None:
    """Of the text itself it falls in six steps, of other letters it rises; before, both are alike."""
    half, other = ("abcdefgh " * 12, "ZYXWVUTS " * 12)
    (tmp_path / "general.txt").write_text(half)
    losses = {}
    for name, trained in (("learnt", half), ("forgotten", other)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": trained}))
        cell = tiny_cell(
            data={"source": "jsonl", "path": str(tmp_path / f"{name}.jsonl")},
            training={"learning_rate": 5e-2, "sequence_length": 128},
            window={"measured_steps": 6, "ledger": False, "flops": False},
            evaluation={"text": str(tmp_path / "general.txt")},
        )
        read = losses[name] = _one(readings_of(cell), TextLoss)
        assert (read.text, read.tokens) == (str(tmp_path / "general.txt"), len(half) - 1)
    assert losses["learnt"].after_nats < losses["learnt"].before_nats < losses["forgotten"].after_nats
    assert losses["learnt"].before_nats == losses["forgotten"].before_nats


def test_trainable_parameters_are_those_of_the_adapter() -> None:
    """LoRA r4 on all linear layers: r times (inputs + outputs) of each of the seven projections, twice."""
    facts = _one(readings_of(tiny_cell(LORA)), ModelFacts)
    hidden, kv, wide = 64, 32, 256
    pairs = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)] + 3 * [(hidden, wide)]
    assert facts.parameters_trainable == 2 * 4 * sum(map(sum, pairs))
    assert facts.parameters_total == 155_968 + facts.parameters_trainable
    assert facts.adapter_file_bytes > 4 * facts.parameters_trainable


@pytest.mark.parametrize("method", [INT8, NF4, FP4], ids=["int8", "nf4-dq", "fp4"])
def test_a_quantised_base_counts_as_many_parameters(method: dict[str, Any]) -> None:
    """Packed 4-bit weights are counted unpacked, so that shares compare across methods."""
    lora, quantised = (_one(readings_of(tiny_cell(m)), ModelFacts) for m in (LORA, method))
    assert lora.parameters_total == quantised.parameters_total


def test_quantised_weights_take_the_bytes_that_the_formats_say() -> None:
    """nf4: half a byte a weight; absmax in fp32 per 64 weights, or 8 bits each plus fp32 per 256 of those."""
    double = _ledger(tiny_cell(NF4)).categories_at_peak_bytes["quantisation_state"]
    plain = tiny_cell({**NF4, "double_quantisation": False})
    single = _ledger(plain).categories_at_peak_bytes["quantisation_state"]
    sizes = [64 * 64, 64 * 32, 64 * 32, 64 * 64, 64 * 256, 64 * 256, 64 * 256]
    code, nested_code, offset = 16 * 4, 256 * 4, 4
    expected_single = 2 * sum(size // 64 * 4 + code for size in sizes)
    expected_double = 2 * sum(
        size // 64 + -(-size // 64 // 256) * 4 + code + nested_code + offset for size in sizes
    )
    assert single == expected_single
    assert double == expected_double


def test_lora_and_qlora_execute_the_same_flops() -> None:
    """Quantisation changes how weights are stored, not how many products a step takes."""
    counts = {name: _one(readings_of(tiny_cell(m)), FlopsReading).step_flops for name, m in METHODS.items()}
    assert counts["lora"] == counts["nf4-dq"] == counts["fp4"] == counts["int8"]
    assert counts["full"] > 0


def test_checkpointing_saves_activations_and_costs_flops() -> None:
    """Both kinds keep less for the backward pass than none, and execute more."""
    readings = {
        kind: readings_of(tiny_cell(LORA, training={"gradient_checkpointing": kind}))
        for kind in ("off", "reentrant", "non-reentrant")
    }
    saved = {kind: _one(found, LedgerReading).saved_for_backward_bytes for kind, found in readings.items()}
    flops = {kind: _one(found, FlopsReading).step_flops for kind, found in readings.items()}
    assert max(saved["reentrant"], saved["non-reentrant"]) < 0.6 * saved["off"]
    assert min(flops["reentrant"], flops["non-reentrant"]) > 1.1 * flops["off"]
    assert _losses(readings["off"]) == _losses(readings["reentrant"]) == _losses(readings["non-reentrant"])


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    """Four micro-batches of one give the loss of one batch of four, at fewer bytes saved for backward."""
    shape = {"sequence_length": 128, "dtype": "fp32", "batching": "pad-to-length"}
    data = {"source": "task", "task": "largest-number"}
    large = readings_of(tiny_cell(FULL, data=data, training={**shape, "micro_batch": 4}))
    split = readings_of(
        tiny_cell(FULL, data=data, training={**shape, "micro_batch": 1, "gradient_accumulation": 4})
    )
    assert _losses(split) == pytest.approx(_losses(large), rel=1e-4)
    saved = [_one(found, LedgerReading).saved_for_backward_bytes for found in (split, large)]
    assert saved[0] < 0.5 * saved[1]


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw-fused", "torch.optim.adamw.AdamW"),
        ("adamw-foreach", "torch.optim.adamw.AdamW"),
        ("adamw-loop", "torch.optim.adamw.AdamW"),
        ("sgd", "torch.optim.sgd.SGD"),
        ("adamw-8bit", "bitsandbytes.optim.adamw.AdamW8bit"),
        ("paged-adamw-32bit", "bitsandbytes.optim.adamw.PagedAdamW32bit"),
        ("paged-adamw-8bit", "bitsandbytes.optim.adamw.PagedAdamW8bit"),
    ],
)
def test_each_optimizer_is_what_it_is_called(name: str, expected: str) -> None:
    """Every optimizer trains here, under its own class; a paged one says that it pages nothing."""
    readings = readings_of(tiny_cell(FULL, training={"optimizer": name}, window={"flops": False}))
    assert _one(readings, ModelFacts).optimizer_class == expected
    paged = [c for c in of_type(readings, Caveat) if c.code == "optimizer-pages-nothing"]
    assert len(paged) == name.startswith("paged")


def test_optimizer_state_is_in_the_ledger() -> None:
    """AdamW keeps two moments of every weight in bf16; SGD keeps nothing."""
    adam = _ledger(tiny_cell(FULL)).categories_at_peak_bytes
    sgd = _ledger(tiny_cell(FULL, training={"optimizer": "sgd"})).categories_at_peak_bytes
    tensors = 2 + 2 * 9  # embedding and last norm, and nine weights in each of two layers
    assert adam["optimizer_state"] == 2 * 2 * 155_968 + 4 * tensors
    assert "optimizer_state" not in sgd


@pytest.mark.parametrize(
    "training",
    [
        {"dtype": "fp32"},
        {"dtype": "fp16"},
        {"dtype": "fp32", "autocast": "bf16"},
        {"dtype": "fp32", "autocast": "fp16"},
        {"dtype": "bf16", "autocast": "bf16"},
        {"attention": "eager"},
        {"schedule": "cosine", "schedule_warmup_steps": 1},
        {"max_grad_norm": 0},
        {"batching": "pack"},
        {"batching": "pad-to-length"},
    ],
    ids=str,
)
def test_each_lever_trains(training: dict[str, Any]) -> None:
    """Each lever on its own gives finite losses under LoRA."""
    cell = tiny_cell(
        LORA,
        data={"source": "task", "task": "largest-number"},
        training={"sequence_length": 128, **training},
        window={"ledger": False, "flops": False},
    )
    readings = readings_of(cell)
    losses = torch.tensor(_losses(readings))
    assert bool(losses.isfinite().all())
    norms = [step.gradient_norm for step in of_type(readings, StepSample)]
    assert (None in norms) == (training.get("max_grad_norm") == 0)


def test_instruments_do_not_change_the_training() -> None:
    """Losses are identical with and without evaluation, ledger and FLOP counter."""
    data = {"source": "task", "task": "largest-number"}
    shape = {"sequence_length": 128}
    bare = tiny_cell(NF4, data=data, training=shape, window={"ledger": False, "flops": False})
    full = tiny_cell(NF4, data=data, training=shape, evaluation={"tasks": ["held-out"], "limit": 4})
    assert _losses(readings_of(bare)) == _losses(readings_of(full))


def test_the_merge_check_tells_a_good_merge_from_a_lost_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging a trained adapter changes little; unloading it instead changes the logits beyond tolerance."""
    cell = tiny_cell(
        {**LORA, "peft": {"init_lora_weights": False}},
        training={"dtype": "fp32"},
        window={"merge_check": True, "ledger": False, "flops": False},
    )
    assert _merged_share(cell) < MERGE_TOLERANCES["fp32"]
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    assert _merged_share(cell) > 100 * MERGE_TOLERANCES["fp32"]


def test_the_ledger_sees_the_longest_batch_that_was_trained(tmp_path: Path) -> None:
    """One long row among short ones sets the peak, whichever step it fell into."""
    rows = ["short"] * 23 + ["long " * 20]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(tmp_path / "rows.jsonl"), "format": "text", "template": "plain"}
    peaks = set()
    for seed in (0, 1):
        training = {"sequence_length": 128, "micro_batch": 2, "seed": seed}
        cell = tiny_cell(FULL, data=data, training=training, window={"measured_steps": 10, "flops": False})
        readings = readings_of(cell)
        assert max(step.tokens.computed for step in of_type(readings, StepSample)) > 100
        peaks.add(_one(readings, LedgerReading).peak_bytes)
    assert len(peaks) == 1


def test_a_scaler_that_skips_a_step_says_so() -> None:
    """fp16 autocast overflows on huge weights: the first steps are marked as skipped."""
    cell = tiny_cell(
        FULL,
        model={"overrides": {"initializer_range": 1.0}},
        training={"dtype": "fp32", "autocast": "fp16"},
        window={"ledger": False, "flops": False},
    )
    assert of_type(readings_of(cell), StepSample)[0].skipped


def _merged_share(cell: Cell) -> float:
    check = _one(train(cell), MergeCheck)
    assert isinstance(check, MergeCheck)
    return check.max_abs_difference / check.reference_max_abs
