"""Why a worker ended: out of memory, not possible here, an exception, a signal. Knows texts, not torch."""

import re
import signal
from pathlib import Path

from bench.errors import BenchError, UnavailableError
from bench.io import kernel_text
from bench.metrics import GIB, MIB
from bench.records.environment import control_group_files
from bench.records.messages import Failed
from bench.records.records import Failure, Outcome, Phase

MAX_MESSAGE_LENGTH = 600
SERVER_GONE = 255  # multiprocessing's exit code for a worker whose fork server has vanished
LESS_MEMORY = "lower micro_batch or sequence_length, or turn gradient_checkpointing on"

# Where each text comes from: c10/core/impl/alloc_cpu.cpp; c10/cuda/CUDACachingAllocator.cpp, whose NVML
# assertions fail on MIG slices and Jetsons in place of an out-of-memory error; c10/cuda/
# CUDAMallocAsyncAllocator.cpp; status names of CUDA, cuBLAS, cuDNN and their kin; Triton; bitsandbytes'
# csrc ("Error out of memory at line"); the C++ library; glibc's strerror(ENOMEM); NumPy. torch 2.1 to 2.13.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"
    r"|(?:CUDA|HIP) out of memory"
    r"|(?:CUDA|HIP) (?:driver |runtime )?error(?: \(2\) ?)?: out of memory"
    r"|Triton Error \[CUDA\]: out of memory"
    r"|would exceed allowed memory\. \(out of memory\)"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|CU[A-Z]+_STATUS_(?:[A-Z_]+_)?ALLOC(?:ATION)?_FAILED"
    r"|NVML_SUCCESS == [^\n]{1,200}INTERNAL ASSERT FAILED[^\n]{1,300}CUDACachingAllocator"
    r"|Error out of memory at line"
    r"|std::bad_alloc"
    r"|Cannot allocate memory"
    r"|Unable to allocate [0-9.]+ [KMGTPE]?i?B"
)
# cuBLAS has no other word for a handle that it finds no memory for, nor for a device that an earlier kernel
# left in error (pytorch/pytorch's forum, topic 125450), after which the free memory cannot be asked for.
_NO_HANDLE = re.compile(r"CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(?:Lt)?Create")
_FREE = re.compile(r"; (?P<free>[0-9]+) bytes were free on the device")
HANDLE_BYTES = 256 * MIB  # more than a handle, its workspace and its kernels take
_ENFORCE = re.compile(r"^\[enforce fail at [^\]]*\] (?:err == 0\. )?")
_ADVICE = re.compile(r" If reserved (?:but unallocated )?memory is .*")
# What a rank says that waited too long for others: gloo's unbound buffers and pairs, torch's
# ProcessGroupNCCL.cpp and TCPStore.cpp.
_WAITED = re.compile(
    r"Timed out waiting [0-9]+ ?ms for \w+ operation"
    r"|Application timeout caused pair closure"
    r"|Watchdog caught collective operation timeout"
    r"|[Ww]ait timeout after [0-9]+ ?ms"
)
_SIZE = r"(?P<{0}>[0-9]+(?:\.[0-9]+)?) ?(?P<{0}_unit>bytes|[KMGTPE]?i?B)"
_REQUESTED = re.compile(
    r"(?:tried to allocate|Tried to allocate|Unable to allocate|Requested {1,20}:) "
    + _SIZE.format("requested")
)
# What the worker's own note says to the byte (bench.probes.machine.describe).
_NOTED = re.compile(
    r"held (?P<allocated>[0-9]+) bytes allocated, (?P<reserved>[0-9]+) bytes reserved"
    r"(?:; (?P<requested>[0-9]+) bytes were asked for)?"
)
# Between commas may stand what private pools of CUDA graphs hold of the first.
_HELD = re.compile(
    _SIZE.format("allocated")
    + r" is allocated by PyTorch,(?: with [^()\n]{1,40}\(e\.g\., CUDA Graphs\),)? and "
    + _SIZE.format("unallocated")
    + r" is reserved by PyTorch but unallocated"
)
_UNIT_BYTES = {"bytes": 1, "B": 1} | {
    prefix + suffix: 1024**power
    for power, prefix in enumerate("KMGTPE", start=1)
    for suffix in ("B", "iB")  # CUDA's older "GB" is 2**30 bytes as well
}


def is_out_of_memory(text: str) -> bool:
    """Tell whether a text speaks of a failed allocation, in any wording known here."""
    return _OUT_OF_MEMORY.search(text) is not None


def waited_for_others(text: str) -> bool:
    """Tell whether a text speaks of a collective in which not all ranks took part in time."""
    return _WAITED.search(text) is not None


def requested_bytes(text: str) -> int | None:
    """Return what the failed allocation asked for, in bytes, if the text says so.

    CUDA prints two decimals of a unit ("2.00 GiB"), so there the number is rounded as printed.
    """
    noted = _NOTED.search(text)
    if noted and noted["requested"]:
        return int(noted["requested"])
    return _sizes(_REQUESTED.search(text)).get("requested")


def held_bytes(text: str) -> tuple[int | None, int | None]:
    """Return what torch's allocator had allocated and reserved, in bytes, as far as the text says so.

    To the byte where the worker has noted it, else rounded as torch prints it.
    """
    if noted := _NOTED.search(text):
        return int(noted["allocated"]), int(noted["reserved"])
    sizes = _sizes(_HELD.search(text))
    return (sizes["allocated"], sizes["allocated"] + sizes["unallocated"]) if sizes else (None, None)


def _sizes(found: re.Match[str] | None) -> dict[str, int]:
    """Return the bytes of each named size in a match."""
    groups = found.groupdict() if found else {}
    return {
        name: round(float(groups[name]) * _UNIT_BYTES[groups[f"{name}_unit"]])
        for name in groups
        if f"{name}_unit" in groups
    }


def classify_exception(error: BaseException) -> Failed:
    """Return what the worker reports about an exception; the supervisor adds the phase.

    An error raised while another was handled, or because of it, counts as out of memory when that one
    was: libraries wrap.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    # The worker's note stands on the newest of them.
    notes = "\n".join(note for each in links for note in getattr(each, "__notes__", ()))
    for link in links:
        names = {kind.__name__ for kind in type(link).__mro__}
        by_name = names & {"OutOfMemoryError", "MemoryError"}
        if by_name or is_out_of_memory(str(link)) or _lacks_a_handle(str(link), notes):
            return Failed(outcome="oom", failure=_out_of_memory(link, notes))
    text = _clip((str(error).strip().splitlines() or [""])[-1])
    if isinstance(error, UnavailableError):
        return Failed(outcome="unavailable", failure=Failure(message=text or "Not available here."))
    name = type(error).__name__
    message = f"{name}: {text}" if text else f"{name} was raised."
    return Failed(
        outcome="failed", failure=Failure(message=text if isinstance(error, BenchError) else message)
    )


def _out_of_memory(link: BaseException, notes: str) -> Failure:
    """Return the failure of an allocation, in its own words and by the worker's notes."""
    own = str(link)
    text = f"{notes}\n{own}"
    allocated, reserved = held_bytes(text)
    said = _ADVICE.sub("", _ENFORCE.sub("", own)).strip()
    said = _clip(said.splitlines()[0].rstrip(".")) if said else type(link).__name__
    if held_bytes(own)[0] is None and allocated is not None and reserved is not None:
        said += f"; torch held {allocated / GIB:.2f} GiB allocated, {reserved / GIB:.2f} GiB reserved"
    return Failure(
        message=f"Out of memory ({said}); {LESS_MEMORY}.",
        requested_bytes=requested_bytes(text),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
    )


def _lacks_a_handle(text: str, notes: str) -> bool:
    """Tell whether cuBLAS found no memory for its handle: the worker has noted that hardly any was free."""
    free = _FREE.search(notes)
    return _NO_HANDLE.search(text) is not None and free is not None and int(free["free"]) < HANDLE_BYTES


def _clip(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[: MAX_MESSAGE_LENGTH - 1] + "…"


def during(phase: Phase | None) -> str:
    """Return in which phase something happened, for the middle of a sentence."""
    return f" in phase {phase}" if phase else ""


def classify_exit(
    exit_code: int | None, output_tail: str, phase: Phase | None, *, killed_for_memory: bool
) -> tuple[Outcome, Failure]:
    """Return what an end without a result means; ``exit_code`` is negative for a signal, None if unknown.

    Native code that prints of a failed allocation and then exits or aborts (bitsandbytes, the C++
    library) is out of memory. ``killed_for_memory`` says that the kernel's out-of-memory killer struck.
    """
    name, tail = _signal_name(exit_code), ""
    outcome: Outcome = "crashed"
    if killed_for_memory and (name == "SIGKILL" or exit_code == SERVER_GONE):
        outcome, tail = "oom", output_tail
        message = f"The kernel's out-of-memory killer ended the worker{during(phase)}; {LESS_MEMORY}."
    elif name in {None, "SIGABRT"} and is_out_of_memory(output_tail):
        outcome, tail = "oom", output_tail
        message = f"Native code ran out of memory and ended the worker{during(phase)}; {LESS_MEMORY}."
    elif name:
        message = f"The worker was ended by {name}{during(phase)}; output_tail holds what it printed last."
    elif exit_code == SERVER_GONE:
        message = f"The worker exited with code {exit_code}, or the server it was forked from ended"
        message += f"{during(phase)}."
    else:
        message = f"The worker exited with code {exit_code} before its job was done{during(phase)}."
    allocated, reserved = held_bytes(tail)
    return outcome, Failure(
        message=message,
        exit_signal=name,
        requested_bytes=requested_bytes(tail),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
    )


def _signal_name(exit_code: int | None) -> str | None:
    if exit_code is None or exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def count_oom_kills() -> int | None:
    """Return how many processes the kernel's out-of-memory killer has ended so far; None if it does not say.

    Counted in this process's own control group where the kernel does so (``memory.events`` in version 2,
    ``memory.oom_control`` in version 1), else over the whole machine (``/proc/vmstat``).
    """
    texts = [
        *control_group_files("memory", "memory.events")[:1],
        *control_group_files("memory", "memory.oom_control")[:1],
    ]
    texts.append(kernel_text(Path("/proc/vmstat")) or "")
    counts = (re.search(r"^oom_kill (\d+)$", text, flags=re.MULTILINE) for text in texts)
    return next((int(found[1]) for found in counts if found), None)
