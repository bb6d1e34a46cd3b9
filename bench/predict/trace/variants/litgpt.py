"""litgpt's own models, op for op as its source has them, for predictions of what litgpt trained.

It runs none of transformers' models: queries, keys and values come out of one projection, adapters are its
own, and Lightning Fabric quantises. Source: https://github.com/Lightning-AI/litgpt, model.py, lora.py and
finetune/lora.py; Lightning's fabric/plugins/precision/bitsandbytes.py. The day of ``platform.litgpt`` tells
which rules held: lit-gpt was run from its main branch, long without releases.
"""

from collections.abc import Collection
from typing import Any

import torch

from bench.errors import UntraceableError
from bench.predict.trace.variants.litgpt_model import GPT, QKV, Choice, Shape
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.scenario.types import LoraMethod, QloraMethod
from bench.training.loading.models import DTYPES

SLIDES = "2024-07-23"
"""Pull request 1545: Gemma 2, and attention within windows, which makes a mask even where all is within."""
REARRANGED = "2024-12-26"
"""Pull request 1013: queries, keys and values lie side by side; what that takes is not known here."""

_QUERY, _KEY, _VALUE = QKV
_MLP = (
    ("fc1", "fc2"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("mlp",),
)
_FUSED = ("query_key_value", "qkv_proj")
_PARTS = {
    "q_proj": (_QUERY,),
    "k_proj": (_KEY,),
    "v_proj": (_VALUE,),
    **dict.fromkeys(_FUSED, QKV),
    **dict.fromkeys(("o_proj", "dense", "projection"), ("projection",)),
    **dict.fromkeys(("lm_head", "embed_out", "head"), ("head",)),
    **{name: (name,) for name in QKV},
    **{name: ("mlp",) for names in _MLP for name in names},
    "all-linear": (*QKV, "projection", "mlp"),
}
"""What litgpt's switches (lora_query and so on) are called in transformers' models, and by themselves."""


_NEOX = {"norm": "layer", "mlp": "", "parallel": True}
_GEMMA = {"unit_offset": True, "mlp": "gelu", "scaled": True}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "post_norms": True, "capped": True, "slides": 2},
    "phi3": {"slides": 1},
    "stablelm": {"norm": "layer"},
    "phi": {**_NEOX, "shared_norm": True, "bias": True, "head_bias": True},
    "falcon": {**_NEOX, "shared_norm": True},
    "gpt_neox": {**_NEOX, "bias": True},
}
"""Of models in transformers' names, as litgpt/config.py has them; of others too little is known."""


def shape_of(config: Any, day: str) -> Shape:
    """Return litgpt's shape of a model; raise ``UntraceableError`` for a family that is not known here."""
    kind = config.model_type
    if kind not in _FAMILIES:
        raise UntraceableError(
            f"litgpt's own {kind} model is not known here, only {', '.join(_FAMILIES)}; leave out "
            "platform.litgpt to predict the model of transformers."
        )
    own = dict(_FAMILIES[kind])
    if "slides" in own and day < SLIDES:
        raise UntraceableError(f"litgpt's {kind} of {day} is not known here, only that from {SLIDES} on.")
    heads = int(config.num_attention_heads)
    width = int(config.hidden_size)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if kind == "falcon":
        groups = (
            config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else heads
        )
        own["shared_norm"] = not config.new_decoder_architecture
    if kind == "gpt_neox":
        own["parallel"] = config.use_parallel_residual
    head_width = int(getattr(config, "head_dim", None) or width // heads)
    rope = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    inner: Any = getattr(config, "ffn_hidden_size", None) or getattr(config, "intermediate_size", 4 * width)
    return Shape(
        layers=config.num_hidden_layers,
        width=width,
        inner=int(inner),
        heads=heads,
        groups=int(groups),
        head_width=head_width,
        rotary_width=int(share * head_width),
        vocabulary=config.vocab_size,
        **own,
    )


def adapted_parts(targets: str | Collection[str]) -> frozenset[str]:
    """Return which parts litgpt adapts for target modules in transformers' names.

    A fused ``query_key_value`` alone is taken for queries and values: keys are off by default in litgpt
    (finetune/lora.py, ``lora_key``), and in every configuration of its hub that leaves the MLP out.
    """
    names = {targets} if isinstance(targets, str) else set(targets)
    if unknown := sorted(names - _PARTS.keys()):
        raise UntraceableError(
            f"litgpt has no part {unknown[0]} to adapt; set the method's target_modules to names of "
            f"{', '.join(_PARTS)}."
        )
    if names in [{fused} for fused in _FUSED]:
        return frozenset({_QUERY, _VALUE})
    of_mlp = names & {name for group in _MLP for name in group}
    if of_mlp and not any(set(group) <= names for group in _MLP):
        raise UntraceableError(
            "litgpt adapts all of an MLP or nothing of it; name all its layers in target_modules, or none."
        )
    return frozenset(part for name in names for part in _PARTS[name])


def caveats(cell: Cell, day: str) -> tuple[Caveat, ...]:
    """Say that another model stands in the place of transformers', and what was taken for granted."""
    targets: tuple[str, ...] = getattr(cell.method, "target_modules", ())
    fused = targets in [(name,) for name in _FUSED]
    assumed = f" {targets[0]} is taken for queries and values, as litgpt adapts by default." if fused else ""
    message = f"The model is litgpt's own, by its source as of {day}, not that of transformers."
    return (Caveat(code="model-of-litgpt", message=message + assumed),)


def refuse_unknown(cell: Cell, day: str) -> None:
    """Raise ``UntraceableError`` for what litgpt does otherwise than is known here."""
    method, training = cell.method, cell.training
    int8 = isinstance(method, LoraMethod) and method.base == "int8"
    lacks = {
        f"litgpt from {REARRANGED} on (its queries, keys and values lie otherwise)": day >= REARRANGED,
        f"method {method.kind} in litgpt": not isinstance(method, LoraMethod | QloraMethod) or int8,
        "gradient checkpointing in litgpt, which has none on one GPU": training.gradient_checkpointing
        != "off",
        "packing in litgpt, which has none": training.batching == "pack",
        f"loss {training.loss} in litgpt; its own is chunked-logits": training.loss != "chunked-logits",
        f"loop {cell.loop.driver} over a model of litgpt": cell.loop.driver != "window",
    }
    if found := next((what for what, lacking in lacks.items() if lacking), None):
        raise UntraceableError(f"not predicted: {found}; correct that, or leave out platform.litgpt.")


def build(cell: Cell, config: Any, day: str) -> "GPT":
    """Return litgpt's model of a configuration on the meta device, with no adapters yet.

    Fabric makes every linear layer 4-bit, the output layer too. Raises ``UntraceableError`` for what is not
    known of litgpt.
    """
    refuse_unknown(cell, day)
    with torch.device("meta"):
        choice = Choice(cell.method, DTYPES[cell.training.dtype], day)
        return GPT(shape_of(config, day), choice, config, cell.training.sequence_length)


def adapt(model: GPT, cell: Cell) -> GPT:
    model.adapt(adapted_parts(getattr(cell.method, "target_modules", ())))
    return model.train()
