"""Which cells may be traced with a few layers, and how a configuration is cut to them."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from bench.memory.repeat import depth_traced
from bench.spec.types import Cell, FullMethod, LoraMethod, QloraMethod

_SEARCHED_PERIODS = range(1, 9)


@dataclass(frozen=True, slots=True)
class Depth:
    """How many layers are traced, after how many their kinds repeat, and how many periods are left out."""

    traced: int
    period: int
    periods_added: int


def depth_of(cell: Cell, config: Any) -> Depth | None:  # noqa: ANN401 - transformers ships no types
    """Return the depth at which a trace tells all; None where only the whole model will do.

    A method that treats some layers otherwise than the rest, by number, is among those.
    """
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    if not _treats_layers_alike(cell):
        return None
    for period in _SEARCHED_PERIODS:
        if all(_repeats(values, period) for values in _per_layer(text, layers).values()):
            traced = depth_traced(layers, period)
            return Depth(traced, period, (layers - traced) // period) if traced < layers else None
    return None


def shallow(config: Any, layers: int) -> Any:  # noqa: ANN401 - the same
    """Return the configuration with its first ``layers`` layers only."""
    cut = deepcopy(config)
    text = cut.get_text_config()
    for name, values in _per_layer(text, int(text.num_hidden_layers)).items():
        setattr(text, name, type(values)(values[:layers]))
    text.num_hidden_layers = layers
    return cut


def _per_layer(config: Any, layers: int) -> dict[str, list[Any] | tuple[Any, ...]]:  # noqa: ANN401 - the same
    """Return the fields that hold one value for each layer."""
    fields = {
        **vars(config),
        **({"layer_types": config.layer_types} if hasattr(config, "layer_types") else {}),
    }
    return {
        name: values
        for name, values in fields.items()
        if isinstance(values, list | tuple) and len(values) == layers
    }


def _repeats(values: list[Any] | tuple[Any, ...], period: int) -> bool:
    return all(value == values[index % period] for index, value in enumerate(values))


def _treats_layers_alike(cell: Cell) -> bool:
    method = cell.method
    if isinstance(method, FullMethod):
        return True
    if not isinstance(method, LoraMethod | QloraMethod):
        return False
    targets = (method.target_modules,) if isinstance(method.target_modules, str) else method.target_modules
    numbered = any(character.isdecimal() for target in targets for character in target)
    return not numbered and not method.peft
