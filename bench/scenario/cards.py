"""The cards that a prediction can be judged for: memory, compute capability, speed, each with its source."""

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from pydantic import Field

from bench.errors import UsageError
from bench.scenario.types import Frozen

MIB = 1 << 20
GIB = 1 << 30
ASSUMED_CAPABILITY = (8, 0)
ASSUMED_CONTEXT_BYTES = 720 * MIB
"""Where no reading was found: the largest of the catalogue's readings."""
_UNREAD_SHARE = 0.965
"""Of the memory as sold, less than any card without ECC in its memory reports (the least: 0.971)."""
_INLINE_ECC_SHARE = 15 / 16
"""What error correction leaves of GDDR memory: the T4's 15079 of 16384 MiB is this share of 0.982."""
_UNITS = {"GiB": GIB, "MiB": MIB, "TiB": 1 << 40, "GB": 10**9, "MB": 10**6, "TB": 10**12}


class Card(Frozen):
    """A GPU as torch sees it. What no reading was found of is estimated low, and ``assumptions`` says so."""

    name: str
    title: str
    memory_bytes: int = Field(gt=0, description="As sold.")
    read_usable_bytes: int | None = Field(None, gt=0, description="Lowest total_memory seen; None if none.")
    memory_source: str
    inline_ecc: bool = Field(default=False, description="Error correction takes a part of the memory.")
    read_context_bytes: int | None = Field(
        None, gt=0, description="CUDA context and libraries, beyond torch's own memory; None if never read."
    )
    context_source: str = ""
    capability: tuple[int, int]
    bandwidth_bytes_per_s: float | None = Field(None, gt=0)
    peak_bf16_flops: float | None = Field(
        None, gt=0, description="Per second, dense; None where there is none."
    )
    speed_source: str = ""
    assumptions: tuple[str, ...] = ()

    @property
    def usable_bytes(self) -> int:
        """What all processes together can take; estimated where no reading was found."""
        if self.read_usable_bytes is not None:
            return self.read_usable_bytes
        share = _UNREAD_SHARE * (_INLINE_ECC_SHARE if self.inline_ecc else 1)
        return int(self.memory_bytes * share)

    @property
    def torch_bytes(self) -> int:
        """What torch can reserve: what is usable beside the context."""
        return self.usable_bytes - self.context_bytes

    @property
    def context_bytes(self) -> int:
        """What a process takes beyond torch's own memory; assumed where no reading was found."""
        return self.read_context_bytes or ASSUMED_CONTEXT_BYTES


@cache
def cards() -> Mapping[str, Card]:
    """Return every catalogued card by name."""
    text = files("bench.scenario").joinpath("cards.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: _card(name, facts) for name, facts in tomllib.loads(text).items()})


def card(name: str) -> Card:
    """Return one card; ``UsageError`` names the nearest if there is none of that name."""
    known = cards()
    if name in known:
        return known[name]
    begun = [each for each in known if name and each.startswith(name.lower())]
    nearest = begun or get_close_matches(name.lower(), known, n=1)
    hint = f'Perhaps you meant "{nearest[0]}"?' if nearest else f"Known: {', '.join(known)}."
    raise UsageError(f'There is no card "{name}" in the catalogue. {hint} Or give its memory, as in 24GiB.')


def card_of_memory(size: str) -> Card:
    """Return a card with so much usable memory, such as ``24GiB`` or ``80 GB``, and nothing else known.

    Raises ``UsageError`` where the text is no size.
    """
    match = re.fullmatch(r"\s*(\d{1,7}(?:\.\d{1,6})?)\s*([GMT]i?B)\s*", size, flags=re.ASCII)
    size_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if match is None or size_bytes == 0:
        raise UsageError(f'"{size}" is not an amount of memory; write a number and a unit, as in 24GiB.')
    major, minor = ASSUMED_CAPABILITY
    return Card(
        name=f"{match[1]}{match[2]}",
        title=f"a card with {match[1]} {match[2]}",
        memory_bytes=size_bytes,
        read_usable_bytes=size_bytes,
        memory_source="as given",
        capability=ASSUMED_CAPABILITY,
        assumptions=(f"compute capability {major}.{minor} is assumed", _assumed_context()),
    )


def _card(name: str, facts: Mapping[str, Any]) -> Card:
    """Convert the units of the catalogue to bytes and operations, and say what is assumed."""
    scales = {
        "memory_gib": ("memory_bytes", GIB),
        "usable_mib": ("read_usable_bytes", MIB),
        "context_mib": ("read_context_bytes", MIB),
        "bandwidth_gb_per_s": ("bandwidth_bytes_per_s", 1e9),
        "peak_bf16_tflops": ("peak_bf16_flops", 1e12),
    }
    fields: dict[str, Any] = {"name": name}
    for key, value in facts.items():
        field, scale = scales.get(key, (key, None))
        fields[field] = value if scale is None else value * scale
    assumptions = []
    if "usable_mib" not in facts:
        assumptions.append("its usable memory is estimated from the memory as sold")
    if "context_mib" not in facts:
        assumptions.append(_assumed_context())
    return Card(**fields, assumptions=tuple(assumptions))


def _assumed_context() -> str:
    return f"a CUDA context of {ASSUMED_CONTEXT_BYTES / GIB:.2f} GiB is assumed"
