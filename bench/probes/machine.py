"""What a worker reads of its machine: torch's device and settings, host memory, torch's allocator.

Host memory is this process's resident memory by Linux's own counters. The kernel keeps the high-water mark
(VmHWM), so nothing is sampled and no short spike is missed. It counts pages in per-processor batches (Linux
6.2 and later), so a reading can be off by some 100 KiB. Elsewhere than on Linux, or where /proc is
restricted, readings are None.
"""

import contextlib
import ctypes
import importlib.util
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch
from msgspec import UNSET

from bench.io import kernel_text, whole_file
from bench.records.messages import ReadingMade, Send
from bench.records.readings import AllocatorSnapshot, Caveat, SnapshotMoment, TorchSettings
from bench.records.records import DeviceFacts

MAX_ENTRIES = 200_000  # allocations and frees: several steps of a 7B model; older ones are dropped
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): writing 5 resets VmHWM to the current resident size
_Value = TypeVar("_Value")


def read_facts() -> DeviceFacts:
    """Return the device facts of this process. Touches CUDA, so never call it in a process that forks."""
    available = torch.cuda.is_available()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    properties = found[torch.cuda.current_device()] if available else None  # a rank's own
    unavailable_reason = "torch has CUDA but finds no usable device; check the driver with nvidia-smi"
    if torch.version.cuda is None:
        unavailable_reason = f"torch {torch.__version__} is a build without CUDA"
    return DeviceFacts(
        cpu_threads=torch.get_num_threads(),
        cuda_available=available,
        cuda_unavailable_reason=None if available else unavailable_reason,
        cuda_name=properties.name if properties else None,
        cuda_uuid=name_uuid(properties.name, properties.uuid) if properties else None,
        cuda_capability=(properties.major, properties.minor) if properties else None,
        cuda_total_bytes=properties.total_memory if properties else None,
        cuda_version=torch.version.cuda,
        bf16_on_cuda=torch.cuda.is_bf16_supported(including_emulation=False) if available else None,
        flash_attention_2=importlib.util.find_spec("flash_attn") is not None,
        host_peak_instrument="VmHWM" if can_reset_host_peak() else "unavailable",
        cuda_uuids=tuple(name_uuid(one.name, one.uuid) for one in found) if len(found) > 1 else UNSET,
    )


def name_uuid(device_name: str, uuid: object) -> str:
    """Return torch's bare UUID as NVML and CUDA_VISIBLE_DEVICES write it.

    torch/csrc/cuda/Module.cpp writes cudaDeviceProp.uuid as 8-4-4-4-12 hex digits and no more. CUDA adds the
    profile to the name of a MIG slice ("NVIDIA A100-SXM4-40GB MIG 1g.5gb"), and gives it its own UUID since
    CUDA 12, before that its card's.
    """
    return f"{'MIG' if ' MIG ' in device_name else 'GPU'}-{uuid}"


def read_torch_settings() -> TorchSettings:
    """Return torch's settings that change speed or results, as in force now. Sets nothing, touches no CUDA.

    TF32 and reduced precision are read by their older names, which every version has; where somebody has set
    them by torch 2.9's newer ones, torch refuses to answer and they are None.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    deterministic: Literal["off", "warn only", "on"] = "off"
    if torch.are_deterministic_algorithms_enabled():
        deterministic = "warn only" if torch.is_deterministic_algorithms_warn_only_enabled() else "on"
    return TorchSettings(
        float32_matmul_precision=_read(torch.get_float32_matmul_precision),
        matmul_allow_tf32=_read(lambda: bool(matmul.allow_tf32)),
        cudnn_allow_tf32=_read(lambda: bool(cudnn.allow_tf32)),
        cudnn_benchmark=_read(lambda: bool(cudnn.benchmark)),
        cudnn_deterministic=_read(lambda: bool(cudnn.deterministic)),
        deterministic_algorithms=deterministic,
        bf16_reduced_precision_reduction=_read(lambda: bool(matmul.allow_bf16_reduced_precision_reduction)),
        allocator_backend=_read(torch.cuda.get_allocator_backend),
        allocator_settings=_read(_allocator_settings),
    )


def _read(setting: Callable[[], _Value]) -> _Value | None:
    """Return a setting; None where torch has it not (a build without CUDA) or does not tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is going to change
        try:
            return setting()
        except (AttributeError, RuntimeError):
            return None


def _allocator_settings() -> str:
    """Return the text that torch has parsed; versions that do not tell read one variable only."""
    if hasattr(torch._C, "_accelerator_getAllocatorSettings"):  # noqa: SLF001 - has no public name
        return str(torch._C._accelerator_getAllocatorSettings())  # noqa: SLF001 - the same
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")


def can_reset_host_peak() -> bool:
    """Say whether the kernel lets this process reset its own high-water mark."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return _STATUS.exists()


def start_host_peak(*, trim: bool = True) -> int | None:
    """Give freed heap back to the kernel, reset the high-water mark, return resident bytes now.

    Without the trim, memory that an earlier phase freed would be counted again in this one.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl and macOS have none
    if trim and malloc_trim is not None:
        malloc_trim(0)
    return _status_bytes("VmRSS") if can_reset_host_peak() else None


def read_host_peak() -> int | None:
    """Return the most resident bytes since ``start_host_peak``, or ever if that returned None."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    """Return a field of /proc/self/status, which the kernel states in kB (1024 bytes)."""
    lines = (kernel_text(_STATUS) or "").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


class AllocatorPeaks(NamedTuple):
    """Most bytes since the last ``start_peak``; None where the device keeps no count."""

    allocated_bytes: int | None
    reserved_bytes: int | None


class AllocatorUse(NamedTuple):
    """What torch has allocated and reserved at this moment, and what the device could still give."""

    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int


class Allocator:
    """What the window asks of a device. This one is the CPU: nothing is counted, queued or cached."""

    def start_peak(self) -> None:
        """Forget the peaks so far."""

    def read_peak(self) -> AllocatorPeaks:
        """Return the peaks since ``start_peak``."""
        return AllocatorPeaks(None, None)

    def synchronise(self) -> None:
        """Wait until the device has done everything asked of it."""

    def empty_cache(self) -> None:
        """Give memory that is reserved but not in use back to the device."""

    def use(self) -> AllocatorUse | None:
        """Return what is in use now; None where the device keeps no count."""
        return None

    def take(self, size_bytes: int) -> object:
        """Allocate so much, without writing to it, for as long as the returned object lives."""
        return torch.empty(size_bytes, dtype=torch.uint8)


class CudaAllocator(Allocator):
    """torch.cuda's counters for one device."""

    def __init__(self, device: torch.device) -> None:
        """Read ``device`` only."""
        self._device = device

    def start_peak(self) -> None:
        self.synchronise()
        torch.cuda.reset_peak_memory_stats(self._device)

    def read_peak(self) -> AllocatorPeaks:
        """Return max_memory_allocated and max_memory_reserved, once the device is idle.

        While an exception is on its way nothing is waited for: the counters are the host's, and a device that
        failed would raise an error of its own in the exception's place.
        """
        if sys.exception() is None:
            self.synchronise()
        return AllocatorPeaks(
            torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)
        )

    def synchronise(self) -> None:
        """Wait for all streams of the device."""
        torch.cuda.synchronize(self._device)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def use(self) -> AllocatorUse:
        """Return torch's own counters and what cudaMemGetInfo calls free."""
        return AllocatorUse(*_held(self._device), torch.cuda.mem_get_info(self._device)[0])

    def take(self, size_bytes: int) -> object:
        """Return an uninitialised tensor: no kernel runs."""
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)


def allocator_of(device: torch.device) -> Allocator:
    return CudaAllocator(device) if device.type == "cuda" else Allocator()


def ignore() -> None:
    """Do nothing."""


@contextlib.contextmanager
def noted_out_of_memory(device: torch.device, also: Callable[[], None] = ignore) -> Iterator[None]:
    """Add to an exception that leaves what torch's allocator held, as a note that ``describe`` words.

    torch calls an observer between the failed allocation and the exception, when nothing has been freed yet.
    A worker runs one cell, so the observer, which cannot be taken away again, stays until the process ends;
    ``also`` is called with it. Where torch ended without calling it (cuBLAS, a failed assertion, another
    allocator), the counters are read as the exception arrives, and what is free on the device.
    """
    if device.type != "cuda":
        yield
        return
    seen: list[str] = []

    def observe(index: int, requested_bytes: int, _limit_bytes: int, _free_bytes: int) -> None:
        with contextlib.suppress(Exception):  # whatever goes wrong here must not hide the error itself
            seen[:] = [describe(*_held(index), requested_bytes)]
            also()

    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)  # noqa: SLF001 - has no public name
    if attach is not None:
        with contextlib.suppress(RuntimeError):  # backend:cudaMallocAsync knows no observers
            attach(observe)
    try:
        yield
    except BaseException as error:
        if not seen and torch.cuda.is_initialized():
            with contextlib.suppress(RuntimeError):
                seen.append(describe(*_held(device), free_bytes=_free(device)))
        for note in seen:
            error.add_note(note)
        raise


def describe(
    allocated_bytes: int,
    reserved_bytes: int,
    requested_bytes: int | None = None,
    *,
    free_bytes: int | None = None,
) -> str:
    """Return the note; ``bench.workers.classify`` reads it.

    >>> describe(2048, 4096, 512)
    "torch's allocator held 2048 bytes allocated, 4096 bytes reserved; 512 bytes were asked for"
    """
    note = f"torch's allocator held {allocated_bytes} bytes allocated, {reserved_bytes} bytes reserved"
    note += "" if requested_bytes is None else f"; {requested_bytes} bytes were asked for"
    return note if free_bytes is None else f"{note}; {free_bytes} bytes were free on the device"


def _held(device: torch.device | int) -> tuple[int, int]:
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def _free(device: torch.device) -> int | None:
    """Return the device's free bytes; None where it is in error, and answers nothing any more."""
    with contextlib.suppress(RuntimeError):
        return torch.cuda.mem_get_info(device)[0]
    return None


class SnapshotRecorder:
    """Records allocations from its start to the end of the warm-up, and writes them to one file.

    The pickle is for torch's viewer (https://pytorch.org/memory_viz) and is read by nothing of ours.
    Recording costs some microseconds an allocation, so it ends before the measured steps. CUDA only.
    """

    def __init__(self, path: Path, send: Send) -> None:
        """Write to ``path``, in a folder that exists, and send the file's name through ``send``."""
        self._path = path
        self._send = send
        self._kept: Any = None
        self._written = False

    def __enter__(self) -> Self:
        """Begin to record, with the Python stack of each allocation."""
        torch.cuda.init()  # before it there is no allocator that could record
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=MAX_ENTRIES)  # noqa: SLF001 - torch's documented way
        return self

    def keep(self) -> None:
        """Take what is held at this moment, which is that of an out-of-memory error; write nothing yet."""
        self._kept = torch.cuda.memory._snapshot()  # noqa: SLF001 - the same

    def after_warmup(self) -> None:
        """Write what was recorded and stop recording."""
        self._write(torch.cuda.memory._snapshot(), "after the warm-up")  # noqa: SLF001 - the same
        torch.cuda.memory._record_memory_history(None)  # noqa: SLF001 - the same

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error write what was kept at it, else what is held now unless a file is there."""
        if kind is None:
            return
        if self._kept is not None:
            self._write(self._kept, "out of memory")
        elif not self._written and torch.cuda.is_initialized():
            with contextlib.suppress(RuntimeError):  # a device that failed may answer nothing more
                self._write(torch.cuda.memory._snapshot(), "as the cell failed")  # noqa: SLF001 - the same

    def _write(self, snapshot: object, moment: SnapshotMoment) -> None:
        try:
            with whole_file(self._path) as file:
                pickle.dump(snapshot, file)
                size_bytes = file.tell()
        except OSError as error:
            problem = f"The allocator's history could not be written ({error.strerror})"
            message = f"{problem}; free some space, or choose another folder with --results."
            self._send(ReadingMade(reading=Caveat(code="snapshot-not-written", message=message)))
            return
        self._written = True
        reading = AllocatorSnapshot(file_name=self._path.name, moment=moment, size_bytes=size_bytes)
        self._send(ReadingMade(reading=reading))
