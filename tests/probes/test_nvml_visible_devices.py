"""Which device is torch's device 0, by CUDA's variables and by the worker's own answer."""

import pytest

from bench.probes.nvml.visible_devices import resolve_uuid
from bench.records.readings import GpuFacts

FIRST = GpuFacts(uuid="GPU-11111111-aaaa-4000-8000-000000000001", index=0)
SECOND = GpuFacts(uuid="GPU-11222222-aaaa-4000-8000-000000000002", index=1)
SLICE = GpuFacts(uuid="MIG-33333333-aaaa-4000-8000-000000000003", parent_uuid=SECOND.uuid)
SIBLING = GpuFacts(uuid="MIG-44444444-aaaa-4000-8000-000000000004", parent_uuid=SECOND.uuid)
CARDS = (FIRST, SECOND)
CUT = (FIRST, SECOND, SLICE)
CUT_TWICE = (FIRST, SECOND, SLICE, SIBLING)


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "expected"),
    [
        ((FIRST,), None, None, FIRST),
        ((FIRST,), "0", None, FIRST),
        (CARDS, None, "PCI_BUS_ID", FIRST),
        (CARDS, "1", "PCI_BUS_ID", SECOND),
        (CARDS, "1,0", "PCI_BUS_ID", SECOND),
        (CARDS, "1gpu2", "PCI_BUS_ID", SECOND),
        (CARDS, "1,-1", "PCI_BUS_ID", SECOND),
        (CARDS, "1,junk", "PCI_BUS_ID", SECOND),
        (CARDS, SECOND.uuid, None, SECOND),
        (CARDS, "GPU-112", None, SECOND),
        (CARDS, f"{SECOND.uuid},{FIRST.uuid}", None, SECOND),
        (CUT, SLICE.uuid, None, SLICE),
        (CUT, "MIG-GPU-11222222-aaaa-4000-8000-000000000002/1/0", None, SLICE),
        (CUT, SECOND.uuid, None, SLICE),
        (CUT, None, None, SLICE),
        (CUT_TWICE, f"{SIBLING.uuid},{SLICE.uuid}", "PCI_BUS_ID", SIBLING),
        (CUT_TWICE, "0", "PCI_BUS_ID", FIRST),
    ],
)
def test_the_variables_name_a_device(
    gpus: tuple[GpuFacts, ...], visible: str | None, order: str | None, expected: GpuFacts
) -> None:
    """Indices count by PCI bus, names may be cut short, and only the first entry decides."""
    address = resolve_uuid(gpus, visible_devices=visible, device_order=order)
    assert (expected, False) == (address.gpu, address.contradiction)
    assert expected.uuid in address.reason


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "why"),
    [
        ((), None, None, "NVML shows no GPU."),
        (CARDS, None, None, "CUDA counts by speed"),
        (CARDS, "1", "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES=1 counts by speed"),
        (CARDS, "", "PCI_BUS_ID", "begins with no index or UUID, so CUDA shows no GPU"),
        (CARDS, "-1", "PCI_BUS_ID", "begins with an index that is none of the 2 here"),
        (CARDS, "-1,0", "PCI_BUS_ID", "begins with an index that is none of the 2 here"),
        (CARDS, "7", "PCI_BUS_ID", "begins with an index that is none of the 2 here"),
        (CARDS, "NoDevFiles", "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=NoDevFiles begins with no index"),
        (CARDS, "0,0", "PCI_BUS_ID", "names one twice"),
        (CARDS, f"{FIRST.uuid},{FIRST.uuid}", None, "names one twice"),
        (CARDS, "GPU-11", None, "fits several"),
        (CARDS, "GPU-99", None, "names none that NVML shows"),
        (CARDS, SLICE.uuid, None, "names none that NVML shows"),
        (CUT_TWICE, None, "PCI_BUS_ID", "CUDA takes one of several MIG slices; set CUDA_VISIBLE_DEVICES"),
        (CUT_TWICE, "1", "PCI_BUS_ID", "which is cut into 2 MIG slices"),
        (CUT_TWICE, "MIG-GPU-11222222-aaaa-4000-8000-000000000002/1/0", None, "cut into 2 MIG slices"),
    ],
)
def test_what_the_variables_do_not_tell_is_not_guessed(
    gpus: tuple[GpuFacts, ...], visible: str | None, order: str | None, why: str
) -> None:
    """Without a device there is a reason that names the setting."""
    address = resolve_uuid(gpus, visible_devices=visible, device_order=order)
    assert address.gpu is None
    assert why in address.reason


def test_the_worker_knows_best() -> None:
    """Torch's own UUID settles what an index leaves open."""
    address = resolve_uuid(CARDS, visible_devices="1", device_order=None, worker_uuid=SECOND.uuid)
    assert (SECOND, False) == (address.gpu, address.contradiction)


@pytest.mark.parametrize("worker_uuid", [SLICE.uuid, "MIG-11222222-aaaa-4000-8000-000000000002"])
def test_a_slice_is_found_by_its_own_uuid_or_its_cards(worker_uuid: str) -> None:
    """CUDA before 12 gives a slice the UUID of its card; the variable then says which slice."""
    address = resolve_uuid(
        CUT_TWICE, visible_devices=SLICE.uuid, device_order="PCI_BUS_ID", worker_uuid=worker_uuid
    )
    assert (SLICE, False) == (address.gpu, address.contradiction)


def test_a_card_with_several_slices_is_not_one_of_them() -> None:
    """The UUID of the card alone does not say which slice torch is on."""
    address = resolve_uuid(CUT_TWICE, visible_devices=None, device_order=None, worker_uuid=SECOND.uuid)
    assert address.gpu is None
    assert address.reason.startswith(f"Torch runs on one of the slices of {SECOND.uuid}; set CUDA_VISIBLE")


def test_worker_and_variables_can_contradict_each_other() -> None:
    """The worker's answer is taken, and the contradiction said."""
    address = resolve_uuid(CARDS, visible_devices="1", device_order="PCI_BUS_ID", worker_uuid=FIRST.uuid)
    assert (FIRST, True) == (address.gpu, address.contradiction)
    assert (
        f"Torch runs on {FIRST.uuid}, not where its variables point: CUDA_VISIBLE_DEVICES=1 is {SECOND.uuid}."
        == address.reason
    )


def test_a_worker_on_a_gpu_that_nvml_does_not_show_is_not_sampled() -> None:
    """No other device is taken in its place."""
    address = resolve_uuid(CARDS, visible_devices="0", device_order="PCI_BUS_ID", worker_uuid="GPU-99")
    assert (None, True) == (address.gpu, address.contradiction)
    assert address.reason.startswith("Torch runs on GPU-99, which NVML does not show")
