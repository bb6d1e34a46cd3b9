"""Enters a model's weights into a ledger in the order and the form in which loading brings them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from bench.predict.trace.meta_ledger import MetaLedger
from bench.predict.trace.stream import WARM_UP
from bench.predict.trace.variants.litgpt_model import GPT
from bench.probes.tensors import quantisation_state
from bench.training.loading.models import quantise_empty

WARMS_UP = (4, 50)
"""Version from which a block for all weights comes first (modeling_utils.py, caching_allocator_warmup)."""
HALVES = (4, 51)
"""Version from which it is half as large where weights are to be quantised (get_cuda_warm_up_factor)."""
COUNTS_ELEMENTS = (5, 0)
"""Version from which it counts what each weight is to become; until then their bytes before quantisation."""


def load_weights(model: Any, ledger: MetaLedger, transformers: tuple[int, ...] = COUNTS_ELEMENTS) -> None:
    """Enter the weights as loading does, one after the other, each quantised as soon as it is there.

    Those of a quantised checkpoint come packed, each with its scales.
    """
    first = 0 if isinstance(model, GPT) else warm_up_bytes(model, ledger.times, transformers)
    if first:
        ledger.release(ledger.hold(first, WARM_UP))
    come_packed = getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False)
    for loaded in list(in_loading_order(model)):
        packs, module = loaded.name.endswith("weight"), loaded.name.rpartition(".")[0]
        ledger.work_on(loaded.name)
        if packs and come_packed:
            with _disable_current_modes():
                quantise_empty(loaded.module)
        ledger.register([loaded.tensor], "weights", module)
        if packs and come_packed:
            ledger.register(quantisation_state(loaded.tensor), "quantisation_state", module)
        elif packs:
            quantise_empty(loaded.module)
    ledger.learn(model)


class LoadedTensor(NamedTuple):
    """A parameter or buffer and the module that it is loaded into."""

    name: str
    module: nn.Module
    tensor: torch.Tensor


def in_loading_order(model: nn.Module) -> Iterator[LoadedTensor]:
    """Yield what a checkpoint holds, sorted by name with numbers by value, then the computed buffers.

    Reserved memory after loading depends on this order and on the warm-up: with both it is right to the
    megabyte where published. Source: transformers 5, core_model_loading.py
    (convert_and_load_state_dict_in_model) and modeling_utils.py (caching_allocator_warmup,
    _move_missing_keys_from_meta_to_device).

    Weights that are quantised while loading come one at a time: the 16-bit weight is there until its
    quantised form is. Others are brought by four threads and may overtake their neighbours. Tied weights
    come once.
    """
    from transformers.core_model_loading import dot_natural_key

    stored = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    for name in sorted(stored, key=dot_natural_key):
        if name not in _tied_to_others(model) and id(stored[name]) not in seen:
            seen.add(id(stored[name]))
            yield _loaded(model, name, stored[name])
    for name, buffer in model.named_buffers():
        if name not in stored:
            yield _loaded(model, name, buffer)


def warm_up_bytes(
    model: Any, times: Callable[[str], int] = lambda _name: 1, version: tuple[int, ...] = COUNTS_ELEMENTS
) -> int:
    """Return the bytes of the one block that is allocated and freed before any weight is loaded; 0 for none.

    A weight to be quantised counts half a byte per element (4-bit) or one (int8), any other tensor of the
    checkpoint its own bytes, and the sum is a whole number of 16-bit elements; older versions counted
    otherwise. A card with less than 1.2 GiB beyond that gets a smaller block, which is not modelled.
    ``times`` tells how often a name stands for its like.
    """
    if version < WARMS_UP:
        return 0
    stored = model.state_dict(keep_vars=True)
    total = sum(
        times(name) * tensor.numel() * _bytes_per_element(_loaded(model, name, tensor), version)
        for name, tensor in stored.items()
        if name not in _tied_to_others(model)
    )
    halved = HALVES <= version < COUNTS_ELEMENTS and getattr(model, "hf_quantizer", None) is not None
    return int(total // (4 if halved else 2)) * 2


def _bytes_per_element(loaded: LoadedTensor, version: tuple[int, ...]) -> float:
    import bitsandbytes

    if version >= COUNTS_ELEMENTS and loaded.name.endswith("weight"):
        if isinstance(loaded.module, bitsandbytes.nn.Linear4bit):
            return 0.5
        if isinstance(loaded.module, bitsandbytes.nn.Linear8bitLt):
            return 1
    return loaded.tensor.element_size()


def _tied_to_others(model: Any) -> set[str]:
    return set(getattr(model, "all_tied_weights_keys", {}))


def _loaded(model: nn.Module, name: str, tensor: torch.Tensor) -> LoadedTensor:
    return LoadedTensor(name, model.get_submodule(name.rpartition(".")[0]), tensor)
