"""What torch's allocator held as it ran out of memory, noted on the exception; only on CUDA.

torch calls an observer between the failed allocation and the exception, when nothing has been freed yet. A
worker runs one cell, so the observer, which cannot be taken away again, stays until the process ends.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch


def ignore() -> None:
    """Do nothing more at an out-of-memory error."""


@contextlib.contextmanager
def noted_out_of_memory(device: torch.device, also: Callable[[], None] = ignore) -> Iterator[None]:
    """Add to an exception that leaves what torch's allocator held, as a note that ``describe`` words.

    Where torch ended without calling its observer (cuBLAS, a failed assertion, another allocator), the
    counters are read as the exception arrives, and what is free on the device. ``also`` is called at the
    moment of the error.
    """
    if device.type != "cuda":
        yield
        return
    seen: list[str] = []

    def observe(index: int, requested_bytes: int, _limit_bytes: int, _free_bytes: int) -> None:
        with contextlib.suppress(Exception):  # whatever goes wrong here must not hide the error itself
            seen[:] = [describe(*_held(index), requested_bytes)]
            also()

    _attach(observe)
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


def _attach(observer: Callable[[int, int, int, int], None]) -> None:
    """Have torch call ``observer(device, requested, limit, free)``; only its own allocator can."""
    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)  # noqa: SLF001 - has no public name
    if attach is not None:
        with contextlib.suppress(RuntimeError):  # backend:cudaMallocAsync knows no observers
            attach(observer)
