"""Which cells may be traced with a few layers, and how a configuration is cut to them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from bench.predict.trace.repeat import depth_traced
from bench.scenario.types import Cell, FullMethod, LoraMethod, QloraMethod
from bench.training.models import empty_causal_model

_SEARCHED_PERIODS = range(1, 9)
_found: dict[str, "Depth | None"] = {}


@dataclass(frozen=True, slots=True)
class Depth:
    """How many layers are traced, after how many their kinds repeat, and how many periods are left out."""

    traced: int
    period: int
    periods_added: int


def depth_of(cell: Cell, config: Any) -> Depth | None:
    """Return the depth at which a trace tells all; None where only the whole model will do.

    A method that treats some layers otherwise than the rest, by number, is among those.
    """
    if not _treats_layers_alike(cell):
        return None
    key = config.to_json_string(use_diff=False)
    if key not in _found:
        _found[key] = _depth_of_model(config)
    return _found[key]


def _depth_of_model(config: Any) -> Depth | None:
    """Return the depth by what the layers are: that can follow from a list or from a single number.

    DeepSeek's first_k_dense_replace is such a number; so the layers are built, without data, and compared.
    """
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    whole = _built_layers(config)
    lists = [whole, *_per_layer(text, layers).values()]
    period = next((each for each in _SEARCHED_PERIODS if all(_repeats(one, each) for one in lists)), None)
    if period is None or len(whole) != layers:
        return None
    traced = depth_traced(layers, period)
    if traced == layers or _built_layers(shallow(config, traced)) != whole[:traced]:
        return None
    return Depth(traced, period, (layers - traced) // period)


def shallow(config: Any, layers: int) -> Any:
    """Return the configuration with its first ``layers`` layers only."""
    cut = deepcopy(config)
    text = cut.get_text_config()
    derived = {name for name, value in vars(type(text)).items() if isinstance(value, property)}
    for name, values in _per_layer(text, int(text.num_hidden_layers)).items():
        if name not in derived:
            setattr(text, name, type(values)(values[:layers]))
    text.num_hidden_layers = layers
    return cut


def _per_layer(config: Any, layers: int) -> dict[str, list[Any] | tuple[Any, ...]]:
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


def _built_layers(config: Any) -> list[list[object]]:
    """Return what each layer of a model is made of: modules, their settings and the shapes of parameters."""
    model = empty_causal_model(config)
    layers: dict[int, list[object]] = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        if at is None:
            continue
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | float | str) or (type(value) is int and "layer_" not in key)
        }
        shapes = [(key, one.shape, one.dtype) for key, one in module.named_parameters(recurse=False)]
        layers.setdefault(int(parts[at]), []).append((parts[at + 1 :], type(module), settings, shapes))
    return [layers[index] for index in sorted(layers)]


def _repeats(values: Sequence[Any], period: int) -> bool:
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
