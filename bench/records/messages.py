"""What a worker tells its supervisor: one JSON object a message, over a pipe of their own.

Readings are sent as they are made, so a worker that dies leaves all it had read.
"""

from collections.abc import Callable
from typing import Annotated, Final, Literal, Self

from pydantic import Field, TypeAdapter

from bench.records.predictions import Prediction, Refusal
from bench.records.readings import (
    AllocatorSnapshot,
    Caveat,
    Count,
    PagedMemory,
    Positive,
    Stored,
    TorchSettings,
)
from bench.records.records import (
    DeviceFacts,
    EvaluationReading,
    Failure,
    FlopsReading,
    LedgerReading,
    MergeCheck,
    ModelFacts,
    Phase,
    PhaseReading,
    StepSample,
    TextLoss,
)
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform


class Said(Stored):
    """What every message carries: which of the job's processes said it, counted from 0."""

    rank: Count = 0


class PhaseStarted(Said):
    """A phase began; ``total_steps`` tells a progress bar what to expect."""

    type: Literal["phase_started"] = "phase_started"
    phase: Phase
    total_steps: int | None = None
    at_ns: Count | None = Field(None, description="time.monotonic_ns, which all processes share.")


class EvaluationProgress(Said):
    """How many of a task's requests lm-eval has done, of how many; now and then, for a progress bar."""

    type: Literal["evaluation_progress"] = "evaluation_progress"
    task: str
    done: Count
    total: Count


class Mark(Said):
    """An instant of a worker on a GPU that stands still, so that an outside instrument can be held to it.

    ``idle``, ``block_held`` and ``block_freed`` frame the allocation of a block of ``block_bytes``, which
    tells which of NVML's readings moves; at ``quiescent`` nothing is queued and ``reserved_bytes`` are held.
    """

    type: Literal["mark"] = "mark"
    instant: Literal["idle", "block_held", "block_freed", "quiescent"]
    at_ns: Count
    holds_ns: Count = Field(description="The worker does nothing for so long after ``at_ns``.")
    block_bytes: Count | None = None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None


Reading = (
    DeviceFacts
    | TorchSettings
    | ModelFacts
    | PagedMemory
    | AllocatorSnapshot
    | PhaseReading
    | StepSample
    | LedgerReading
    | FlopsReading
    | MergeCheck
    | EvaluationReading
    | TextLoss
    | Caveat
)


class ReadingMade(Said):
    """One finished reading, to be added to the measurement."""

    type: Literal["reading"] = "reading"
    reading: Reading


class PredictionMade(Said):
    """What one cell of a ``PlanJob`` will take, or why that cannot be told; cells come in any order."""

    type: Literal["prediction_made"] = "prediction_made"
    cell_id: str
    answer: Prediction | Refusal


class EpochCounted(Said):
    """How many tokens a pass over one cell's data computes, padding included."""

    type: Literal["epoch_counted"] = "epoch_counted"
    cell_id: str
    tokens: int


class CellSeen(Said):
    """What a watched script trains, as far as it was seen; the last one said counts."""

    type: Literal["cell_seen"] = "cell_seen"
    cell_json: str


class ProjectLoaded(Said):
    """Which files of the project under test a worker of a gate has imported or opened.

    ``imported`` are all top-level modules of its process, ``altered`` what of bench was replaced in it.
    """

    type: Literal["project_loaded"] = "project_loaded"
    files: tuple[str, ...]
    imported: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()


class Heartbeat(Said):
    """The worker's interpreter still turns."""

    type: Literal["heartbeat"] = "heartbeat"


class Finished(Said):
    """The job is done; nothing follows."""

    type: Literal["finished"] = "finished"


class Failed(Said):
    """The job ended with an exception that the worker could still report."""

    type: Literal["failed"] = "failed"
    outcome: Literal["oom", "failed", "unavailable"]
    failure: Failure


Message = Annotated[
    PhaseStarted
    | EvaluationProgress
    | Mark
    | ReadingMade
    | PredictionMade
    | EpochCounted
    | CellSeen
    | ProjectLoaded
    | Heartbeat
    | Finished
    | Failed,
    Field(discriminator="type"),
]
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
Send = Callable[[Message], None]


class ProbeJob(Stored):
    """Tell what this machine can run (a ``DeviceFacts`` reading), loading nothing.

    ``imports`` are modules without which nothing can be run.
    """

    job: Literal["probe"] = "probe"
    imports: tuple[str, ...] = ()


class FetchJob(Stored):
    """Bring a model's weights onto this machine, so that cells only load them."""

    job: Literal["fetch"] = "fetch"
    model_json: str


class StepTurns(Stored):
    """Two runs that take turns, step by step: named pipes on which each is told to go on, and who is first.

    A ``GO_ON`` is one turn; ``ALONE`` says that the other run is over.
    """

    own_pipe: str
    other_pipe: str
    first: bool


GO_ON: Final = b"t"
ALONE: Final = b"a"


class CellJob(Stored):
    """Run the window for one cell."""

    job: Literal["cell"] = "cell"
    cell_json: str
    trust_remote_code: bool = False
    allow_code: tuple[str, ...] = Field((), description="Functions that a loop's driver may be.")
    code_folder: str = Field("", description="What they are imported from; empty is the working folder.")
    snapshot_path: str | None = Field(None, description="Where the allocator's history goes, on CUDA.")
    turns: StepTurns | None = Field(None, description="None where the run has the machine for itself.")
    rank: Count = Field(0, description="Which of the cell's processes this is.")
    rendezvous: str = Field("", description="The file by which they find each other; of several only.")


class ScriptJob(Stored):
    """Run a user's script, unchanged, until it has made so many steps: ``SCRIPT ARGS`` or ``-m MODULE ARGS``.

    After the first step come those of the warm-up, the timed ones, two under the ledger, one for the FLOPs.
    """

    job: Literal["script"] = "script"
    command: tuple[str, ...] = Field(min_length=1)
    warmup_steps: Count = 2
    steps: Positive = 5
    ledger: bool = True
    flops: bool = True
    timeout_s: float = 3600

    @classmethod
    def of(cls, cell: Cell) -> Self:
        """Return the job of a cell that describes a script."""
        window = cell.window
        return cls(
            command=tuple(cell.loop.args["command"]),
            warmup_steps=window.warmup_steps,
            steps=window.measured_steps,
            ledger=window.ledger,
            flops=window.flops,
            timeout_s=cell.limits.timeout_s,
        )


class ScriptPlanJob(Stored):
    """Predict a user's script on a card, or on the CPU: a ``CellSeen``, then a ``PredictionMade``.

    It runs in a folder of links to what is in the working folder, and without network unless ``online``.
    """

    job: Literal["script plan"] = "script plan"
    command: tuple[str, ...] = Field(min_length=1)
    platform: Platform
    card: Card | None = None
    steps: Positive = 3
    through: bool = False
    allocator: str = ""
    online: bool = False
    code_folder: str = Field("", description="What the script lies in; empty is the working folder.")


class PlanJob(Stored):
    """Predict the memory of cells with different ids on one platform, as a ``PredictionMade`` each.

    ``reuse_ranges`` replays the range of reserved memory for one cell of each kind only.
    """

    job: Literal["plan"] = "plan"
    cells_json: tuple[str, ...]
    platform: Platform
    allocator: str = ""
    reuse_ranges: bool = False
    cards: tuple[Card, ...] = Field((), description="On which speed is asked for.")


class EpochJob(Stored):
    """Count the tokens of a pass over the data of cells with different ids, an ``EpochCounted`` each."""

    job: Literal["epoch"] = "epoch"
    cells_json: tuple[str, ...]


Job = Annotated[
    ProbeJob | FetchJob | CellJob | ScriptJob | ScriptPlanJob | PlanJob | EpochJob, Field(discriminator="job")
]
