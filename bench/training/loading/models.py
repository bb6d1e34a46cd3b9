"""A cell's base model: loaded from a folder of weights, or built empty on torch's meta device.

The empty one has shapes, dtypes and quantisation only, and goes through the same adaptation and the same
steps as a loaded model.
"""

from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.errors import UnavailableError, UntraceableError, one_line
from bench.records.readings import Caveat
from bench.scenario.catalogue import COUNTS_PARTS, MOST_LAYERS, architecture_of, architecture_within
from bench.scenario.cell import Cell, quantises
from bench.scenario.types import Dtype, FullMethod, LoraMethod, ModelSpec, QloraMethod
from bench.training.loading.weights import Weights
from bench.training.loading.wrappers import class_of

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


OWN_GPU = ContextVar("own_gpu", default=0)
"""Which of the devices that CUDA_VISIBLE_DEVICES leaves is this process's: its rank, of several."""


def device_of(cell: Cell) -> torch.device:
    return torch.device("cuda", OWN_GPU.get()) if cell.device == "cuda" else torch.device(cell.device)


class Loaded(NamedTuple):
    """A model on its device and the tokenizer that belongs to it."""

    model: Any
    tokenizer: Any


def load_model(cell: Cell, weights: Weights, device: torch.device, *, trust_remote_code: bool) -> Loaded:
    """Load the base model as the method wants it; nothing is trained or adapted yet.

    A quantised checkpoint is loaded as it is stored: transformers refuses it if told that it is not.
    """
    from transformers import AutoTokenizer

    config = _read_configuration(weights.folder, trust_remote_code=trust_remote_code)
    own = None if stored_quantisation(cell, config) else quantisation_of(cell)

    tokenizer = AutoTokenizer.from_pretrained(weights.folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked out, any token serves
    try:
        model = class_of(config).auto.from_pretrained(
            weights.folder,
            dtype=DTYPES[cell.training.dtype],
            attn_implementation=cell.training.attention,
            device_map={"": str(device)},
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **({} if own is None else {"quantization_config": own}),
        )
    except ImportError as error:
        raise UnavailableError(
            f"{cell.id} needs a package that is missing here: {one_line(error)}"
        ) from error
    except ValueError as error:
        if "does not support" not in str(error):
            raise
        raise UnavailableError(
            f"transformers cannot load {cell.model.name} so: {one_line(error)}; "
            f"{_supported_attention(config)}."
        ) from error
    model.config.architectures = config.architectures
    quantise_tied_head(model)
    keep_quantised_weights(model)
    return Loaded(model, tokenizer)


def quantisation_of(cell: Cell) -> Any:
    """Return how the method quantises the base, as transformers wants it; None where it does not."""
    from transformers import BitsAndBytesConfig

    method = cell.method
    if getattr(method, "implementation", "") == "reference":
        return None  # it quantises what was loaded, as it adapts it
    if isinstance(method, QloraMethod):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=method.quantisation,
            bnb_4bit_use_double_quant=method.double_quantisation,
            bnb_4bit_compute_dtype=DTYPES[method.compute_dtype],
            bnb_4bit_quant_storage=torch.uint8 if method.quant_storage == "uint8" else torch.bfloat16,
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


def configuration_of(model: ModelSpec) -> Any:
    """Return the model's transformers configuration: the catalogue's, a local folder's or the hub's.

    A derivative of a catalogued model that is not in the hub's local cache gets that one's: see
    ``assumed_of``. Raises ``UnavailableError`` where none of these can be read.
    """
    from transformers import AutoConfig

    known = architecture_of(model)
    if known is not None:
        return AutoConfig.for_model(**known.config)
    place, relative = model.path or model.hub, architecture_within(model.hub or "")
    if model.path is not None and not (Path(model.path) / "config.json").is_file():
        raise UnavailableError(
            f"folder {model.path} has no config.json; give the folder of a transformers model"
        )
    try:
        where = {"revision": model.revision, "local_files_only": relative is not None} if model.hub else {}
        return _read_configuration(place, trust_remote_code=False, **where)
    except (OSError, ValueError) as error:
        if relative is not None:
            return AutoConfig.for_model(**relative.config)
        reason = one_line(error).partition(". ")[0][:200].rstrip(".")
        near = architecture_within(model.hub or "", published=False)
        such = f", such as {near.name}" if near else ""
        raise UnavailableError(
            f"the configuration of {place} cannot be read ({reason}); name a catalogued architecture{such}, "
            "or give a local folder with its config.json"
        ) from error


def _read_configuration(place: Any, **how: Any) -> Any:
    """Read a configuration, counts first: some classes make lists of their layers as they are built.

    Raises ``UnavailableError`` where a model would have absurdly many parts.
    """
    from transformers import AutoConfig, PretrainedConfig

    found, _ = PretrainedConfig.get_config_dict(place, **how)
    parts = [found, *(part for part in found.values() if isinstance(part, dict))]
    for name, value in (field for part in parts for field in part.items()):
        if COUNTS_PARTS.search(name) and isinstance(value, int) and value > MOST_LAYERS:
            raise UnavailableError(
                f"the configuration of {place} is absurd ({name} is {value:,}, more than {MOST_LAYERS:,}); "
                "correct it"
            )
    return AutoConfig.from_pretrained(place, **how)


def assumed_of(model: ModelSpec, config: Any) -> str | None:
    """Return in a sentence whose configuration stands for a hub model's that was not read; None if none."""
    read = config.name_or_path or model.hub is None or architecture_of(model) is not None
    relative = None if read else architecture_within(model.hub or "")
    return relative.assumed_for(model.hub or "") if relative else None


def build_empty_model(cell: Cell, config: Any) -> Any:
    """Return the model on the meta device in the cell's dtype, attention and quantisation, not adapted.

    Weights that quantisation replaces are still 16-bit: ``quantise_empty`` packs them one by one, as
    loading does.
    """
    dtype = DTYPES[cell.training.dtype]
    model = empty_causal_model(config, dtype=dtype, attn_implementation=cell.training.attention)
    model.tie_weights()  # part of the initialisation that was left out
    stored = stored_quantisation(cell, config)
    quantisation = stored or quantisation_of(cell)
    if quantisation is not None:
        from transformers.modeling_utils import local_torch_dtype
        from transformers.quantizers import AutoHfQuantizer

        quantiser = AutoHfQuantizer.from_config(quantisation, pre_quantized=stored is not None)
        with local_torch_dtype(dtype, type(model).__name__):  # as from_pretrained does: biases are made anew
            quantiser.preprocess_model(model=model, device_map={"": "meta"}, dtype=dtype)
        quantiser.postprocess_model(model)
        model.hf_quantizer = quantiser  # transformers' Trainer asks it whether it may train
        unpacked_as_loaded(model, dtype, config.dtype if stored else None)
    return model


def unpacked_as_loaded(model: nn.Module, dtype: torch.dtype, packed_from: torch.dtype | None = None) -> None:
    """Give an empty model's bitsandbytes layers the dtype in which loading brings them to be packed.

    Weights that come packed were so from the checkpoint's dtype, and products still give that one back.
    """
    import bitsandbytes

    layers = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    for layer in (module for module in model.modules() if isinstance(module, layers)):
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.data = parameter.data.to(packed_from or dtype if name == "weight" else dtype)


def empty_causal_model(config: Any, **settings: Any) -> Any:
    """Return a configuration's model on the meta device; raise ``UntraceableError`` where it makes none."""
    from transformers.initialization import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            model = class_of(config).auto.from_config(config, **settings)
    except (ValueError, ImportError) as error:
        reason = one_line(error).partition(". ")[0][:200].partition(" for this kind of")[0]
        advice = f"; {_supported_attention(config)}" if "does not support" in reason else ""
        raise UntraceableError(
            f"transformers cannot build this {config.model_type} model: {reason}{advice}."
        ) from error
    model.config.architectures = config.architectures  # which a language model out of a wrapper has not
    return model


def _supported_attention(config: Any) -> str:
    """Return which attention a configuration's model supports, as advice to end a refusal with."""
    kind = class_of(config).kind
    # transformers puts another kernel in the place of one that is not among a class's compatible ones.
    flash = getattr(kind, "_compatible_flash_implementations", None) or ["flash_attention_2"]
    supported = {
        "eager": kind is not None,
        "sdpa": getattr(kind, "_supports_sdpa", False),
        "flash_attention_2": getattr(kind, "_supports_flash_attn", False) and "flash_attention_2" in flash,
        "flex_attention": getattr(kind, "_supports_flex_attn", False),
    }
    names = ", ".join(name for name, has in supported.items() if has) or "another implementation"
    return f"set the attention (training.attention, or --attention of bench fit) to one it supports: {names}"


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


_KEYS = ("quantization_config", "compression_config", "quantization")
"""Where configurations tell of it: transformers', llm-compressor's old one, MLX's."""
_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files of AutoGPTQ and AutoAWQ beside an older checkpoint's configuration, which says nothing of it."""
_TRAINED = {"bitsandbytes_4bit": "4 bits", "bitsandbytes_8bit": "8 bits"}
"""What is run over as it is stored: how many bits its weights have."""


def stored_as(config: Any) -> str | None:
    """Return how a checkpoint's weights are stored if not in 16 or 32 bits: gptq, fp8, bitsandbytes_4bit."""
    told = [getattr(each, key, None) for each in (config, config.get_text_config()) for key in _KEYS]
    found: Any = next((one for one in told if one), None)
    if found is None:
        folder = config.name_or_path and Path(config.name_or_path)
        return next((kind for file, kind in _BESIDE.items() if folder and (folder / file).is_file()), None)
    fields: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    if fields.get("load_in_4bit") or fields.get("load_in_8bit"):
        return "bitsandbytes_4bit" if fields.get("load_in_4bit") else "bitsandbytes_8bit"
    return str(fields.get("quant_method") or f"{fields.get('bits', 'few')} bits of an unnamed kind")


def stored_quantisation(cell: Cell, config: Any) -> Any:
    """Return how bitsandbytes stored a cell's checkpoint, as transformers wants it; None for 16 or 32 bits.

    Raises ``UnavailableError`` for weights stored in another way, and where the method would train or
    quantise what is quantised already.
    """
    kind = stored_as(config)
    if kind is None:
        return None
    name, method = cell.model.name, cell.method
    if kind not in _TRAINED:
        raise UnavailableError(
            f"the weights of {name} are stored quantised ({kind}), which is neither counted nor trained "
            "here; give its 16-bit checkpoint, or one that bitsandbytes stored."
        )
    stored = f"the weights of {name} are stored in {_TRAINED[kind]} by bitsandbytes"
    if isinstance(method, FullMethod):
        raise UnavailableError(
            f"{stored}, and such weights cannot be trained in full; choose lora, or give its 16-bit "
            "checkpoint."
        )
    if quantises(method):
        raise UnavailableError(
            f"{stored} and are not quantised again by {method.name}; choose lora with base as-trained, or "
            "give its 16-bit checkpoint."
        )
    from transformers.quantizers.auto import AutoQuantizationConfig

    for each in (config, config.get_text_config()):
        if found := getattr(each, "quantization_config", None):
            return AutoQuantizationConfig.from_dict(found) if isinstance(found, dict) else found
    raise AssertionError("bitsandbytes is told of in quantization_config")


def stored_caveats(cell: Cell, config: Any) -> list[Caveat]:
    """Say that a checkpoint's weights come quantised: a method over them is another than its name says."""
    kind = stored_as(config)
    if kind not in _TRAINED or quantises(cell.method):
        return []
    alike = "as QLoRA has" if kind == "bitsandbytes_4bit" else "as over an int8 base"
    message = (
        f"The checkpoint's weights are stored in {_TRAINED[kind]} by bitsandbytes: adapters are over those, "
        f"{alike}, not over 16-bit ones."
    )
    return [Caveat(code="stored-quantised", message=message)]
