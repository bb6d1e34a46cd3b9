"""How a scenario file is laid out: its tables, and which types their keys fill."""

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from bench.scenario.catalogue import TASKS, architectures, wheels
from bench.scenario.types import (
    Cell,
    EvaluationSpec,
    Frozen,
    FullMethod,
    HubData,
    JsonlData,
    LimitsSpec,
    LoraMethod,
    ModelSpec,
    PeftMethod,
    QloraMethod,
    SyntheticData,
    TaskData,
    TrainingSpec,
    WindowSpec,
)

METHODS: dict[str, type[Frozen]] = {
    "full": FullMethod,
    "lora": LoraMethod,
    "qlora": QloraMethod,
    "peft": PeftMethod,
}
DATA: dict[str, type[Frozen]] = {
    "task": TaskData,
    "jsonl": JsonlData,
    "hub": HubData,
    "synthetic": SyntheticData,
}
TABLES: dict[str, tuple[type[Frozen], ...]] = {
    "model": (ModelSpec,),
    "method": tuple(METHODS.values()),
    "data": tuple(DATA.values()),
    "training": (TrainingSpec,),
    "window": (WindowSpec,),
    "evaluation": (EvaluationSpec,),
    "limits": (LimitsSpec,),
}
"""The parts of a cell, and the types each may have."""

SECTIONS = ("data", "training", "window", "evaluation", "limits")
"""Parts that stand at the top of a file, and inside a model or a method, where they override the top."""

TOP = ("title", "description", "extends", "device", "models", "methods", *SECTIONS, "exclude", "gate")
CHOICES: dict[str, dict[str, type[Frozen]]] = {"kind": METHODS, "source": DATA}
"""Keys that choose the type of their table."""

CATALOGUED: dict[str, tuple[str, Callable[[], Collection[str]]]] = {
    "random": ("architecture", architectures),
    "wheel": ("wheel", wheels),
    "task": ("task", lambda: TASKS),
}
"""Keys whose value is a name in the catalogue: what it names, and the names."""


@cache
def fields_of(table: str) -> dict[str, FieldInfo]:
    """Return the fields that a part of a cell may have, whichever its type; its header gives ``name``."""
    fields = {key: field for kind in TABLES[table] for key, field in kind.model_fields.items()}
    return {key: field for key, field in fields.items() if key != "name"}


def type_of(table: str, content: dict[str, Any]) -> type[Frozen] | None:
    """Return the type that a part's content is to have; None if it does not choose one."""
    if table == "method":
        return METHODS.get(content.get("kind", ""))
    if table == "data":
        return DATA.get(content.get("source", ""))
    return TABLES[table][0]


DEVICE: FieldInfo = Cell.model_fields["device"]
NAME: FieldInfo = ModelSpec.model_fields["name"]
