"""The catalogue of cards: its facts are whole and plausible, and what is assumed is said."""

import pytest

from bench.errors import UsageError
from bench.scenario.catalogue import ASSUMED_CONTEXT_BYTES, Card, card, card_of_memory, cards

GIB = 1 << 30
_LINKS = {"PCIe": (31, 63), "NVLink": (150, 300, 450, 900)}
"""In GB/s each way: of 16 lanes of the fourth and fifth generation, and of NVLink from the second on."""


def test_the_catalogue_holds_the_cards_that_people_train_on() -> None:
    """Consumer and data-centre cards from the V100 to the B200 are there."""
    wanted = {"rtx3060-12gb", "rtx3090", "rtx4060ti-16gb", "rtx4070ti", "rtx4080", "rtx4090", "rtx5090", "t4"}
    wanted |= {"v100-16gb", "v100-32gb", "a10g", "l4", "l40s", "a40", "rtx-a6000", "rtx6000-ada"}
    wanted |= {"a100-40gb", "a100-80gb", "h100-80gb", "h200", "b200"}
    assert wanted <= set(cards())


@pytest.mark.parametrize("entry", cards().values(), ids=lambda entry: entry.name)
def test_a_card_s_facts_are_plausible_and_sourced(entry: Card) -> None:
    """Usable memory is a little less than sold, the context a fraction of a GiB; every group has a source."""
    assert 0.9 <= entry.usable_bytes / entry.memory_bytes < 1
    assert 0.1 * GIB < entry.context_bytes < GIB
    assert entry.memory_source
    assert entry.speed_source
    assert bool(entry.context_source) is (entry.read_context_bytes is not None)
    assert (entry.peak_bf16_flops is None) is (entry.capability < (8, 0))
    assert bool(entry.power_source) is (entry.power_w is not None)
    assert entry.power_w is None or 60 < entry.power_w <= 1200
    assert entry.link is None or entry.link.source
    assert entry.link is None or entry.link.gb_per_s in _LINKS[entry.link.name]
    assert entry.bandwidth_bytes_per_s is not None
    assert 2e11 < entry.bandwidth_bytes_per_s < 1e13


def test_units_are_converted() -> None:
    """The RTX 4090: 24 GiB sold, 24176 MiB read, 1008 GB/s, 165.2 Tflop/s."""
    entry = card("rtx4090")
    facts = (entry.memory_bytes, entry.usable_bytes, entry.bandwidth_bytes_per_s, entry.peak_bf16_flops)
    assert (24 * GIB, 24176 << 20, 1008e9, 165.2e12) == facts
    assert entry.assumptions == ()


def test_what_was_never_read_is_estimated_and_said() -> None:
    """The L4 was never read: 15/16 for error correction, 0.965 of that, and the largest known context."""
    entry = card("l4")
    assert int(24 * GIB * 0.965 * 15 / 16) == entry.usable_bytes
    assert ASSUMED_CONTEXT_BYTES == entry.context_bytes
    assert 2 == len(entry.assumptions)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("RTX4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
    ],
)
def test_case_spaces_and_vendor_are_forgiven(name: str, found: str) -> None:
    """A card is found as shops and torch write it, without a word about it."""
    assert card(name) == card(found)


def test_a_card_named_without_its_memory_is_taken_for_the_only_one_and_says_so() -> None:
    """There is one H100 in the catalogue; whoever reads a number for "h100" reads which."""
    taken = card("h100")
    assert taken.name == "h100-80gb"
    assert (
        taken.assumptions[0]
        == '"h100" is taken for the H100 80 GB, the only one of that name in the catalogue'
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a100", 'Perhaps you meant "a100-40gb" or "a100-80gb"'),
        ("l40", 'Perhaps you meant "l40s"'),
        ("quadro rtx 6000", "Known: "),
        ("zx81", "Known: "),
    ],
)
def test_an_unknown_card_is_answered_with_the_nearest(name: str, hint: str) -> None:
    """A slip is answered with what may have been meant, anything else with the list."""
    with pytest.raises(UsageError, match=f'unknown card "{name}"') as refused:
        card(name)
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("24GiB", 24 * GIB), (" 80 GB ", 80 * 10**9), ("512MiB", GIB // 2), ("1.5TB", 15 * 10**11)],
)
def test_an_amount_of_memory_makes_a_card(size: str, expected: int) -> None:
    """All of it is usable; the compute capability and the context are assumed and said."""
    entry = card_of_memory(size)
    assert (expected, (8, 0)) == (entry.usable_bytes, entry.capability)
    assert ["compute capability 8.0 is assumed", "a CUDA context of 0.70 GiB is assumed"] == list(
        entry.assumptions
    )


@pytest.mark.parametrize(
    "size", ["24", "GiB", "-1GiB", "0GiB", "24gib", "1e9GB", "24 GiB; rm", "٢٤GiB", "9" * 400 + "GB"]
)
def test_what_is_no_amount_of_memory_is_refused(size: str) -> None:
    """A number and a unit are needed, and nothing else is read."""
    with pytest.raises(UsageError, match="not an amount of memory"):
        card_of_memory(size)


def test_a_card_says_what_of_it_is_not_in_its_speed() -> None:
    """A capped power is told wherever the card is named, beside what the catalogue assumes of any."""
    told = card("a100-80gb-station").assumptions
    assert [one for one in told if "275 of 400 W" in one]
    assert set(card("a100-80gb-sxm").assumptions) <= set(told)
