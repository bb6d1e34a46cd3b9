"""The record of one run of one cell, as stored: raw samples and their instruments, never statistics.

History of the format (``SCHEMA_VERSION``):
- 1 (2026-11-22): first; ``prediction``, ``measurement.gpu``, ``torch_settings``, ``paged``, ``snapshot``,
  ``ledger.timeline``, "contaminated" and bytes of a failed allocation were added later. Records without them
  are read as before, so the number stays.
- 1 (2026-11-29): ``measurement.model.reach``, ``prediction.reach``, ``ledger.retained``, ``held`` of steps,
  ``heap_start_bytes`` of phases, ``sources`` of evaluations; ``doc_hash`` also of prompt, choices and target.
- 1 (2026-11-30): ``ledger.modules_at_peak_bytes``, and the same of predictions; ``text_loss``;
  ``cuda_uuids`` of the device, ``nvml_uuid`` and ``nvml_peak_bytes`` of ranks.
"""

from abc import ABC
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import msgspec
from pydantic import TypeAdapter
from pydantic_core import to_json

from bench.records.predictions import Prediction, Refusal
from bench.records.readings import (
    AllocatorSnapshot,
    Category,
    Caveat,
    Count,
    GpuReading,
    Held,
    ModuleBytes,
    Number,
    PagedMemory,
    Part,
    Positive,
    Retained,
    Timeline,
    TorchSettings,
    WeightsReached,
    decode_model,
    decode_shared,
    number,
    plain,
    share,
)
from bench.scenario.cell import Cell

if TYPE_CHECKING:
    Predicted = Prediction | Refusal
    SharedCell = Cell
    SharedEnvironment: TypeAlias = "Environment"
    SharedItems: TypeAlias = "tuple[EvaluationItem, ...]"
else:
    SharedCell = SharedEnvironment = SharedItems = msgspec.Raw  # see ``share``

    class Predicted(ABC):  # noqa: B024 - only asked by isinstance
        """Stands for the two in msgspec, which without a tag could not tell them apart."""

        model_validate_json = TypeAdapter(Prediction | Refusal).validate_json

    Predicted.register(Prediction)
    Predicted.register(Refusal)


SCHEMA_VERSION: Final = 1
NS_PER_SECOND: Final = 1_000_000_000
_DECODED = (float, type(None))

SAME_MACHINE = ("architecture", "cpu_model", "cpu_cores")
Facts = tuple[tuple[str, str | int | None], ...]
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


class DeviceFacts(Part, frozen=True):
    """What the worker found on this machine, before anything was loaded."""

    cpu_threads: Count
    cuda_available: bool
    cuda_unavailable_reason: str | None = None
    cuda_name: str | None = None
    cuda_uuid: str | None = None  # GPU-… or MIG-… of torch's device 0, as NVML writes it
    cuda_capability: tuple[int, int] | None = None
    cuda_total_bytes: Count | None = None
    cuda_version: str | None = None
    bf16_on_cuda: bool | None = None
    flash_attention_2: bool = False
    host_peak_instrument: Literal["VmHWM", "unavailable"] = "unavailable"
    cuda_uuids: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET  # of all, where torch sees several


class ModelFacts(Part, frozen=True, kw_only=True):
    """What was loaded and what is trained, counted in parameters (quantised ones unpacked)."""

    source: str
    weights_note: str | None = None
    parameters_total: Positive
    parameters_trainable: Count
    weights_dtype: str
    attention: str
    optimizer_class: str
    adapter_file_bytes: Count | None = None
    reach: WeightsReached | msgspec.UnsetType = msgspec.UNSET  # records of before have no such member


class PhaseReading(Part, frozen=True):
    """Peaks of one phase, each by its own instrument; None where the instrument was not there."""

    name: Phase
    duration_ns: Count
    host_start_bytes: Count | None = None  # vmRSS as the phase began
    host_peak_bytes: Count | None = None  # vmHWM, reset as the phase began
    cuda_allocated_peak_bytes: Count | None = None  # max_memory_allocated, reset likewise
    cuda_reserved_peak_bytes: Count | None = None  # max_memory_reserved, reset likewise
    heap_start_bytes: Count | msgspec.UnsetType | None = msgspec.UNSET  # ``Held.heap_bytes`` as it began


class TokenCounts(Part, frozen=True, gc=False):
    """Four counts of the same batch; tokens/s is stated on ``non_padding``."""

    raw: Count  # tokens of the examples before truncation
    non_padding: Positive  # tokens of examples that reached the model
    loss_bearing: Count  # positions with a label, after the shift by one
    computed: Count  # positions the model computed, padding included


class StepSample(Part, frozen=True, gc=False):
    """One optimizer step, all its micro-batches included."""

    index: Count
    stage: Literal["first", "warmup", "measured"]
    step_time_ns: Positive
    tokens: TokenCounts
    loss: Number
    gradient_norm: Number | None = None
    skipped: bool = False  # the gradient scaler left the optimizer out
    held: Held | msgspec.UnsetType = msgspec.UNSET  # once it was over

    def __post_init__(self) -> None:
        """Read what JSON has no number for; asked first, since records have many steps."""
        if type(self.loss) is not float or type(self.gradient_norm) not in _DECODED:
            number(self, "loss", "gradient_norm")


class LedgerReading(Part, frozen=True):
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
    timeline: Timeline | None = None  # none in records made before it was kept
    retained: Retained | msgspec.UnsetType = msgspec.UNSET
    modules_at_peak_bytes: ModuleBytes | msgspec.UnsetType = msgspec.UNSET  # * stands for any number

    @property
    def largest_category(self) -> Category:
        return max(self.categories_at_peak_bytes, key=self.categories_at_peak_bytes.__getitem__)

    @property
    def largest_share(self) -> float:
        return self.categories_at_peak_bytes[self.largest_category] / max(self.peak_bytes, 1)


class FlopsReading(Part, frozen=True):
    """Floating-point operations of one step as executed (recomputation included), by torch's counter."""

    step_flops: Count
    tokens: TokenCounts


class MergeCheck(Part, frozen=True):
    """Logits of one batch, adapter apart and merged into the base: largest difference, largest value."""

    max_abs_difference: Number
    reference_max_abs: Number

    def __post_init__(self) -> None:
        number(self, "max_abs_difference", "reference_max_abs")


class EvaluationItem(Part, frozen=True, gc=False):
    """One held-out question: its id and hash say whether two runs saw the same one."""

    doc_id: Count
    doc_hash: str
    correct: bool


class EvaluationReading(Part, frozen=True):
    """One lm-eval task, item by item."""

    task: str
    when: Literal["before", "after"]
    metric: str
    instrument: str
    num_fewshot: Count
    items: SharedItems
    truncated_items: Count
    duration_ns: Count
    # By item, the passage it asks about; unset where none is shared.
    sources: tuple[Count, ...] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Decode the questions with their answers: before training they are alike in all runs."""
        share(self, "items", _items)
        if self.truncated_items > len(self.items):
            raise ValueError(f"{self.truncated_items} of {len(self.items)} items truncated")
        if self.sources and len(self.sources) != len(self.items):
            raise ValueError(f"sources of {len(self.sources)} items, not of {len(self.items)}")


class TextLoss(Part, frozen=True):
    """Mean loss on a text, in nats a token, before and after training; each window or row is read alone."""

    text: str
    tokens: Positive
    before_nats: Number
    after_nats: Number

    def __post_init__(self) -> None:
        number(self, "before_nats", "after_nats")


class RankReading(Part, frozen=True):
    """Of one process of several: its highest peaks, and the median of its measured steps."""

    rank: Count
    ledger_peak_bytes: Count | None
    host_peak_bytes: Count | None
    cuda_allocated_peak_bytes: Count | None
    cuda_reserved_peak_bytes: Count | None
    step_time_ns: Positive | None
    nvml_uuid: str | msgspec.UnsetType = msgspec.UNSET  # where its GPU was watched
    nvml_peak_bytes: Count | msgspec.UnsetType = msgspec.UNSET


class Measurement(Part, frozen=True, dict=True):
    """Everything a worker read, or those of several ranks; as far as it came if the outcome is not ok."""

    device: DeviceFacts | None = None
    gpu: GpuReading | None = None  # NVML, read by the parent; None where it was not asked
    torch_settings: TorchSettings | None = None
    model: ModelFacts | None = None
    paged: PagedMemory | None = None  # none on a CPU, which pages nothing
    snapshot: AllocatorSnapshot | None = None  # none where none was asked for
    phases: tuple[PhaseReading, ...] = ()
    steps: tuple[StepSample, ...] = ()
    ledger: LedgerReading | None = None
    flops: FlopsReading | None = None
    merge: MergeCheck | None = None
    evaluations: tuple[EvaluationReading, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    ranks: tuple[RankReading, ...] | msgspec.UnsetType = msgspec.UNSET  # where there are several
    text_loss: TextLoss | msgspec.UnsetType = msgspec.UNSET  # where a text was asked for

    @cached_property
    def measured_steps(self) -> tuple[StepSample, ...]:
        """The steps after the first and the warm-up."""
        return tuple([step for step in self.steps if step.stage == "measured"])

    @cached_property
    def step_times_ns(self) -> tuple[int, ...]:
        return tuple([step.step_time_ns for step in self.measured_steps])

    @cached_property
    def tokens_per_second(self) -> tuple[float, ...]:
        """Non-padding tokens per second of each measured step, in order."""
        return tuple(
            [step.tokens.non_padding * NS_PER_SECOND / step.step_time_ns for step in self.measured_steps]
        )


class Failure(Part, frozen=True):
    """Why a cell ended otherwise than ok."""

    message: str  # one sentence: what happened and what to do
    phase: Phase | None = None
    requested_bytes: Count | None = None  # what the failed allocation asked for, if it said
    allocated_bytes: Count | None = None  # torch's allocator at that moment, on CUDA
    reserved_bytes: Count | None = None  # the same
    exit_signal: str | None = None
    output_tail: str = ""  # The last lines the worker printed


class Environment(Part, frozen=True, dict=True):
    """Where a record was made. Two records are comparable when these agree."""

    machine: dict[str, str | int | None]
    versions: dict[str, str]
    git: dict[str, str | bool | None]
    threads: dict[str, str | int | None]

    @cached_property
    def conditions(self) -> Facts:
        """What speed depends on besides versions; what a machine did not record is left out."""
        names = ("system", *SAME_MACHINE)
        machine = [(name, self.machine[name]) for name in names if name in self.machine]
        return (*machine, *sorted(self.threads.items()))


BEFORE_CODE = "+"
"""What stands before the digest of code in ``Record.inputs_digest``."""


class Record(Part, frozen=True, kw_only=True):
    """One run of one cell."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cell: SharedCell
    key: str  # hash of the cell, the versions and the machine: what a rerun must share
    inputs_digest: str | None = None  # SHA-256 over the local files it reads; +, and that of its loop's code
    run: Positive  # 1 for the first run under this key
    outcome: Outcome
    failure: Failure | None = None
    started_at: str  # UTC, ISO 8601
    total_ns: Count  # from asking for the worker until its end was seen
    environment: SharedEnvironment
    measurement: Measurement
    prediction: Predicted | None = None  # made before the run; None where none was asked for

    @property
    def data_digest(self) -> str | None:
        """The digest of the local files that the cell reads, without the code of its loop."""
        return (self.inputs_digest or "").partition(BEFORE_CODE)[0] or None

    def __post_init__(self) -> None:
        """Decode what runs have in common."""
        share(self, "cell", _cell)
        share(self, "environment", _environment)


_cell = partial(decode_shared, Cell)
_environment = lru_cache(maxsize=1000)(msgspec.json.Decoder(Environment).decode)
_decode_items = msgspec.json.Decoder(tuple[EvaluationItem, ...]).decode


@lru_cache(maxsize=100)  # few, since a thousand answers take a quarter of a megabyte
def _items(content: bytes) -> tuple[EvaluationItem, ...]:
    items = _decode_items(content)
    if len({item.doc_id for item in items}) < len(items):
        raise ValueError("the same question twice in one evaluation")
    return items


_DECODER = msgspec.json.Decoder(Record, dec_hook=decode_model)


def decode_record(content: bytes) -> Record:
    """Decode and check the text of a record. Raises ``ValueError`` where it is none of this version."""
    try:
        record = _DECODER.decode(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except msgspec.ValidationError as error:
        if "$.outcome`" not in str(error):
            raise
        raise ValueError(f"{error}, which is {' or '.join(get_args(Outcome))}") from None
    return record


def encode_record(record: Record) -> bytes:
    """Return a record as JSON, one line for each member."""
    return to_json(plain(record), indent=1, inf_nan_mode="strings") + b"\n"
