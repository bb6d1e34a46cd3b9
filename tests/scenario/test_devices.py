"""Which catalogued card a device is: by its name, and for speed by memory and variant as well."""

import pytest

from bench.metrics import GIB, MIB
from bench.scenario.platform import card_exactly, cards_named


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", ["rtx4090"]),
        ("NVIDIA A100-SXM4-40GB", ["a100-40gb", "a100-80gb"]),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", ["a100-40gb", "a100-80gb"]),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", ["rtx4070ti-super"]),
        ("NVIDIA L40S", ["l40s"]),
        ("Quadro RTX 6000", []),
        (None, []),
    ],
)
def test_a_device_is_found_in_the_catalogue_by_its_words(device: str | None, expected: list[str]) -> None:
    """Sizes are left out, and the longest title wins."""
    assert [card.name for card in cards_named(device)] == expected


@pytest.mark.parametrize(
    ("device", "total_mib", "expected"),
    [
        ("NVIDIA H200", 143156, "h200"),
        ("NVIDIA H100 80GB HBM3", 81089, "h100-80gb"),
        ("NVIDIA H100 PCIe", 81008, None),
        ("NVIDIA H100 NVL", 95830, None),
        ("NVIDIA A100-SXM4-80GB", 81153, "a100-80gb-sxm"),
        ("NVIDIA A100 80GB PCIe", 81039, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 40326, "a100-40gb"),
        ("NVIDIA A100-SXM4-40GB", 40339, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728, None),
        ("NVIDIA GeForce RTX 4090", 24176, "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16049, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 16049, None),
        (None, 24176, None),
    ],
)
def test_a_speed_is_told_of_the_very_card_only(
    device: str | None, total_mib: int, expected: str | None
) -> None:
    """Another variant, a laptop's chip or a part of a card is slower, and is no catalogued card."""
    found = card_exactly(device, total_mib * MIB)
    assert (found and found.name) == expected
    assert card_exactly(device, 8 * GIB) is None
