"""The card of a CPU, as ``bench calibrate --machine`` measured it: what operators take."""

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from bench.io import cache_folder, read_json
from bench.records.readings import Positive, Stored

THIS_CPU: Final = "this-cpu"
"""By which a speed names the machine, where others name a card."""
_MADE_BY: Final = "make one with bench calibrate --machine"


class MachineKey(Stored):
    """What measured times hold for, and nothing else."""

    cpu: str
    threads: Positive
    torch: str

    @property
    def path(self) -> Path:
        """Where the card of such a machine is kept."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
        return cache_folder() / "machines" / f"{digest}.json"


TimedProduct = tuple[int, int, int, float]
"""Of [m, k] by [k, n]: m, n, k and seconds."""


class MachineCard(Stored):
    """Times are without dispatch, which ``host`` is a factor on."""

    machine_version: Literal[2] = 2
    key: MachineKey
    products: dict[str, tuple[TimedProduct, ...]] = Field(
        description="By dtype and layout, as float32 nt; of attention by heads, pairs, width."
    )
    curves: dict[str, tuple[tuple[float, float], ...]] = Field(
        description="By operator, way and dtype: bytes moved, and seconds."
    )
    host: float = Field(gt=0)
    spread: float = Field(ge=0, description="By how much the median of repeats is above the least.")
    peak_flops: float = Field(gt=0, description="Of the fastest product.")
    busy: str = Field("", exclude_if=lambda text: not text, description="Why it was not idle.")


def card_of(key: MachineKey) -> MachineCard | None:
    """Return the card of a machine; None where none was made. Raises ``UsageError`` where it is no card."""
    path = key.path
    card = read_json(path, MachineCard, "a machine card", _MADE_BY) if path.exists() else None
    return card if card and card.key == key else None
