"""Which processes on a GPU are the worker's, and which of NVML's readings can be told to be its own.

Containers show numbers of another namespace, or processes without their memory, or none at all. What a
reading is worth is therefore tested: it has to move with a block that the worker allocates and frees.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass

from bench.metrics import MIB
from bench.probes.nvml.device import GpuProcess, GpuSample
from bench.records.gpu import Isolation

# The driver hands out pages of 2 MiB and may build a table or two; a block is many times as large.
MOVED_WITHIN_SHARE = 1 / 8
MOST_PIDS = 1024  # remembered of either kind, whatever a driver lists


class Owners:
    """Tells the worker's processes from others, by session: the worker leads one of its own."""

    def __init__(self, worker_pid: int, background: Collection[int] = ()) -> None:
        """Take the worker, and the processes that were on the GPU before it."""
        self._worker_pid = worker_pid
        self._background = frozenset(background)
        self._own = {worker_pid}
        self._seen: dict[int, int] = {}
        self._identified = False

    def look(self, sample: GpuSample) -> None:
        """Look at who is on the GPU, as long as they are there to be asked for their session."""
        for process in sample.processes or ():
            if process.pid in self._own or self._in_session(process.pid):
                self.adopt(process.pid)
            elif process.pid in self._seen or len(self._seen) < MOST_PIDS:
                self._seen[process.pid] = max(self._seen.get(process.pid, 0), process.used_bytes or 0)

    def adopt(self, pid: int) -> None:
        """Count a process as the worker's, by whatever number it goes here."""
        self._own.add(pid)
        self._identified = True

    def own(self, sample: GpuSample) -> tuple[GpuProcess, ...]:
        """Return the worker's processes."""
        return tuple(process for process in sample.processes or () if process.pid in self._own)

    def others(self, sample: GpuSample) -> tuple[GpuProcess, ...]:
        """Return the processes that are neither the worker's nor were there before it."""
        known = self._own | self._background
        return tuple(process for process in sample.processes or () if process.pid not in known)

    def own_bytes(self, sample: GpuSample) -> int | None:
        """Return the bytes of the worker's processes together; None where they are not told."""
        sizes = [process.used_bytes for process in self.own(sample)]
        if sample.processes is None or None in sizes:
            return None
        return sum(size for size in sizes if size is not None)

    @property
    def strangers(self) -> dict[int, int]:
        """The most bytes of each process ever seen that was not there before and is not known to be ours."""
        known = self._own | self._background
        return {pid: size for pid, size in self._seen.items() if pid not in known}

    @property
    def foreign_count(self) -> int:
        """How many of the strangers are certainly not the worker, which may be one of them unrecognised."""
        return max(0, len(self.strangers) - (not self._identified))

    def _in_session(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self._worker_pid
        except (OSError, OverflowError):  # gone, or a number of another namespace
            return False


@dataclass(frozen=True, kw_only=True)
class BlockTest:
    """A sample of each state of the worker's test block; None where no sample fell into it."""

    idle: GpuSample | None
    held: GpuSample | None
    freed: GpuSample | None
    block_bytes: int | None


def judge_isolation(test: BlockTest, owners: Owners) -> tuple[Isolation, str]:
    """Return which reading moved with the block, and why so in one sentence.

    A process under another number whose bytes moved is adopted as the worker's; so is the only one that
    has come since the worker, where no process tells its bytes.
    """
    idle, held, freed, block = test.idle, test.held, test.freed, test.block_bytes
    if block is None:
        return "unavailable", "The worker held no block of known size, so no reading could be told to be its."
    if idle is None or held is None or freed is None:
        return "unavailable", "No sample was taken while the worker held still around its test block."
    size = f"{block / MIB:.0f} MiB"

    def moved(*sizes: int | None) -> bool:
        return _follows(block, *sizes)

    if moved(*(owners.own_bytes(sample) for sample in (idle, held, freed))):
        return "process", f"The bytes of the worker's own process rose and fell with a test block of {size}."
    candidates = {process.pid for process in owners.others(held)}
    for pid in sorted(candidates):
        if moved(*(_bytes_of(pid, sample) for sample in (idle, held, freed))):
            owners.adopt(pid)
            return "process", (
                f"A test block of {size} moved the bytes of process {pid}, as which NVML, in another "
                "namespace, knows the worker."
            )
    nobody_is_own = not owners.own(held)
    if nobody_is_own and len(candidates) == 1:
        owners.adopt(candidates.pop())
    if moved(*(sample.device_used_bytes for sample in (idle, held, freed))):
        return "device_delta", (
            f"{_why_no_process(held, owners)}, but the used bytes of the whole device rose and fell with a "
            f"test block of {size}."
        )
    rise = _rise(idle.device_used_bytes, held.device_used_bytes)
    return "unavailable", (
        f"{_why_no_process(held, owners)}, and with a test block of {size} the used bytes of the whole "
        f"device {rise}: NVML describes another GPU, or others were using this one."
    )


def _follows(block_bytes: int, idle: int | None, held: int | None, freed: int | None) -> bool:
    """Tell whether a reading rose by about the block and fell by about as much."""
    if idle is None or held is None or freed is None:
        return False
    tolerated = block_bytes * MOVED_WITHIN_SHARE
    return abs(held - idle - block_bytes) <= tolerated and abs(held - freed - block_bytes) <= tolerated


def _bytes_of(pid: int, sample: GpuSample) -> int | None:
    """Return a process's bytes; 0 where it is not listed, None where they are not told."""
    return next((process.used_bytes for process in sample.processes or () if process.pid == pid), 0)


def _why_no_process(held: GpuSample, owners: Owners) -> str:
    own = owners.own(held)
    if held.processes is None:
        return "NVML does not list processes here"
    if not own:
        return "NVML does not list the worker's process here"
    if any(process.used_bytes is None for process in own):
        return "NVML does not tell the bytes of a process here"
    return "NVML's bytes of the worker's process do not follow what it allocates"


def _rise(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "were not told"
    change = (after - before) / MIB
    return f"changed by {change:.0f} MiB"
