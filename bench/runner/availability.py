"""Whether this machine can run a cell at all, told before anything is loaded. Pure: asks nothing itself."""

from collections.abc import Iterator
from typing import get_args

from bench.records.records import DeviceFacts, Environment
from bench.scenario.types import BitsandbytesOptimizer, Cell

# https://huggingface.co/docs/bitsandbytes/main/en/installation (NVIDIA CUDA, hardware requirements)
NF4_CAPABILITY = (6, 0)
INT8_CAPABILITY = (7, 5)
# https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support (Ampere and newer)
FLASH_ATTENTION_CAPABILITY = (8, 0)


def why_unavailable(cell: Cell, facts: DeviceFacts, environment: Environment) -> str | None:
    """Return in one sentence why this machine cannot run the cell, and what to do; None when it can."""
    return next(_obstacles(cell, facts, environment), None)


def _obstacles(cell: Cell, facts: DeviceFacts, environment: Environment) -> Iterator[str]:
    if needs_bitsandbytes(cell) and "bitsandbytes" not in environment.versions:
        yield "This cell needs the package bitsandbytes, which is not installed; pip install bitsandbytes."
    if cell.training.loss == "liger" and "liger-kernel" not in environment.versions:
        yield (
            "Loss liger needs the package liger-kernel, which is not installed; pip install liger-kernel, "
            "or set training.loss to chunked."
        )
    if cell.device == "cuda":
        yield from _cuda_obstacles(cell, facts)
    else:
        yield from _cpu_obstacles(cell)


def needs_bitsandbytes(cell: Cell) -> bool:
    """Tell whether weights or optimizer state of this cell are bitsandbytes'."""
    int8_base = cell.method.kind == "lora" and cell.method.base == "int8"
    return (
        cell.method.kind == "qlora" or int8_base or cell.training.optimizer in get_args(BitsandbytesOptimizer)
    )


def _cpu_obstacles(cell: Cell) -> Iterator[str]:
    if cell.training.attention == "flex_attention":
        # torch/nn/attention/flex_attention.py: "FlexAttention does not support backward on CPU."
        yield (
            "Attention flex_attention has no backward pass on a CPU; set training.attention to sdpa, or run "
            "this cell on a machine with a CUDA device."
        )


def _cuda_obstacles(cell: Cell, facts: DeviceFacts) -> Iterator[str]:
    if not facts.cuda_available:
        reason = (facts.cuda_unavailable_reason or "torch finds none").strip().rstrip(".")
        yield (
            f"This cell needs a CUDA device and there is none ({reason}); run it on a machine with one, or "
            'set device = "cpu" in the scenario.'
        )
        return
    name = facts.cuda_name or "this card"
    if uses_bf16(cell) and facts.bf16_on_cuda is False:
        yield f"{name} has no bf16; set training.dtype, autocast and compute_dtype to fp16 or fp32."
    if cell.training.attention == "flash_attention_2":
        if not facts.flash_attention_2:
            yield (
                "Attention flash_attention_2 needs the package flash-attn, which is not installed; "
                "pip install flash-attn, or set training.attention to sdpa."
            )
        elif _below(facts, FLASH_ATTENTION_CAPABILITY):
            yield f"{name} is older than flash_attention_2 supports (Ampere); set training.attention to sdpa."
    if cell.method.kind == "lora" and cell.method.base == "int8" and _below(facts, INT8_CAPABILITY):
        yield f"{name} is older than int8 weights support (Turing); use qlora, or lora over 16-bit weights."
    if cell.method.kind == "qlora" and _below(facts, NF4_CAPABILITY):
        yield f"{name} is older than 4-bit weights support (Pascal); use lora over 16-bit weights."


def uses_bf16(cell: Cell) -> bool:
    """Tell whether weights, autocast or the compute dtype of quantised weights are bf16."""
    compute_dtype = cell.method.compute_dtype if cell.method.kind == "qlora" else None
    return "bf16" in {cell.training.dtype, cell.training.autocast, compute_dtype}


def _below(facts: DeviceFacts, capability: tuple[int, int]) -> bool:
    """Tell whether the card is known to be older; an unknown one is given the chance to fail."""
    return facts.cuda_capability is not None and facts.cuda_capability < capability
