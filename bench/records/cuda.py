"""What torch itself says of how a cell ran on CUDA, as stored: settings, paged state, a snapshot's file."""

from typing import Annotated, Literal

from pydantic import Field

from bench.records.stored import Count, Stored

SnapshotMoment = Literal["after the warm-up", "out of memory", "as the cell failed"]
# A name in the record's own folder: nothing that could lead out of it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=255)]


class TorchSettings(Stored):
    """Settings of torch that change speed or results; None is what this version or device does not have."""

    float32_matmul_precision: str | None = Field(description="torch.get_float32_matmul_precision().")
    matmul_allow_tf32: bool | None = Field(description="torch.backends.cuda.matmul.allow_tf32.")
    cudnn_allow_tf32: bool | None = Field(description="torch.backends.cudnn.allow_tf32.")
    cudnn_benchmark: bool | None = Field(description="torch.backends.cudnn.benchmark.")
    cudnn_deterministic: bool | None = Field(description="torch.backends.cudnn.deterministic.")
    deterministic_algorithms: Literal["off", "warn only", "on"]
    bf16_reduced_precision_reduction: bool | None = Field(
        description="torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction."
    )
    allocator_backend: str | None = Field(description="torch.cuda.get_allocator_backend().")
    allocator_settings: str | None = Field(
        description="As torch has read PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF; empty for its defaults."
    )


class PagedMemory(Stored):
    """Optimizer state in CUDA's managed memory after the first step; torch's counters do not see it."""

    paged_bytes: Count
    paged_tensors: Count


class AllocatorSnapshot(Stored):
    """The file that torch's memory viewer opens, beside the record. Nothing here ever reads it."""

    file_name: FileName
    moment: SnapshotMoment
    size_bytes: Count
