"""Full fine-tuning, LoRA and QLoRA: what each does to a loaded model. One small function a method."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from bench.errors import UsageError
from bench.spec.types import Cell, FullMethod, LoraMethod, QloraMethod


def adapt(model: Any, cell: Cell) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the model ready to train: frozen and adapted as the method says, checkpointing set."""
    _enable_checkpointing(model, cell)
    adapted = _ADAPT[cell.method.kind](model, cell)
    adapted.train()
    return adapted


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that receive a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> int:
    """Count parameters as the architecture has them: a packed 4-bit byte holds two."""
    return sum(_unpacked_size(parameter) for parameter in model.parameters())


def _unpacked_size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def _enable_checkpointing(model: Any, cell: Cell) -> None:  # noqa: ANN401 - transformers ships no types
    kind = cell.training.gradient_checkpointing
    if kind == "off":
        return
    model.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant"})
    if cell.method.kind != "full":
        # Reentrant checkpointing drops the graph unless an input needs a gradient, and frozen embeddings
        # give none; the usual recipes do this for both kinds.
        model.enable_input_require_grads()


def _adapt_full(model: Any, _cell: Cell) -> Any:  # noqa: ANN401 - transformers ships no types
    return model


def _adapt_lora(model: Any, cell: Cell) -> Any:  # noqa: ANN401 - transformers ships no types
    method = cell.method
    if not isinstance(method, LoraMethod):
        raise TypeError(f"expected a LoRA method, got {method.kind}")
    return _with_adapter(model, method)


def _adapt_qlora(model: Any, cell: Cell) -> Any:  # noqa: ANN401 - transformers ships no types
    from peft import prepare_model_for_kbit_training

    method = cell.method
    if not isinstance(method, QloraMethod):
        raise TypeError(f"expected a QLoRA method, got {method.kind}")
    if method.kbit_preparation:
        # Checkpointing has its own lever, so peft's switch for it stays off.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return _with_adapter(model, method)


def _with_adapter(model: Any, method: LoraMethod | QloraMethod) -> Any:  # noqa: ANN401 - transformers ships no types
    from peft import LoraConfig, get_peft_model

    targets = method.target_modules
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            bias=method.bias,
            **method.peft,
        )
        return get_peft_model(model, config, autocast_adapter_dtype=method.adapter_dtype == "fp32")
    except (TypeError, ValueError, re.error) as error:
        raise UsageError(
            f"peft refuses the adapter of method {method.name!r}: {' '.join(str(error).split())} "
            "Correct target_modules or the method's peft table."
        ) from error


_ADAPT: dict[str, Callable[[Any, Cell], Any]] = {
    FullMethod().kind: _adapt_full,
    LoraMethod().kind: _adapt_lora,
    QloraMethod().kind: _adapt_qlora,
}
