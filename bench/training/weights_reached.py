"""How much of a model's own weights a method reached: quantised, adapted, or left as they were."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import bitsandbytes
from torch import nn

from bench.metrics import size_text
from bench.records.readings import Caveat, WeightKind, WeightsOfKind, WeightsReached
from bench.scenario.cell import Cell, quantises
from bench.scenario.types import LoraMethod, QloraMethod
from bench.training.loading.wrappers import beside_text, is_beside, wrapper_caveats
from bench.training.reference import LoraLinear, QuantisedLinear

_MOST_LEFT = 0.1  # of the parameters
_PACKED = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt, QuantisedLinear)
_MATRIX = 2  # dimensions
_OUTSIDE: tuple[WeightKind, ...] = (
    "embeddings",
    "output layer",
    "norms and biases",
    "parts beside the language model",
)
"""What no method called all-linear is thought to adapt."""


class Reached(NamedTuple):
    """What a method did to a model's weights, what it trains by module, and what has to be said of it."""

    weights: WeightsReached
    trainable: Mapping[str, int]
    caveats: tuple[Caveat, ...]

    def saying(self, more: Iterable[Caveat]) -> Self:
        return self._replace(caveats=(*self.caveats, *more))


def reached_in(model: Any, cell: Cell, times: Callable[[str], int] = lambda _name: 1) -> Reached:
    """Count an adapted model's weights, and say where a method leaves much as it was, against its name.

    ``times`` tells for how many a name stands.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    added, adapted, layers = _of_adapters(base)
    weights = _counted(base, added, adapted, times)
    of_wrapper = wrapper_caveats(base, added, layers)
    told = (*_left_unquantised(cell, weights), *_left_unadapted(cell, weights), *of_wrapper)
    return Reached(weights, _trainable(base, layers, times), told)


def _trainable(base: nn.Module, layers: Collection[str], times: Callable[[str], int]) -> dict[str, int]:
    """Count what is trained by module, any number in a name being ``*``; an adapter is its layer's."""
    known = set(layers)
    found: Counter[str] = Counter()
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            above = (".".join(parts[:count]) for count in range(1, len(parts)))
            module = next((each for each in above if each in known), name.rpartition(".")[0])
            pattern = ".".join("*" if part.isdecimal() else part for part in module.split("."))
            found[pattern] += times(name) * parameter.numel()
    return dict(sorted(found.items()))


def _counted(
    base: Any, added: Collection[int], adapted: Collection[int], times: Callable[[str], int]
) -> WeightsReached:
    """Count weights by kind: tied ones once, packed ones unpacked."""
    heads = {id(each) for each in _own(base.get_output_embeddings())}
    parts = beside_text(base)
    counts: dict[WeightKind, list[int]] = {}
    seen = set(added)
    for name, module in base.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind = _kind(module, parameter)
            kind = "output layer" if id(parameter) in heads and kind != "embeddings" else kind  # unless tied
            kind = "parts beside the language model" if is_beside(name, parts) else kind
            packed = isinstance(module, _PACKED) and key == "weight"
            state = getattr(parameter, "quant_state", None)
            number = times(name) * (parameter.numel() if state is None else state.shape.numel())
            left_bytes = 0 if packed else times(name) * parameter.nbytes
            one = (number, number * packed, number * (id(parameter) in adapted), left_bytes)
            counts[kind] = [sum(pair) for pair in zip(counts.get(kind, [0] * 4), one, strict=True)]
    return WeightsReached(kinds=tuple(WeightsOfKind(kind, *four) for kind, four in counts.items()))


def _of_adapters(base: nn.Module) -> tuple[set[int], set[int], list[str]]:
    """Return which parameters adapters brought, which weights they were put on, and the layers' names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    added, adapted = set(), set()
    kinds = (BaseTunerLayer, LoraLinear)
    layers: dict[str, Any] = {name: one for name, one in base.named_modules() if isinstance(one, kinds)}
    for layer in layers.values():
        own = layer.get_base_layer()
        added |= {id(each) for each in layer.parameters()} - {id(each) for each in own.parameters()}
        one = getattr(layer, "parameter_name", None)  # of an adapter on a parameter of a module
        adapted |= {id(getattr(own, one))} if one else {id(each) for each in _own(own)}
    return added, adapted, [*layers]


def _own(module: Any) -> Iterator[nn.Parameter]:
    if module is not None:
        module = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        yield from module.parameters(recurse=False)


def _kind(module: nn.Module, parameter: nn.Parameter) -> WeightKind:
    from transformers.pytorch_utils import Conv1D

    packed = isinstance(module, _PACKED)
    if parameter.dim() < _MATRIX and not packed:
        return "norms and biases"
    if packed or type(module) is nn.Linear or isinstance(module, Conv1D):
        return "linear layers"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if isinstance(module, nn.Linear):
        return "subclasses of linear layers"
    fused = parameter.dim() > _MATRIX and not type(module).__module__.startswith("torch.")
    return "experts in one tensor" if fused else "other tensors"


def _left_unquantised(cell: Cell, reach: WeightsReached) -> Iterator[Caveat]:
    method = cell.method
    left = reach.parameters - reach.quantised
    if not (quantises(method) or reach.quantised) or left <= _MOST_LEFT * reach.parameters:
        return
    kinds = sorted((kind for kind in reach.kinds if kind.left_bytes), key=lambda one: -one.left_bytes)
    total = sum(one.left_bytes for one in kinds)
    most = [one for one in kinds if one.left_bytes * 100 > total]
    parts = ", ".join(f"{one.kind} {size_text(one.left_bytes)}" for one in most)
    message = f"{_share(left, reach.parameters)} of the weights stay in 16 or 32 bits ({parts})."
    if (
        isinstance(method, LoraMethod | QloraMethod)
        and method.kbit_preparation
        and cell.training.dtype != "fp32"
    ):
        message += (
            f" kbit_preparation copies them to fp32: kbit_preparation = false saves {size_text(total / 2)}."
        )
    if any(one.kind == "experts in one tensor" for one in kinds):
        message += (
            " Experts are no linear layers in this transformers, so bitsandbytes passes over them; "
            "before transformers 5.0, in most models, they were linear layers, and quantised."
        )
    if any(one.kind == "subclasses of linear layers" for one in kinds):
        message += " Subclasses of linear layers are quantised by transformers before 5.5 only."
    if isinstance(method, QloraMethod) and not method.quantise_lm_head and kinds[0].kind == "output layer":
        message += " quantise_lm_head = true packs the output layer too."
    yield Caveat(code="left-unquantised", message=message)


def _left_unadapted(cell: Cell, reach: WeightsReached) -> Iterator[Caveat]:
    method = cell.method
    if not isinstance(method, LoraMethod | QloraMethod) or method.target_modules != "all-linear":
        return
    inside = [one for one in reach.kinds if one.kind not in _OUTSIDE]
    whole, adapted = (
        sum(numbers) for numbers in zip(*((one.parameters, one.adapted) for one in inside), strict=True)
    )
    if whole - adapted <= _MOST_LEFT * whole:
        return
    missed = ", ".join(one.kind for one in inside if one.adapted < one.parameters)
    yield Caveat(
        code="left-unadapted",
        message=f"all-linear puts adapters on {_share(adapted, whole)} of the weights besides embeddings and "
        f"output layer: none on {missed}. peft's target_parameters adapts parameters that are no layers.",
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole * 100:.0f} %"
