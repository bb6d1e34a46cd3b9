"""What a checkpoint's configuration says of how its weights are stored, and what can be done over them."""

from pathlib import Path
from typing import Any

from bench.errors import UnavailableError
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.scenario.types import FullMethod, LoraMethod, QloraMethod

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
    if _quantises(cell):
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
    if kind not in _TRAINED or _quantises(cell):
        return []
    alike = "as QLoRA has" if kind == "bitsandbytes_4bit" else "as over an int8 base"
    message = (
        f"The checkpoint's weights are stored in {_TRAINED[kind]} by bitsandbytes: adapters are over those, "
        f"{alike}, not over 16-bit ones."
    )
    return [Caveat(code="stored-quantised", message=message)]


def _quantises(cell: Cell) -> bool:
    method = cell.method
    return isinstance(method, QloraMethod) or (isinstance(method, LoraMethod) and method.base == "int8")
