"""NVML opened, with the cards and MIG slices it shows; asked by the parent only, never inside a worker.

Imports pynvml only when NVML is opened, and torch never.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bench.errors import UnavailableError
from bench.probes.nvml.device import Gpu, NvmlDevice, code_of, known, say
from bench.records.readings import GpuFacts

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


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A device as it was when NVML was opened; ``card`` is its own handle, or its card's if it is a slice."""

    facts: GpuFacts
    handle: Any
    card: Any


class Nvml:
    """NVML, initialised: the cards and MIG slices that were there when it was opened."""

    def __init__(self, library: ModuleType) -> None:
        """Take an initialised ``pynvml``; raise ``UnavailableError`` when it shows no GPU."""
        self._library = library
        self._problems: list[str] = []
        self.driver_version: str | None = self._try("driver version", library.nvmlSystemGetDriverVersion)
        self._mig_modes: dict[str, bool | None] = {}
        self._found = {device.facts.uuid: device for device in self._cards()}
        if not self._found:
            reasons = f" ({'; '.join(self._problems)})" if self._problems else ""
            raise UnavailableError(
                f"NVIDIA's driver is here but shows no GPU{reasons}; check nvidia-smi -L, and that the "
                "container, if this is one, was given a GPU"
            )

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be asked when NVML was opened, in words."""
        return tuple(self._problems)

    def gpus(self) -> tuple[GpuFacts, ...]:
        """Return the cards in the order of the PCI bus, each followed by its MIG slices."""
        return tuple(device.facts for device in self._found.values())

    def mig_mode(self, uuid: str) -> bool | None:
        """Tell whether a card is cut into slices; None where the driver does not tell, or for a slice."""
        return self._mig_modes.get(uuid)

    def gpu(self, uuid: str) -> Gpu:
        """Return a device to ask; raise ``UnavailableError`` when NVML does not show it."""
        if (device := self._found.get(uuid)) is None:
            raise UnavailableError(f"NVML shows no device {uuid}; see those it shows with nvidia-smi -L")
        return NvmlDevice(self._library, device.facts, handle=device.handle, card=device.card)

    def _cards(self) -> Iterator[_Found]:
        count = self._try("number of GPUs", self._library.nvmlDeviceGetCount) or 0
        for index in range(count):
            card = self._try(f"GPU {index}", self._library.nvmlDeviceGetHandleByIndex, index)
            facts = card and self._facts(card, index)
            if not facts:
                continue
            yield _Found(facts=facts, handle=card, card=card)
            yield from self._slices(card, facts)

    def _slices(self, card: Any, facts: GpuFacts) -> Iterator[_Found]:
        # Most cards know no MIG and say NotSupported, which is an answer and no problem.
        mode = self._quietly(self._library.nvmlDeviceGetMigMode, card)
        self._mig_modes[facts.uuid] = bool(mode[0]) if mode is not None else None
        if not self._mig_modes[facts.uuid]:
            return
        for number in range(self._quietly(self._library.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
            part = self._quietly(self._library.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
            if part_facts := part and self._facts(part, None, parent=facts):
                yield _Found(facts=part_facts, handle=part, card=card)

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
            card_facts["power_limit_mw"] = known(
                self._quietly(library.nvmlDeviceGetEnforcedPowerLimit, handle)
            )
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
            self._problems.append(f"{what}: {say(error)}")
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
