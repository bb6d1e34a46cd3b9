"""Settings of torch that change speed or results, read as torch has them. Sets nothing, touches no CUDA."""

import os
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from bench.records.cuda import TorchSettings

_Value = TypeVar("_Value")


def read_torch_settings() -> TorchSettings:
    """Return what is in force in this process now.

    TF32 and reduced precision are read by their older names, which every version has; where somebody has set
    them by torch 2.9's newer ones, torch refuses to answer and they are None.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return TorchSettings(
        float32_matmul_precision=_read(torch.get_float32_matmul_precision),
        matmul_allow_tf32=_read(lambda: bool(matmul.allow_tf32)),
        cudnn_allow_tf32=_read(lambda: bool(cudnn.allow_tf32)),
        cudnn_benchmark=_read(lambda: bool(cudnn.benchmark)),
        cudnn_deterministic=_read(lambda: bool(cudnn.deterministic)),
        deterministic_algorithms=_deterministic_algorithms(),
        bf16_reduced_precision_reduction=_read(lambda: bool(matmul.allow_bf16_reduced_precision_reduction)),
        allocator_backend=_read(torch.cuda.get_allocator_backend),
        allocator_settings=_read(_allocator_settings),
    )


def _read(setting: Callable[[], _Value]) -> _Value | None:
    """Return a setting; None where torch has it not (a build without CUDA) or does not tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is going to change
        try:
            return setting()
        except (AttributeError, RuntimeError):
            return None


def _deterministic_algorithms() -> Literal["off", "warn only", "on"]:
    if not torch.are_deterministic_algorithms_enabled():
        return "off"
    return "warn only" if torch.is_deterministic_algorithms_warn_only_enabled() else "on"


def _allocator_settings() -> str:
    """Return the text that torch has parsed; versions that do not tell read one variable only."""
    if hasattr(torch._C, "_accelerator_getAllocatorSettings"):  # noqa: SLF001 - has no public name
        return str(torch._C._accelerator_getAllocatorSettings())  # noqa: SLF001 - the same
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
