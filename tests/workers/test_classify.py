"""Texts of failed allocations from every library, exceptions, exit codes."""

from pathlib import Path

import pytest

from bench.errors import InfrastructureError, UnavailableError
from bench.probes.machine import describe
from bench.workers import classify
from bench.workers.classify import (
    classify_exception,
    classify_exit,
    count_oom_kills,
    held_bytes,
    requested_bytes,
)

MIB, GIB = 1024**2, 1024**3
ADVICE = (
    " If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
    "Management "
    "(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which "
    "1.12 GiB is free. Including non-PyTorch memory, this process has 22.50 GiB memory in use."
)


class OutOfMemoryError(RuntimeError):
    """Stands in for torch.OutOfMemoryError, known by its name."""


@pytest.mark.parametrize(
    ("error", "asked_bytes"),
    [
        (OutOfMemoryError(CUDA_TEXT), round(2.5 * GIB)),
        (OutOfMemoryError("some day's new wording"), None),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."), 4096),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."), 4096),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
        (
            RuntimeError(
                'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/c10/cuda/CUDACachingAllocator.cpp":1016, '
                "please report a bug to PyTorch. "
            ),
            None,
        ),
        (
            RuntimeError(
                "NVML_SUCCESS == DriverAPI::get()->nvmlDeviceGetHandleByPciBusId_v2_( pci_id, &nvml_device) "
                'INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":838, please report a bug'
            ),
            None,
        ),
        (RuntimeError("CUDA driver error: out of memory"), None),
        (RuntimeError("Triton Error [CUDA]: out of memory"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), None),
        (RuntimeError("HIP out of memory. Tried to allocate 512.00 KiB."), 512 * 1024),
        (
            OutOfMemoryError(
                "Allocation on device 0 would exceed allowed memory. (out of memory)\n"
                "Currently allocated     : 9.43 GiB\nRequested               : 640.00 MiB\n"
                "Device limit            : 11.59 GiB\nFree (according to CUDA): 7.12 MiB"
            ),
            640 * MIB,
        ),
        (RuntimeError("std::bad_alloc"), None),
        (OSError(12, "Cannot allocate memory"), None),
        (MemoryError(), None),
        (MemoryError("Unable to allocate 1.50 GiB for an array with shape (1,)"), round(1.5 * GIB)),
    ],
)
def test_every_wording_of_a_failed_allocation_is_out_of_memory(
    error: Exception, asked_bytes: int | None
) -> None:
    """The outcome is oom, with the requested bytes where the text has them."""
    found = classify_exception(error)
    assert (found.outcome, found.failure.requested_bytes) == ("oom", asked_bytes)


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (ValueError("first\nlast"), "failed", "ValueError: last"),
        (ValueError(), "failed", "ValueError was raised."),
        (UnavailableError("No hub; set HF_TOKEN."), "unavailable", "No hub; set HF_TOKEN."),
        (InfrastructureError("The disk is gone."), "failed", "The disk is gone."),
        (
            RuntimeError("The model has no memory of it"),
            "failed",
            "RuntimeError: The model has no memory of it",
        ),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (
            RuntimeError("a >= 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:12"),
            "failed",
            "RuntimeError: a >= 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:12",
        ),
    ],
)
def test_other_exceptions_keep_their_type_and_last_line(
    error: BaseException, outcome: str, message: str
) -> None:
    """What is not about memory is failed, or unavailable where it says so."""
    found = classify_exception(error)
    assert (found.outcome, found.failure.message) == (outcome, message)


def test_a_wrapped_out_of_memory_error_is_one() -> None:
    """The cause decides, unless it was suppressed on purpose."""
    error = ValueError("could not load the model")
    error.__cause__ = MemoryError()
    assert classify_exception(error).outcome == "oom"
    handled = ValueError("wrong rank")
    handled.__context__, handled.__suppress_context__ = MemoryError(), True
    assert classify_exception(handled).outcome == "failed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tried to allocate 20.00 MiB.", 20 * 1024**2),
        ("you tried to allocate 8589934592 bytes", 8 * GIB),
        ("Tried to allocate 512 bytes", 512),
        ("1.12 GiB is free", None),
    ],
)
def test_requested_bytes_are_read_from_the_text(text: str, expected: int | None) -> None:
    """Units are powers of two, as torch prints them."""
    assert requested_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (  # torch 2.13
            "of which 24.65 GiB is free. Of the allocated memory 23.50 GiB is allocated by PyTorch, and "
            "30.25 GiB is reserved by PyTorch but unallocated." + ADVICE,
            (23.5 * GIB, 53.75 * GIB),
        ),
        (  # with CUDA graphs
            (
                "Of the allocated memory 20.50 GiB is allocated by PyTorch, with 256.00 MiB allocated in "
                "private pools (e.g., CUDA Graphs), and 512.00 MiB is reserved by PyTorch but unallocated."
            ),
            (20.5 * GIB, 21 * GIB),
        ),
        (describe(123456789, 234567890, 512), (123456789, 234567890)),
        (CUDA_TEXT, (None, None)),
    ],
)
def test_what_the_allocator_held_is_read_from_the_text(
    text: str, expected: tuple[float | None, float | None]
) -> None:
    """Reserved is what is allocated and what is not, in the wording of every version."""
    assert held_bytes(text) == expected


def test_the_workers_note_counts_to_the_byte_wherever_the_error_was_wrapped() -> None:
    """It stands on the newest exception, and is preferred to the rounded text of the oldest."""
    error = ValueError("could not train")
    error.__cause__ = OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. Of the allocated memory 1.00 GiB is allocated by "
        "PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated." + ADVICE
    )
    error.add_note(describe(1073741999, 2147483999, 2684354999))
    found = classify_exception(error)
    assert found.outcome == "oom"
    failure = found.failure
    assert (failure.requested_bytes, failure.allocated_bytes, failure.reserved_bytes) == (
        2684354999,
        1073741999,
        2147483999,
    )
    assert failure.message == (
        "Out of memory (CUDA out of memory. Tried to allocate 2.50 GiB. Of the allocated memory 1.00 GiB is "
        "allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated); "
        "lower micro_batch or sequence_length, or turn gradient_checkpointing on."
    )


def test_a_note_alone_makes_nothing_out_of_memory() -> None:
    """Another failure keeps its outcome, whatever the allocator held meanwhile."""
    error = ValueError("wrong rank")
    error.add_note(describe(1, 2))
    found = classify_exception(error)
    assert (found.outcome, found.failure.message, found.failure.allocated_bytes) == (
        "failed",
        "ValueError: wrong rank",
        None,
    )


@pytest.mark.parametrize(
    ("exit_code", "tail", "killed_for_memory", "expected"),
    [
        (-9, "", True, ("oom", "SIGKILL")),
        (-9, "", False, ("crashed", "SIGKILL")),
        (-11, "", True, ("crashed", "SIGSEGV")),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", False, ("oom", "SIGABRT")),
        (-6, "assertion failed", False, ("crashed", "SIGABRT")),
        (1, "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp", False, ("oom", None)),
        (3, "", False, ("crashed", None)),
        (255, "", True, ("oom", None)),
        (255, "", False, ("crashed", None)),
        (None, "", False, ("crashed", None)),
    ],
)
def test_an_end_without_a_result_is_told_by_signal_counter_and_output(
    exit_code: int | None, tail: str, *, killed_for_memory: bool, expected: tuple[str, str | None]
) -> None:
    """A kill is out of memory only when the kernel says so; native code's last words count."""
    outcome, failure = classify_exit(exit_code, tail, "load", killed_for_memory=killed_for_memory)
    assert (outcome, failure.exit_signal) == expected
    assert "in phase load" in failure.message


def test_kills_are_counted_in_the_own_group_before_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in somebody else's container is not ours."""
    files = {"memory.events": ["low 0\noom 5\noom_kill 2"]}
    monkeypatch.setattr(classify, "control_group_files", lambda _, name: files.get(name, []))
    assert count_oom_kills() == 2
    files.clear()
    counted = next(
        int(line.split()[1])
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        if line.startswith("oom_kill ")
    )
    assert count_oom_kills() == counted


@pytest.mark.parametrize(
    ("free_bytes", "outcome"), [(8 * MIB, "oom"), (12 * GIB, "failed"), (None, "failed")]
)
def test_a_cublas_without_a_handle_is_out_of_memory_where_hardly_any_was_free(
    free_bytes: int | None, outcome: str
) -> None:
    """It says the same where an earlier kernel failed; then memory is free, or cannot be asked for."""
    error = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    error.add_note(describe(22 * GIB, 23 * GIB, free_bytes=free_bytes))
    failed = classify_exception(error)
    assert outcome == failed.outcome
    assert (22 * GIB if outcome == "oom" else None) == failed.failure.allocated_bytes
