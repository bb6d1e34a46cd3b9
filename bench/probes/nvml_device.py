"""One GPU or MIG slice, asked again and again: the newest function that the driver has, else an older one.

Never raises and never retries: what cannot be read is None, and said once.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bench.probes.nvml import (
    ARGUMENT_VERSION_MISMATCH,
    FUNCTION_NOT_FOUND,
    GONE,
    NOT_SUPPORTED,
    GpuProcess,
    GpuSample,
    code_of,
    known,
    say,
)
from bench.results.gpu import GpuFacts

Question = Callable[[Any], Any]
_MISSING = frozenset({FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH})


@dataclass(kw_only=True)
class _Reading:
    """One thing to ask for, and the functions that tell it, newest first; the driver's own is found once."""

    what: str
    functions: Sequence[tuple[str, Question]]
    highest: int = 2**63 - 1
    at: int = 0
    over: bool = False

    @property
    def version(self) -> str:
        return self.functions[self.at][0]


class NvmlDevice:
    """A device behind the protocol ``Gpu``; keep NVML open as long as it is asked.

    Of a MIG slice NVML tells memory and processes only. Clock, temperature and event reasons are then the
    card's, which all its slices share; power and energy are not taken from the card, since they are of all
    slices together.
    """

    def __init__(self, library: ModuleType, facts: GpuFacts, *, handle: Any, card: Any) -> None:  # noqa: ANN401 - pynvml has no types
        """Take NVML's handles of the device and of the card it is or is cut from."""
        self.facts = facts
        self.memory_version: str | None = None
        self.processes_version: str | None = None
        self.problems: tuple[str, ...] = ()
        self._handle = handle
        self._card = card
        self._gone = False
        self._memory = _Reading(what="device memory", functions=_memory_functions(library))
        self._compute = _Reading(what="processes", functions=_process_functions(library, "Compute"))
        self._graphics = _Reading(
            what="graphics processes", functions=_process_functions(library, "Graphics")
        )
        self._utilisation = _Reading(
            what="utilisation",
            functions=(("", lambda handle: library.nvmlDeviceGetUtilizationRates(handle).gpu),),
            highest=100,
        )
        self._power = _reading(library, "power", "nvmlDeviceGetPowerUsage")
        self._energy = _reading(library, "energy", "nvmlDeviceGetTotalEnergyConsumption")
        self._sm_clock = _Reading(
            what="SM clock",
            functions=(("", lambda handle: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)),),
        )
        self._temperature = _Reading(what="temperature", functions=_temperature_functions(library))
        self._event_reasons = _reading(
            library,
            "clock event reasons",
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",  # its name before driver 535
        )
        if facts.parent_uuid is not None:
            self._power.over = self._energy.over = True
            self._note("power and energy: the card's count all its MIG slices together, so none are stated")
            self._note("clock, temperature and clock event reasons: the card's, which its MIG slices share")

    def sample(self) -> GpuSample:
        """Ask for everything once; what fails is None and named in ``problems``."""
        self._gone = False
        at_ns = time.monotonic_ns()
        used_bytes = self._ask(self._memory, self._handle)
        if used_bytes is not None:
            self.memory_version = self._memory.version
            if self.memory_version == "v1":
                self._note("device memory: version 1 of the function, which counts what the driver reserves")
        return GpuSample(
            at_ns=at_ns,
            device_used_bytes=used_bytes,
            processes=self._processes(),
            utilisation_percent=self._ask(self._utilisation, self._handle),
            power_mw=self._ask(self._power, self._card),
            energy_mj=self._ask(self._energy, self._card),
            sm_clock_mhz=self._ask(self._sm_clock, self._card),
            temperature_c=self._ask(self._temperature, self._card),
            event_reasons=self._ask(self._event_reasons, self._card),
        )

    def _processes(self) -> tuple[GpuProcess, ...] | None:
        """Return compute and graphics processes as one list; None where compute processes are not told."""
        compute = self._answer(self._compute, self._handle)
        graphics = self._answer(self._graphics, self._handle)
        if compute is None:
            return None
        self.processes_version = self._compute.version
        used_bytes = _sum_by_pid(compute)
        for pid, graphics_bytes in _sum_by_pid(graphics or []).items():
            # A process on both lists has the same memory on both.
            used_bytes[pid] = max((used_bytes.get(pid), graphics_bytes), key=lambda share: share or -1)
        if None in used_bytes.values():
            self._note("memory of processes: the driver does not tell it of all of them (N/A)")
        return tuple(GpuProcess(pid=pid, used_bytes=share) for pid, share in sorted(used_bytes.items()))

    def _ask(self, reading: _Reading, handle: Any) -> int | None:  # noqa: ANN401 - pynvml has no types
        """Return a number; None for N/A and for what no such reading can be."""
        answer = self._answer(reading, handle)
        if answer is None:
            return None
        value = known(answer)
        if value is None or value > reading.highest:
            self._note(f"{reading.what}: not available (N/A)")
            return None
        return value

    def _answer(self, reading: _Reading, handle: Any) -> Any:  # noqa: ANN401 - pynvml has no types
        """Ask, going down to an older function where the driver lacks the newer."""
        while not (self._gone or reading.over):
            try:
                return reading.functions[reading.at][1](handle)
            except Exception as error:  # noqa: BLE001 - ctypes and pynvml raise anything, and a sampler must go on
                self._learn(reading, error)
                if not _is_missing(error):
                    break
        return None

    def _learn(self, reading: _Reading, error: Exception) -> None:
        """Remember what an error means for the next time."""
        code = code_of(error)
        if code in GONE:
            self._gone = True  # for this sample: each further call may block until the driver gives up
            self._note(f"everything: {say(error)}")
        elif _is_missing(error) and reading.at + 1 < len(reading.functions):
            reading.at += 1
        else:
            reading.over = _is_missing(error) or code == NOT_SUPPORTED
            self._note(f"{reading.what}: {say(error)}")

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems += (problem,)


def _is_missing(error: Exception) -> bool:
    """Tell whether the driver, or an older pynvml, lacks the function."""
    return isinstance(error, AttributeError) or code_of(error) in _MISSING


def _reading(library: ModuleType, what: str, *names: str) -> _Reading:
    """Return a reading of functions that take a device and give a number."""
    return _Reading(what=what, functions=[(name, _named(library, name)) for name in names])


def _named(library: ModuleType, name: str, *arguments: object) -> Question:
    return lambda handle: getattr(library, name)(handle, *arguments)


def _memory_functions(library: ModuleType) -> Sequence[tuple[str, Question]]:
    """Return the functions for used bytes; version 1 counts what the driver reserves among them."""
    return (
        ("v2", lambda handle: library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2).used),
        ("v1", lambda handle: library.nvmlDeviceGetMemoryInfo(handle).used),
    )


def _temperature_functions(library: ModuleType) -> Sequence[tuple[str, Question]]:
    """Return the function that every driver so far has, and the one that is to replace it."""
    sensor = library.NVML_TEMPERATURE_GPU
    return (
        ("", _named(library, "nvmlDeviceGetTemperature", sensor)),
        ("", _named(library, "nvmlDeviceGetTemperatureV", sensor)),
    )


def _process_functions(library: ModuleType, kind: str) -> Sequence[tuple[str, Question]]:
    name = f"nvmlDeviceGet{kind}RunningProcesses"
    return (
        ("v3", _named(library, f"{name}_v3")),
        ("v2", _named(library, f"{name}_v2")),
        ("v1", lambda handle: _processes_v1(library, name, handle)),
    )


class _ProcessV1(ctypes.Structure):
    """nvmlProcessInfo_v1_t, which pynvml has no name for any more."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))


_ROOM_V1 = 1024


def _processes_v1(library: ModuleType, name: str, handle: Any) -> list[_ProcessV1]:  # noqa: ANN401 - pynvml has no types
    """Ask a driver older than 450; pynvml's function without a version asks for the newest."""
    function = getattr(library.nvmlLib, name)
    count, processes = ctypes.c_uint(_ROOM_V1), (_ProcessV1 * _ROOM_V1)()
    code = function(handle, ctypes.byref(count), processes)
    if code != library.NVML_SUCCESS:
        raise library.NVMLError(code)
    return processes[: count.value]


def _sum_by_pid(processes: Sequence[Any]) -> dict[int, int | None]:
    """Return bytes by process; a card cut into slices lists a process once for each slice it is on."""
    sums: dict[int, int | None] = {}
    for process in processes:
        before, used_bytes = sums.get(process.pid, 0), known(process.usedGpuMemory)
        sums[process.pid] = None if before is None or used_bytes is None else before + used_bytes
    return sums
