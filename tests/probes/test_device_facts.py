"""What the worker says of its device."""

from types import SimpleNamespace

import pytest
import torch

from bench.probes.machine import name_uuid, read_facts

UUID = "ffc79498-8ff3-c2dc-3b0d-fafd804516ae"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100 80GB PCIe", f"GPU-{UUID}"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", f"MIG-{UUID}"),
    ],
)
def test_a_uuid_is_written_as_nvml_writes_it(name: str, expected: str) -> None:
    """Torch gives the digits alone; a slice is told by its name."""
    assert expected == name_uuid(name, UUID)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_facts_name_torchs_current_device(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The UUID is that of device 0, or of a rank's own, whatever CUDA_VISIBLE_DEVICES made of the order."""
    devices = [
        SimpleNamespace(name="Example", uuid=uuid, major=9, minor=0, total_memory=80)
        for uuid in ([UUID, "other"] if rank == 0 else ["other", UUID])
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: rank)
    facts = read_facts()
    assert tuple(f"GPU-{device.uuid}" for device in devices) == facts.cuda_uuids
    assert (f"GPU-{UUID}", "Example", (9, 0)) == (facts.cuda_uuid, facts.cuda_name, facts.cuda_capability)
