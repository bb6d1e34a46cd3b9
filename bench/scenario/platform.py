"""The platform that a prediction is for: device, capability, and versions of what runs on it."""

from typing import Annotated, Literal

from pydantic import Field

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
