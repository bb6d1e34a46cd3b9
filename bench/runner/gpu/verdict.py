"""What was seen on a GPU, judged: was it idle before, ours alone meanwhile, unthrottled? Pure.

The limits are wide: a run is thrown away for what others certainly did, not for a driver's bookkeeping.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.metrics import GIB, MIB
from bench.probes.nvml.device import Gpu, GpuSample
from bench.records.clock_events import INVALIDATING, NOTED, name_events
from bench.records.derived_metrics import THROTTLED
from bench.records.gpu import GpuFacts, Isolation
from bench.records.records import Caveat
from bench.runner.gpu.isolation import Owners
from bench.runner.gpu.phases import Timeline

BUSY_PERCENT = 10  # of the time since the driver's last update, in which some kernel ran
BUSY_SHARE = 0.1  # of the card's memory, in the hands of others
SETTLED_WITHIN_BYTES = 32 * MIB
TOLERATED_BYTES = 256 * MIB
# What a process takes outside torch grows after its start, as CUDA loads kernels when they are first used.
LAZILY_LOADED_BYTES = 1 * GIB
MOST_NAMED = 5
SILENT = "NVML stopped answering"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that a watch has gathered when a run is over; None is what it could not tell."""

    isolation: Isolation
    isolation_reason: str
    timeline: Timeline
    owners: Owners
    idle_device_bytes: int | None
    background: int
    reserved_peaks: Mapping[str, int]
    reserved_at_rest: int | None
    excess_bytes: int | None
    pages_state: bool


def why_busy(earlier: GpuSample | None, later: GpuSample | None, facts: GpuFacts) -> str | None:
    """Return what others do on the GPU between two samples, or None when it is idle for all that is told."""
    used = later.device_used_bytes if later else None
    if later is not None and (later.utilisation_percent or 0) >= BUSY_PERCENT:
        return f"it was {later.utilisation_percent} % busy"
    if used is not None and facts.total_bytes and used >= BUSY_SHARE * facts.total_bytes:
        return f"{_size(used)} of its memory were in use"
    before = earlier.device_used_bytes if earlier else None
    if used is not None and before is not None and abs(used - before) > SETTLED_WITHIN_BYTES:
        return f"its memory in use kept changing (by {_size(abs(used - before))})"
    return None


def not_idle(busy: str, patience_s: float) -> str:
    """Return the sentence for a run that was not begun."""
    return (
        f"The GPU was not idle within {patience_s:g} s ({busy}), and what is measured beside others says "
        "nothing; end what else runs on it, then run the same command again."
    )


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
        if (peak := seen.timeline[phase].device_peak_bytes) is not None
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
    if seen.background:
        others = "1 other process was" if seen.background == 1 else f"{seen.background} other processes were"
        held = "" if seen.idle_device_bytes is None else f", with {_size(seen.idle_device_bytes)} in use"
        yield Caveat(code="gpu-shared", message=f"{others} on the GPU before the run{held}.")
    if silent or (lost := _lost(seen)):
        why = SILENT if silent else f"NVML told no memory in {lost} samples"
        problems = [problem for problem in gpu.problems if "memory" in problem or "everything" in problem]
        detail = f" ({problems[-1].rstrip('.')})" if problems else ""
        yield Caveat(code="nvml-gaps", message=f"{why}{detail}: its peaks may be too low.")
    if seen.isolation == "unavailable":
        yield Caveat(code="nvml-unattributed", message=f"No peak by NVML: {seen.isolation_reason}")


def _lost(seen: Seen) -> int:
    """Return how many samples lack the reading that the peaks are made of."""
    stretches = [seen.timeline[name] for name in seen.timeline.names()]
    if seen.isolation == "process":
        return sum(stretch.without_own for stretch in stretches)
    return sum(stretch.without_device for stretch in stretches) if seen.isolation == "device_delta" else 0


def _delta(seen: Seen, sample: GpuSample) -> int | None:
    """Return by how much the device holds more than before the worker."""
    if sample.device_used_bytes is None or seen.idle_device_bytes is None or seen.isolation == "unavailable":
        return None
    return sample.device_used_bytes - seen.idle_device_bytes


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"
