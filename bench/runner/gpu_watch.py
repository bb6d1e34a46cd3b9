"""Watches one GPU from the parent while a worker runs: a thread that sleeps, samples NVML and sums up.

It asks nothing of the worker but its marks, and touches neither torch nor CUDA. The GPU is held against other
runs of this suite meanwhile.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.errors import InfrastructureError, UnavailableError
from bench.probes.nvml import MEMORY_VERSION, PROCESSES_VERSION, Gpu, GpuSample, open_nvml, torchs_device
from bench.records.messages import Failed, Finished, Mark, Message, PhaseStarted, ReadingMade
from bench.records.readings import GpuReading
from bench.records.records import DeviceFacts, PhaseReading
from bench.runner import gpu_verdict
from bench.runner.gpu_samples import Timeline
from bench.runner.gpu_verdict import Owners, judge_isolation
from bench.workers import interrupts
from bench.workers.supervise import Findings

INTERVAL_NS = 100_000_000
# Memory is asked for each time, all else (which drivers bring up to date every 20 to 100 ms at best) every
# fifth time, and as each phase begins, so that also a short one has it.
SAMPLES_FOR_A_COMPLETE_ONE = 5
IDLE_PATIENCE_S = 30.0
ANSWER_S = 5.0  # an NVML that has not answered for so long is not asked again
INTERVALS_BETWEEN_LOOKS = 5
# Device and process are read one after the other, so a large allocation between the two looks foreign once.
SAMPLES_ON_END = 3
INSTANTS = ("idle", "block_held", "block_freed", "quiescent")
# The lock is a Unix socket in Linux's abstract namespace (unix(7)): it is in no folder, so that nobody can
# plant a link, no user's permissions matter and nothing stays behind, and the kernel frees it with the
# process that holds it, however that ends. Containers with a network namespace of their own do not see it,
# and other programs than this suite are not held off.
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_PATIENCE_S = 1.0


@dataclass(kw_only=True)
class SweepGpu:
    """What NVML is asked of: the GPU of each rank, up to one that NVML does not show.

    Where there is none, ``unwatched`` is the sentence why; None where none is needed.
    """

    gpus: tuple[Gpu, ...] = ()
    unwatched: str | None = None

    def of_ranks(self, count: int) -> tuple[Gpu, ...]:
        """Return the GPUs of so many ranks; none where NVML does not show them all."""
        return self.gpus[:count] if len(self.gpus) >= count else ()


@contextlib.contextmanager
def sweep_gpu(facts: DeviceFacts, count: int = 1) -> Iterator[SweepGpu]:
    """Open NVML on the first of torch's devices and hold these meanwhile; without NVML, by torch's UUIDs.

    Raises ``InfrastructureError`` when another sweep holds one of them.
    """
    found = SweepGpu()
    uuids = [facts.cuda_uuid, *(facts.cuda_uuids or ())[1:count]]
    with contextlib.ExitStack() as stack:
        try:
            nvml = stack.enter_context(open_nvml())
            for uuid in uuids:
                own, why = torchs_device(nvml.gpus(), uuid)
                if own is None:
                    found.unwatched = None if found.gpus else why
                    break
                found.gpus += (nvml.gpu(own.uuid),)
        except UnavailableError as error:
            found.unwatched = str(error)
        shown = [gpu.facts.uuid for gpu in found.gpus]
        for uuid in [*shown, *uuids[len(shown) :]]:
            if uuid is not None:
                stack.enter_context(hold_gpu(uuid))
        yield found


@contextlib.contextmanager
def hold_gpu(uuid: str) -> Iterator[None]:
    """Hold a GPU or MIG slice meanwhile.

    Raises ``InfrastructureError`` when another run holds it, in this process or another.
    """
    name = f"\0finetune-bench/gpu/{uuid}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(name)
            lock.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InfrastructureError(
                    f"{uuid} cannot be locked against other runs here ({error.strerror}); allow Unix sockets "
                    "in this sandbox"
                ) from error
            raise InfrastructureError(
                f"another bench run{_holder(name)} uses {uuid}, and two would measure each other; wait until "
                "it has ended, or choose another GPU with CUDA_VISIBLE_DEVICES"
            ) from None
        yield


def _holder(name: str) -> str:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as question:
        question.settimeout(_PATIENCE_S)
        question.connect(name)
        answer = question.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(answer)[0]
        if pid > 0:
            return f" (process {pid})"
    return ""


@dataclass(frozen=True)
class WatchOfRank:
    """Has a GPU's watch hear its own rank alone; what it finds stands with that rank."""

    watch: "GpuWatch"
    rank: int

    def begin(self, *worker_pids: int) -> None:
        """Tell the watch of all ranks: what another of them takes on this GPU is the run's own."""
        self.watch.begin(*worker_pids)

    def message(self, message: Message) -> None:
        if message.rank == self.rank:
            self.watch.message(message)

    def finish(self) -> Findings:
        return replace(self.watch.finish(), rank=self.rank)


class GpuWatch:
    """Watches one run of one cell; a new one is made for the next.

    ``pages_state`` is explained at ``Seen``.
    """

    def __init__(
        self,
        gpu: Gpu,
        *,
        interval_ns: int = INTERVAL_NS,
        idle_patience_s: float = IDLE_PATIENCE_S,
        pages_state: bool = False,
    ) -> None:
        self._gpu = gpu
        self._interval_ns = interval_ns
        self._idle_patience_s = idle_patience_s
        self._lock = threading.Lock()
        self._stop, self._wake, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="NVML", daemon=True)
        self._latest: GpuSample | None = None
        self._until_complete = 0
        self._longest_gap_ns = 0
        self._cpu_ns = self._cpu_before_ns = 0
        self._began_ns: int | None = None
        self._seen = gpu_verdict.Seen(timeline=Timeline(self._weigh), pages_state=pages_state)
        self._judged = False
        self._block_bytes: int | None = None
        self._excesses: deque[int] = deque(maxlen=SAMPLES_ON_END)

    def wait_until_idle(self) -> str | None:
        """Start sampling and wait until nobody uses the GPU; return why it is not idle after all, or None.

        Asked first; the worker is started next. Without readings by NVML nothing is waited for.
        """
        self._thread.start()
        if not self._answered.wait(ANSWER_S):
            return None
        deadline_s, seen = time.monotonic() + self._idle_patience_s, self._seen
        try:
            while True:
                earlier = self._latest
                with interrupts.waiting():
                    time.sleep(INTERVALS_BETWEEN_LOOKS * self._interval_ns / 1e9)
                before = self._latest
                busy = gpu_verdict.why_busy(earlier, before, self._gpu.facts)
                if busy is None:
                    break
                if time.monotonic() >= deadline_s:
                    self._end_sampling()
                    return (
                        f"The GPU was not idle within {self._idle_patience_s:g} s ({busy}), and what is "
                        "measured beside others says nothing; end what else runs on it, then run the same "
                        "command again."
                    )
        except BaseException:
            self._end_sampling()
            raise
        seen.background = set((before and before.processes) or ())
        seen.idle_device_bytes = before.device_used_bytes if before else None
        return None

    @property
    def silent(self) -> bool:
        """Whether NVML has stopped answering, so that it had better not be asked again."""
        return self._stop.is_set() and self._thread.is_alive()

    def begin(self, *worker_pids: int) -> None:
        """Tell the workers' processes from all others from now on."""
        with self._lock:
            self._seen.owners = Owners(*worker_pids, background=self._seen.background)
            self._longest_gap_ns = 0
            self._cpu_before_ns, self._began_ns = self._cpu_ns, time.monotonic_ns()

    def message(self, message: Message) -> None:
        """Begin a phase or an instant where the worker says so, and note what torch had reserved."""
        with self._lock:
            match message:
                case PhaseStarted(at_ns=int(at_ns)):
                    self._seen.timeline.mark(message.phase, at_ns)
                    self._judge_isolation()
                    self._until_complete = 0
                    self._wake.set()
                case Mark():
                    self._seen.timeline.mark(message.instant, message.at_ns, message.at_ns + message.holds_ns)
                    self._block_bytes = message.block_bytes or self._block_bytes
                    if message.instant == "quiescent":
                        self._seen.reserved_at_rest = message.reserved_bytes
                case Finished() | Failed():
                    self._seen.timeline.close()
                case ReadingMade(reading=PhaseReading(cuda_reserved_peak_bytes=int(size), name=name)):
                    peaks = self._seen.reserved_peaks
                    peaks[name] = max(size, peaks.get(name, 0))

    def finish(self) -> Findings:
        self._end_sampling()
        with self._lock:
            self._seen.timeline.close()
            self._judge_isolation()
            return Findings(
                gpu=self._reading(),
                caveats=tuple(gpu_verdict.caveats(self._seen, self._gpu, silent=self.silent)),
                contamination=gpu_verdict.contamination(self._seen),
            )

    def _reading(self) -> GpuReading:
        seen, began_ns = self._seen, self._began_ns
        return GpuReading(
            facts=self._gpu.facts,
            isolation=seen.isolation,
            isolation_reason=seen.isolation_reason,
            interval_ns=self._interval_ns,
            complete_interval_ns=self._interval_ns * SAMPLES_FOR_A_COMPLETE_ONE,
            longest_gap_ns=self._longest_gap_ns,
            watched_ns=None if began_ns is None else time.monotonic_ns() - began_ns,
            watching_cpu_ns=None if began_ns is None else self._cpu_ns - self._cpu_before_ns,
            memory_version=MEMORY_VERSION,
            processes_version=PROCESSES_VERSION,
            idle_device_bytes=seen.idle_device_bytes,
            non_torch_bytes=gpu_verdict.non_torch_bytes(seen),
            phases=tuple(
                stretch.as_phase(with_own_bytes=seen.isolation == "process")
                for name, stretch in seen.timeline.stretches.items()
                if name not in INSTANTS
            ),
            foreign_pids=seen.owners.foreign_count,
            unexplained_growth_bytes=gpu_verdict.unexplained_bytes(seen),
            problems=(*self._gpu.problems, *([gpu_verdict.SILENT] if self.silent else [])),
        )

    def _sample_until_stopped(self) -> None:
        # sched(7): such a thread, as it wakes, takes the processor from nobody who is running on it.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        last_ns = time.monotonic_ns()
        while not self._stop.is_set():
            self._wake.clear()
            with self._lock:
                # Before there is a worker, each sample is complete.
                complete = self._until_complete == 0 or self._began_ns is None
                self._until_complete = (SAMPLES_FOR_A_COMPLETE_ONE if complete else self._until_complete) - 1
            began_ns = time.monotonic_ns()
            sample = self._gpu.sample(complete=complete)
            ended_ns = time.monotonic_ns()
            with self._lock:
                self._latest = sample
                if self._began_ns is not None:
                    self._seen.owners.look(sample)
                    self._seen.timeline.take(sample, ended_ns)
                self._longest_gap_ns = max(self._longest_gap_ns, began_ns - last_ns)
                self._cpu_ns = time.thread_time_ns()
            self._answered.set()
            last_ns = began_ns
            self._wake.wait(max(0, began_ns + self._interval_ns - ended_ns) / 1e9)

    def _end_sampling(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_S)

    def _judge_isolation(self) -> None:
        """Judge once, as soon as the samples around the test block are all there."""
        seen = self._seen
        if not self._judged and self._began_ns is not None:
            samples = [seen.timeline[name].last for name in INSTANTS[:3]]
            seen.isolation, seen.isolation_reason = judge_isolation(samples, self._block_bytes, seen.owners)
            self._judged = True

    def _weigh(self, sample: GpuSample) -> int | None:
        """Return the worker's bytes in a sample, and note what the device holds beyond what is explained."""
        seen, used_bytes = self._seen, sample.device_used_bytes
        own_bytes, idle_bytes = seen.owners.own_bytes(sample), seen.idle_device_bytes
        if not self._judged or own_bytes is None or idle_bytes is None or used_bytes is None:
            return own_bytes
        self._excesses.append(used_bytes - own_bytes - idle_bytes)
        if len(self._excesses) == SAMPLES_ON_END:
            seen.excess_bytes = max(seen.excess_bytes or 0, min(self._excesses))
        return own_bytes
