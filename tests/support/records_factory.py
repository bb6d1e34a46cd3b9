"""Small, complete, made-up records for tests: every field can be replaced, and all of it is validated.

The numbers are round on purpose, so that a test can state what must come out of them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from bench.records.predictions import Prediction
from bench.records.readings import checked, plain
from bench.records.records import (
    DeviceFacts,
    Environment,
    EvaluationItem,
    EvaluationReading,
    LedgerReading,
    Measurement,
    ModelFacts,
    PhaseReading,
    Record,
    StepSample,
    TokenCounts,
    decode_record,
    encode_record,
)
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform

MIB = 1024**2
SECOND_NS = 1_000_000_000


def make_cell(**changes: Any) -> Cell:
    """Return a CPU cell of LoRA r8 on a small model; ``changes`` replaces whole fields.

    An id is put in past its check, so that what shows cells can be tried with hostile ones.
    """
    name = changes.pop("id", "tiny/lora-r8/b4-s256")
    fields: dict[str, Any] = {
        "id": "tiny/lora-r8/b4-s256",
        "scenario": "example",
        "device": "cpu",
        "model": {"name": "tiny", "random": "toy"},
        "method": {"kind": "lora", "rank": 8},
        "data": {"source": "task", "task": "longest-word"},
        "training": {"sequence_length": 256, "micro_batch": 4},
        "window": {"measured_steps": 8},
        "evaluation": {"tasks": ["held-out"]},
        "limits": {},
    }
    return Cell.model_validate(fields | changes).model_copy(update={"id": name})


def make_steps(tokens_per_second: Sequence[float] = (1000.0,) * 8) -> tuple[StepSample, ...]:
    """Return a first step, two of warm-up, and one measured step for each given speed in tokens/s."""
    tokens = TokenCounts(raw=100, non_padding=100, loss_bearing=10, computed=128)
    speeds = (500.0, 900.0, 900.0, *tokens_per_second)
    return tuple(
        StepSample(
            index=index,
            stage="first" if index == 0 else "warmup" if index <= 2 else "measured",
            step_time_ns=round(tokens.non_padding / speed * SECOND_NS),
            tokens=tokens,
            loss=2.0 - index / 10,
        )
        for index, speed in enumerate(speeds)
    )


def make_phases(
    *, host_peak_bytes: int | None = 1000 * MIB, cuda_allocated_peak_bytes: int | None = None
) -> tuple[PhaseReading, ...]:
    """Return the phases of a short cell, 10.5 s in all, its peak in the first backward pass."""
    durations_s = {
        "start": 0.1,
        "load": 2.0,
        "adapt": 0.5,
        "prepare_data": 0.2,
        "evaluate_before": 1.0,
        "first_forward": 0.5,
        "first_backward": 0.5,
        "first_optimizer_step": 0.2,
        "warmup": 1.5,
        "steady": 2.0,
        "evaluate_after": 1.0,
        "ledger": 1.0,
    }
    return tuple(
        checked(
            PhaseReading,
            plain(
                {
                    "name": name,
                    "duration_ns": round(seconds * SECOND_NS),
                    "host_start_bytes": None if host_peak_bytes is None else 400 * MIB,
                    "host_peak_bytes": _in_phase(name, host_peak_bytes),
                    "cuda_allocated_peak_bytes": _in_phase(name, cuda_allocated_peak_bytes),
                    "cuda_reserved_peak_bytes": _in_phase(name, cuda_allocated_peak_bytes),
                }
            ),
        )
        for name, seconds in durations_s.items()
    )


def _in_phase(name: str, peak_bytes: int | None) -> int | None:
    """Return the peak in the first backward pass, less before and after, and more in an evaluation."""
    if peak_bytes is None:
        return None
    if name.startswith("evaluate"):
        return peak_bytes * 2
    return peak_bytes if name == "first_backward" else peak_bytes // 2


def make_ledger(peak_bytes: int = 600 * MIB, **changes: Any) -> LedgerReading:
    """Return a ledger reading whose largest category is the weights."""
    fields: dict[str, Any] = {
        "device": "cpu",
        "peak_bytes": peak_bytes,
        "peak_phase": "backward",
        "peak_op": "aten::mm",
        "peak_module": "lm_head",
        "categories_at_peak_bytes": {"weights": peak_bytes // 2, "logits": peak_bytes - peak_bytes // 2},
        "phase_peaks_bytes": {"forward": peak_bytes // 2, "backward": peak_bytes},
        "saved_for_backward_bytes": 100 * MIB,
        "op_count": 1234,
        "allocation_count": 432,
    }
    return checked(LedgerReading, plain(fields | changes))


def make_evaluation(when: str, correct: Iterable[bool], *, task: str = "held-out") -> EvaluationReading:
    """Return one reading with an item for each given answer, right or wrong."""
    items = tuple(
        EvaluationItem(
            doc_id=index, doc_hash=hashlib.sha256(f"{task} {index}".encode()).hexdigest(), correct=right
        )
        for index, right in enumerate(correct)
    )
    return checked(
        EvaluationReading,
        plain(
            {
                "task": task,
                "when": when,
                "metric": "acc",
                "instrument": "lm-eval 0.4.13",
                "num_fewshot": 0,
                "items": items,
                "truncated_items": 0,
                "duration_ns": SECOND_NS,
            }
        ),
    )


def make_measurement(**changes: Any) -> Measurement:
    """Return all readings of a good cell, 5 of 20 right before, 15 after; ``changes`` replaces fields."""
    fields: dict[str, Any] = {
        "device": DeviceFacts(cpu_threads=2, cuda_available=False, host_peak_instrument="VmHWM"),
        "model": ModelFacts(
            source="random toy, seed 0",
            parameters_total=1_000_000,
            parameters_trainable=10_000,
            weights_dtype="bf16",
            attention="sdpa",
            optimizer_class="AdamW",
        ),
        "phases": make_phases(),
        "steps": make_steps(),
        "ledger": make_ledger(),
        "evaluations": (
            make_evaluation("before", [index < 5 for index in range(20)]),
            make_evaluation("after", [index < 15 for index in range(20)]),
        ),
    }
    return checked(Measurement, plain(fields | changes))


def make_prediction(allocated_bytes: int = 600 * MIB, **changes: Any) -> Prediction:
    """Return a prediction for CUDA, or the CPU where its platform says so, reserved up to a tenth more."""
    fields: dict[str, Any] = {
        "platform": Platform(),
        "allocated_peak_bytes": allocated_bytes,
        "phase_peaks_bytes": {"load": allocated_bytes // 2, "backward": allocated_bytes},
        "phase_ends_bytes": {"load": allocated_bytes // 2},
        "peak_phase": "backward",
        "peak_op": "aten::mm",
        "peak_module": "lm_head",
        "categories_at_peak_bytes": {"weights": allocated_bytes // 2, "logits": allocated_bytes // 2},
        "method": "repeated layers",
    }
    prediction = Prediction.model_validate(fields | changes)
    if prediction.platform.device == "cpu" or "reserved_peak_bytes" in changes:
        return prediction
    low, high = allocated_bytes * 105 // 100, allocated_bytes * 110 // 100
    reserved = {"reserved_peak_bytes": low, "reserved_low_bytes": low, "reserved_high_bytes": high}
    return prediction.model_copy(update=reserved)


def make_environment(**changes: Any) -> Environment:
    """Return a plausible laptop; ``changes`` replaces whole groups."""
    fields: dict[str, Any] = {
        "machine": {"cpu_model": "Example CPU", "cpu_cores": 2, "architecture": "x86_64"},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "threads": {"torch": 2},
    }
    return checked(Environment, plain(fields | changes))


def make_record(**changes: Any) -> Record:
    """Return the record of a cell that ended well after 11.3 s; ``changes`` replaces whole fields.

    ``make_record(outcome="oom", failure=..., measurement={})`` is a failed one. The key follows the cell.
    """
    measurement = changes.get("measurement") or make_measurement()
    steps = measurement.steps if isinstance(measurement, Measurement) else ()
    measured = sum(step.stage == "measured" for step in steps) or 8
    cell = changes.get("cell") or make_cell(window={"measured_steps": measured})
    fields: dict[str, Any] = {
        "cell": cell,
        "key": cell.digest + "0" * 52,
        "run": 1,
        "outcome": "ok",
        "started_at": "2026-11-22T08:00:00Z",
        "total_ns": round(11.3 * SECOND_NS),
        "environment": make_environment(),
        "measurement": measurement,
    }
    safe = cell.model_copy(update={"id": "tiny/lora-r8/b4-s256"})  # a hostile id is put in past its check
    record = decode_record(encode_record(Record(**(fields | changes | {"cell": safe}))))
    return record.replace(cell=record.cell.model_copy(update={"id": cell.id}))
