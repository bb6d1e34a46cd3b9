"""Why a worker ended: out of memory, not possible here, an exception, a signal. Knows texts, not torch."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, UnavailableError
from bench.results.environment import control_group_files
from bench.results.messages import Failed
from bench.results.records import Failure, Outcome, Phase

MAX_MESSAGE_LENGTH = 600
SERVER_GONE = 255  # multiprocessing's exit code for a worker whose fork server has vanished
LESS_MEMORY = "lower micro_batch or sequence_length, or turn gradient_checkpointing on"

# Where each text comes from: c10/core/impl/alloc_cpu.cpp; c10/cuda/CUDACachingAllocator.cpp (its NVML
# assertion fails on MIG slices in place of an out-of-memory error); CUDA, cuBLAS and cuDNN status names;
# bitsandbytes' csrc ("Error out of memory at line"); the C++ library; glibc's strerror(ENOMEM); NumPy.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"
    r"|CUDA out of memory"
    r"|CUDA (?:driver |runtime )?error(?: \(2\) ?)?: out of memory"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|NVML_SUCCESS == r INTERNAL ASSERT"
    r"|Error out of memory at line"
    r"|std::bad_alloc"
    r"|Cannot allocate memory"
    r"|Unable to allocate [0-9.]+ [KMGTPE]?i?B"
)
_ENFORCE = re.compile(r"^\[enforce fail at [^\]]*\] (?:err == 0\. )?")
_REQUESTED = re.compile(
    r"(?:tried to allocate|Tried to allocate|Unable to allocate) (?P<number>[0-9]+(?:\.[0-9]+)?) ?"
    r"(?P<unit>bytes|[KMGTPE]?i?B)"
)
_UNIT_BYTES = {"bytes": 1, "B": 1} | {
    prefix + suffix: 1024**power
    for power, prefix in enumerate("KMGTPE", start=1)
    for suffix in ("B", "iB")  # CUDA's older "GB" is 2**30 bytes as well
}


def is_out_of_memory(text: str) -> bool:
    """Tell whether a text speaks of a failed allocation, in any wording known here."""
    return _OUT_OF_MEMORY.search(text) is not None


def requested_bytes(text: str) -> int | None:
    """Return what the failed allocation asked for, in bytes, if the text says so.

    CUDA prints two decimals of a unit ("2.00 GiB"), so there the number is rounded as printed.
    """
    found = _REQUESTED.search(text)
    return round(float(found["number"]) * _UNIT_BYTES[found["unit"]]) if found else None


def classify_exception(error: BaseException) -> Failed:
    """Return what the worker reports about an exception; the supervisor adds the phase.

    An error raised while another was handled, or because of it, counts as out of memory when that one
    was: libraries wrap.
    """
    for link in _chain(error):
        names = {kind.__name__ for kind in type(link).__mro__}
        text = str(link)
        if names & {"OutOfMemoryError", "MemoryError"} or is_out_of_memory(text):
            message = f"Out of memory ({_first_line(text) or type(link).__name__}); {LESS_MEMORY}."
            return Failed(
                outcome="oom", failure=Failure(message=message, requested_bytes=requested_bytes(text))
            )
    text = _last_line(str(error))
    if isinstance(error, UnavailableError):
        return Failed(outcome="unavailable", failure=Failure(message=text or "Not available here."))
    if isinstance(error, BenchError):
        return Failed(outcome="failed", failure=Failure(message=text))
    name = type(error).__name__
    return Failed(
        outcome="failed", failure=Failure(message=f"{name}: {text}" if text else f"{name} was raised.")
    )


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and those it stems from, newest first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return links


def _first_line(text: str) -> str:
    text = _ENFORCE.sub("", text).strip()
    return _clip(text.splitlines()[0].rstrip(".")) if text else ""


def _last_line(text: str) -> str:
    return _clip(text.strip().splitlines()[-1]) if text.strip() else ""


def _clip(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[: MAX_MESSAGE_LENGTH - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class WorkerEnd:
    """How a process ended: ``exit_code`` is negative for a signal, None while it is not known.

    ``killed_for_memory`` says that the kernel's out-of-memory killer struck meanwhile.
    """

    exit_code: int | None
    output_tail: str
    killed_for_memory: bool


def classify_exit(end: WorkerEnd, phase: Phase | None) -> tuple[Outcome, Failure]:
    """Return what an end without a result means.

    Native code that prints of a failed allocation and then exits or aborts (bitsandbytes, the C++
    library) is out of memory.
    """
    during = f" in phase {phase}" if phase else ""
    name = _signal_name(end.exit_code)
    if end.killed_for_memory and (name == "SIGKILL" or end.exit_code == SERVER_GONE):
        outcome: Outcome = "oom"
        message = f"The kernel's out-of-memory killer ended the worker{during}; {LESS_MEMORY}."
    elif name in {None, "SIGABRT"} and is_out_of_memory(end.output_tail):
        outcome = "oom"
        message = f"Native code ran out of memory and ended the worker{during}; {LESS_MEMORY}."
    elif name:
        outcome = "crashed"
        message = f"The worker was ended by {name}{during}; output_tail holds what it printed last."
    elif end.exit_code == SERVER_GONE:
        outcome = "crashed"
        message = (
            f"The worker exited with code {end.exit_code}, or the server it was forked from ended{during}."
        )
    else:
        outcome = "crashed"
        message = f"The worker exited with code {end.exit_code} before its job was done{during}."
    asked = requested_bytes(end.output_tail) if outcome == "oom" else None
    return outcome, Failure(message=message, exit_signal=name, requested_bytes=asked)


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
    own_groups = [
        *control_group_files("memory", "memory.events")[:1],
        *control_group_files("memory", "memory.oom_control")[:1],
    ]
    for text in own_groups:
        count = _oom_kill_line(text)
        if count is not None:
            return count
    try:
        return _oom_kill_line(Path("/proc/vmstat").read_text(encoding="ascii"))
    except OSError:
        return None


def _oom_kill_line(text: str) -> int | None:
    found = re.search(r"^oom_kill (\d+)$", text, flags=re.MULTILINE)
    return int(found[1]) if found else None
