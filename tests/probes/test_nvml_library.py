"""What NVML lists, and one sentence for each way in which it cannot be opened."""

import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest

from bench.errors import UnavailableError
from bench.probes.nvml import open_nvml
from bench.records.readings import GpuFacts
from virtual_gpu import GIB, Box, VirtualCard, VirtualGpus, VirtualSlice

CARD = VirtualCard()
SLICE = VirtualSlice()
CUT = replace(CARD, mig_mode=True, slices=(SLICE, VirtualSlice(uuid="MIG-b")))


def list_gpus() -> tuple[tuple[GpuFacts, ...], dict[str, bool | None], tuple[str, ...]]:
    """Open NVML and list what it shows."""
    with open_nvml() as nvml:
        return nvml.gpus(), {gpu.uuid: nvml.mig_mode(gpu.uuid) for gpu in nvml.gpus()}, nvml.problems


def open_gpu(uuid: str) -> None:
    """Open NVML and one device of it."""
    with open_nvml() as nvml:
        nvml.gpu(uuid)


def test_cards_and_slices_are_listed_with_what_they_are(gpus: VirtualGpus, box: Box) -> None:
    """Cards in NVML's order, each followed by its slices, which know their card."""
    second = VirtualCard(uuid="GPU-2", name="NVIDIA T4", power_limit_mw=None, total_bytes=None, mig_mode=None)
    gpus.write(CUT, second, driver_version="470.1")
    facts, mig_modes, problems = box.call(list_gpus)
    assert () == problems
    assert [CARD.uuid, SLICE.uuid, "MIG-b", "GPU-2"] == [gpu.uuid for gpu in facts]
    assert {CARD.uuid: True, SLICE.uuid: None, "MIG-b": None, "GPU-2": None} == mig_modes
    assert [
        GpuFacts(
            uuid=CARD.uuid,
            name=CARD.name,
            index=0,
            pci_bus_id="00000000:01:00.0",
            total_bytes=80 * GIB,
            driver_version="470.1",
            power_limit_mw=700_000,
        ),
        GpuFacts(
            uuid=SLICE.uuid,
            name=SLICE.name,
            total_bytes=10 * GIB,
            parent_uuid=CARD.uuid,
            driver_version="470.1",
        ),
    ] == list(facts[:2])
    assert (1, None, None) == (facts[3].index, facts[3].total_bytes, facts[3].power_limit_mw)


def test_a_card_in_mig_mode_without_slices_is_told(gpus: VirtualGpus, box: Box) -> None:
    """CUDA shows nothing there, and the mode says why."""
    gpus.write(replace(CARD, mig_mode=True))
    facts, mig_modes, _ = box.call(list_gpus)
    assert ([CARD.uuid], {CARD.uuid: True}) == ([gpu.uuid for gpu in facts], mig_modes)


def test_a_card_that_may_not_be_opened_hides_no_other(gpus: VirtualGpus, box: Box) -> None:
    """The one is a problem with its number and reason, the other is listed."""
    gpus.write(replace(CARD, refuses_with=4), VirtualCard(uuid="GPU-2"))
    facts, _, problems = box.call(list_gpus)
    assert [("GPU-2", 1)] == [(gpu.uuid, gpu.index) for gpu in facts]
    assert ("GPU 0: Insufficient Permissions (NVML error 4)",) == problems


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, "this user may not open the driver's devices; check the permissions of /dev/nvidia*"),
        (9, "the driver's kernel module is not loaded; load it with modprobe nvidia, or reboot"),
        (13, "the driver is too old for the installed nvidia-ml-py; update the driver"),
        (
            18,
            (
                "the driver's kernel module and its library have different versions; reboot to load the new "
                "module, or restart the container"
            ),
        ),
        (
            999,
            "it does not initialise (Unknown Error (NVML error 999)); see what nvidia-smi and dmesg say",
        ),
    ],
)
def test_a_driver_that_does_not_initialise_is_one_sentence(
    gpus: VirtualGpus, box: Box, code: int, words: str
) -> None:
    """What is wrong, and what to do."""
    gpus.write(CARD, fail={"nvmlInit": code})
    with pytest.raises(UnavailableError) as caught:
        box.call(list_gpus)
    assert f"NVML cannot be asked: {words}" == str(caught.value)


@pytest.mark.parametrize(
    ("cards", "fail", "reason"),
    [
        ((), {}, ""),
        ((replace(CARD, refuses_with=4),), {}, " (GPU 0: Insufficient Permissions (NVML error 4))"),
        ((CARD,), {"nvmlDeviceGetCount_v2": 1}, " (number of GPUs: Uninitialized (NVML error 1))"),
    ],
)
def test_a_driver_without_gpus_is_one_sentence(
    gpus: VirtualGpus, box: Box, cards: tuple[VirtualCard, ...], fail: Mapping[str, int], reason: str
) -> None:
    """A driver that shows nothing says why, if it said so."""
    gpus.write(*cards, fail=fail)
    with pytest.raises(UnavailableError) as caught:
        box.call(list_gpus)
    assert (
        f"NVIDIA's driver is here but shows no GPU{reason}; check nvidia-smi -L, and that the container, if "
        "this is one, was given a GPU"
    ) == str(caught.value)


def test_a_device_that_is_not_there_is_named(gpus: VirtualGpus, box: Box) -> None:
    """No other device is taken in its place."""
    gpus.write(CARD)
    with pytest.raises(UnavailableError, match="NVML shows no device GPU-no; see those it shows"):
        box.call(open_gpu, "GPU-no")


def test_a_machine_without_a_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is looked for as on any machine, and is not there."""

    def find_nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    pynvml = pytest.importorskip("pynvml")
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", find_nothing)
    expected = (
        "NVML cannot be asked: no NVIDIA driver is installed here (libnvidia-ml.so.1 is not found); install "
        "it, or start the container with its GPUs"
    )
    with pytest.raises(UnavailableError) as caught, open_nvml():
        pass
    assert expected == str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnavailableError, match="pip install nvidia-ml-py"), open_nvml():
        pass
