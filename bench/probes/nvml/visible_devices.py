"""Which of NVML's devices is torch's device 0: by the worker's own answer, else by CUDA's variables.

Pure: asks neither NVML nor CUDA. The rules of CUDA_VISIBLE_DEVICES are those of the CUDA C++ Programming
Guide, "CUDA Environment Variables", https://docs.nvidia.com/cuda/cuda-c-programming-guide/
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.records.readings import GpuFacts

PCI_ORDER = "PCI_BUS_ID"
_INDEX = re.compile(r"\s*([+-]?\d+)")  # CUDA reads a number as C's strtol does: "1gpu" is 1


@dataclass(frozen=True)
class Address:
    """The device, or None; why, in one sentence; and whether two sources contradict each other."""

    gpu: GpuFacts | None
    reason: str
    contradiction: bool = False


def resolve_uuid(
    gpus: Sequence[GpuFacts],
    *,
    visible_devices: str | None,
    device_order: str | None,
    worker_uuid: str | None = None,
) -> Address:
    """Return the device among ``gpus`` (cards in NVML's order, each before its slices) that CUDA calls 0.

    ``visible_devices`` and ``device_order`` are CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER as the worker
    has them, ``worker_uuid`` is ``DeviceFacts.cuda_uuid``. What the worker says wins, and where the
    variables say otherwise that is a contradiction.
    """
    told = _first_visible(gpus, visible_devices, device_order)
    if worker_uuid is None:
        return told
    found = [gpu for gpu in gpus if _body(gpu.uuid) == _body(worker_uuid)]
    if not found:
        return Address(
            None,
            f"Torch runs on {worker_uuid}, which NVML does not show; give this process the same GPUs "
            "as the worker, or update the driver.",
            contradiction=True,
        )
    if slices := _slices(gpus, found[0]):  # CUDA before 12 gives a slice its card's UUID (cuDeviceGetUuid)
        if_one = f"{slices[0].uuid} is the only MIG slice of {found[0].uuid}"
        if_several = f"Torch runs on one of the slices of {found[0].uuid}"
        return told if told.gpu in slices else _of_slices(slices, if_one, if_several)
    if told.gpu is not None and told.gpu.uuid != found[0].uuid:
        return Address(
            found[0],
            f"Torch runs on {found[0].uuid}, not where its variables point: {told.reason}",
            contradiction=True,
        )
    return Address(found[0], f"Torch runs on {found[0].uuid}, and NVML shows it.")


def _first_visible(gpus: Sequence[GpuFacts], visible: str | None, order: str | None) -> Address:
    """Return what CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say device 0 is."""
    cards = [gpu for gpu in gpus if gpu.parent_uuid is None]
    if visible is None:
        return _unrestricted(gpus, cards, order)
    setting = f"CUDA_VISIBLE_DEVICES={visible}"
    entries = visible.split(",")
    if entries[0].startswith(("GPU-", "MIG-")):
        if entries.count(entries[0]) > 1:
            return _none(setting, "names one twice")
        return _by_name(gpus, entries[0], setting)
    index, why = _first_index(entries, len(cards))
    if index is None:
        return _none(setting, why)
    if len(cards) > 1 and order != PCI_ORDER:
        return _unordered(f"{setting} counts by speed")
    return _card(gpus, cards[index], f"{setting} is {cards[index].uuid}")


def _first_index(entries: Sequence[str], count: int) -> tuple[int | None, str]:
    """Return the index of device 0, or None and why CUDA shows nothing."""
    indices = [int(match[1]) if match else None for match in map(_INDEX.match, entries)]
    if indices[0] is None:
        return None, "begins with no index or UUID"
    if not 0 <= indices[0] < count:
        return None, f"begins with an index that is none of the {count} here"
    if indices.count(indices[0]) > 1:
        return None, "names one twice"
    return indices[0], ""


def _unrestricted(gpus: Sequence[GpuFacts], cards: Sequence[GpuFacts], order: str | None) -> Address:
    slices = [gpu for gpu in gpus if gpu.parent_uuid is not None]
    if slices:
        # MIG User Guide, "CUDA Device Enumeration": CUDA shows no uncut card beside a slice, and of several
        # slices it picks. https://docs.nvidia.com/datacenter/tesla/mig-user-guide/mig-device-names.html
        return _of_slices(
            slices, f"{slices[0].uuid} is the only MIG slice here", "CUDA takes one of several MIG slices"
        )
    if not cards:
        return Address(None, "NVML shows no GPU.")
    if len(cards) > 1 and order != PCI_ORDER:
        return _unordered("CUDA counts by speed")
    reason = "is the only GPU here" if len(cards) == 1 else "is the first in the order of the PCI bus"
    return Address(cards[0], f"{cards[0].uuid} {reason}.")


def _by_name(gpus: Sequence[GpuFacts], name: str, setting: str) -> Address:
    """Return the device whose UUID begins so, as CUDA takes it: of several it is none."""
    found = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    if not found and name.startswith("MIG-GPU-"):  # MIG-<card>/<instances>, as drivers before 470 name slices
        card = name.removeprefix("MIG-").partition("/")[0]
        found = [gpu for gpu in gpus if gpu.uuid == card]
    if not found:
        return _none(setting, "names none that NVML shows")
    if len(found) > 1:
        return _none(setting, "fits several")
    return _card(gpus, found[0], f"{setting} is {found[0].uuid}")


def _card(gpus: Sequence[GpuFacts], card: GpuFacts, reason: str) -> Address:
    """Return a device, or the one slice of a card that is cut."""
    slices = _slices(gpus, card)
    if not slices:
        return Address(card, f"{reason}.")
    if_one = f"{reason}, and {slices[0].uuid} is its only MIG slice"
    return _of_slices(slices, if_one, f"{reason}, which is cut into {len(slices)} MIG slices")


def _slices(gpus: Sequence[GpuFacts], card: GpuFacts) -> list[GpuFacts]:
    return [gpu for gpu in gpus if gpu.parent_uuid == card.uuid]


def _none(setting: str, why: str) -> Address:
    return Address(None, f"{setting} {why}, so CUDA shows no GPU; set it to a UUID of nvidia-smi -L.")


def _unordered(why: str) -> Address:
    return Address(None, f"{why}, and NVML by PCI bus; set CUDA_DEVICE_ORDER={PCI_ORDER}, or name a UUID.")


def _of_slices(slices: Sequence[GpuFacts], if_one: str, if_several: str) -> Address:
    if len(slices) == 1:
        return Address(slices[0], f"{if_one}.")
    advice = "set CUDA_VISIBLE_DEVICES to the slice's UUID, as nvidia-smi -L shows it"
    return Address(None, f"{if_several}; {advice}.")


def _body(uuid: str) -> str:
    """Return a UUID without GPU- or MIG-, since torch gives none of them."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()
