"""Which of NVML's devices torch runs on, by the UUID that a worker tells."""

import pytest

from bench.probes.nvml import torchs_device
from bench.records.readings import GpuFacts

FIRST = GpuFacts(uuid="GPU-11111111-aaaa-4000-8000-000000000001", index=0)
SECOND = GpuFacts(uuid="GPU-11222222-aaaa-4000-8000-000000000002", index=1)
SLICE = GpuFacts(uuid="MIG-33333333-aaaa-4000-8000-000000000003", parent_uuid=SECOND.uuid)
SIBLING = GpuFacts(uuid="MIG-44444444-aaaa-4000-8000-000000000004", parent_uuid=SECOND.uuid)


@pytest.mark.parametrize(
    ("gpus", "uuid", "expected"),
    [
        ((FIRST, SECOND), SECOND.uuid, SECOND),
        ((FIRST, SECOND), SECOND.uuid.upper().replace("GPU-", ""), SECOND),
        ((FIRST, SECOND, SLICE, SIBLING), SIBLING.uuid, SIBLING),
        ((FIRST, SECOND, SLICE), "MIG-11222222-aaaa-4000-8000-000000000002", SLICE),
    ],
)
def test_torch_knows_its_device(gpus: tuple[GpuFacts, ...], uuid: str, expected: GpuFacts) -> None:
    """A card or slice is found by its UUID, the only slice of a card by that card's."""
    assert (expected, True) == (torchs_device(gpus, uuid)[0], "NVML shows it" in torchs_device(gpus, uuid)[1])


@pytest.mark.parametrize(
    ("gpus", "uuid", "why"),
    [
        ((FIRST,), None, "Torch did not tell"),
        ((FIRST, SECOND), "GPU-99", "Torch runs on GPU-99, which NVML does not show"),
        ((SECOND, SLICE, SIBLING), SECOND.uuid, f"Torch runs on one of the slices of {SECOND.uuid}"),
    ],
)
def test_what_torch_does_not_tell_is_not_guessed(
    gpus: tuple[GpuFacts, ...], uuid: str | None, why: str
) -> None:
    """No other device is taken in its place, and the reason is said."""
    found, said = torchs_device(gpus, uuid)
    assert found is None
    assert said.startswith(why)
