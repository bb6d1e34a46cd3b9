"""What NVML can tell about one GPU at one moment, None for what it cannot, and its errors in words.

Asks nothing itself: ``nvml_library`` opens NVML, ``nvml_device`` asks. Neither imports torch.
"""

from dataclasses import dataclass
from typing import Protocol

from bench.records.gpu import GpuFacts

# nvmlReturn_t, https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html
NOT_SUPPORTED = 3
NOT_FOUND = 6
FUNCTION_NOT_FOUND = 13
ARGUMENT_VERSION_MISMATCH = 25
# Whoever answers so answers nothing else either: uninitialised, driver not loaded, GPU lost, reset required.
GONE = frozenset({1, 9, 15, 16})


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that has memory on a GPU; None bytes where the driver knows the process but not its share."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """Readings of one moment, on the clock of ``time.monotonic_ns``; None: not asked for or not to be had."""

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

    def sample(self, *, complete: bool = True) -> GpuSample:
        """Ask for everything once, or for the memory of device and compute processes only.

        Raises nothing: what fails is None and named in ``problems``.
        """


def say(error: Exception) -> str:
    """Return an error of pynvml or ctypes in a few words."""
    code = code_of(error)
    return f"{error} (NVML error {code})" if code is not None else f"{type(error).__name__}: {error}"


def code_of(error: Exception) -> int | None:
    """Return the nvmlReturn_t of an error; None for one that is not NVML's."""
    if type(error).__name__ == "NVMLLibraryMismatchError":  # pynvml derives it from Exception, not NVMLError
        return FUNCTION_NOT_FOUND
    code = getattr(error, "value", None)
    return code if isinstance(code, int) else None


def known(value: int | None) -> int | None:
    """Return a number, or None for NVML_VALUE_NOT_AVAILABLE (all bits set, of 32 or 64)."""
    return None if value in (None, 2**32 - 1) or value >= 2**63 else value
