"""A cell: one model, one method, one training window, on one device; and what its parts rule out together.

What only one machine lacks is found later.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from bench.io import own_toml
from bench.scenario.loop import LoopSpec
from bench.scenario.names import lever_of
from bench.scenario.parallel import ParallelSpec, contradictions_of_ranks
from bench.scenario.types import (
    DataSpec,
    Device,
    EvaluationSpec,
    Frozen,
    FullMethod,
    LimitsSpec,
    LoraMethod,
    MethodSpec,
    ModelSpec,
    Name,
    PeftMethod,
    QloraMethod,
    RowFormat,
    RowTemplate,
    TrainingSpec,
    WindowSpec,
)

Problem = tuple[str, str, str]
"""Part, field, and in words what is wrong and what to do."""

TEMPLATES_OF_FORMAT: dict[RowFormat, tuple[RowTemplate, ...]] = {
    "alpaca": ("alpaca", "chat", "chatml", "plain"),
    "dolly": ("alpaca", "chat", "chatml", "plain"),
    "chat": ("chat", "chatml"),
    "sharegpt": ("chat", "chatml"),
    "text": ("plain",),
    "completion": ("plain", "chat", "chatml"),
    "preference": ("plain", "chat", "chatml"),
}
"""Which templates can show the rows of a format."""

# PeftModelForCausalLM.forward in peft's peft_model.py: the first put virtual tokens into the sequence, all
# of them drop position_ids; the last kind wants more than token ids.
_LENGTHENING = frozenset({"PROMPT_TUNING", "P_TUNING", "CPT"})
_PROMPT_LEARNING = _LENGTHENING | {"PREFIX_TUNING", "CARTRIDGE"}
_BEYOND_TEXT = {
    "MULTITASK_PROMPT_TUNING": "task ids",
    "POLY": "task ids",
    "XLORA": "adapters that are trained already",
}

# By what they say, so that options of other versions are refused too: peft imports megatron_core, unpickles
# cache_file and the like, loads tokenizers (with code of theirs) and adapters; trainers read JSON and upload.
_OUTSIDE = re.compile(
    r"(^|_)(path|file|dir|folder|megatron|tokenizer|hub|trackio|deepspeed|fsdp|revision)(s?_|s?$)|^adapters$"
    "|trust_remote_code|resume_from_checkpoint|shadow_model|auto_mapping|(accelerator|parallelism)_config"
)

HOW_IT_LEARNS = frozenset(
    {"training.learning_rate", "training.weight_decay", "training.schedule", "training.schedule_warmup_steps"}
)
"""For ``Cell.comparison_key``: fields that change what is learned, not the memory or time of a step."""

EXTRA_READINGS = frozenset({"window.ledger", "window.flops", "window.merge_check"})
"""For ``Cell.comparison_key``: what is read besides time and peaks, after everything timed."""


_COMPARED = ["device", "model", "method", "data", "training", "loop", "parallel", "window", "evaluation"]


class CellLabels(NamedTuple):
    """The three parts of a cell's id."""

    model: str
    method: str
    window: str


class Cell(Frozen):
    """One point of the matrix: everything a worker needs to know."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+=:,@/~-]*$", max_length=400)
    scenario: Name
    device: Device = "cpu"
    model: ModelSpec
    method: MethodSpec
    data: DataSpec
    training: TrainingSpec
    loop: LoopSpec = Field(LoopSpec(), exclude_if=lambda loop: loop == LoopSpec())
    parallel: ParallelSpec = Field(ParallelSpec(), exclude_if=lambda spec: spec == ParallelSpec())
    window: WindowSpec
    evaluation: EvaluationSpec
    limits: LimitsSpec

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of all that shapes the measurement.

        The id, the scenario's name and the limits do not shape it and are left out. The window's own loop is
        not stored, so what was measured before there were others is not measured again.
        """
        content = self.model_dump(mode="json", exclude={"id", "scenario", "limits"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def labels(self) -> CellLabels:
        """Model, method and window as the id names them; from the fields where it has other than 3 parts."""
        parts = self.id.split("/")
        if len(parts) == len(CellLabels._fields):
            return CellLabels(*parts)
        window = f"b{self.training.micro_batch}-s{self.training.sequence_length}"
        return CellLabels(self.model.name, self.method.name, window)

    def comparison_key(self, ignore: Collection[str] = ()) -> tuple[str, ...]:
        """Return what cells must share to be alike but for ``ignore``: parts ("method") or fields of parts.

        Two keys compare only where ``ignore`` is the same; ids, scenarios' names and limits never count.
        """
        fields: dict[str, set[str]] = {}
        for path in ignore:
            part, _, field = path.partition(".")
            fields.setdefault(part, set()).add(field)
        return tuple(
            self.device if part == "device" else getattr(self, part).model_dump_json(exclude=fields.get(part))
            for part in _COMPARED
            if "" not in fields.get(part, ())
        )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Refuse what no machine can do; what only this machine cannot do is found before the run."""
        if problems := contradictions(self):
            raise ValueError("; ".join(f"{part}.{field} {message}" for part, field, message in problems))
        return self


def contradictions(cell: Cell) -> list[Problem]:
    of_method = _of_peft(cell, cell.method) if cell.method.kind == "peft" else _of_adapter(cell.method)
    ranks = contradictions_of_ranks(cell.parallel, cell.training, cell.method, cell.loop.driver)
    return [*_by_rules(cell), *_of_training(cell), *_of_data(cell), *of_method, *_of_loop(cell), *ranks]


_Conditions = dict[str, list[Any]]
"""By a field's path the values that are meant."""


@cache
def _rules() -> list[tuple[_Conditions, _Conditions, _Conditions, str, str]]:
    """Return of each rule ``when``, ``unless``, ``only``, ``at`` and ``says``."""
    return [
        (
            *(
                {
                    path: each if isinstance(each, list) else [each]
                    for path, each in rule.get(name, {}).items()
                }
                for name in ("when", "unless", "only")
            ),
            rule.get("at", ""),
            rule["says"],
        )
        for rule in own_toml("bench.scenario", "contradictions.toml")["rule"]
    ]


def _by_rules(cell: Cell) -> Iterator[Problem]:
    """Find what contradictions.toml rules out; its head says how it is read."""
    read = cache(partial(_value, cell))
    for when, unless, only, at, says in _rules():
        if all(read(path) in values for path, values in when.items()) and not any(
            read(path) in values for path, values in unless.items()
        ):
            wrong = (path for path, values in only.items() if read(path) not in (None, *values))
            for path in [at] if at else wrong:
                part, _, field = path.partition(".")
                yield part, field, says.format(cell=cell)


def _value(cell: Cell, path: str) -> Any:
    """Return a part or a field of one as TOML would have it; None where there is none."""
    part, _, field = path.partition(".")
    value = getattr(getattr(cell, part), field, None) if field else getattr(cell, part)
    return [*value] if isinstance(value, tuple) else value


def peft_type(name: str) -> str:
    """Return a name from a scenario as peft's PeftType spells it."""
    return name.upper().replace("-", "_")


def quantises(method: MethodSpec) -> bool:
    """Tell whether a method packs the base it loads into 4 or 8 bits."""
    return method.kind == "qlora" or (method.kind == "lora" and method.base == "int8")


def virtual_tokens(method: MethodSpec) -> int:
    """Return how many tokens of its own a method puts before those of the data."""
    if method.kind != "peft" or peft_type(method.type) not in _LENGTHENING:
        return 0
    given = method.config.get("num_virtual_tokens") or len(method.config.get("cpt_token_ids") or ())
    return given if isinstance(given, int) else 0


def _of_training(cell: Cell) -> Iterator[Problem]:
    training, method = cell.training, cell.method
    trains_fp16 = training.dtype == "fp16" and (method.kind == "full" or method.adapter_dtype == "weights")
    if training.autocast == "fp16" and trains_fp16:
        message = "fp16 cannot unscale fp16 gradients; keep what is trained in fp32 (dtype, or adapter_dtype)"
        yield "training", "autocast", message


def _of_loop(cell: Cell) -> Iterator[Problem]:
    loop = cell.loop
    if not loop.is_library:
        return
    yield from _reaching_out("loop", "args", loop.args)
    for name in filter(lever_of, sorted(loop.args)):
        yield "loop", "args", f"may not hold {name}; set {lever_of(name)}, as for every loop"
    of_pairs = {"precompute_ref_log_probs", "sync_ref_model"} if loop.takes_pairs else set()
    for name in sorted(of_pairs & loop.args.keys()):
        yield "loop", "args", f"may not hold {name}: the reference model is run in every step, as it was"


def _of_data(cell: Cell) -> Iterator[Problem]:
    data = cell.data
    if data.source == "task" or data.source == "script":  # noqa: PLR1714 - mypy narrows by these alone
        return
    rows = data.held_out if data.source == "jsonl" else None
    asked = "held-out" in cell.evaluation.tasks
    if asked and rows is None:
        message = "held-out needs data.source task, or a file of rows in data.held_out; set one, or remove it"
        yield "evaluation", "tasks", message
    elif rows is not None and not asked:
        yield "data", "held_out", 'is asked about by evaluation.tasks = ["held-out"]; add that, or remove it'
    elif rows is not None and (cell.evaluation.num_fewshot or cell.loop.takes_pairs):
        what = "pairs of answers" if cell.loop.takes_pairs else "worked examples before (num_fewshot)"
        yield "data", "held_out", f"has one answer to each row, and no {what}; leave either out"
    if data.source == "synthetic" or data.format == "auto" or data.template == "auto":
        return
    if data.template not in TEMPLATES_OF_FORMAT[data.format]:
        fitting = " or ".join(TEMPLATES_OF_FORMAT[data.format])
        yield "data", "template", f"{data.template} does not fit format {data.format}; set {fitting}"


def _reaching_out(part: str, field: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    """Refuse options of a library, nested ones too, by which a file would have code or other files loaded."""
    for name, value in sorted(options.items()):
        if _OUTSIDE.search(name):
            message = "it would have the library load code, files or a network's answer that a scenario names"
            yield part, field, f"may not hold {name}: {message}; leave it out"
        elif isinstance(value, Mapping):
            yield from _reaching_out(part, field, value)


def _of_peft(cell: Cell, method: PeftMethod) -> Iterator[Problem]:
    kind = peft_type(method.type)
    yield from _reaching_out("method", "config", method.config)
    if {"task_type", "inference_mode", "peft_type"} & set(method.config):
        message = "may not hold task_type, inference_mode or peft_type: a causal model is trained, by type"
        yield "method", "config", message
    if kind in _BEYOND_TEXT:
        yield "method", "type", f"{method.type} needs {_BEYOND_TEXT[kind]}; choose another method of peft"
    if kind in _PROMPT_LEARNING - {"CPT"} and "num_virtual_tokens" not in method.config:
        yield "method", "config", f"needs num_virtual_tokens for {method.type}; set it"
    if kind in _PROMPT_LEARNING and cell.training.batching == "pack":
        message = f"pack is not for {method.type}, which drops position_ids; set pad-to-longest"
        yield "training", "batching", message
    for field in ("tasks", "text") if kind in _LENGTHENING else ():
        if getattr(cell.evaluation, field):
            message = (
                f"would be judged at wrong positions: {method.type} returns logits of its own tokens too"
            )
            yield "evaluation", field, f"{message}; leave it out"
    if kind == "ADALORA" and cell.training.loss != "full":
        yield "training", "loss", "must be full for adalora, which adds a term of its own to the model's loss"


def _of_adapter(method: FullMethod | LoraMethod | QloraMethod) -> Iterator[Problem]:
    """Refuse fields of LoraConfig that the method has under a name of its own, or that stop it training."""
    peft = {} if isinstance(method, FullMethod) else method.peft
    own = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    own |= {name: name for name in ("target_modules", "bias")}
    yield from _reaching_out("method", "peft", peft)
    for name in filter(own.get, peft):
        yield "method", "peft", f"may not hold {name}; set the method's {own[name]}"
    if "task_type" in peft or "inference_mode" in peft:
        message = "may not hold task_type or inference_mode: adapters here are for training a causal model"
        yield "method", "peft", message
    if peft.get("init_lora_weights") == "eva":
        # peft leaves them as for plain LoRA until initialize_lora_eva_weights is called with data.
        message = "may not ask for eva, whose weights need a pass over data first; set pissa or olora"
        yield "method", "peft", message
