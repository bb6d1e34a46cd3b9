"""One GPU or MIG slice, asked again and again by pynvml's functions of drivers that torch runs on.

Never raises and never retries: what cannot be read is None, and said once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from bench.records.readings import GpuFacts

# nvmlReturn_t, https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html
FUNCTION_NOT_FOUND = 13
MEMORY_VERSION, PROCESSES_VERSION = "v2", "v3"  # of NVML's functions that are asked
_NEVER = frozenset({3, FUNCTION_NOT_FOUND, 25})  # not supported, or not by this driver's version
# Whoever answers so answers nothing else either: uninitialised, driver not loaded, GPU lost, reset required.
GONE = frozenset({1, 9, 15, 16})


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """Readings of one moment, on the clock of ``time.monotonic_ns``; None: not asked for or not to be had.

    ``processes`` has the bytes of each by its number, None where the driver knows it but not its share.
    """

    at_ns: int
    device_used_bytes: int | None = None
    processes: Mapping[int, int | None] | None = None
    utilisation_percent: int | None = None
    power_mw: int | None = None
    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    event_reasons: int | None = None


class Gpu(Protocol):
    """One GPU or MIG slice that can be asked again and again."""

    facts: GpuFacts
    problems: tuple[str, ...]

    def sample(self, *, complete: bool = True) -> GpuSample:
        """Ask for everything once, or for the memory of device and compute processes only.

        Raises nothing: what fails is None and named in ``problems``.
        """


@dataclass(kw_only=True)
class _Reading:
    """One thing to ask for; once ``over`` the device can never tell it."""

    what: str
    ask: Callable[[Any], Any]
    highest: int = 2**63 - 1
    over: bool = False


class NvmlDevice:
    """A device behind the protocol ``Gpu``; keep NVML open as long as it is asked.

    Of a MIG slice NVML tells memory and processes only. Clock, temperature and event reasons are then the
    card's, which all its slices share; power and energy are not taken from the card, since they are of all
    slices together.
    """

    def __init__(self, library: ModuleType, facts: GpuFacts, *, handle: Any, card: Any) -> None:
        """Take NVML's handles of the device and of the card it is or is cut from."""
        self.facts = facts
        self.problems: tuple[str, ...] = ()
        self._handle = handle
        self._card = card
        self._gone = False
        self._memory = _Reading(
            what="device memory",
            ask=lambda device: library.nvmlDeviceGetMemoryInfo(device, version=library.nvmlMemory_v2).used,
        )
        self._compute = _Reading(what="processes", ask=library.nvmlDeviceGetComputeRunningProcesses_v3)
        self._graphics = _Reading(
            what="graphics processes", ask=library.nvmlDeviceGetGraphicsRunningProcesses_v3
        )
        self._utilisation = _Reading(
            what="utilisation",
            ask=lambda device: library.nvmlDeviceGetUtilizationRates(device).gpu,
            highest=100,
        )
        self._of_card = {
            "power_mw": _Reading(what="power", ask=library.nvmlDeviceGetPowerUsage),
            "energy_mj": _Reading(what="energy", ask=library.nvmlDeviceGetTotalEnergyConsumption),
            "sm_clock_mhz": _Reading(
                what="SM clock",
                ask=lambda card: library.nvmlDeviceGetClockInfo(card, library.NVML_CLOCK_SM),
            ),
            "temperature_c": _Reading(
                what="temperature",
                ask=lambda card: library.nvmlDeviceGetTemperature(card, library.NVML_TEMPERATURE_GPU),
            ),
            # By the name that drivers before 535 have too.
            "event_reasons": _Reading(
                what="clock event reasons", ask=library.nvmlDeviceGetCurrentClocksThrottleReasons
            ),
        }
        if facts.parent_uuid is not None:
            self._of_card["power_mw"].over = self._of_card["energy_mj"].over = True
            self._note("power and energy: the card's count all its MIG slices together, so none are stated")
            self._note("clock, temperature and clock event reasons: the card's, which its MIG slices share")

    def sample(self, *, complete: bool = True) -> GpuSample:
        """Ask for everything once, or for memory only; what fails is None and named in ``problems``."""
        self._gone = False
        at_ns = time.monotonic_ns()
        used_bytes = self._ask(self._memory, self._handle)
        processes = self._processes(complete=complete)
        others: dict[str, int | None] = {}
        if complete:
            others["utilisation_percent"] = self._ask(self._utilisation, self._handle)
            others |= {name: self._ask(reading, self._card) for name, reading in self._of_card.items()}
        return GpuSample(at_ns=at_ns, device_used_bytes=used_bytes, processes=processes, **others)

    def _processes(self, *, complete: bool) -> dict[int, int | None] | None:
        """Return compute and graphics processes by number; None where compute processes are not told.

        Those that only draw, as no worker does, are left out of a sample that is not complete.
        """
        compute = self._answer(self._compute, self._handle)
        used_bytes = {} if compute is None else _sum_by_pid(compute)
        if complete or None in used_bytes.values():
            graphics = self._answer(self._graphics, self._handle)
            for pid, graphics_bytes in _sum_by_pid(graphics or []).items():
                # A process on both lists has the same memory on both.
                used_bytes[pid] = max((used_bytes.get(pid), graphics_bytes), key=lambda share: share or -1)
        if compute is None:
            return None
        if None in used_bytes.values():
            self._note("memory of processes: the driver does not tell it of all of them (N/A)")
        return dict(sorted(used_bytes.items()))

    def _ask(self, reading: _Reading, handle: Any) -> int | None:
        answer = self._answer(reading, handle)
        if answer is None:
            return None
        value = known(answer)
        if value is None or value > reading.highest:
            self._note(f"{reading.what}: not available (N/A)")
            return None
        return value

    def _answer(self, reading: _Reading, handle: Any) -> Any:
        if self._gone or reading.over:
            return None
        try:
            return reading.ask(handle)
        except Exception as error:  # noqa: BLE001 - ctypes and pynvml raise anything, and a sampler must go on
            code = code_of(error)
            self._gone = code in GONE  # for this sample: each further call may block
            reading.over = code in _NEVER
            self._note(f"{'everything' if self._gone else reading.what}: {say(error)}")
            return None

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems += (problem,)


def _sum_by_pid(processes: Sequence[Any]) -> dict[int, int | None]:
    """Return bytes by process; a card cut into slices lists a process once for each slice it is on."""
    sums: dict[int, int | None] = {}
    for process in processes:
        before, used_bytes = sums.get(process.pid, 0), known(process.usedGpuMemory)
        sums[process.pid] = None if before is None or used_bytes is None else before + used_bytes
    return sums


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
