"""A worker that speaks the protocol without training: the name of the cell's method says what it does."""

import atexit
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import records_factory
from bench.errors import UnavailableError
from bench.records.messages import (
    CellJob,
    FetchJob,
    Job,
    PhaseStarted,
    PlanJob,
    PredictionMade,
    ProbeJob,
    ReadingMade,
    Send,
)
from bench.records.predictions import Prediction, Refusal, Speed
from bench.records.readings import Caveat, checked, plain
from bench.records.records import DeviceFacts
from bench.scenario.cell import Cell
from bench.scenario.types import ModelSpec
from bench.workers.launch import Launcher, Worker

CHATTER_BYTES = 100 * 1024**2
ASKED_BYTES = 8 * 1024**3


def make_cell(behaviour: str, **changes: object) -> Cell:
    """Return a cell on which the replay worker behaves so, e.g. ``ok`` or ``hang``."""
    fields: dict[str, object] = {
        "id": f"replay/{behaviour}",
        "method": {"kind": "lora", "name": behaviour, "rank": 8},
        "limits": {"timeout_s": 60, "heartbeat_timeout_s": 30},
    }
    return records_factory.make_cell(**(fields | changes))


def make_job(behaviour: str, **changes: object) -> CellJob:
    """Return the job of such a cell."""
    return CellJob(cell_json=make_cell(behaviour, **changes).model_dump_json())


def replay(job: Job, send: Send) -> None:
    """Do what the job's cell is named after; a probe finds a small CPU machine."""
    if isinstance(job, ProbeJob):
        send(ReadingMade(reading=make_facts()))
    elif isinstance(job, FetchJob):
        name = ModelSpec.model_validate_json(job.model_json).name
        if name == "unreachable":
            raise UnavailableError("The package registry cannot be reached; connect to the network.")
    elif isinstance(job, PlanJob):
        _predict(job, send)
    elif isinstance(job, CellJob):
        _begin(send)
        BEHAVIOURS[Cell.model_validate_json(job.cell_json).method.name](send)


def _predict(job: PlanJob, send: Send) -> None:
    """Answer as the cell's method is named: a refusal, the end of the worker, or a GiB for each sequence."""
    for text in job.cells_json:
        cell = Cell.model_validate_json(text)
        if cell.method.name == "refused":
            answer: Prediction | Refusal = Refusal(message="aten::nonzero depends on data.")
        elif cell.method.name == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif cell.method.name == "hang":
            time.sleep(600)
        elif cell.method.name == "unavailable":
            raise UnavailableError("a library cannot be imported here; install it.")
        else:
            size_bytes = cell.training.micro_batch * 1024**3
            answer = records_factory.make_prediction(size_bytes, platform=job.platform)
            if cell.method.name == "fast":
                told = tuple(Speed(card=one.name, low=90, point=100, high=110) for one in job.cards)
                answer = answer.model_copy(update={"speeds": told})
        send(PredictionMade(cell_id=cell.id, answer=answer))


def count_frozen(_: Job, send: Send) -> None:
    """Report how many objects garbage collection leaves alone in this worker; 0 where it is off."""
    count = gc.get_freeze_count() if gc.isenabled() else 0
    send(ReadingMade(reading=Caveat(code="frozen", message=str(count))))


def make_facts(**changes: object) -> DeviceFacts:
    """Return the facts of a machine without CUDA."""
    fields: dict[str, object] = {
        "cpu_threads": 1,
        "cuda_available": False,
        "cuda_unavailable_reason": "this build of torch has no CUDA",
        "host_peak_instrument": "VmHWM",
    }
    return checked(DeviceFacts, plain(fields | changes))


def _begin(send: Send) -> None:
    """Send what every cell sends early: a phase, readings, steps."""
    measurement = records_factory.make_measurement()
    send(PhaseStarted(phase="load"))
    assert measurement.model is not None
    send(ReadingMade(reading=measurement.model))
    send(PhaseStarted(phase="steady", total_steps=len(measurement.steps)))
    for step in measurement.steps:
        send(ReadingMade(reading=step))


def _ok(_: Send) -> None:
    """Do nothing more."""


def _oom(_: Send) -> None:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        f"you tried to allocate {ASKED_BYTES} bytes. Error code 12 (Cannot allocate memory)"
    )


def _exception(_: Send) -> None:
    raise ValueError("rank must divide\nthe width of the model")


def _unavailable(_: Send) -> None:
    raise UnavailableError("The hub cannot be reached; set HF_TOKEN or use a local path.")


def _hang(_: Send) -> None:
    time.sleep(600)


def _staged(send: Send) -> None:
    """Say where it is, and wait until the file ``go`` is there."""
    send(PhaseStarted(phase="evaluate_after"))
    while not Path("go").exists():
        time.sleep(0.01)


def _deaf(send: Send) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send(PhaseStarted(phase="evaluate_after"))
    time.sleep(600)


def _hang_holding_the_lock(_: Send) -> None:
    ctypes.PyDLL(None).sleep(600)  # PyDLL, unlike CDLL, keeps the interpreter lock


def _chatter(_: Send) -> None:
    line = b"x" * 1023 + b"\n"
    for _count in range(CHATTER_BYTES // len(line)):
        os.write(1, line)
    os.write(2, b"the last line\n")


def _malformed(_: Send) -> None:
    _write_to_message_pipe(b'{"type": "no such message"}\n')
    time.sleep(600)


def _speak_as_before(_: Send) -> None:
    """Leave out what messages have learned since."""
    _write_to_message_pipe(
        b'{"type": "phase_started", "phase": "evaluate_after"}\n'
        b'{"type": "reading", "reading": {"cpu_threads": 7, "cuda_available": false}}\n'
        b'{"type": "finished"}\n'
    )
    time.sleep(600)


def _speak_as_one_day(_: Send) -> None:
    """Send a message with a field that nobody knows yet."""
    _write_to_message_pipe(b'{"type": "phase_started", "phase": "steady", "mood": "good"}\n')
    time.sleep(600)


def _close_messages(_: Send) -> None:
    """Close the message pipe, as a library does that closes what it does not know."""
    os.close(_message_pipe())
    time.sleep(600)


def _close_output(_: Send) -> None:
    """Close standard output and standard error, and go on."""
    os.close(1)
    os.close(2)
    time.sleep(0.1)


def _read_address_zero(_: Send) -> None:
    ctypes.string_at(0)


def _flood(_: Send) -> None:
    """Print 2 GiB and a last line."""
    line = b"x" * (1024**2 - 1) + b"\n"
    for _count in range(2048):
        for start in range(0, len(line), 65536):
            os.write(1, line[start : start + 65536])
    os.write(1, b"the last line\n")


def _endless_line(_: Send) -> None:
    while True:
        _write_to_message_pipe(b"x" * 65536)


def _write_to_message_pipe(content: bytes) -> None:
    """Write past the protocol."""
    os.write(_message_pipe(), content)


def _message_pipe() -> int:
    """Return the one pipe that is open for writing besides 1 and 2."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - bare numbers are wanted
        descriptor = int(name)
        if descriptor > 2 and _is_message_pipe(descriptor):
            return descriptor
    raise AssertionError("no message pipe found")


def _is_message_pipe(descriptor: int) -> bool:
    try:
        is_pipe = os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:")  # noqa: PTH115 - not a file
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:  # noqa: PTH123 - the same
            flags = int(file.read().split("flags:")[1].split()[0], base=8)
        return is_pipe and flags & os.O_ACCMODE == os.O_WRONLY and not os.get_inheritable(descriptor)
    except OSError:
        return False


def _grandchild(_: Send) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os.write(1, f"grandchild {process.pid}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _grandchild_of_another_session(_: Send) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os.write(1, f"grandchild {process.pid}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _deadlock_at_exit(_: Send) -> None:
    atexit.register(threading.Event().wait)
    threading.Thread(target=threading.Event().wait).start()


def _exit_silently(_: Send) -> None:
    os._exit(3)


def _abort_on_bad_alloc(_: Send) -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def _slow(_: Send) -> None:
    time.sleep(0.2)


def _torch_allocation(_: Send) -> None:
    import torch

    torch.zeros(ASKED_BYTES // 4)


def _end_by(number: signal.Signals) -> Callable[[Send], None]:
    def behaviour(_: Send) -> None:
        signal.signal(number, signal.SIG_DFL) if number is not signal.SIGKILL else None
        os.kill(os.getpid(), number)

    return behaviour


BEHAVIOURS: dict[str, Callable[[Send], None]] = {
    "ok": _ok,
    "ok-2": _ok,
    "ok-3": _ok,
    "oom": _oom,
    "exception": _exception,
    "unavailable": _unavailable,
    "hang": _hang,
    "staged": _staged,
    "older": _speak_as_before,
    "newer": _speak_as_one_day,
    "close-messages": _close_messages,
    "close-output": _close_output,
    "segfault": _read_address_zero,
    "flood": _flood,
    "deaf": _deaf,
    "stuck": _hang,  # as "hang", but can be predicted
    "hang-holding-the-lock": _hang_holding_the_lock,
    "chatter": _chatter,
    "malformed": _malformed,
    "endless-line": _endless_line,
    "grandchild": _grandchild,
    "grandchild-of-another-session": _grandchild_of_another_session,
    "deadlock-at-exit": _deadlock_at_exit,
    "exit-silently": _exit_silently,
    "abort-on-bad-alloc": _abort_on_bad_alloc,
    "slow": _slow,
    "torch-allocation": _torch_allocation,
    "sigkill": _end_by(signal.SIGKILL),
    "sigsegv": _end_by(signal.SIGSEGV),
    "sigabrt": _end_by(signal.SIGABRT),
}


PLANNED = """
device = "{device}"
[models.tiny]
random = "tiny-llama-test"
[methods.lora]
[methods.refused]
kind = "lora"
[data]
source = "synthetic"
[training]
sequence_length = 64
micro_batch = {batches}
"""
"""A scenario that such a worker can predict."""


class Counted(Launcher):
    """Launches replay workers and counts them, with the cells that each was to predict."""

    def __init__(self, work: Callable[[Job, Send], None] = replay) -> None:
        super().__init__(work=work, preload=["bench.workers.child"])
        self.launches = 0
        self.cells = 0

    def start(self, job: Job, *, ranks: int = 1, host_memory_gib: float | None = None) -> Sequence[Worker]:
        """Count, and start."""
        self.launches += 1
        self.cells += len(job.cells_json) if isinstance(job, PlanJob) else 0
        return super().start(job, ranks=ranks, host_memory_gib=host_memory_gib)
