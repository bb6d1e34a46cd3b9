"""Loads a folder of weights in the dtype, attention and quantisation that a cell asks for."""

from typing import Any, NamedTuple

import torch
from torch import nn

from bench.errors import UnavailableError
from bench.scenario.types import Cell, LoraMethod, QloraMethod
from bench.training.step import DTYPES
from bench.training.weights import Weights


class Loaded(NamedTuple):
    """A model on its device and the tokenizer that belongs to it."""

    model: Any
    tokenizer: Any


def load_model(cell: Cell, weights: Weights, device: torch.device, *, trust_remote_code: bool) -> Loaded:
    """Load the base model as the method wants it; nothing is trained or adapted yet."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked out, any token serves
    try:
        model = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=DTYPES[cell.training.dtype],
            attn_implementation=cell.training.attention,
            quantization_config=quantisation_of(cell),
            device_map={"": str(device)},
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except ImportError as error:
        raise UnavailableError(
            f"{cell.id} needs a package that is missing here: {_one_line(error)}"
        ) from error
    except ValueError as error:
        if "does not support" not in str(error):
            raise
        raise UnavailableError(
            f"transformers cannot load {cell.model.name} so: {_one_line(error)}; "
            "choose another training.attention."
        ) from error
    quantise_tied_head(model)
    keep_quantised_weights(model)
    return Loaded(model, tokenizer)


def quantisation_of(cell: Cell) -> Any:
    """Return how the method quantises the base, as transformers wants it; None where it does not."""
    from transformers import BitsAndBytesConfig

    method = cell.method
    if isinstance(method, QloraMethod):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=method.quantisation,
            bnb_4bit_use_double_quant=method.double_quantisation,
            bnb_4bit_compute_dtype=DTYPES[method.compute_dtype],
            llm_int8_skip_modules=[] if method.quantise_lm_head else None,  # None skips the output layer
        )
    if isinstance(method, LoraMethod) and method.base == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def quantise_tied_head(model: Any) -> None:
    """Pack weights for an output layer of 4 bits that loading left tied to the 16-bit embeddings.

    The embeddings stay as they are, so the two are not tied any more.
    """
    import bitsandbytes

    head = model.get_output_embeddings()
    if isinstance(head, bitsandbytes.nn.Linear4bit) and not hasattr(head.weight, "quant_state"):
        weight, options = head.weight, model.config.quantization_config
        head.weight = bitsandbytes.nn.Params4bit(
            weight.data,
            requires_grad=False,
            quant_type=options.bnb_4bit_quant_type,
            compress_statistics=options.bnb_4bit_use_double_quant,
            module=head,
        ).to(weight.device)
        model.config.get_text_config().tie_word_embeddings = False


def keep_quantised_weights(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights when a model is evaluated on a CPU.

    Outside training its CPU path (with AVX512-BF16) rewrites them in a layout that has no gradient and
    whose way back re-quantises the scales (bitsandbytes 0.50, its functional.py,
    _convert_weight_packed_for_cpu_inverse: "best-effort"), so training after an evaluation would go on
    from other weights than before it.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
