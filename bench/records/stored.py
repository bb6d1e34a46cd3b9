"""What stored things are made of: the base type, checked numbers, categories of memory, caveats."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Category = Literal[
    "weights",
    "quantisation_state",
    "gradients",
    "optimizer_state",
    "activations",
    "logits",
    "inputs",
    "temporary",
]

# Records may come from strangers: what no machine can have measured must not reach the arithmetic.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]


class Stored(BaseModel):
    """Immutable; unknown keys are mistakes, since the version says what to expect."""

    # A loss may be NaN or infinite; JSON has neither, so they are written as "NaN" and "Infinity".
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Caveat(Stored):
    """Something a reader of the numbers must know; shown wherever they are shown."""

    code: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    message: str
