"""What the tests on a real card run, and what they hold a record to; checked without a card as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.compare.plausibility import lint
from bench.records.derived_metrics import DERIVED
from bench.records.predictions import Prediction
from bench.records.records import Record
from bench.runner.schedule import SweepOptions
from bench.runner.sweep import run_sweep
from bench.scenario.cell import Cell
from bench.workers.launch import Launcher
from tiny_cells import tiny_cell

GIB = 1024**3
LORA: dict[str, Any] = {"kind": "lora", "rank": 4}
NF4: dict[str, Any] = {"kind": "qlora", "rank": 4}
FULL: dict[str, Any] = {"kind": "full"}
# A model of some 20 MiB: larger than what a rounding hides, smaller than what takes time.
MODEL = {"name": "tiny", "random": "tiny-llama-test", "overrides": {"vocab_size": 8192, "hidden_size": 256}}

SPECIFICATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": (FULL, {}),
    "full-fp32": (FULL, {"dtype": "fp32"}),
    "full-autocast": (FULL, {"dtype": "fp32", "autocast": "bf16"}),
    "full-autocast-fp16": (FULL, {"dtype": "fp32", "autocast": "fp16"}),
    "full-foreach": (FULL, {"optimizer": "adamw-foreach"}),
    "full-sgd": (FULL, {"optimizer": "sgd"}),
    "full-8bit": (FULL, {"optimizer": "adamw-8bit"}),
    "full-paged-8bit": (FULL, {"optimizer": "paged-adamw-8bit"}),
    "full-paged-32bit": (FULL, {"optimizer": "paged-adamw-32bit"}),
    "full-reentrant": (FULL, {"gradient_checkpointing": "reentrant"}),
    "full-non-reentrant": (FULL, {"gradient_checkpointing": "non-reentrant"}),
    "full-eager": (FULL, {"attention": "eager"}),
    "full-chunked": (FULL, {"loss": "chunked"}),
    "full-accumulation": (FULL, {"gradient_accumulation": 2}),
    "lora": (LORA, {}),
    "lora-packed": (LORA, {"batching": "pack"}),
    "lora-reentrant": (LORA, {"gradient_checkpointing": "reentrant"}),
    "dora": ({**LORA, "peft": {"use_dora": True}}, {}),
    "rslora": ({**LORA, "peft": {"use_rslora": True}}, {}),
    "ia3": ({"kind": "peft", "type": "ia3"}, {}),
    "vera": ({"kind": "peft", "type": "vera"}, {}),
    "int8": ({**LORA, "base": "int8"}, {}),
    "nf4-dq": (NF4, {}),
    "nf4": ({**NF4, "double_quantisation": False}, {}),
    "fp4-dq": ({**NF4, "quantisation": "fp4"}, {}),
    "nf4-dq-paged": (NF4, {"optimizer": "paged-adamw-8bit", "gradient_checkpointing": "non-reentrant"}),
}
"""Name → method and training; every kind of each at least once."""

TO_THE_BYTE = ("full", "full-sgd", "lora", "nf4-dq")
ALLOCATED_TOLERANCE = 0.01
RESERVED_TOLERANCE = 0.02  # beyond the band, which eight replays span and not all that can be
LEAST_NON_TORCH_BYTES, MOST_NON_TORCH_BYTES = 64 * 1024**2, 2 * GIB


def gpu_cell(name: str) -> Cell:
    """Return one of the cells, on CUDA."""
    method, training = SPECIFICATIONS[name]
    data: dict[str, Any] = {"source": "synthetic"}
    if training.get("batching") == "pack":
        data = {"source": "task", "task": "largest-number"}
    return tiny_cell(
        {**method, "name": name},
        id=f"tiny/{name}/b2-s128",
        device="cuda",
        model=MODEL,
        data=data,
        training={"sequence_length": 128, "optimizer": "adamw-fused", **training},
    )


def too_large_cell() -> Cell:
    """Return a cell whose logits alone, 128 GiB, are larger than any card."""
    return tiny_cell(
        FULL,
        id="tiny/full/b65536-s128",
        device="cuda",
        model=MODEL,
        training={"sequence_length": 128, "micro_batch": 65536},
        window={"ledger": False, "flops": False},
    )


def sweep(
    folder: Path, cells: Sequence[Cell], launcher: Launcher, *, snapshot: bool = False
) -> dict[str, Record]:
    """Predict and run the cells as ``bench run`` does; return each one's record by the cell's id."""
    options = SweepOptions(results=folder, predict=True, snapshot=snapshot)
    records = run_sweep(cells, options, lambda _: None, launcher).records
    return {record.cell.id: record for record in records}


def check_ran(record: Record) -> None:
    """Hold a record to having ended well and to all lints."""
    assert (record.outcome, record.failure) == ("ok", None)
    assert [] == [finding.sentence for finding in lint(record)]


def check_allocated(record: Record) -> None:
    """Hold torch's allocated peak to the prediction: to the byte for plain cells, nearly so for all."""
    prediction, measured = _prediction(record), DERIVED["cuda_allocated_peak_bytes"](record)
    if record.cell.method.name in TO_THE_BYTE:
        assert prediction.allocated_peak_bytes == measured
    assert prediction.allocated_peak_bytes == pytest.approx(measured, rel=ALLOCATED_TOLERANCE)


def check_reserved(record: Record) -> None:
    """Hold torch's reserved peak to the predicted band."""
    prediction, measured = _prediction(record), DERIVED["cuda_reserved_peak_bytes"](record)
    assert measured is not None
    assert prediction.reserved_low_bytes is not None
    assert prediction.reserved_high_bytes is not None
    assert prediction.reserved_low_bytes * (1 - RESERVED_TOLERANCE) <= measured
    assert measured <= prediction.reserved_high_bytes * (1 + RESERVED_TOLERANCE)


def check_ledger(record: Record) -> None:
    """Hold the ledger of the real steps to torch's peak in them, which has roundings and workspaces too."""
    ledger = record.measurement.ledger
    (phase,) = (phase for phase in record.measurement.phases if phase.name == "ledger")
    assert ledger is not None
    assert ledger.device == "cuda"
    assert phase.cuda_allocated_peak_bytes is not None
    assert 0.5 * phase.cuda_allocated_peak_bytes < ledger.peak_bytes <= phase.cuda_allocated_peak_bytes


def check_paged(record: Record) -> None:
    """Hold what bitsandbytes keeps in managed memory to the prediction; nothing for other optimizers."""
    paged = record.measurement.paged
    assert paged is not None
    assert paged.paged_bytes == _prediction(record).paged_bytes
    if record.cell.method.kind == "full":  # bitsandbytes pages tensors of 100,000 elements and more only
        assert (paged.paged_bytes > 0) == record.cell.training.optimizer.startswith("paged-")


def check_nvml(record: Record) -> None:
    """Hold the driver's view to torch's: the process has all that torch reserved and a context besides."""
    gpu = record.measurement.gpu
    assert gpu is not None
    assert gpu.isolation in {"process", "device_delta"}
    assert gpu.non_torch_bytes is not None
    assert LEAST_NON_TORCH_BYTES < gpu.non_torch_bytes < MOST_NON_TORCH_BYTES
    steady = [phase for phase in gpu.phases if phase.name == "steady" and phase.samples]
    reserved = [
        phase.cuda_reserved_peak_bytes for phase in record.measurement.phases if phase.name == "steady"
    ]
    for phase in steady:
        assert phase.device_peak_bytes is not None
        assert phase.device_peak_bytes >= (reserved[0] or 0)
        assert (phase.process_peak_bytes or 0) <= phase.device_peak_bytes


def check_out_of_memory(record: Record) -> None:
    """Hold a cell that ran out to saying where, for how much, beside what, and what had been predicted."""
    assert record.outcome == "oom"
    failure = record.failure
    assert failure is not None
    assert failure.phase == "first_forward"
    assert failure.requested_bytes is not None
    assert failure.requested_bytes >= GIB
    assert failure.allocated_bytes is not None
    assert failure.reserved_bytes is not None
    assert 0 < failure.allocated_bytes <= failure.reserved_bytes
    assert "; predicted to need " in failure.message


def _prediction(record: Record) -> Prediction:
    assert isinstance(record.prediction, Prediction), record.prediction
    return record.prediction
