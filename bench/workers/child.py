"""The worker process: its own session, its output in a pipe, its messages on a pipe of their own.

It starts without torch; the work function it is given imports what it needs.
"""

import contextlib
import faulthandler
import fcntl
import importlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench.errors import BenchError, UnavailableError
from bench.io import kernel_text
from bench.metrics import GIB
from bench.records import messages
from bench.records.messages import Finished, Heartbeat, Job, Message, Send
from bench.records.readings import Stored
from bench.records.requirements import unimportable
from bench.workers.classify import classify_exception

HEARTBEAT_INTERVAL_S = 1.0
F_SETSIG = 10  # linux/fcntl.h; Python's fcntl names it only on some builds

Work = Callable[[Job, Send], None]

# Named, not imported: what does a job is heavy, lies in layers above this one, and is the child's alone.
ENTRY_POINTS: dict[type[Stored], str] = {
    messages.ProbeJob: "bench.training.jobs:run_job",
    messages.FetchJob: "bench.training.jobs:run_job",
    messages.CellJob: "bench.training.jobs:run_job",
    messages.ScriptJob: "bench.training.scripts.watch:watch_script",
    messages.ScriptPlanJob: "bench.predict.jobs:run_script_plan",
    messages.PlanJob: "bench.predict.jobs:run_plan",
    messages.EpochJob: "bench.training.jobs:count_epochs",
}
"""What does a job of each kind, as module:function. A message can choose among these and name no other."""


def do_job(job: Job, send: Send) -> None:
    """Do the job for real; everything heavy is imported here, in the worker.

    Raises ``UnavailableError`` where that cannot be imported, and names what is missing.
    """
    module, _, function = ENTRY_POINTS[type(job)].partition(":")
    try:
        for name in getattr(job, "imports", ()):
            importlib.import_module(name)
        imported = importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(unimportable(error)) from error
    getattr(imported, function)(job, send)


class Pipes(NamedTuple):
    """The worker's ends: it writes messages and output; nothing is ever sent on the lifeline."""

    messages: Connection
    output: Connection
    lifeline: Connection


def main(pipes: Pipes, work: Work, job: Job, rank: int, host_memory_gib: float | None) -> None:
    """Do one job, report how it went, and leave at once, whatever still runs in this process."""
    os.setsid()
    multiprocessing.current_process().daemon = False  # a daemon may not start processes, and libraries do
    multiprocessing.set_start_method(None, force=True)  # theirs start as anywhere, not from our server
    die_with_parent(pipes.lifeline.fileno())
    # Whatever anything in this process prints, native code included, goes to the supervisor.
    _flush()
    for descriptor in (1, 2):
        os.dup2(pipes.output.fileno(), descriptor)
    pipes.output.close()
    faulthandler.enable(file=2)
    # The supervisor ends a hanging worker by SIGTERM; first it says where it hung.
    faulthandler.register(signal.SIGTERM, file=2, all_threads=True, chain=True)
    send = _sender(pipes.messages.fileno(), rank)
    if rank:
        job = job.model_copy(update={"rank": rank})
    send(Heartbeat())
    threading.Thread(target=_beat, args=(send,), daemon=True).start()
    result: Message = Finished()
    try:
        with _memory_limit(host_memory_gib):
            work(job, send)
    except BaseException as error:  # noqa: BLE001 - whatever ended the job is what has to be reported
        if not isinstance(error, BenchError):  # whose sentence says it all
            traceback.print_exc()
        result = classify_exception(error)
    _flush()
    send(result)
    # Not sys.exit: a thread or an atexit handler that hangs must cost nothing.
    os._exit(0)


def die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this whole process group when the supervisor is gone, however it went.

    The supervisor holds the other end of the pipe; when that closes, the pipe signals its owner, here
    the group (fcntl(2): F_SETOWN, F_SETSIG, O_ASYNC). That needs no thread and no interpreter lock of
    ours, and takes along processes the worker has started.
    """
    os.set_inheritable(lifeline, False)  # noqa: FBT003 - the parameter has no name
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        # Readable without having been written to: it was closed before the signal was armed.
        os.read(lifeline, 1)
        os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _sender(descriptor: int, rank: int) -> Send:
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - the parameter has no name
    lock = threading.Lock()

    def send(message: Message) -> None:
        said = message.model_copy(update={"rank": rank}) if rank else message
        line = memoryview(said.model_dump_json().encode() + b"\n")
        with lock:
            while line:
                line = line[os.write(descriptor, line) :]

    return send


def _beat(send: Send) -> None:
    """Say every second that the interpreter still turns; end the group if nobody listens."""
    pause = threading.Event()
    try:
        while True:
            send(Heartbeat())
            pause.wait(HEARTBEAT_INTERVAL_S)
    except OSError:
        os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _memory_limit(host_memory_gib: float | None) -> Iterator[None]:
    """Limit private writable memory to so much on top of what is used now; lifted again at the end.

    RLIMIT_DATA, not RLIMIT_AS: the latter would also count weights mapped read-only from their file and
    reserved address space. A refused allocation then raises torch's own error. (setrlimit(2): since
    Linux 4.7 RLIMIT_DATA covers private anonymous mappings; /proc/self/status shows them as VmData.)
    """
    if host_memory_gib is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    found = re.search(r"^VmData:\s+(\d+) kB$", kernel_text(Path("/proc/self/status")) or "", re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status has no VmData; host_memory_gib cannot be enforced on this kernel")
    limit = int(found[1]) * 1024 + round(host_memory_gib * GIB)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
