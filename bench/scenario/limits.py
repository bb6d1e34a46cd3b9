"""What no machine will ever hold, and what a catalogued architecture makes absurd; refused before a run."""

from collections.abc import Iterator
from functools import cache

from bench.scenario.catalog import Architecture, architecture_of, architectures
from bench.scenario.types import Cell, LoraMethod, ModelSpec, QloraMethod

MOST_TOKENS = 2**31
"""In one forward pass; a hidden state for each would take terabytes in the smallest model there is."""

MOST_LAYERS = 10_000
LARGEST_SIZE = 10_000_000
_LAYERS = frozenset({"num_hidden_layers", "n_layer"})

Absurdity = tuple[str, str, str]
"""Part, field with dots between its keys, and in words what is wrong and what to do."""


def absurdities(cell: Cell) -> list[Absurdity]:
    """Return every absurdity of a cell; what depends on the model is known for catalogued ones only.

    A rank above the hidden size is no longer low; a model has positions for so many tokens and no more.
    """
    found = [*_of_batch(cell), *_of_overrides(cell.model)]
    known = architecture_of(cell.model)
    return found if found or known is None else [*_of_shape(cell, known)]


def _of_batch(cell: Cell) -> Iterator[Absurdity]:
    rows, length = cell.training.micro_batch, cell.training.sequence_length
    if rows * length > MOST_TOKENS:
        message = f"{rows} sequences of {length} tokens are more than {MOST_TOKENS:,} at once; lower it"
        yield "training", "micro_batch", message


def _of_overrides(model: ModelSpec) -> Iterator[Absurdity]:
    for name in sorted(_sizes() & set(model.overrides)):
        value, largest = model.overrides[name], MOST_LAYERS if name in _LAYERS else LARGEST_SIZE
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            yield "model", f"overrides.{name}", f"must be a whole number from 1 to {largest:,}; correct it"


def _of_shape(cell: Cell, known: Architecture) -> Iterator[Absurdity]:
    method, length = cell.method, cell.training.sequence_length
    if isinstance(method, LoraMethod | QloraMethod) and method.rank > known.hidden_size:
        message = f"{method.rank} is above the hidden size of {known.name}, {known.hidden_size}; lower it"
        yield "method", "rank", message
    if length > known.max_positions:
        message = f"{length} is beyond the {known.max_positions} positions of {known.name}; shorten it"
        yield "training", "sequence_length", message


@cache
def _sizes() -> frozenset[str]:
    """Return the fields of configurations that are whole numbers: widths, layers, heads, positions."""
    configs = [known.config for known in architectures().values()]
    return frozenset(key for config in configs for key, value in config.items() if type(value) is int)
