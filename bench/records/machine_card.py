"""The card of a CPU, as ``bench calibrate --machine`` measured it: what operators take."""

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

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


_Real = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TimedProduct = tuple[Positive, Positive, Positive, _Real]
"""Of [m, k] by [k, n]: m, n, k and seconds."""
_Curve = Annotated[tuple[tuple[_Real, _Real], ...], Field(min_length=1)]
PRODUCTS: Final = frozenset(
    f"{dtype} {kind}"
    for dtype in ("float32", "bfloat16")
    for kind in ("nn", "nt", "tn", "attention", "attention backward")
)
CURVE_OF_ALL: Final = "mul vector float32"
"""For an operator without one of its own."""


class MachineCard(Stored):
    """Times are without dispatch, which ``host`` is a factor on."""

    machine_version: Literal[2] = 2
    key: MachineKey
    products: dict[str, Annotated[tuple[TimedProduct, ...], Field(min_length=1)]] = Field(
        description="By dtype and layout, as float32 nt; of attention by heads, pairs, width."
    )
    curves: dict[str, _Curve] = Field(description="By operator, way and dtype: bytes moved, and seconds.")
    host: _Real
    spread: float = Field(ge=0, description="By how much the median of repeats is above the least.")
    peak_flops: _Real = Field(description="Of the fastest product.")
    busy: str = Field("", exclude_if=lambda text: not text, description="Why it was not idle.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if missing := sorted({CURVE_OF_ALL, *PRODUCTS} - self.products.keys() - self.curves.keys()):
            raise ValueError(f"without {missing[0]}")
        return self


def card_of(key: MachineKey) -> MachineCard | None:
    """Return the card of a machine; None where none was made. Raises ``UsageError`` where it is no card."""
    path = key.path
    card = read_json(path, MachineCard, "a machine card", _MADE_BY) if path.exists() else None
    return card if card and card.key == key else None
