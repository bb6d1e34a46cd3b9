"""What was seen on a GPU, judged: whose was it, was it idle before, ours alone meanwhile, unthrottled? Pure.

Containers show numbers of another namespace, or processes without their memory, or none at all. What a
reading is worth is therefore tested: it has to move with a block that the worker allocates and frees. The
limits are wide: a run is thrown away for what others certainly did, not for a driver's bookkeeping.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from bench.errors import counted
from bench.metrics import GIB, MIB
from bench.probes.nvml import Gpu, GpuSample
from bench.records.derived_metrics import THROTTLED
from bench.records.readings import INVALIDATING, NOTED, Caveat, GpuFacts, Isolation, name_events
from bench.runner.gpu_samples import Timeline

# The driver hands out pages of 2 MiB and may build a table or two; a block is many times as large.
MOVED_WITHIN_SHARE = 1 / 8
MOST_PIDS = 1024  # remembered of either kind, whatever a driver lists
BUSY_PERCENT = 10  # of the time since the driver's last update, in which some kernel ran
BUSY_SHARE = 0.1  # of the card's memory, in the hands of others
SETTLED_WITHIN_BYTES = 32 * MIB
TOLERATED_BYTES = 256 * MIB
# What a process takes outside torch grows after its start, as CUDA loads kernels when they are first used.
LAZILY_LOADED_BYTES = 1 * GIB
MOST_NAMED = 5
SILENT = "NVML stopped answering"


class Owners:
    """Tells the worker's processes from others, by session: a worker leads one of its own."""

    def __init__(self, *worker_pids: int, background: Collection[int] = ()) -> None:
        self._worker_pids = frozenset(worker_pids)
        self._background = frozenset(background)
        self._own = set(worker_pids)
        self._seen: dict[int, int] = {}
        self._identified = False

    def look(self, sample: GpuSample) -> None:
        """Look at who is on the GPU, as long as they are there to be asked for their session."""
        for pid, used_bytes in (sample.processes or {}).items():
            if pid in self._own or self._in_session(pid):
                self.adopt(pid)
            elif pid in self._seen or len(self._seen) < MOST_PIDS:
                self._seen[pid] = max(self._seen.get(pid, 0), used_bytes or 0)

    def adopt(self, pid: int) -> None:
        """Count a process as the worker's, by whatever number it goes here."""
        self._own.add(pid)
        self._identified = True

    def own(self, sample: GpuSample) -> dict[int, int | None]:
        return {pid: size for pid, size in (sample.processes or {}).items() if pid in self._own}

    def others(self, sample: GpuSample) -> set[int]:
        """Return the numbers of processes that are neither the worker's nor were there before it."""
        return set(sample.processes or ()) - self._own - self._background

    def own_bytes(self, sample: GpuSample) -> int | None:
        """Return the bytes of the worker's processes together; None where NVML does not report them."""
        sizes = self.own(sample).values()
        return None if sample.processes is None or None in sizes else sum(size or 0 for size in sizes)

    @property
    def strangers(self) -> dict[int, int]:
        """The most bytes of each process ever seen that was not there before and is not known to be ours."""
        return {pid: size for pid, size in self._seen.items() if pid not in self._own | self._background}

    @property
    def foreign_count(self) -> int:
        """How many of the strangers are certainly not the worker, which may be one of them unrecognised."""
        return max(0, len(self.strangers) - (not self._identified))

    def _in_session(self, pid: int) -> bool:
        try:
            return os.getsid(pid) in self._worker_pids
        except (OSError, OverflowError):  # gone, or a number of another namespace
            return False


def judge_isolation(
    samples: Sequence[GpuSample | None], block_bytes: int | None, owners: Owners
) -> tuple[Isolation, str]:
    """Return which reading moved with the worker's test block, and why so in one sentence.

    ``samples`` are of the worker idle, with the block held, and with it freed; None where no sample fell into
    that time. A process under another number whose bytes moved is adopted as the worker's; so is the only one
    that has come since the worker, where NVML reports no process's bytes.
    """
    idle, held, freed = samples
    if block_bytes is None:
        return "unavailable", "The worker held no block of known size, so no reading can be called its own."
    if idle is None or held is None or freed is None:
        return "unavailable", "No sample was taken while the worker held still around its test block."
    size = f"{block_bytes / MIB:.0f} MiB"

    def moves(read: Callable[[GpuSample], int | None]) -> bool:
        """Tell whether a reading rose by about the block and fell by about as much."""
        top, rests = read(held), [read(idle), read(freed)]
        tolerated = block_bytes * MOVED_WITHIN_SHARE
        return all(
            top is not None and rest is not None and abs(top - rest - block_bytes) <= tolerated
            for rest in rests
        )

    if moves(owners.own_bytes):
        return "process", f"The bytes of the worker's own process rose and fell with a test block of {size}."
    candidates = owners.others(held)
    for pid in sorted(candidates):
        if moves(partial(_bytes_of, pid)):
            owners.adopt(pid)
            return "process", (
                f"A test block of {size} moved the bytes of process {pid}, as which NVML, in another "
                "namespace, knows the worker."
            )
    if not owners.own(held) and len(candidates) == 1:
        owners.adopt(candidates.pop())
    why, before, after = _why_no_process(held, owners), idle.device_used_bytes, held.device_used_bytes
    if moves(lambda sample: sample.device_used_bytes):
        return "device_delta", (
            f"{why}, but the used bytes of the whole device rose and fell with a test block of {size}."
        )
    rise = (
        "are unknown" if before is None or after is None else f"changed by {(after - before) / MIB:.0f} MiB"
    )
    return "unavailable", (
        f"{why}, and with a test block of {size} the used bytes of the whole device {rise}: NVML describes "
        "another GPU, or others were using this one."
    )


def _bytes_of(pid: int, sample: GpuSample) -> int | None:
    return (sample.processes or {}).get(pid, 0)


def _why_no_process(held: GpuSample, owners: Owners) -> str:
    own = owners.own(held)
    if held.processes is None:
        return "NVML does not list processes here"
    if not own:
        return "NVML does not list the worker's process here"
    if None in own.values():
        return "NVML does not report the bytes of a process here"
    return "NVML's bytes of the worker's process do not follow what it allocates"


@dataclass(kw_only=True)
class Seen:
    """What a watch gathers of one run; None is unknown.

    ``pages_state``: the cell keeps optimizer state in managed memory, which torch does not count.
    """

    timeline: Timeline
    pages_state: bool
    isolation: Isolation = "unavailable"
    isolation_reason: str = "The worker did not start."
    owners: Owners = field(default_factory=Owners)
    idle_device_bytes: int | None = None
    background: Collection[int] = ()
    reserved_peaks: dict[str, int] = field(default_factory=dict)
    reserved_at_rest: int | None = None
    excess_bytes: int | None = None


def why_busy(earlier: GpuSample | None, later: GpuSample | None, facts: GpuFacts) -> str | None:
    """Return what others do on the GPU between two samples, or None when it is idle as far as is known."""
    used = later.device_used_bytes if later else None
    if later is not None and (later.utilisation_percent or 0) >= BUSY_PERCENT:
        return f"it was {later.utilisation_percent} % busy"
    if used is not None and facts.total_bytes and used >= BUSY_SHARE * facts.total_bytes:
        return f"{_size(used)} of its memory were in use"
    before = earlier.device_used_bytes if earlier else None
    if used is not None and before is not None and abs(used - before) > SETTLED_WITHIN_BYTES:
        return f"its memory in use kept changing (by {_size(abs(used - before))})"
    return None


def non_torch_bytes(seen: Seen) -> int | None:
    """Return what the worker held outside torch as it stood still after the steady steps."""
    rest = seen.timeline["quiescent"].last
    if rest is None or seen.reserved_at_rest is None:
        return None
    held = seen.owners.own_bytes(rest) if seen.isolation == "process" else _delta(seen, rest)
    if held is None or held < seen.reserved_at_rest:
        return None
    return held - seen.reserved_at_rest


def unexplained_bytes(seen: Seen) -> int | None:
    """Return by how much the device grew beyond what the worker and its start explain, at the most.

    In process mode, what the device held beside the worker's process, in several samples on end, less what
    it held before. In device mode, what a phase's peak exceeds torch's reserved peak and the non-torch
    overhead by; of that overhead no more counts than the start took and kernels loaded later may take. None
    where optimizer state is paged: neither torch nor NVML counts managed memory as the process's.
    """
    if seen.isolation == "unavailable" or seen.pages_state or seen.idle_device_bytes is None:
        return None
    if seen.isolation == "process":
        return seen.excess_bytes
    start = seen.timeline["idle"].last
    start_bytes = (_delta(seen, start) if start else None) or 0
    overhead = min(non_torch_bytes(seen) or 0, start_bytes + LAZILY_LOADED_BYTES)
    explained = seen.idle_device_bytes + max(start_bytes, overhead)
    beyond = [
        peak - explained - reserved
        for phase, reserved in seen.reserved_peaks.items()
        if (peak := seen.timeline[phase].extremes.get("device_peak_bytes")) is not None
    ]
    return max(0, *beyond) if beyond else None


def contamination(seen: Seen) -> str | None:
    """Return in one sentence what others did on the GPU meanwhile; None when nobody is known to have."""
    advice = "so this run does not count; keep the GPU to one job"
    count, strangers = seen.owners.foreign_count, seen.owners.strangers
    if count and seen.isolation != "unavailable":
        largest = max(strangers.values())
        held = f" with up to {_size(largest)}" if largest else ""
        if count < len(strangers):
            return f"Of {len(strangers)} processes that came onto the GPU{held} one is the worker, {advice}."
        named = ", ".join(map(str, sorted(strangers)[:MOST_NAMED]))
        who = (
            f"Process {named}" if count == 1 else f"{count} processes ({named}{', …' * (count > MOST_NAMED)})"
        )
        return f"{who} came onto the GPU during the run{held}, {advice}."
    growth = unexplained_bytes(seen) or 0
    if growth > TOLERATED_BYTES:
        return (
            f"The GPU held {_size(growth)} more than this run and what was there before it explain, {advice}."
        )
    return None


def caveats(seen: Seen, gpu: Gpu, *, silent: bool) -> Iterator[Caveat]:
    """Yield what a reader of this run's numbers must know."""
    reasons = seen.timeline["steady"].event_reasons
    if reasons & INVALIDATING:
        events = ", ".join(name_events(reasons, INVALIDATING))
        message = f"Throttled during the measured steps ({events}): the speed is not the card's own."
        yield Caveat(code=THROTTLED, message=message)
    if reasons & NOTED:
        limit = gpu.facts.power_limit_mw
        at = f" of {limit / 1000:.0f} W" if limit else ""
        message = f"The card was held to its power limit{at} during the measured steps."
        yield Caveat(code="power-capped", message=message)
    if count := len(seen.background):
        others = "1 other process was" if count == 1 else f"{count} other processes were"
        held = "" if seen.idle_device_bytes is None else f", with {_size(seen.idle_device_bytes)} in use"
        yield Caveat(code="gpu-shared", message=f"{others} on the GPU before the run{held}.")
    if seen.isolation == "process":
        lost = sum(stretch.without_own for stretch in seen.timeline.stretches.values())
    else:
        lost = sum(stretch.without_device for stretch in seen.timeline.stretches.values())
    if silent or (lost and seen.isolation != "unavailable"):
        why = SILENT if silent else f"NVML reported no memory in {counted(lost, 'sample')}"
        problems = [problem for problem in gpu.problems if "memory" in problem or "everything" in problem]
        detail = f" ({problems[-1].rstrip('.')})" if problems else ""
        yield Caveat(code="nvml-gaps", message=f"{why}{detail}: its peaks may be too low.")
    if seen.isolation == "unavailable":
        yield Caveat(code="nvml-unattributed", message=f"No peak by NVML: {seen.isolation_reason}")


def _delta(seen: Seen, sample: GpuSample) -> int | None:
    """Return by how much the device holds more than before the worker."""
    if sample.device_used_bytes is None or seen.idle_device_bytes is None or seen.isolation == "unavailable":
        return None
    return sample.device_used_bytes - seen.idle_device_bytes


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"
