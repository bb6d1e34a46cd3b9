"""Starting and ending worker processes on this machine.

Workers are forked from a server that has imported the libraries once. A fork is safe only as long as the
server has not touched CUDA; when it has, workers are spawned instead.
"""

import contextlib
import multiprocessing
import os
import signal
import stat
import sys
import time
import types
from collections.abc import Iterable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from bench.errors import InfrastructureError
from bench.io import kernel_text
from bench.records.messages import Job
from bench.workers import PARENT_VARIABLE, child, interrupts

# Imported once by the server that workers are forked from, so that these start at once.
_HEAVY = (
    "bench.training.preload",
    "bitsandbytes",
    "peft",
    "transformers.models.llama.modeling_llama",  # the family most scenarios load
    "bench.training.jobs",
    "bench.training.window",
)
PRELOAD = (*_HEAVY, "bench.workers.child")
EVALUATES = ("lm_eval.evaluator", "lm_eval.models.huggingface")
"""Beside them, where accuracy is asked for: a second, and 100 MiB in each worker."""
FOR_ONE = ("bench.workers.child",)
"""For a launcher of one worker, which best imports itself what it needs and no more."""
CHECK_INSTALLATION = f"check the installation with: python -c 'import {', '.join(_HEAVY)}'"
READ_BYTES = 65536
TAIL_BYTES = 65536
MAX_READS_AT_END = 256  # a pipe holds 64 KiB; more after the end comes from a stray process
KILL_TIMEOUT_S = 30
TERMINATE_GRACE_S = 2.0
# cuInit opens it; NVML alone opens only nvidiactl and the card, and survives a fork.
CUDA_DEVICE_FILE = "/dev/nvidia-uvm"
SERVER_VARIABLES = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() then does not initialise CUDA
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order NVML uses
}


class Worker:
    """One running worker and the supervisor's ends of its pipes."""

    def __init__(
        self, process: BaseProcess, messages: Connection, output: Connection, lifeline: Connection
    ) -> None:
        self._process, self._messages, self._output, self._lifeline = process, messages, output, lifeline
        self._tail = bytearray()
        assert process.pid is not None  # noqa: S101 - for the type checker; a started process has one
        self.pid: int = process.pid
        """The worker's process number, which is also that of its session and its group."""
        self.strays = 0
        """How many processes that it had started in sessions of their own were there when it was ended."""
        for pipe in (messages, output):
            os.set_blocking(pipe.fileno(), False)

    @property
    def ended(self) -> bool:
        """Whether the process is gone; processes it has started may still be there."""
        return not self._process.is_alive()

    @property
    def output_tail(self) -> str:
        """The last 64 KiB of what it printed."""
        return self._tail.decode(errors="replace")

    def receive(self) -> bytes:
        """Return what the worker has sent, and take what it has printed."""
        self._drain_output()
        return _read_available(self._messages)

    def end(self, grace_s: float = TERMINATE_GRACE_S) -> int | None:
        """End the worker and every process in its group; return its exit code (negative: a signal).

        SIGTERM first, on which the worker prints where it was; then SIGKILL. Raises
        ``InfrastructureError`` when the kernel cannot end it.
        """
        if not self.ended:
            self._signal_group(signal.SIGTERM)
            self.wait_for_end(grace_s)
        self._signal_group(signal.SIGKILL)
        if not self.wait_for_end(KILL_TIMEOUT_S):
            raise InfrastructureError(
                f"worker process {self.pid} does not end even by SIGKILL, and nothing can be "
                "measured beside it; restart the machine, then run the same command again to resume"
            )
        self._drain_output(MAX_READS_AT_END)
        # Whoever can print to an output that has not ended is in another session: the group is gone.
        self.strays = 0 if self._output.closed else _end_strays(self._output.fileno(), self.pid)
        if self.strays:
            self._drain_output(MAX_READS_AT_END)
        exit_code = self._process.exitcode
        for pipe in (self._messages, self._output, self._lifeline):
            pipe.close()
        self._process.close()
        return exit_code

    def wait_for_end(self, timeout_s: float) -> bool:
        """Sleep until the worker is gone, taking its output meanwhile, so that a full pipe cannot hold it."""
        deadline_s = time.monotonic() + timeout_s
        while not self.ended:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            wait([self._process.sentinel, *([] if self._output.closed else [self._output])], left_s)
            self._drain_output()
        return True

    def sources(self) -> list[Connection | int]:
        """Return what becomes ready as the worker sends, prints or ends."""
        # A pipe whose other end is closed would be ready for ever, so reading its end closes it.
        return [self._process.sentinel, *(pipe for pipe in (self._messages, self._output) if not pipe.closed)]

    def _drain_output(self, most_reads: int = 1) -> None:
        """Take what the worker has printed and keep the last of it."""
        for _ in range(most_reads):
            if not (printed := _read_available(self._output)):
                break
            self._tail += printed
            del self._tail[:-TAIL_BYTES]

    def _signal_group(self, number: signal.Signals) -> None:
        """Signal the worker's group; the worker alone if it does not lead a group yet."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                if not self.ended:
                    os.kill(self.pid, number)


def wait_for_any(workers: Iterable[Worker], timeout_s: float) -> None:
    """Sleep until one of the workers sends, prints or ends."""
    with interrupts.waiting():
        wait([source for worker in workers for source in worker.sources()], timeout_s)


def _read_available(pipe: Connection) -> bytes:
    """Return what a pipe holds, without waiting; close it when the other end is closed."""
    if pipe.closed:
        return b""
    try:
        content = os.read(pipe.fileno(), READ_BYTES)
    except BlockingIOError:
        return b""
    if not content:
        pipe.close()
    return content


def _end_strays(output: int, worker_pid: int) -> int:
    """Kill the processes outside a worker's group that can print to its output; return their number."""
    name, ended = f"pipe:[{os.fstat(output).st_ino}]", 0
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Those of the group were killed already, and may take a moment to go.
            own = pid == os.getpid() or os.getpgid(pid) == worker_pid
            if not own and holds_file_open(pid, name, writing=True):
                os.kill(pid, signal.SIGKILL)
                ended += 1
    return ended


class Launcher:
    """Starts the processes that do a job: on this machine, forked from a server."""

    start_method: Literal["forkserver", "spawn"] = "forkserver"
    """``spawn``: workers import the libraries themselves, so that each start takes seconds longer."""

    def __init__(self, *, work: child.Work = child.do_job, preload: Sequence[str] = PRELOAD) -> None:
        """Take what a worker does with its job, and the modules that the server imports beforehand."""
        for name, value in SERVER_VARIABLES.items():
            os.environ.setdefault(name, value)
        self._work = work
        self._server_log = os.memfd_create("worker server")  # open as long as the server, so to the end
        forkserver.set_forkserver_preload(["bench.workers.orphan", *preload, "bench.workers.freeze"])

    @property
    def name(self) -> str:
        """Name what its workers do; what has no name of its own is told apart from all else."""
        name = getattr(self._work, "__qualname__", "")
        return f"{self._work.__module__}:{name}" if name else repr(self._work)

    def start(self, job: Job, *, ranks: int = 1, host_memory_gib: float | None = None) -> Sequence[Worker]:
        """Start a worker for each rank, in order of rank; ``host_memory_gib`` limits each of them.

        The first call waits for the server to import its modules. Raises ``InfrastructureError`` when a
        worker does not come up; none is left then.
        """
        workers: list[Worker] = []
        try:
            for rank in range(ranks):
                task = (self._work, job, rank, host_memory_gib)
                workers.append(self._start(task))
                server_pid = _parent_pid(workers[-1].pid)
                if self.start_method == "forkserver" and holds_file_open(server_pid, CUDA_DEVICE_FILE):
                    workers.pop().end()
                    self.start_method = "spawn"
                    workers.append(self._start(task))
        except BaseException:
            for worker in workers:
                worker.end()
            raise
        return workers

    def _start(self, task: tuple[child.Work, Job, int, float | None]) -> Worker:
        process_kind = SpawnContext.Process if self.start_method == "spawn" else ForkServerContext.Process
        messages, worker_messages = multiprocessing.Pipe(duplex=False)
        output, worker_output = multiprocessing.Pipe(duplex=False)
        worker_lifeline, lifeline = multiprocessing.Pipe(duplex=False)
        ends = child.Pipes(worker_messages, worker_output, worker_lifeline)
        # A daemon is ended, not waited for, should this process leave without having ended it.
        process = process_kind(target=child.main, args=(ends, *task), daemon=True)
        # Hidden while a process starts, or every worker would import the command line again.
        main_module, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            if self.start_method == "forkserver":
                self.prepare()
            process.start()
        except (OSError, EOFError) as error:
            said = printed_last(self._server_log)
            why = f"the worker failed to start ({str(error) or type(error).__name__}); {CHECK_INSTALLATION}"
            raise InfrastructureError(f"{said}\n{why}".lstrip()) from error
        finally:
            sys.modules["__main__"] = main_module
        for end in ends:
            end.close()
        return Worker(process, messages, output, lifeline)

    def prepare(self) -> None:
        """Start the server unless it runs, with what its imports print kept from the terminal.

        Does not wait for these. Raises ``OSError`` where it cannot be started.
        """
        with contextlib.ExitStack() as stack:
            for descriptor in (1, 2):
                copy = os.dup(descriptor)
                stack.callback(os.close, copy)
                stack.callback(os.dup2, copy, descriptor)
                os.dup2(self._server_log, descriptor)
            os.environ[PARENT_VARIABLE] = str(os.getpid())
            forkserver.ensure_running()


def printed_last(log: int) -> str:
    """Return the last 64 KiB of what was printed to an open file."""
    said = os.pread(log, TAIL_BYTES, max(0, os.fstat(log).st_size - TAIL_BYTES))
    return said.decode(errors="replace").strip()


def _parent_pid(pid: int) -> int | None:
    """Return the parent's process number from /proc/<pid>/stat; None when the process is gone."""
    told = kernel_text(Path(f"/proc/{pid}/stat"))
    # The second field, the command's name, is in parentheses and may hold anything.
    return int(told.rpartition(")")[2].split()[1]) if told else None


def holds_file_open(pid: int | None, path: str, *, writing: bool = False) -> bool:
    """Tell whether a process has a file open; False for a process that is gone or not ours to ask."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            # proc_pid_fd(5): the link's own permissions are those the file was opened with.
            writable = descriptor.lstat().st_mode & stat.S_IWUSR
            if str(descriptor.readlink()) == path and (writable or not writing):
                return True
    return False
