"""The settings of a case: by which it is chosen, paired with another, and told apart from others."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from bench.claims.cases import Case
from bench.claims.findings import Setting

Scalar = str | int | float | bool

# What changes what is learned, not the memory or the arithmetic of a step; two methods have their own.
_OWN: Final = frozenset(
    f"training.{name}"
    for name in ("learning_rate", "weight_decay", "schedule", "schedule_warmup_steps", "seed")
)
_NO_MATTER: Final = frozenset({"method.kind", "method.name", "method.alpha"})
_BASE: Final = frozenset(
    f"method.{name}"
    for name in (
        "base",
        "kbit_preparation",
        "recast_embeddings",
        "quantisation",
        "double_quantisation",
        "compute_dtype",
        "quantise_lm_head",
    )
)
_NAMES: Final = {
    "method.rank": "rank",
    "method.target_modules": "target modules",
    "method.adapter_dtype": "adapters' dtype",
    "method.double_quantisation": "double quantisation",
    "method.compute_dtype": "compute dtype",
    "training.sequence_length": "sequence length",
    "training.micro_batch": "micro-batch",
    "training.gradient_checkpointing": "gradient checkpointing",
    "training.gradient_accumulation": "gradient accumulation",
    "training.dtype": "dtype",
    "training.autocast": "autocast",
    "training.optimizer": "optimizer",
    "training.loss": "loss",
    "training.attention": "attention",
    "data.task": "task",
}


def value_at(case: Case, path: str) -> Any:
    """Return a field of a case's cell by its dotted path; None where its kind of method or data has none."""
    found: Any = case.cell
    for name in path.split("."):
        if not isinstance(found, BaseModel) or name not in type(found).model_fields:
            return None
        found = getattr(found, name)
    return found


def matches(case: Case, where: Mapping[str, Scalar | tuple[Scalar, ...]]) -> bool:
    """Tell whether each named field has the value, or one of the values, that it is to have."""
    return all(
        value_at(case, path) in (wanted if isinstance(wanted, tuple) else (wanted,))
        for path, wanted in where.items()
    )


def like_pairs(
    subjects: Sequence[Case], references: Sequence[Case], free: Collection[str]
) -> list[tuple[Case, Case]]:
    """Return each subject with each reference that it may be compared with, but for the ``free`` fields.

    Place, model, data and training have to be the same; kinds of methods too, unless ``method.kind`` is free.
    Of two adapters, rank, targets and all else that both have are the same; of one kind, their bases as well.
    """
    alike: dict[tuple[object, ...], list[Case]] = {}
    for reference in references:
        alike.setdefault(_likeness(reference, free), []).append(reference)
    return [
        (subject, reference)
        for subject in subjects
        for reference in alike.get(_likeness(subject, free), ())
        if subject is not reference and _same_adapter(subject, reference, free)
    ]


def _likeness(case: Case, free: Collection[str]) -> tuple[object, ...]:
    """Return what has to be equal, whatever the methods."""
    kind = None if "method.kind" in free else case.cell.method.kind
    parts = [_fields(case, part, {*_OWN, *free}) for part in ("data", "training")]
    steps = case.cell.window.warmup_steps + case.cell.window.measured_steps
    return (case.model, case.place, kind, steps, *(tuple(part.items()) for part in parts))


def _same_adapter(first: Case, second: Case, free: Collection[str]) -> bool:
    kinds = {first.cell.method.kind, second.cell.method.kind}
    if "full" in kinds:
        return True
    apart = {*free, *_NO_MATTER, *(_BASE if len(kinds) > 1 else ())}
    ours, theirs = _fields(first, "method", apart), _fields(second, "method", apart)
    return all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


def _fields(case: Case, part: str, apart: Collection[str]) -> dict[str, Any]:
    holder: BaseModel = getattr(case.cell, part)
    return {name: value for name, value in holder if f"{part}.{name}" not in apart}


def settings_of(case: Case, reference: Case | None = None, free: Collection[str] = ()) -> dict[str, Setting]:
    """Return what a boundary may be drawn by, most telling first, and what was free in the reference."""
    ours = _settings(case)
    if reference is None:
        return ours
    other = _method(reference) if reference.cell.method.kind != case.cell.method.kind else "the other"
    theirs = {
        f"{other}'s {name}": _plain(value)
        for path, name in _NAMES.items()
        if path in free and (value := value_at(reference, path)) is not None
    }
    return ours | theirs


def _settings(case: Case) -> dict[str, Setting]:
    found: dict[str, Setting] = {"method": _method(case)}
    found["quantisation"] = _quantisation(case)
    for path, name in _NAMES.items():
        value = value_at(case, path)
        if value is not None:
            found[name] = _plain(value)
    training = case.cell.training
    found["tokens in a micro-batch"] = training.micro_batch * training.sequence_length
    found["model"] = case.model
    if case.parameters is not None:
        found["billions of parameters"] = round(case.parameters / 1e9, 2)
    return found


def _method(case: Case) -> str:
    return {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "peft": "another method"}[
        case.cell.method.kind
    ]


def _quantisation(case: Case) -> str:
    method = case.cell.method
    if method.kind == "qlora":
        return method.quantisation
    return "int8" if method.kind == "lora" and method.base == "int8" else "none"


def _plain(value: object) -> Setting:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return value if isinstance(value, str | int | float) else str(value)
