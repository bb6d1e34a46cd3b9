"""What records are made of: the base type, checked numbers, caveats, and readings of GPU, torch and ledger.

A *part* of a record is a msgspec struct: thousands of records are decoded and checked within seconds. Other
documents (plans, sittings, messages, …) are pydantic models, in which a part may stand as it is.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import core_schema, to_json

MOST_POINTS: Final = 512
_LARGEST = 2**63 - 1
_Part = TypeVar("_Part", bound="Part")

Category = Literal[
    "weights",
    "quantisation_state",
    "gradients",
    "optimizer_state",
    "activations",
    "logits",
    "inputs",
    "temporary",
    "collectives",  # gathered weights and buffers of what goes over several ranks
]
TracedPhase = Literal["load", "adapt", "inputs", "forward", "backward", "optimizer_step"]
Isolation = Literal["process", "device_delta", "unavailable"]
SnapshotMoment = Literal["after the warm-up", "out of memory", "as the cell failed"]

# Records may come from strangers: what no machine can have measured must not reach the arithmetic. Each
# constraint is stated for both libraries.
Count = Annotated[int, Field(ge=0, le=_LARGEST), Meta(ge=0, le=_LARGEST)]
Positive = Annotated[int, Field(gt=0, le=_LARGEST), Meta(gt=0, le=_LARGEST)]
ModuleBytes = dict[str, dict[Category, Count]]
# A name in the record's own folder: nothing that could lead out of it.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=255)]

if TYPE_CHECKING:
    Number = float
else:
    # A loss may be NaN or infinite; JSON has neither, so they are written as strings. See ``number``.
    Number = float | Literal["NaN", "Infinity", "-Infinity"]


class Stored(BaseModel):
    """Base of documents that are no record: immutable, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parts of a record: immutable, and checked when decoded."""

    def replace(self, **changes: Any) -> Self:
        return msgspec.structs.replace(self, **changes)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        """Let a pydantic model hold this part: msgspec checks it there too."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else checked(cls, value),
            serialization=core_schema.plain_serializer_function_ser_schema(plain),
        )


def plain(part: Any) -> Any:
    """Return a part as dicts, lists and scalars."""
    return msgspec.to_builtins(part, enc_hook=lambda model: model.model_dump(mode="json"))


def checked(kind: type[_Part], content: Any) -> _Part:
    """Decode a part from dicts, lists and scalars. Raises ``ValueError``."""
    text = to_json(content, inf_nan_mode="strings")
    return msgspec.json.decode(text, type=kind, dec_hook=decode_model)


def decode_model(kind: type, content: Any) -> Any:
    """Decode what in a part is a pydantic model, for msgspec. Raises ``ValueError``."""
    return decode_shared(kind, msgspec.json.encode(content))


def share(part: Part, name: str, decode: Callable[[bytes], object]) -> None:
    """Decode a field that msgspec left as text, by a cached function: runs with equal texts share one object.

    Runs of one cell have the cell, the environment and most answers in common; decoding these would take
    longer than the rest of a record.
    """
    if isinstance(text := getattr(part, name), msgspec.Raw):
        try:
            msgspec.structs.force_setattr(part, name, decode(bytes(text)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


@lru_cache(maxsize=20_000)
def decode_shared(kind: type[BaseModel], text: bytes) -> BaseModel:
    """Return a model, one object for equal texts. Raises ``ValueError``."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}") from None


def number(part: Part, *names: str) -> None:
    """Make floats of the fields that were decoded from "NaN", "Infinity" or "-Infinity"."""
    for name in names:
        if isinstance(value := getattr(part, name), str):
            msgspec.structs.force_setattr(part, name, float(value))


WeightKind = Literal[
    "linear layers",
    "subclasses of linear layers",
    "experts in one tensor",
    "embeddings",
    "output layer",
    "parts beside the language model",
    "other tensors",
    "norms and biases",
]


class WeightsOfKind(Part, frozen=True):
    """Parameters of a model: all, those in 4 or 8 bits, those with an adapter; bytes of the rest."""

    kind: WeightKind
    parameters: Count
    quantised: Count = 0
    adapted: Count = 0
    left_bytes: Count = 0  # of what is not quantised, as it lies once adapted

    @property
    def quantised_share(self) -> float:
        """How much of them is in 4 or 8 bits."""
        return self.quantised / max(1, self.parameters)

    @property
    def adapted_share(self) -> float:
        return self.adapted / max(1, self.parameters)


class WeightsReached(Part, frozen=True):
    """What a method did to a model's own weights; adapters are not among them."""

    kinds: tuple[WeightsOfKind, ...]

    @property
    def parameters(self) -> int:
        return sum(one.parameters for one in self.kinds)

    @property
    def quantised(self) -> int:
        """How many of them are in 4 or 8 bits."""
        return sum(one.quantised for one in self.kinds)


class Caveat(Part, frozen=True):
    """Something a reader of the numbers must know; shown wherever they are shown."""

    code: Annotated[str, Meta(pattern=r"^[a-z0-9-]+\Z")]
    message: str


class PhaseStart(Part, frozen=True):
    """A phase began after so many allocations and frees."""

    phase: TracedPhase
    entry: Count


class Timeline(Part, frozen=True):
    """Bytes alive after an allocation or a free; ``entries`` counts those, and is no measure of time.

    Where there were more than ``MOST_POINTS``, each point is the highest of a stretch of them, all stretches
    being equally long, so that the highest of all is exact and lows within a stretch are not shown.
    """

    entries: Annotated[tuple[Count, ...], Meta(max_length=MOST_POINTS)]
    live_bytes: Annotated[tuple[Count, ...], Meta(max_length=MOST_POINTS)]
    phases: Annotated[tuple[PhaseStart, ...], Meta(max_length=MOST_POINTS)]
    last_entry: Count

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless there is a size for each entry."""
        if len(self.entries) != len(self.live_bytes):
            raise ValueError("entries and live_bytes must have the same length")


def summed(modules: ModuleBytes) -> dict[Category, int]:
    found: dict[Category, int] = {}
    for category, nbytes in (each for own in modules.values() for each in own.items()):
        found[category] = found.get(category, 0) + nbytes
    return dict(sorted(found.items()))


def decimated(live_bytes: Sequence[int], phases: Sequence[PhaseStart]) -> Timeline:
    """Return the timeline of the bytes alive after each entry, the first of which is entry 1."""
    count = len(live_bytes)
    points = min(count, MOST_POINTS)
    edges = [count * index // points for index in range(points + 1)] if points else [0]
    highest = [max(range(start, end), key=live_bytes.__getitem__) for start, end in pairwise(edges)]
    return Timeline(
        entries=tuple(index + 1 for index in highest),
        live_bytes=tuple(live_bytes[index] for index in highest),
        phases=tuple(phases[:MOST_POINTS]),
        last_entry=count,
    )


class Held(Part, frozen=True, gc=False):
    """What is in use at an instant; None where nothing reads it."""

    heap_bytes: Count | None = None  # of malloc, whoever holds them
    cuda_allocated_bytes: Count | None = None  # memory_allocated


class Retained(Part, frozen=True):
    """Tensors beside a step's own: neither model, gradients, optimizer state nor batches.

    ``by_holder_bytes`` are of those from before, by what holds them. ``leaked_bytes_per_step`` is what a step
    leaves behind for good; ``leaked_by_op_bytes`` says where what lived through another step was made, and
    ``leaked_holder`` what of Python holds it, where that has a name.
    """

    by_holder_bytes: dict[str, Count]
    leaked_bytes_per_step: Count
    leaked_by_op_bytes: dict[str, Count]
    leaked_holder: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def total_bytes(self) -> int:
        """All that is held from before."""
        return sum(self.by_holder_bytes.values())


class GpuFacts(Part, frozen=True):
    """One GPU or MIG slice as NVML describes it; None is what the driver does not tell."""

    uuid: str  # GPU-… or MIG-…, as CUDA_VISIBLE_DEVICES takes it
    name: str | None = None
    index: Count | None = None  # NVML's, which is the order of the PCI bus
    pci_bus_id: str | None = None
    total_bytes: Count | None = None
    parent_uuid: str | None = None  # the card that a MIG slice is cut from
    driver_version: str | None = None
    power_limit_mw: Count | None = None


class GpuPhase(Part, frozen=True):
    """What the samples between two marks of the worker showed; None where no sample had the reading."""

    name: str
    samples: Count
    process_peak_bytes: Count | None = None  # of the worker and its children
    device_peak_bytes: Count | None = None  # used on the device, by anyone
    utilisation_mean_percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    power_mean_mw: Annotated[float, Meta(ge=0)] | None = None
    energy_mj: Count | None = None  # counter at the end less at the start
    energy_time_ns: Count | None = None  # between those two readings of the counter
    sm_clock_min_mhz: Count | None = None
    sm_clock_max_mhz: Count | None = None
    temperature_max_c: int | None = None
    event_reasons: Count = 0  # clock event (throttle) reasons seen, or-ed together


class GpuReading(Part, frozen=True, kw_only=True):
    """The GPU of one cell, watched from outside the worker."""

    facts: GpuFacts
    isolation: Isolation  # which reading moved when a known block was allocated
    isolation_reason: str
    interval_ns: Positive  # aimed at between two samples; shorter spikes are missed
    # Aimed at between two samples that are of more than memory, besides the first of each phase; None in
    # older records, whose samples are all complete.
    complete_interval_ns: Positive | None = None
    longest_gap_ns: Count = 0  # longest time between two samples that came about
    watched_ns: Count | None = None  # from the worker's start to its end
    watching_cpu_ns: Count | None = None  # of the thread that sampled meanwhile, the driver's part included
    memory_version: Annotated[str, Meta(pattern=r"^v[12]\Z")] | None = None
    processes_version: Annotated[str, Meta(pattern=r"^v[123]\Z")] | None = None
    idle_device_bytes: Count | None = None  # used before the worker was started
    # NVML less torch's reserved bytes, at an instant when the worker stood still.
    non_torch_bytes: Count | None = None
    phases: tuple[GpuPhase, ...] = ()
    foreign_pids: Count = 0  # processes on the device that are not ours
    # Most the device grew beyond what our process and its start explain.
    unexplained_growth_bytes: Count | None = None
    problems: tuple[str, ...] = ()  # what NVML could not be asked for, once each

    def phase(self, name: str) -> GpuPhase | None:
        return next((phase for phase in self.phases if phase.name == name), None)


# Why a GPU clocked lower than it could: bits of nvmlClocksEventReasons,
# https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html. Idle, application clocks, sync
# boost and display clocks are settings and are not among them.
SW_POWER_CAP = 0x04
HW_SLOWDOWN = 0x08
SW_THERMAL_SLOWDOWN = 0x20
HW_THERMAL_SLOWDOWN = 0x40
HW_POWER_BRAKE_SLOWDOWN = 0x80

# The card was too hot or its supply too weak: the clock is not what this card runs at.
INVALIDATING = HW_SLOWDOWN | SW_THERMAL_SLOWDOWN | HW_THERMAL_SLOWDOWN | HW_POWER_BRAKE_SLOWDOWN
# A card that works hard runs into its power limit; that is how fast it is, at that limit.
NOTED = SW_POWER_CAP

_EVENTS = {
    SW_POWER_CAP: "power limit",
    HW_SLOWDOWN: "hardware slowdown",
    SW_THERMAL_SLOWDOWN: "thermal slowdown by the driver",
    HW_THERMAL_SLOWDOWN: "thermal slowdown by the hardware",
    HW_POWER_BRAKE_SLOWDOWN: "power brake of the supply",
}


def name_events(reasons: int, among: int = INVALIDATING | NOTED) -> tuple[str, ...]:
    """Return in words the clock events that are set in ``reasons``, of those in ``among``."""
    return tuple(words for bit, words in _EVENTS.items() if reasons & among & bit)


class TorchSettings(Part, frozen=True):
    """Settings of torch that change speed or results; None is what this version or device does not have."""

    float32_matmul_precision: str | None  # torch.get_float32_matmul_precision()
    matmul_allow_tf32: bool | None  # torch.backends.cuda.matmul.allow_tf32
    cudnn_allow_tf32: bool | None  # torch.backends.cudnn.allow_tf32
    cudnn_benchmark: bool | None  # torch.backends.cudnn.benchmark
    cudnn_deterministic: bool | None  # torch.backends.cudnn.deterministic
    deterministic_algorithms: Literal["off", "warn only", "on"]
    # torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    bf16_reduced_precision_reduction: bool | None
    allocator_backend: str | None  # torch.cuda.get_allocator_backend()
    # As torch has read PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF; empty for its defaults.
    allocator_settings: str | None


class PagedMemory(Part, frozen=True):
    """Optimizer state in CUDA's managed memory after the first step; torch's counters do not see it."""

    paged_bytes: Count
    paged_tensors: Count


class AllocatorSnapshot(Part, frozen=True):
    """The file that torch's memory viewer opens, beside the record. Nothing here ever reads it."""

    file_name: FileName
    moment: SnapshotMoment
    size_bytes: Count
