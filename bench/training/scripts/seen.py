"""What is seen of a watched script, described as a cell: its model, method, optimizer and inputs."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import nn

from bench.errors import UsageError
from bench.records.messages import ScriptJob
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.scenario.types import Attention, Autocast, Dtype, SeenOptimizer
from bench.training.loading.models import DTYPES
from bench.training.methods import count_parameters, trainable_parameters
from bench.training.step import OPTIMIZERS
from bench.training.watcher import token_ids

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_NAMES_OF_DTYPES: dict[torch.dtype, Dtype] = {dtype: name for name, dtype in DTYPES.items()}

SEEN_FROM_OUTSIDE = Caveat(
    code="seen-from-outside",
    message="Read from the running script: its data, schedule, clipping, loss and seed are not seen, and "
    "stand at their defaults in the cell. The ledger's peak leaves out tensors that the script kept before "
    "by themselves, neither in a module nor in an optimizer: they are told as retained.",
)


class SeenCell:
    """Describes what a watched script trains as a cell: what can be read of its model, optimizer and inputs.

    ``micro_batches`` is how many forward passes a step takes, ``device`` where the model's weights are.
    """

    def __init__(self, job: ScriptJob) -> None:
        self._job = job
        self.device = "cpu"
        self.micro_batches = 1
        self._model: Any = None
        self._rows = self._positions = 0
        self._training: dict[str, Any] = {}

    def found(self, model: nn.Module) -> None:
        self._model = model
        self.device = next(parameter.device.type for parameter in trainable_parameters(model))

    def given(self, inputs: Mapping[str, Any]) -> None:
        ids = token_ids(inputs)
        if ids is not None and ids.numel() >= self._rows * self._positions:
            self._rows = ids.shape[:1].numel()
            self._positions = ids.shape[1] if ids.dim() in {2, 3} else 1  # those of an image are none
        kind = self._model.device.type if hasattr(self._model, "device") else self.device
        on = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if on else None
        autocast: Autocast = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "off")  # type: ignore[arg-type, assignment]
        self._training["autocast"] = autocast

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        group = optimizer.param_groups[0]
        self._training |= {
            "optimizer": optimizer_name(optimizer),
            "learning_rate": float(group.get("lr", 0.0)),
            "weight_decay": float(group.get("weight_decay", 0.0)),
        }

    def cell(self) -> Cell:
        """Return the cell; what is not seen has its default. Raises ``UsageError`` where none can say it."""
        try:
            return Cell.model_validate(self._content())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(
                f"what the script trains is beyond what a record can say ({where}: {first['msg']}); change "
                "that to watch it"
            ) from None

    def _content(self) -> dict[str, Any]:
        model, method = self._model, _method_of(self._model)
        source = _source_of(model)
        first, *rest = self._job.command
        script = _NOT_A_NAME.sub("-", rest[0] if first == "-m" else Path(first).stem).strip("-._")
        window = f"b{self._rows}-s{self._positions}"
        return {
            "id": f"{source['name']}/{method['name']}/{window}-{script or 'script'}",
            "scenario": f"watch-{script or 'script'}",
            "device": self.device,
            "model": source,
            "method": method,
            "data": {"source": "script"},
            "training": self._training
            | {
                "sequence_length": max(2, self._positions),
                "micro_batch": max(1, self._rows),
                "gradient_accumulation": self.micro_batches,
                "dtype": _dtype_of(model),
                "gradient_checkpointing": _checkpointing_of(model),
                "attention": _attention_of(model),
            },
            "loop": {"driver": "script", "args": {"command": list(self._job.command)}},
            "window": {
                "warmup_steps": self._job.warmup_steps,
                "measured_steps": self._job.steps,
                "ledger": self._job.ledger,
                "flops": self._job.flops,
            },
            "evaluation": {},
            "limits": {"timeout_s": self._job.timeout_s},
        }


def optimizer_name(optimizer: torch.optim.Optimizer) -> SeenOptimizer:
    """Return what a scenario calls an optimizer; ``unlisted`` where it has no name for it."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's and others' wrappers
    kind, group = type(optimizer), optimizer.param_groups[0]
    for name, (path, settings) in OPTIMIZERS.items():
        same = {key: value for key, value in settings.items() if key in ("fused", "foreach", "momentum")}
        if (
            path.rpartition(".")[2] != kind.__name__
            or path.partition(".")[0] != kind.__module__.split(".")[0]
        ):
            continue
        if all((group.get(key) or 0) == value or key == "foreach" for key, value in same.items()):
            return name
    return "unlisted"


def _source_of(model: Any) -> dict[str, str]:
    inner = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    given = str(getattr(getattr(inner, "config", None), "name_or_path", "") or "")
    name = _NOT_A_NAME.sub("-", given.rstrip("/").rpartition("/")[2] or type(inner).__name__).strip("-._")[
        :80
    ]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not Path(given).exists():
        return {"name": name, "hub": given}
    return {"name": name, "seen": f"{type(inner).__name__}, {count_parameters(inner):,} parameters"}


def _method_of(model: Any) -> dict[str, Any]:
    configurations = getattr(getattr(model, "_orig_mod", model), "peft_config", None)
    if not configurations:
        trained = sum(parameter.numel() for parameter in trainable_parameters(model))
        share = trained / sum(parameter.numel() for parameter in model.parameters())
        return {"kind": "full", "name": "full" if share == 1 else f"trains-{share:.1%}".replace("%", "pct")}
    config = next(iter(configurations.values()))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    trained_dtype = next(parameter.dtype for parameter in trainable_parameters(model))
    adapter_dtype = "fp32" if trained_dtype == torch.float32 else "weights"
    if kind != "LORA":
        numbers = {name: value for name, value in config.to_dict().items() if type(value) in {int, float}}
        named = {"name": kind.lower(), "type": kind.lower(), "config": numbers}
        return {"kind": "peft", **named, "adapter_dtype": adapter_dtype}
    targets = config.target_modules
    layers = {type(module).__name__ for module in model.modules()}
    shared = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "bias": config.bias,
        "target_modules": targets if isinstance(targets, str) else tuple(sorted(targets or ())),
        "adapter_dtype": adapter_dtype,
    }
    if "Linear4bit" in layers:
        return {"kind": "qlora", "name": f"qlora-r{config.r}", **shared}
    base = "int8" if "Linear8bitLt" in layers else "as-trained"
    return {"kind": "lora", "name": f"lora-r{config.r}", "base": base, **shared}


def _dtype_of(model: nn.Module) -> Dtype:
    """Return the dtype that most weights have, of those that are not quantised."""
    sizes: Counter[Dtype] = Counter()
    for parameter in model.parameters():
        if parameter.dtype in _NAMES_OF_DTYPES:
            sizes[_NAMES_OF_DTYPES[parameter.dtype]] += parameter.numel()
    if not sizes:
        dtype = next(model.parameters()).dtype
        raise UsageError(
            f"the script's model has weights in {dtype} and none in {', '.join(DTYPES)}, which is what a "
            "record can say; cast it to one of these"
        )
    return sizes.most_common(1)[0][0]


def _checkpointing_of(model: nn.Module) -> str:
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            function = getattr(module, "_gradient_checkpointing_func", None)
            reentrant = getattr(function, "keywords", {}).get("use_reentrant", False)
            return "reentrant" if reentrant else "non-reentrant"
    return "off"


def _attention_of(model: Any) -> Attention:
    named = getattr(getattr(model, "config", None), "_attn_implementation", None)
    known: tuple[Attention, ...] = get_args(Attention)
    return next((one for one in known if one == named), "eager")
