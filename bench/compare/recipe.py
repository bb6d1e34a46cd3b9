"""What cells were trained with, as names and values; of several cells what they share and what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.compare.measured import Measured
from bench.records.records import Record
from bench.scenario.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting, and by each value that it had the methods that had it."""

    name: str
    values: Mapping[str, tuple[str, ...]]


def recipe_of(record: Record) -> dict[str, str]:
    """Return the settings of a record's cell; one that its method does not have is left out."""
    cell = record.cell
    training, window, method = cell.training, cell.window, cell.method
    facts = record.measurement.model
    found = {
        "data": _data(cell.data),
        "optimizer": training.optimizer,
        "dtype": training.dtype if training.autocast == "off" else f"{training.dtype}, autocast",
        "learning rate": f"{training.learning_rate:g}",
        "measured steps": f"{window.measured_steps:,} after {window.warmup_steps:,} of warm-up",
        "attention": facts.attention if facts else training.attention,
    }
    if training.gradient_checkpointing != "off":
        found["gradient checkpointing"] = training.gradient_checkpointing
    targets = getattr(method, "target_modules", None)
    if targets:
        found["LoRA targets"] = targets if isinstance(targets, str) else " and ".join(targets)
    return found


def _data(data: DataSpec) -> str:
    if data.source == "task":
        return f"{data.task} ({data.difficulty}, {data.train_items:,} items to train on)"
    if data.source == "jsonl":
        return data.path
    return f"{data.dataset}, {data.split}" if data.source == "hub" else "random tokens"


def settings(rows: Sequence[Measured]) -> tuple[Setting, ...]:
    """Return each setting that a row has, in order; of which methods differ in it, each value."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        for name, value in row.recipe.items():
            found.setdefault(name, {}).setdefault(value, {})[row.method] = None
    return tuple(
        Setting(name=name, values={value: tuple(methods) for value, methods in values.items()})
        for name, values in found.items()
    )
