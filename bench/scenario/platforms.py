"""What a prediction is made for: the kind of device and the library versions that choose its kernels."""

from typing import Literal

from pydantic import Field

from bench.scenario.types import Frozen

VERSION = r"^\d+\.\d+(\.\d+)?$"


def version_of(text: str) -> tuple[int, ...]:
    """Return a version as numbers that compare."""
    return tuple(int(part) for part in text.split("."))


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
        description="Of transformers; the loss before 4.49 and GPTBigCode's cache before 4.54 differ.",
    )
