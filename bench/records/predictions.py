"""What is predicted of cells: memory, what fits on a card, plans and fits.

A plan is written as JSON and read back to render pages, which follow from it: nothing is predicted here.
"""

import contextlib
import json
import math
import operator
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
from pydantic import Field, model_validator

from bench.io import MAX_BYTES, open_data, read_json
from bench.records.readings import Category, Caveat, Count, ModuleBytes, Positive, Stored, WeightsReached
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.scenario.types import Checkpointing

KERNELS_NOT_TRACED: Final = "kernels-not-traced"
"""Code of the caveat that a card may run kernels that need less: no such cell is said not to fit."""

Answer = Literal["fits", "too close to call", "does not fit"]
Method = Literal["full trace", "repeated layers"]
RefusedBy = Literal["tracer", "library"]
Limit = Literal["compute", "memory", "host", "links"]
KernelClass = Literal[
    "product",
    "fp32 product",
    "attention",
    "dequantise",
    "elementwise",
    "reduction",
    "copy and cast",
    "embedding and loss",
    "optimizer",
    "none",
]
PredictedPhase = Literal["load", "adapt", "inputs", "forward", "backward", "optimizer_step"]


def _known(description: str) -> Any:
    """Describe a figure that stands in a document only where it is known."""
    return Field(None, exclude_if=lambda value: value is None, description=description)


def _some(default: object, description: str = "") -> Any:
    """Describe what stands in a document only where there is some of it."""
    return Field(default, exclude_if=operator.not_, description=description or None)


class Dear(Stored):
    """Operators of one kind in one kind of module, and their share of a step's time on the GPU."""

    op: str
    module: str
    share: float


class Speed(Stored):
    """How fast a cell trains on a card, padding included; or why that is not told, and nothing else.

    ``low`` to ``high`` is the 90 % band; without it there is no figure. Over several GPUs it reaches from no
    collective hidden behind the rest to all, and the point is the step between the two.
    """

    card: str
    gpus: Positive = Field(1, exclude_if=lambda gpus: gpus == 1)
    refused: str = _some("")
    low: float = Field(0, description="Tokens a second, as the point and the high end; of all GPUs.")
    point: float = 0
    high: float = 0
    mfu: float = Field(0, description="FLOPs of the model, none recomputed, over the card's peak in bf16.")
    bound_by: Limit = "compute"
    step_s: float = Field(0, description="Of one optimizer step.")
    links_s: float = _some(0, "Of a step's collectives, if nothing else ran meanwhile.")
    roofline: float = _some(
        0, "Tokens a second if each kernel took no longer than the card's peak and bandwidth allow."
    )
    shares: dict[KernelClass, float] = Field(default_factory=dict, description="Of the time on the GPU.")
    dearest: tuple[Dear, ...] = ()
    calibrated_on: bool = _some(False, "A published run had a part in factors.")  # noqa: FBT003 - the default
    held_out: float = _some(
        0, "The point with factors in which no run of the published run's source had a part."
    )
    assumed: str = _some("", "What widens the band.")

    @model_validator(mode="after")
    def _told_or_refused(self) -> Self:
        if not self.refused and not 0 < self.low <= self.point <= self.high < math.inf:
            raise ValueError(f"a speed on {self.card} that is no range above zero")
        return self


class Prediction(Stored):
    """Memory of one cell on one platform, by running its window without data. Bytes throughout.

    On CUDA, ``allocated_peak_bytes`` is what torch.cuda.max_memory_allocated() would say and the reserved
    figures what max_memory_reserved() would; on the CPU it is the ledger's peak of live tensor bytes, and
    there is no allocator to predict.
    """

    platform: Platform
    allocator: str = Field("", description="PYTORCH_CUDA_ALLOC_CONF as replayed; empty for torch's default.")
    allocated_peak_bytes: Count
    allocated_low_bytes: Count | None = _known("Least it may be; none where it is exact.")
    allocated_high_bytes: Count | None = _known("Most it may be; none where it is exact.")
    reserved_peak_bytes: Count | None = Field(None, description="Replayed as traced.")
    reserved_low_bytes: Count | None = Field(None, description="Lowest of the perturbed replays.")
    reserved_high_bytes: Count | None = Field(None, description="Highest of the perturbed replays.")
    sufficient_bytes: Count | None = _known(
        "Under this limit every replay goes on, by giving back what is only cached."
    )
    insufficient_bytes: Count | None = _known(
        "Under this limit a replay runs out of memory, though it gives back what is only cached."
    )
    requested_peak_bytes: Count | None = _known(
        "Most that tensors ask for, before the allocator rounds and splits."
    )
    paged_bytes: Count = Field(0, description="Optimizer state in managed memory, outside torch's counters.")
    phase_peaks_bytes: dict[PredictedPhase, Count] = Field(description="Most allocated in each phase.")
    phase_ends_bytes: dict[PredictedPhase, Count] = Field(
        description="Allocated as each phase of the first step ends."
    )
    first_peaks_bytes: dict[PredictedPhase, Count] = _some(
        {}, "Most allocated while loading, adapting and in each phase of the first step."
    )
    phase_requested_bytes: dict[PredictedPhase, Count] = _some({}, "Most requested in each phase.")
    phase_ends_reserved_bytes: dict[PredictedPhase, Count] = _some(
        {}, "Reserved as each phase of the first step ends."
    )
    peak_phase: PredictedPhase
    peak_op: str
    peak_module: str
    categories_at_peak_bytes: dict[Category, Count]
    modules_at_peak_bytes: ModuleBytes = _some({}, "The same by module; * stands for any number.")
    op_count: Count | None = _known("Operators of a steady pair of steps.")
    step_flops: Count | None = _known(
        "Floating-point operations of one step; none where its stream follows from others'."
    )
    saved_for_backward_bytes: Count | None = _known("What a forward pass leaves alive for the backward pass.")
    trainable_parameters: dict[str, Count] = _some(
        {}, "How many receive a gradient, by module; * stands for any number."
    )
    traced_with: dict[str, str] = _some({}, "Versions of the libraries whose code was traced.")
    method: Method = Field(
        description="Every layer traced, or one layer's trace repeated after checking that layers repeat."
    )
    reach: WeightsReached | None = _known("What the method did to the model's weights.")
    speeds: tuple[Speed, ...] = _some((), "On the cards that were asked about.")
    caveats: tuple[Caveat, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """What decides whether it fits, less the context; on the CPU the peak.

        That is the top of the band, or of the part of it that is not just cached.
        """
        return (
            self.sufficient_bytes
            or self.reserved_high_bytes
            or self.reserved_peak_bytes
            or self.allocated_peak_bytes
        )

    @property
    def least_bytes(self) -> int:
        """What does not do: the lower end of what is allocated, or more where a replay ran out with more."""
        low = self.allocated_peak_bytes if self.allocated_low_bytes is None else self.allocated_low_bytes
        return max(low, self.insufficient_bytes or 0)


class Refusal(Stored):
    """Why a cell cannot be predicted: the operator, method or setting by its name, and what to do."""

    message: str
    by: RefusedBy = Field(
        "tracer",
        exclude_if=lambda by: by == "tracer",
        description="Whether the library fails by itself, or only cannot be run without data.",
    )
    platform: Platform | None = _known("What it was asked for, in a plan.")
    longest_tokens: Count | None = _known("That the model has positions for.")


class CardFit(Stored):
    """Whether a cell fits on a card; ``needed_bytes`` includes the card's context."""

    card: str
    answer: Answer
    needed_bytes: Count
    usable_bytes: Positive
    tokens_per_second: Speed | None = _known(
        "How fast it trains there; none where it does not fit, or was not asked for."
    )


def check_fit(prediction: Prediction, card: Card) -> CardFit:
    """Tell whether what is predicted for CUDA fits on a card.

    It fits if the top of the reserved band and the CUDA context do; it does not if even what is allocated
    at the peak and the context do not, or if a replay ran out with more. Between the two the allocator may
    or may not find room, by luck and by releasing what it caches; nor is it known where kernels that need
    less were not traced. Raises ``ValueError`` on a prediction for the CPU, where no such limit is known.
    """
    if prediction.platform.device != "cuda":
        raise ValueError("a prediction for the CPU is not judged for a card")
    needed = prediction.needed_bytes + card.context_bytes
    answer: Answer = "too close to call"
    if needed <= card.usable_bytes:
        answer = "fits"
    elif prediction.least_bytes + card.context_bytes > card.usable_bytes and KERNELS_NOT_TRACED not in {
        caveat.code for caveat in prediction.caveats
    }:
        answer = "does not fit"
    speed = next((one for one in prediction.speeds if one.card == card.name), None)
    return CardFit(
        card=card.name,
        answer=answer,
        needed_bytes=needed,
        usable_bytes=card.usable_bytes,
        tokens_per_second=None if answer == "does not fit" else speed,
    )


class Change(Stored):
    """What a cell would take after one change; only changes that free memory are kept."""

    what: str
    prediction: Prediction
    verdicts: tuple[CardFit, ...]


class PlannedCell(Stored):
    """One cell on one platform. ``changes`` is None where none was tried."""

    cell: Cell
    answer: Prediction | Refusal
    verdicts: tuple[CardFit, ...] = ()
    changes: tuple[Change, ...] | None = None
    epoch_tokens: Count | None = _known("That one pass over the cell's data computes, padding included.")

    @property
    def kept_answer(self) -> Prediction | Refusal:
        """The answer with the speeds of its verdicts, as a record keeps it."""
        speeds = tuple(one.tokens_per_second for one in self.verdicts if one.tokens_per_second)
        if not speeds or isinstance(self.answer, Refusal):
            return self.answer
        return self.answer.model_copy(update={"speeds": speeds})


class Plan(Stored):
    """All that one ``bench plan`` found. On a ``ladder`` the smallest card that fits is of interest."""

    plan_version: Literal[1] = 1
    scenario: str
    title: str
    allocator: str = Field("", description="PYTORCH_CUDA_ALLOC_CONF as replayed.")
    cards: tuple[Card, ...] = Field(description="What was judged for, smallest first; none for the CPU.")
    ladder: bool = False
    tokens: Count | None = _known("How many are to be trained on.")
    epochs: Positive | None = _known("Or how often each cell's own data is to be gone over.")
    examples: Positive | None = _known("Taken for each cell's own data, each of the full length.")
    price_an_hour: float | None = _known("Of a card, in the user's money.")
    prices_an_hour: dict[str, float] = _some({}, "Of each card by its name, likewise.")
    cells: tuple[PlannedCell, ...]

    @property
    def any_predicted(self) -> bool:
        return any(isinstance(planned.answer, Prediction) for planned in self.cells)


def is_plan(path: Path) -> bool:
    """Tell whether the first bytes of a plain file are those of a plan; a record has no such member."""
    if path.suffix != ".json":
        return False
    with contextlib.suppress(OSError), open_data(path, MAX_BYTES, follow=False) as file:
        return b'"plan_version"' in file.read(200)
    return False


def read_plan(path: Path) -> Plan:
    """Read a plan as ``bench plan --json`` writes it; raise ``UsageError`` where it is none."""
    return read_json(path, Plan, "a plan", "write one with bench plan --json")


def plan_json(plan: Plan) -> str:
    """Return a plan as JSON, one line for each member, so that a change shows in a diff."""
    return msgspec.json.format(json.dumps(plan.model_dump(mode="json")), indent=1) + "\n"


Axis = Literal["micro_batch", "sequence_length", "rank"]


class Tried(Stored):
    """One value with its verdict."""

    value: Positive
    verdict: CardFit


class Bound(Stored):
    """Where a method stops fitting along one axis, the others held.

    ``fits`` is the largest value found to fit and ``next`` the next larger, which does not fit or is too
    close to call; None where the first value does not, and where ``limit`` was reached.
    """

    method: str
    axis: Axis
    micro_batch: Positive
    sequence_length: Positive
    rank: Positive | None
    gpus: Positive = Field(
        1, exclude_if=lambda gpus: gpus == 1, description="By fsdp2; micro_batch is for each."
    )
    step: Positive = Field(description="Only multiples of it were tried.")
    limit: Positive = Field(description="The largest value that the model, or good sense, allows.")
    fits: Tried | None = None
    next: Tried | None = None
    refusal: str | None = None
    predictions: Count = 0
    caveats: tuple[Caveat, ...] = ()
    changes: tuple[Change, ...] | None = Field(
        None, description="Each makes the first value fit, where it does not; None where none was tried."
    )

    @property
    def borderline(self) -> bool:
        """Whether the next larger value is too close to call."""
        return self.next is not None and self.next.verdict.answer == "too close to call"


class Setting(Stored):
    """How fast a setting trains that fits, or why that is not told; all else is as the fit's window says."""

    method: str
    gradient_checkpointing: Checkpointing
    sequence_length: Positive
    micro_batch: Positive = Field(description="Of each GPU.")
    gpus: Positive = Field(1, exclude_if=lambda gpus: gpus == 1, description="By fsdp2.")
    speed: Speed


class Fit(Stored):
    """All bounds of a model on a card; the batch at several lengths is its frontier."""

    fit_version: Literal[1] = 1
    model: str
    card: Card
    torch: str
    allocator: str = ""
    window: str = Field(description="What all methods share: dtype, checkpointing, data and so on.")
    assumptions: tuple[str, ...] = Field((), description="What was taken for granted of the model.")
    bounds: tuple[Bound, ...]
    settings: tuple[Setting, ...] = _some((), "Where the fastest was asked for: all that were tried.")

    @property
    def over_several(self) -> bool:
        """Whether more than one GPU was asked about."""
        return any(bound.gpus > 1 for bound in self.bounds)
