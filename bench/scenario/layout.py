"""How a scenario file is laid out: its tables, which types their keys fill, and its JSON Schema."""

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from bench.io import own_text, parse_json
from bench.scenario.catalogue import TASKS, architectures, wheels
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec, MetricGate
from bench.scenario.loop import LoopSpec
from bench.scenario.parallel import ParallelSpec
from bench.scenario.types import (
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
    "loop": (LoopSpec,),
    "parallel": (ParallelSpec,),
    "window": (WindowSpec,),
    "evaluation": (EvaluationSpec,),
    "limits": (LimitsSpec,),
}
"""The parts of a cell, and the types each may have."""

SECTIONS = ("data", "training", "loop", "parallel", "window", "evaluation", "limits")
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
_NOT_KEYS = {"name", "seen"}  # a table's header gives the one, a watched script the other


@cache
def fields_of(table: str) -> dict[str, FieldInfo]:
    """Return the fields that a part of a cell may have, whichever its type; its header gives ``name``."""
    fields = {key: field for kind in TABLES[table] for key, field in kind.model_fields.items()}
    return {key: field for key, field in fields.items() if key not in _NOT_KEYS}


def type_of(table: str, content: dict[str, Any]) -> type[Frozen] | None:
    """Return the type that a part's content is to have; None if it does not choose one."""
    if table == "method":
        return METHODS.get(content.get("kind", ""))
    if table == "data":
        return DATA.get(content.get("source", ""))
    return TABLES[table][0]


DEVICE: FieldInfo = Cell.model_fields["device"]
NAME: FieldInfo = ModelSpec.model_fields["name"]


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12): ``schema.json``, its tables filled from the types."""
    schema: dict[str, Any] = parse_json(own_text("bench.scenario", "schema.json"))
    sections = {section: schema["properties"][section] for section in SECTIONS}
    for table, kinds in TABLES.items():
        fields: dict[str, Any] = {}
        for kind in kinds:
            for key, field in kind.model_json_schema()["properties"].items():
                fields.setdefault(key, _field(key, field))
        for key in _NOT_KEYS & fields.keys():
            del fields[key]
        schema["$defs"][table] = _table(fields | (sections if table in ("model", "method") else {}))
    gate, metric = _without_axes(GateSpec), _without_axes(MetricGate)
    about = gate["metrics"]["description"]
    gate["metrics"] = {"type": "object", "description": about, "additionalProperties": _table(metric)}
    schema["properties"]["gate"] = _table(gate) | schema["properties"]["gate"]
    return schema


def _table(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": fields}


def _field(key: str, field: dict[str, Any]) -> dict[str, Any]:
    if key in CHOICES:
        meaning = f"Which other keys have a meaning: {key} decides."
        return {"enum": list(CHOICES[key]), "description": meaning}
    about, one = _parted(field)
    if key in CATALOGUED:
        _, names = CATALOGUED[key]
        one = {"enum": sorted(names())}
    if key == "overrides":
        return about | {"type": "object", "additionalProperties": _lever(one["additionalProperties"])}
    return about | _lever(one)


def _parted(field: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a field is about, and the schema of one value of it."""
    about = {name: field[name] for name in ("description", "default") if field.get(name) is not None}
    one = {name: value for name, value in field.items() if name not in ("title", "description", "default")}
    if "anyOf" in one:  # TOML has no null: an optional key is left out
        kinds = [kind for kind in one.pop("anyOf") if kind != {"type": "null"}]
        one |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return about, one


def _without_axes(kind: type[Frozen]) -> dict[str, Any]:
    parted = {key: _parted(field) for key, field in kind.model_json_schema()["properties"].items()}
    return {key: about | one for key, (about, one) in parted.items()}


def _lever(one: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value, or of a list of values: an axis of the matrix."""
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}
