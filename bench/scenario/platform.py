"""The platform that a prediction is for: device, capability, and versions of what runs on it.

And which catalogued card a device is, by its name and memory.
"""

import re
from typing import Annotated, Literal

from pydantic import Field

from bench.scenario.catalogue import Card, cards
from bench.scenario.types import Frozen

VERSION = r"^\d+\.\d+(\.\d+)?$"


def version_of(text: str) -> tuple[int, ...]:
    """Return a version as numbers that compare."""
    return tuple(int(part) for part in text.split("."))


KNOWN_SINCE = {"torch": "2.1", "bitsandbytes": "0.41", "transformers": "4.36"}
"""Oldest versions of which sources were read: those of published rows, and the first to choose attention."""


class Platform(Frozen):
    """Everything besides the cell that decides which kernels run and what scratch memory they take.

    How much memory a card has, and how much its context takes, is the card's (``cards.py``).
    """

    device: Literal["cpu", "cuda"] = "cuda"
    capability: tuple[int, int] = Field((8, 0), description="CUDA compute capability; unused on the CPU.")
    torch: str = Field("2.13", pattern=VERSION, description="Version of torch that will run the cell.")
    bitsandbytes: str = Field("0.50", pattern=VERSION, description="Likewise of bitsandbytes.")
    transformers: str = Field(
        "5.23",
        pattern=VERSION,
        description="Of transformers; older ones built, quantised, cached and computed losses otherwise.",
    )
    litgpt: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = Field(
        None,
        description="Day whose litgpt trained its own model, if any.",
        exclude_if=lambda day: day is None,
    )


_SAY_NOTHING = {"nvidia", "tesla", "hbm3", "hbm3e"}
_SAME_MEMORY = 0.03
"""The share by which readings of one card's memory differ."""


def cards_named(device_name: str | None) -> list[Card]:
    """Return the catalogued cards that a device's name can mean, such as both sizes of an A100."""
    titles = {card: _words(card.title) for card in cards().values()}
    found = {
        card: len(title) for card, title in titles.items() if title and title <= _words(device_name or "")
    }
    return [card for card, length in found.items() if length == max(found.values())]


def card_exactly(device_name: str | None, total_bytes: int) -> Card | None:
    """Return the catalogued card of this name and memory; None of another variant, or of a part of one."""
    name = _words(re.sub(r"\bsxm[0-9]", "sxm", (device_name or "").lower())) - _SAY_NOTHING
    found = {
        card: len(title)
        for card in cards().values()
        if abs(total_bytes / card.usable_bytes - 1) < _SAME_MEMORY
        and (title := _words(card.title)) <= name <= title | _variants(card)
    }
    return max(found, key=found.__getitem__, default=None)


def _variants(card: Card) -> set[str]:
    """Return the variants that a card's bandwidth is of; both where its source knows no other."""
    source = card.speed_source.partition(";")[0]
    return {"pcie"} if "PCIe" in source else {"sxm"} if "SXM" in source else {"pcie", "sxm"}


def _words(name: str) -> set[str]:
    """Return the words of a name without sizes of memory."""
    return set(re.findall(r"[a-z0-9]+", re.sub(r"\b[0-9]+ ?gb\b", " ", name.lower())))
