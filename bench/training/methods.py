"""Full fine-tuning, LoRA, QLoRA and all of peft: what each does to a loaded model, and what it left there.

An adapter has ranks that no layer may use, a size on disk, and a merge into its base that changes logits.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench.errors import UnavailableError, UsageError, not_installed, one_line
from bench.records.readings import Caveat
from bench.records.records import MergeCheck
from bench.scenario.cell import Cell, peft_type
from bench.scenario.diagnostics import perhaps
from bench.scenario.types import FullMethod, LoraMethod, PeftMethod, QloraMethod
from bench.training import reference
from bench.training.loading.models import DTYPES
from bench.training.loading.wrappers import beside_text
from bench.training.rows.data import Batch


def adapt(model: Any, cell: Cell) -> Any:
    """Return the model ready to train: frozen and adapted as the method says, checkpointing set."""
    _enable_checkpointing(model, cell)
    patch_as_asked(model, cell)
    method, dtype = cell.method, DTYPES[cell.training.dtype]
    match method:
        case FullMethod():
            for unused in beside_text(model).values():
                unused.requires_grad_(requires_grad=False)
            adapted = model
        case LoraMethod(implementation="reference") | QloraMethod(implementation="reference"):
            adapted = reference.adapt(model, method)
        case LoraMethod():
            quantised = any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
            prepare = quantised and method.kbit_preparation
            adapted = _with_lora(_prepared(model) if prepare else model, method)
        case QloraMethod():
            model = _prepared(model) if method.kbit_preparation else model
            adapted = _with_lora(_recast(model, dtype) if method.recast_embeddings else model, method)
        case PeftMethod():
            adapted = _with_adapter(model, method, _configuration_class(method.type), method.config)
    if not isinstance(method, FullMethod) and method.adapter_dtype == "weights":
        for parameter in trainable_parameters(adapted):  # fp32 over 4-bit weights, and on the meta device
            parameter.data = parameter.data.to(dtype)
    adapted.train()
    return adapted


def _recast(model: Any, dtype: torch.dtype) -> Any:
    """Cast as trl's peft_module_casting_to_bf16: norms stay fp32, and everything after them with them."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer.weight.dtype == torch.float32:
            layer.weight.data = layer.weight.data.to(dtype)
    return model


def _enable_checkpointing(model: Any, cell: Cell) -> None:
    kind = cell.training.gradient_checkpointing
    if kind == "off":
        return
    model.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant"})
    if cell.method.kind != "full":
        # Reentrant checkpointing drops the graph unless an input needs a gradient, and frozen embeddings
        # give none; the usual recipes do this for both kinds.
        model.enable_input_require_grads()


def method_caveats(cell: Cell) -> list[Caveat]:
    """Say where a method is not run as its authors would."""
    if isinstance(cell.method, PeftMethod) and peft_type(cell.method.type) == "ADALORA":
        message = "AdaLoRA's ranks stay as they begin: update_and_allocate is never called here."
        return [Caveat(code="adalora-not-pruned", message=message)]
    return []


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> int:
    """Count parameters as the architecture has them: a packed 4-bit byte holds two."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters())
    return sum(parameter.numel() if state is None else state.shape.numel() for parameter, state in states)


def _prepared(model: Any) -> Any:
    """Freeze and upcast as peft does; checkpointing has its own lever, so peft's switch stays off."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _with_lora(model: Any, method: LoraMethod | QloraMethod) -> Any:
    from peft import LoraConfig

    targets = method.target_modules
    own = {
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "bias": method.bias,
    }
    return _with_adapter(model, method, LoraConfig, own | method.peft)


def _configuration_class(name: str) -> Any:
    """Return the configuration class of one of peft's types, named in any case."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value): found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    wanted = peft_type(name)
    if wanted in classes:
        return classes[wanted]
    hint = perhaps(wanted.lower(), [known.lower() for known in classes])
    advice = f"set the method's type to one of peft's PeftType. {hint}"
    raise UsageError(f'peft has no method of type "{name}"; {advice}'.rstrip())


def _with_adapter(
    model: Any, method: LoraMethod | QloraMethod | PeftMethod, configuration: Any, fields: dict[str, Any]
) -> Any:
    from peft import get_peft_model

    layers = model.named_modules()
    linear = {name.rpartition(".")[2] for name, layer in layers if isinstance(layer, nn.Linear)}
    try:
        config = configuration(task_type="CAUSAL_LM", **fields)
        return get_peft_model(model, config, autocast_adapter_dtype=method.adapter_dtype == "fp32")
    except (TypeError, ValueError, re.error) as error:
        table = "config" if isinstance(method, PeftMethod) else "peft"
        others = sorted(linear - {"lm_head", *re.findall(r"'([\w.]+)'", str(error))})
        raise UsageError(
            f"peft refuses the adapter of method {method.name!r}: {one_line(error)}. Correct the method's "
            f"{table} table, or its target_modules; linear layers that this does not name: "
            f"{', '.join(others) or 'none'}."
        ) from error


def excess_ranks(model: Any) -> tuple[Caveat, ...]:
    """Say where LoRA's rank is above the smaller side of a layer, which bounds the rank of any update."""
    from peft.tuners.lora import LoraLayer

    kinds = (LoraLayer, reference.LoraLinear)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    narrow: dict[tuple[int, int], list[str]] = {}
    for name, layer in layers:
        side = min(layer.in_features, layer.out_features)
        for rank in layer.r.values():
            if rank > side:
                narrow.setdefault((rank, side), []).append(name.rpartition(".")[2])
    return tuple(
        Caveat(
            code="excess-rank",
            message=f"Rank {rank} is more than {len(names)} of the {len(layers)} adapted layers can use "
            f"({', '.join(sorted(set(names)))}: {side}, the smaller side of their weights); what they train "
            "beyond that adds memory and no freedom.",
        )
        for (rank, side), names in sorted(narrow.items())
    )


def adapter_file_bytes(model: Any) -> int:
    """Save the adapter as safetensors and return the size of its weight files."""
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder, safe_serialization=True)
        else:  # the reference's, which the model does not know to be an adapter
            trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
            save_file(trained, Path(folder) / "adapter_model.safetensors", {"format": "pt"})
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))


def check_merge(model: Any, batch: Batch, device: torch.device) -> MergeCheck | Caveat:
    """Merge the adapter into the base, for good, and compare logits on one batch.

    Returns a caveat for an adapter that no base can take in, such as a learned prompt.
    """
    if not hasattr(model, "merge_and_unload"):
        return _not_mergeable("peft has no merge for it")
    apart = _logits(model, batch, device)
    try:
        model = model.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        refused = isinstance(error, NotImplementedError | ValueError) or "Impossible to merge" in str(error)
        if not refused:
            raise
        return _not_mergeable(one_line(error))
    merged = _logits(model, batch, device)
    return MergeCheck(
        max_abs_difference=float((apart - merged).abs().max()), reference_max_abs=float(apart.abs().max())
    )


def _not_mergeable(reason: str) -> Caveat:
    message = f"This adapter cannot be merged ({reason}), so none was checked."
    return Caveat(code="not-mergeable", message=message)


def _logits(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return fp32 logits [batch, sequence, vocabulary] in evaluation mode, on the CPU."""
    model.eval()
    inputs = batch.inputs_on(device)
    inputs.pop("labels")
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits.float().cpu()


def patch_model(model: Any, *, fused_loss: bool) -> None:
    """Put Liger's kernels in the place of a loaded model's norms, rotations, gates and loss, on CUDA.

    Its rotations are replaced for every model of that kind in this process. Raises ``UnavailableError``
    where the package is missing, or has no patch for this kind of model.
    """
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:
        instead = "training.kernels to torch"
        raise UnavailableError(not_installed("kernels liger", "liger-kernel", instead)) from error
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
