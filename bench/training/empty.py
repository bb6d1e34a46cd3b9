"""Builds a cell's base model without data, on torch's meta device: shapes, dtypes and quantisation only.

The result goes through the same adaptation and the same steps as a loaded model.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.errors import UnavailableError, UntraceableError
from bench.scenario.catalog import architecture_of
from bench.scenario.types import Cell, ModelSpec, SyntheticData
from bench.training.models import quantisation_of
from bench.training.step import DTYPES


def configuration_of(model: ModelSpec, *, trust_remote_code: bool = False) -> Any:
    """Return the model's transformers configuration: the catalogue's, a local folder's or the hub's.

    Raises ``UnavailableError`` where none of these can be read.
    """
    from transformers import AutoConfig

    known = architecture_of(model)
    if known is not None:
        return AutoConfig.for_model(**known.config)
    place = model.path or model.hub
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise UnavailableError(
            f"folder {model.path} has no config.json; give the folder of a transformers model"
        )
    try:
        revision = {"revision": model.revision} if model.hub else {}
        return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200].rstrip(".")
        raise UnavailableError(
            f"the configuration of {place} cannot be read ({reason}); name a catalogued architecture, or "
            "give a local folder with its config.json"
        ) from error


def build_empty_model(cell: Cell, config: Any) -> Any:
    """Return the model on the meta device in the cell's dtype, attention and quantisation, not adapted.

    Weights that quantisation replaces are still 16-bit: ``quantise_empty`` packs them one by one, as
    loading does.
    """
    model = empty_causal_model(
        config, dtype=DTYPES[cell.training.dtype], attn_implementation=_attention(cell)
    )
    model.tie_weights()  # part of the initialisation that was left out
    quantisation = quantisation_of(cell)
    if quantisation is not None:
        from transformers.modeling_utils import local_torch_dtype
        from transformers.quantizers import AutoHfQuantizer

        quantiser = AutoHfQuantizer.from_config(quantisation, pre_quantized=False)
        dtype = DTYPES[cell.training.dtype]
        with local_torch_dtype(dtype, type(model).__name__):  # as from_pretrained does: biases are made anew
            quantiser.preprocess_model(model=model, device_map={"": "meta"}, dtype=dtype)
        quantiser.postprocess_model(model)
        for module in model.modules():
            _to_loaded_dtype(module, DTYPES[cell.training.dtype])
    return model


def empty_causal_model(config: Any, **settings: Any) -> Any:
    """Return a configuration's model on the meta device; raise ``UntraceableError`` where it makes none."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            return AutoModelForCausalLM.from_config(config, **settings)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200].partition(" for this kind of")[0]
        raise UntraceableError(
            f"transformers cannot build this {config.model_type} model: {reason}."
        ) from error


def _to_loaded_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a layer made for quantisation the dtype that loading would have given it before it is packed."""
    import bitsandbytes

    if isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)


def _attention(cell: Cell) -> str:
    """Return the implementation that shows what the cell's allocates; flash-attn's own needs its package.

    Without padding, and with one sequence a row, torch's SDPA runs the same kernel on the same tensors.
    """
    attention = cell.training.attention
    if attention != "flash_attention_2":
        return attention
    training = cell.training
    if isinstance(cell.data, SyntheticData):
        ragged = cell.data.attention_mask == "padded"
    else:
        ragged = training.micro_batch > 1 or training.batching != "pad-to-longest"
    if ragged:
        raise UntraceableError(
            "flash_attention_2 over padded or packed rows cannot be traced: its kernel's sizes depend on the "
            'data; set training.attention to "sdpa", or data.attention_mask to "ones".'
        )
    return "sdpa"


def quantise_empty(module: nn.Module) -> None:
    """Pack the weight of one bitsandbytes layer, by bitsandbytes' own code on the meta device."""
    import bitsandbytes

    weight: Any = getattr(module, "weight", None)
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        weight.module = module
        weight._quantize(weight.device)  # noqa: SLF001 - .to() leaves meta tensors alone
    elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
        packed, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.data.to(torch.float16))
        weight.data, weight.CB, weight.SCB = packed, packed, scales
