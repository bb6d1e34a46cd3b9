"""How deep a trace of a model has to be: as many layers as are unlike, since the others repeat them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from bench.scenario.cell import Cell
from bench.scenario.types import FullMethod, LoraMethod, QloraMethod
from bench.training.loading.models import empty_causal_model
from bench.training.loading.wrappers import beside_text, is_beside

_SEARCHED_PERIODS = range(1, 9)
_found: dict[str, "Depth | None"] = {}


@dataclass(frozen=True, slots=True)
class Depth:
    """How many layers are traced, after how many their kinds repeat, and how many periods are left out."""

    traced: int
    period: int
    periods_added: int


def depth_traced(layers: int, period: int) -> int:
    """Return how many layers a shallow trace needs, or ``layers`` where nothing would be saved."""
    return min(4 * period + layers % period, layers)


def depth_of(cell: Cell, config: Any) -> Depth | None:
    """Return the depth at which a trace tells all; None where only the whole model will do.

    A method that treats some layers otherwise than the rest, by number, is among those.
    """
    return depth_of_model(config) if _treats_layers_alike(cell) else None


def depth_of_model(config: Any) -> Depth | None:
    """Return the depth at which a model's layers are seen to repeat; None where they do not."""
    key = _key(config)
    if key not in _found:
        _found[key] = _repeating(config)
    return _found[key]


def _key(config: Any) -> str:
    return str(config.to_json_string(use_diff=False))


def _repeating(config: Any) -> Depth | None:
    """Return the depth by what the layers are: that can follow from a list or from a single number.

    DeepSeek's first_k_dense_replace is such a number; so the layers are built, without data, and compared.
    """
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    whole = _built_layers(config)
    lists = [whole, *_per_layer(text, layers).values()]

    def repeats(values: Sequence[Any], period: int) -> bool:
        return all(value == values[index % period] for index, value in enumerate(values))

    period = next((each for each in _SEARCHED_PERIODS if all(repeats(one, each) for one in lists)), None)
    if period is None or len(whole) != layers:
        return None
    traced = depth_traced(layers, period)
    try:
        alike = traced < layers and _built_layers(shallow(config, traced)) == whole[:traced]
    except Exception:  # noqa: BLE001 - a configuration may derive anything from its depth, and refuse another
        return None
    return Depth(traced, period, (layers - traced) // period) if alike else None


def trace_whole(config: Any) -> None:
    """Trace a configuration's model with all its layers from now on: cut to fewer it cannot be run."""
    _found[_key(config)] = None


def shallow(config: Any, layers: int) -> Any:
    """Return the configuration with its first ``layers`` layers only."""
    cut = deepcopy(config)
    text = cut.get_text_config()
    for name, values in _per_layer(text, int(text.num_hidden_layers)).items():
        own = type(text).attribute_map.get(name, name)
        if not isinstance(getattr(type(text), own, None), property):  # which follows from the other fields
            setattr(text, name, type(values)(values[:layers]))
    text.num_hidden_layers = layers
    return cut


def _per_layer(config: Any, layers: int) -> dict[str, list[Any] | tuple[Any, ...]]:
    """Return the fields that hold one value for each layer."""
    fields = dict(vars(config))
    if hasattr(config, "layer_types"):
        fields["layer_types"] = config.layer_types
    return {name: one for name, one in fields.items() if isinstance(one, list | tuple) and len(one) == layers}


def _built_layers(config: Any) -> list[list[object]]:
    """Return what each layer of a model is made of: modules, their settings and the shapes of parameters."""
    model = empty_causal_model(config)
    layers: dict[int, list[object]] = {}
    beside = beside_text(model)
    for name, module in model.named_modules():
        parts = [] if is_beside(name, beside) else name.split(".")
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


def _treats_layers_alike(cell: Cell) -> bool:
    method = cell.method
    if not isinstance(method, LoraMethod | QloraMethod):
        return isinstance(method, FullMethod)
    targets = method.target_modules  # a name such as w1 is the same in every layer, a number in a path is not
    return all(map(_names_no_layer, (targets, *method.peft.values())))


def _names_no_layer(option: Any) -> bool:
    """Tell whether an option of peft's is a switch, or names of modules without a layer's number in them."""
    if isinstance(option, str):
        return not any(each.isdecimal() for each in option)
    if isinstance(option, list | tuple):
        parts = [part for one in option if isinstance(one, str) for part in one.split(".")]
        return all(isinstance(one, str) for one in option) and not any(part.isdecimal() for part in parts)
    return option is None or isinstance(option, bool)
