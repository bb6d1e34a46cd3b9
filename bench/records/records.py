"""The record of one run of one cell, as stored: raw samples and their instruments, never statistics.

History of the format (``SCHEMA_VERSION``):
- 1 (2026-11-22): first.
- 1 (2026-11-22): ``prediction`` added; records without it are read as before, so the number stays.
- 1 (2026-11-22): ``measurement.gpu``, the outcome "contaminated", bytes of a failed allocation added.
- 1 (2026-11-22): ``measurement.torch_settings``, ``paged`` and ``snapshot`` added.
- 1 (2026-11-22): ``ledger.timeline`` added.
- 1 (2026-11-22): ``measurement.gpu`` says how often more than memory was read, and what watching took.
"""

from typing import Any, Final, Literal

from pydantic import Field

from bench.records.cuda import AllocatorSnapshot, PagedMemory, TorchSettings
from bench.records.gpu import GpuReading
from bench.records.predictions import Prediction, Refusal
from bench.records.stored import Category as Category  # noqa: PLC0414 - part of records
from bench.records.stored import Caveat as Caveat  # noqa: PLC0414 - part of records
from bench.records.stored import Count, Positive
from bench.records.stored import Stored as Stored  # noqa: PLC0414 - part of records
from bench.records.timelines import Timeline
from bench.scenario.types import Cell

SCHEMA_VERSION: Final = 1

Outcome = Literal["ok", "oom", "timeout", "crashed", "failed", "unavailable", "skipped", "contaminated"]
Phase = Literal[
    "start",
    "load",
    "adapt",
    "prepare_data",
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
    "save_adapter",
]


class DeviceFacts(Stored):
    """What the worker found on this machine, before anything was loaded."""

    cpu_threads: Count
    cuda_available: bool
    cuda_unavailable_reason: str | None = None
    cuda_name: str | None = None
    cuda_uuid: str | None = Field(None, description="GPU-… or MIG-… of torch's device 0, as NVML writes it.")
    cuda_capability: tuple[int, int] | None = None
    cuda_total_bytes: Count | None = None
    cuda_version: str | None = None
    bf16_on_cuda: bool | None = None
    flash_attention_2: bool = False
    host_peak_instrument: Literal["VmHWM", "unavailable"] = "unavailable"


class ModelFacts(Stored):
    """What was loaded and what is trained, counted in parameters (quantised ones unpacked)."""

    source: str
    weights_note: str | None = None
    parameters_total: Positive
    parameters_trainable: Count
    weights_dtype: str
    attention: str
    optimizer_class: str
    adapter_file_bytes: Count | None = None


class PhaseReading(Stored):
    """Peaks of one phase, each by its own instrument; None where the instrument was not there."""

    name: Phase
    duration_ns: Count
    host_start_bytes: Count | None = Field(None, description="VmRSS as the phase began.")
    host_peak_bytes: Count | None = Field(None, description="VmHWM, reset as the phase began.")
    cuda_allocated_peak_bytes: Count | None = Field(None, description="max_memory_allocated, reset likewise.")
    cuda_reserved_peak_bytes: Count | None = Field(None, description="max_memory_reserved, reset likewise.")


class TokenCounts(Stored):
    """Four counts of the same batch; tokens/s is stated on ``non_padding``."""

    raw: Count = Field(description="Tokens of the examples before truncation.")
    non_padding: Positive = Field(description="Tokens of examples that reached the model.")
    loss_bearing: Count = Field(description="Positions with a label, after the shift by one.")
    computed: Count = Field(description="Positions the model computed, padding included.")


class StepSample(Stored):
    """One optimizer step, all its micro-batches included."""

    index: Count
    stage: Literal["first", "warmup", "measured"]
    step_time_ns: Positive
    tokens: TokenCounts
    loss: float
    gradient_norm: float | None = None
    skipped: bool = Field(default=False, description="The gradient scaler left the optimizer out.")


class LedgerReading(Stored):
    """Exact live tensor bytes over a steady pair of steps, as torch's dispatcher sees storages.

    Scratch memory inside a kernel does not pass the dispatcher and is not counted.
    """

    device: str
    peak_bytes: Count
    peak_phase: Literal["load", "adapt", "inputs", "forward", "backward", "optimizer_step"]
    peak_op: str
    peak_module: str
    categories_at_peak_bytes: dict[Category, Count]
    phase_peaks_bytes: dict[str, Count]
    saved_for_backward_bytes: Count
    op_count: Count
    allocation_count: Count
    timeline: Timeline | None = Field(None, description="None in records made before it was kept.")


class FlopsReading(Stored):
    """Floating-point operations of one step as executed (recomputation included), by torch's counter."""

    step_flops: Count
    tokens: TokenCounts


class MergeCheck(Stored):
    """Logits of one batch, adapter apart and merged into the base: largest difference, largest value."""

    max_abs_difference: float
    reference_max_abs: float


class EvaluationItem(Stored):
    """One held-out question: its id and hash say whether two runs saw the same one."""

    doc_id: Count
    doc_hash: str
    correct: bool


class EvaluationReading(Stored):
    """One lm-eval task, item by item."""

    task: str
    when: Literal["before", "after"]
    metric: str
    instrument: str
    num_fewshot: Count
    items: tuple[EvaluationItem, ...]
    truncated_items: Count
    duration_ns: Count


class Measurement(Stored):
    """Everything one worker read; as far as it came when the outcome is not ok."""

    device: DeviceFacts | None = None
    gpu: GpuReading | None = Field(None, description="NVML, read by the parent; None where it was not asked.")
    torch_settings: TorchSettings | None = None
    model: ModelFacts | None = None
    paged: PagedMemory | None = Field(None, description="None on a CPU, which pages nothing.")
    snapshot: AllocatorSnapshot | None = Field(None, description="None where none was asked for.")
    phases: tuple[PhaseReading, ...] = ()
    steps: tuple[StepSample, ...] = ()
    ledger: LedgerReading | None = None
    flops: FlopsReading | None = None
    merge: MergeCheck | None = None
    evaluations: tuple[EvaluationReading, ...] = ()
    caveats: tuple[Caveat, ...] = ()


class Failure(Stored):
    """Why a cell ended otherwise than ok."""

    message: str = Field(description="One sentence: what happened and what to do.")
    phase: Phase | None = None
    requested_bytes: Count | None = Field(
        None, description="What the failed allocation asked for, if it said."
    )
    allocated_bytes: Count | None = Field(None, description="torch's allocator at that moment, on CUDA.")
    reserved_bytes: Count | None = Field(None, description="The same.")
    exit_signal: str | None = None
    output_tail: str = Field("", description="The last lines the worker printed.")


class Environment(Stored):
    """Where a record was made. Two records are comparable when these agree."""

    machine: dict[str, str | int | None]
    versions: dict[str, str]
    git: dict[str, str | bool | None]
    threads: dict[str, str | int | None]


class Record(Stored):
    """One run of one cell."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cell: Cell
    key: str = Field(description="Hash of the cell, the versions and the machine: what a rerun must share.")
    inputs_digest: str | None = Field(None, description="SHA-256 over the local files that the cell reads.")
    run: Positive = Field(description="1 for the first run under this key.")
    outcome: Outcome
    failure: Failure | None = None
    started_at: str = Field(description="UTC, ISO 8601.")
    total_ns: Count = Field(description="From asking for the worker until its end was seen.")
    environment: Environment
    measurement: Measurement
    prediction: Prediction | Refusal | None = Field(
        None, description="Peak memory as predicted before the run; None where none was asked for."
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record."""
    return Record.model_json_schema()
