"""Liger's whole patch of a model, as transformers' Trainer applies it for ``use_liger_kernel``."""

from typing import Any

from bench.errors import UnavailableError
from bench.scenario.cell import Cell


def patch_model(model: Any, *, fused_loss: bool) -> None:
    """Put Liger's kernels in the place of a loaded model's norms, rotations, gates and loss, on CUDA.

    Its rotations are replaced for every model of that kind in this process. Raises ``UnavailableError``
    where the package is missing, or has no patch for this kind of model.
    """
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:
        raise UnavailableError(
            "kernels liger needs the package liger-kernel, which is not installed; pip install liger-kernel, "
            "or set training.kernels to torch."
        ) from error
    known, kind = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN, model.config.model_type
    if kind not in known:
        raise UnavailableError(
            f"Liger has no patch for {kind} models; set training.kernels to torch. It has for "
            f"{', '.join(sorted(known))}."
        )
    own = {} if fused_loss else {"fused_linear_cross_entropy": False}
    monkey_patch._apply_liger_kernel_to_instance(model=model, **own)  # noqa: SLF001 - as transformers calls it


def patch_as_asked(model: Any, cell: Cell) -> None:
    """Patch a model if its cell asks for it; the loss stays trl's in its loops, which fold logits themselves.

    Source: trl 1.16, trainer/sft_trainer.py, where it reads ``args.use_liger_kernel``.
    """
    if cell.training.kernels == "liger":
        patch_model(model, fused_loss=not cell.loop.driver.startswith("trl-"))
