"""What is predicted of a cell, as stored in its record and shown by ``bench plan``."""

from typing import Literal

from pydantic import Field

from bench.records.readings import Category, Caveat, Count, Stored
from bench.scenario.platforms import Platform

Method = Literal["full trace", "repeated layers"]
PredictedPhase = Literal["load", "adapt", "inputs", "forward", "backward", "optimizer_step"]


class Prediction(Stored):
    """Memory of one cell on one platform, by running its window without data. Bytes throughout.

    On CUDA, ``allocated_peak_bytes`` is what torch.cuda.max_memory_allocated() would say and the reserved
    figures what max_memory_reserved() would; on the CPU it is the ledger's peak of live tensor bytes, and
    there is no allocator to predict.
    """

    platform: Platform
    allocator: str = Field("", description="PYTORCH_CUDA_ALLOC_CONF as replayed; empty for torch's default.")
    allocated_peak_bytes: Count
    reserved_peak_bytes: Count | None = Field(None, description="Replayed as traced.")
    reserved_low_bytes: Count | None = Field(None, description="Lowest of the perturbed replays.")
    reserved_high_bytes: Count | None = Field(None, description="Highest of the perturbed replays.")
    paged_bytes: Count = Field(0, description="Optimizer state in managed memory, outside torch's counters.")
    phase_peaks_bytes: dict[PredictedPhase, Count] = Field(description="Most allocated in each phase.")
    phase_ends_bytes: dict[PredictedPhase, Count] = Field(
        description="Allocated as each phase of the first step ends."
    )
    peak_phase: PredictedPhase
    peak_op: str
    peak_module: str
    categories_at_peak_bytes: dict[Category, Count]
    method: Method = Field(
        description="Every layer traced, or one layer's trace repeated after checking that layers repeat."
    )
    caveats: tuple[Caveat, ...] = ()


class Refusal(Stored):
    """Why a cell cannot be predicted: the operator, method or setting by its name, and what to do."""

    message: str
