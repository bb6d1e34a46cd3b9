"""NVML at arm's length: what one call can tell about one GPU, and None for what it cannot.

Imports no torch: the parent asks, never the worker.
"""

from dataclasses import dataclass
from typing import Protocol

from bench.results.gpu import GpuFacts


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that has memory on a GPU; None bytes where the driver knows the process but not its share."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """All readings of one moment, on the clock of ``time.monotonic_ns``; None is what was not to be had."""

    at_ns: int
    device_used_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    utilisation_percent: int | None = None
    power_mw: int | None = None
    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    event_reasons: int | None = None


class Gpu(Protocol):
    """One GPU or MIG slice that can be asked again and again."""

    facts: GpuFacts
    memory_version: str | None
    processes_version: str | None
    problems: tuple[str, ...]

    def sample(self) -> GpuSample:
        """Ask for everything once; raises nothing: what fails is None and named in ``problems``."""
