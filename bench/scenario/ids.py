"""The id of a cell: model/method/window, readable, and the same whatever else the scenario holds.

Each part is a name followed by short tokens: always those a practitioner looks for, then one for each lever
that differs from its default, then ``field=value`` for whatever else the scenario gives as a list.
"""

import hashlib
import json
import re
from collections.abc import Iterable

from bench.scenario.positions import Path
from bench.scenario.types import Cell, FullMethod, LoraMethod, PeftMethod

_LEVERS: dict[Path, str | dict[object, str]] = {
    ("method", "target_modules"): "on-{}",
    ("method", "bias"): "bias-{}",
    ("method", "adapter_dtype"): {"weights": "adapter-as-weights"},
    ("method", "compute_dtype"): "compute-{}",
    ("method", "kbit_preparation"): {False: "unprepared"},
    ("method", "quantise_lm_head"): {True: "head"},
    ("method", "recast_embeddings"): {True: "recast"},
    ("training", "gradient_accumulation"): "ga{}",
    ("training", "dtype"): "{}",
    ("training", "autocast"): "autocast-{}",
    ("training", "gradient_checkpointing"): {"non-reentrant": "ckpt", "reentrant": "ckpt-reentrant"},
    ("training", "attention"): {"eager": "eager", "flash_attention_2": "fa2", "flex_attention": "flex"},
    ("training", "optimizer"): {
        "adamw-foreach": "foreach",
        "adamw-loop": "loop",
        "sgd": "sgd",
        "sgd-momentum": "momentum",
        "adafactor": "adafactor",
        "adamw-32bit": "adamw32bit",
        "adamw-8bit": "adamw8bit",
        "paged-adamw-32bit": "paged32bit",
        "paged-adamw-8bit": "paged8bit",
        "lion-8bit": "lion8bit",
        "paged-lion-8bit": "pagedlion8bit",
        "ademamix-8bit": "ademamix8bit",
    },
    ("training", "loss"): "loss-{}",
    ("training", "loss_chunk_tokens"): "chunk{}",
    ("training", "upcast_outputs"): {True: "upcast"},
    ("training", "keep_outputs"): {True: "kept"},
    ("training", "use_cache"): {True: "cache"},
    ("training", "empty_cache_steps"): "empty{}",
    ("training", "batching"): {"pad-to-length": "padded", "pack": "pack"},
    ("data", "attention_mask"): {"ones": "mask-ones", "padded": "mask-padded"},
}
"""What shapes memory or speed, and its token where it differs from its default."""

_BUILT_IN: tuple[Path, ...] = (
    ("method", "base"),
    ("method", "quantisation"),
    ("method", "double_quantisation"),
    ("method", "rank"),
    ("training", "micro_batch"),
    ("training", "sequence_length"),
)
"""What ``cell_id`` spells out itself."""

_LONGEST_VALUE = 40


def cell_id(cell: Cell, axes: Iterable[Path]) -> str:
    """Return the id of a cell; ``axes`` are the fields that its scenario gives it as a list."""
    parts = {"model": [cell.model.name], "method": _method(cell), "window": _window(cell)}
    for field, form in _LEVERS.items():
        part, value, default = _value(cell, field)
        if value != default:
            token = form[value] if isinstance(form, dict) else form.format(_safe(value))
            parts["method" if part == "method" else "window"].append(token)
    for axis in sorted(axes, key=str):
        if axis not in _LEVERS and axis not in _BUILT_IN:
            part, value, _ = _value(cell, axis)
            parts[part if part in parts else "window"].append(f"{axis[-1]}={_safe(value)}")
    return "/".join("-".join(tokens) for tokens in parts.values())


def _method(cell: Cell) -> list[str]:
    """Return the method's name, quantisation and rank; what the name says already is not repeated."""
    method = cell.method
    if isinstance(method, FullMethod):
        return [method.name]
    if isinstance(method, PeftMethod):
        return [method.name, *([] if method.type.lower() in method.name.lower() else [_safe(method.type)])]
    if isinstance(method, LoraMethod):
        base = ["int8"] if method.base == "int8" else []
    else:
        base = [method.quantisation, *(["dq"] if method.double_quantisation else [])]
    said = method.name.split("-")
    return [method.name, *(token for token in (*base, f"r{method.rank}") if token not in said)]


def _window(cell: Cell) -> list[str]:
    return [f"b{cell.training.micro_batch}", f"s{cell.training.sequence_length}"]


def _value(cell: Cell, field: Path) -> tuple[str, object, object]:
    """Return a field's part of the cell, its value and its default; None where there is no such field."""
    part, key, *inside = map(str, field)
    holder = getattr(cell, part)
    if key not in type(holder).model_fields:
        return part, None, None
    value = getattr(holder, key)
    for inner in inside:
        value = value.get(inner)
    return part, value, type(holder).model_fields[key].default


def _safe(value: object) -> str:
    """Return a value as part of a file name; a digest keeps apart what looks the same once shortened."""
    text = "+".join(map(str, value)) if isinstance(value, tuple) else _plain(value)
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:_LONGEST_VALUE]
    if safe == text:
        return safe
    return f"{safe}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)
