"""The driver's view of GPUs and MIG slices, through NVML; asked by the parent only, never inside a worker.

They are asked again and again by pynvml's functions of drivers that torch runs on. Imports pynvml only when
NVML is opened, and torch never.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from bench.errors import UnavailableError
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

    Never raises and never retries: what cannot be read is None, and said once.

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


_ADVICE = {
    1: "NVML was shut down or its library is gone; check the driver's installation with nvidia-smi",
    4: "this user may not open the driver's devices; check the permissions of /dev/nvidia*",
    9: "the driver's kernel module is not loaded; load it with modprobe nvidia, or reboot",
    12: "no NVIDIA driver is installed here (libnvidia-ml.so.1 is not found); install it, or start the "
    "container with its GPUs",
    13: "the driver is too old for the installed nvidia-ml-py; update the driver",
    18: "the driver's kernel module and its library have different versions; reboot to load the new module, "
    "or restart the container",
}


_Device = tuple[GpuFacts, Any, Any]
"""What a device was when NVML was opened, its handle, and that of the card it is or is cut from."""


class Nvml:
    """NVML, initialised: the cards and MIG slices that were there when it was opened."""

    def __init__(self, library: ModuleType) -> None:
        """Take an initialised ``pynvml``; raise ``UnavailableError`` when it shows no GPU."""
        self._library = library
        self.problems: tuple[str, ...] = ()
        """What could not be asked when NVML was opened, in words."""
        self.driver_version: str | None = self._try("driver version", library.nvmlSystemGetDriverVersion)
        self._mig_modes: dict[str, bool | None] = {}
        self._found = {device[0].uuid: device for device in self._devices()}
        if not self._found:
            reasons = "; ".join(self.problems)
            raise UnavailableError(
                f"NVIDIA's driver is here but shows no GPU{reasons and f' ({reasons})'}; check "
                "nvidia-smi -L, and that the container, if this is one, was given a GPU"
            )

    def gpus(self) -> tuple[GpuFacts, ...]:
        """Return the cards in the order of the PCI bus, each followed by its MIG slices."""
        return tuple(facts for facts, _, _ in self._found.values())

    def mig_mode(self, uuid: str) -> bool | None:
        """Tell whether a card is cut into slices; None where the driver does not tell, or for a slice."""
        return self._mig_modes.get(uuid)

    def gpu(self, uuid: str) -> Gpu:
        """Return a device to ask; raise ``UnavailableError`` when NVML does not show it."""
        if uuid not in self._found:
            raise UnavailableError(f"NVML shows no device {uuid}; see those it shows with nvidia-smi -L")
        facts, handle, card = self._found[uuid]
        return NvmlDevice(self._library, facts, handle=handle, card=card)

    def _devices(self) -> Iterator[_Device]:
        count = self._try("number of GPUs", self._library.nvmlDeviceGetCount) or 0
        for index in range(count):
            card = self._try(f"GPU {index}", self._library.nvmlDeviceGetHandleByIndex, index)
            if facts := card and self._facts(card, index):
                yield facts, card, card
                yield from self._slices(card, facts)

    def _slices(self, card: Any, facts: GpuFacts) -> Iterator[_Device]:
        # Most cards know no MIG and say NotSupported, which is an answer and no problem.
        mode = self._quietly(self._library.nvmlDeviceGetMigMode, card)
        self._mig_modes[facts.uuid] = bool(mode[0]) if mode is not None else None
        if not self._mig_modes[facts.uuid]:
            return
        for number in range(self._quietly(self._library.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
            part = self._quietly(self._library.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
            if part_facts := part and self._facts(part, None, parent=facts):
                yield part_facts, part, card

    def _facts(self, handle: Any, index: int | None, *, parent: GpuFacts | None = None) -> GpuFacts | None:
        library = self._library
        what = f"GPU {index}" if parent is None else f"MIG slice of GPU {parent.index}"
        uuid = self._try(f"UUID of {what}", library.nvmlDeviceGetUUID, handle)
        if not uuid:
            return None
        card_facts: dict[str, Any] = {"index": index}
        if parent is None:
            pci = self._try(f"PCI address of {what}", library.nvmlDeviceGetPciInfo, handle)
            bus = getattr(pci, "busId", None)
            card_facts["pci_bus_id"] = bus.decode(errors="replace") if isinstance(bus, bytes) else bus
            limit = self._quietly(library.nvmlDeviceGetEnforcedPowerLimit, handle)
            card_facts["power_limit_mw"] = known(limit)
        memory = self._quietly(library.nvmlDeviceGetMemoryInfo, handle)
        return GpuFacts(
            uuid=uuid,
            name=self._try(f"name of {what}", library.nvmlDeviceGetName, handle),
            total_bytes=known(getattr(memory, "total", None)),
            parent_uuid=parent.uuid if parent else None,
            driver_version=self.driver_version,
            **card_facts,
        )

    def _try(self, what: str, question: Any, *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except Exception as error:  # noqa: BLE001 - ctypes and pynvml raise anything; one card must not hide others
            self.problems += (f"{what}: {say(error)}",)
        return None

    def _quietly(self, question: Any, *arguments: Any) -> Any:
        """Return an answer, or None where not having one is usual."""
        with contextlib.suppress(Exception):
            return question(*arguments)
        return None


@contextlib.contextmanager
def open_nvml() -> Iterator[Nvml]:
    """Initialise NVML for the time being.

    Raises ``UnavailableError`` with one sentence when there is no package, library, driver, permission or
    GPU, or when driver and library do not fit.
    """
    try:
        import pynvml  # noqa: TID251 - here only, when NVML is first asked
    except ImportError as error:
        raise UnavailableError(
            "NVML cannot be asked without the package nvidia-ml-py; pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except Exception as error:
        unknown = f"it does not initialise ({say(error)}); see what nvidia-smi and dmesg say"
        reason = _ADVICE.get(code_of(error) or 0, unknown)
        raise UnavailableError(f"NVML cannot be asked: {reason}") from error
    try:
        yield Nvml(pynvml)
    finally:
        with contextlib.suppress(Exception):  # a library that is gone needs no farewell
            pynvml.nvmlShutdown()


def torchs_device(gpus: Sequence[GpuFacts], uuid: str | None) -> tuple[GpuFacts | None, str]:
    """Return the card or slice that a worker's ``DeviceFacts.cuda_uuid`` names, or none; and why."""
    if uuid is None:
        return None, "Torch did not tell which device it runs on; update the driver."
    own = next((gpu for gpu in gpus if _bare(gpu.uuid) == _bare(uuid)), None)
    if own is None:
        return None, (
            f"Torch runs on {uuid}, which NVML does not show; give this process the same GPUs as the worker, "
            "or update the driver."
        )
    slices = [gpu for gpu in gpus if gpu.parent_uuid == own.uuid]
    if len(slices) > 1:  # CUDA before 12 gives a slice its card's UUID (cuDeviceGetUuid)
        return None, f"Torch runs on one of the slices of {own.uuid}, and CUDA before 12 tells no more."
    return (slices or [own])[0], f"Torch runs on {own.uuid}, and NVML shows it."


def _bare(uuid: str) -> str:
    """Return a UUID without GPU- or MIG-, since torch gives none of them."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()
