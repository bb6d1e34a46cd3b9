"""Which catalogued card a device is, by its name and memory."""

import re

from bench.scenario.catalogue import Card, cards

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
