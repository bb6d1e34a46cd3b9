"""Whether a scenario file's tables and keys are known and each value fits its field.

What depends on several keys together is checked where the cells are built.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bench.metrics import METRICS
from bench.scenario.cell import Cell
from bench.scenario.diagnostics import Path, Problems, axis_of, complaint_about, shown
from bench.scenario.gate import GateContradictionError, GateSpec, MetricGate
from bench.scenario.layout import (
    CATALOGUED,
    CHOICES,
    DEVICE,
    METHODS,
    NAME,
    SECTIONS,
    TABLES,
    TOP,
    fields_of,
)

MOST_VALUES = 1000
MOST_EXCLUSIONS = 200

_ESSENTIAL = ("kind", "hub", "path", "wheel", "random")
_TEXT = FieldInfo(annotation=str)
_SETTING = FieldInfo(annotation=int | float | bool | str)
_NAMES = {"device": ("device",), "model": ("model", "name"), "method": ("method", "name")}
"""What an exclusion may say for short."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """An [[exclude]] table: cells of the matrix that are not to be run. All its conditions must hold.

    Each condition holds for one of its values, strings being glob patterns.
    """

    path: Path
    conditions: tuple[tuple[Path, tuple[Any, ...]], ...]

    def matches(self, cell: Cell) -> bool:
        """Report whether every condition holds for a cell."""
        return all(
            any(_matches(_field(cell, field), one) for one in wanted) for field, wanted in self.conditions
        )


def _field(cell: Cell, field: Path) -> object:
    value: object = cell
    for part in field:
        value = getattr(value, str(part), ...)  # which equals nothing that TOML can hold
    return value


def _matches(found: object, wanted: object) -> bool:
    if isinstance(found, str) and isinstance(wanted, str):
        return fnmatchcase(found, wanted)
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


@cache
def _conditions() -> dict[str, list[Path]]:
    """Return what a condition may be called, in full or by its last part, and the fields so called."""
    names: dict[str, list[Path]] = {name: [field] for name, field in _NAMES.items()}
    for table in TABLES:
        for key in fields_of(table):
            names[f"{table}.{key}"] = [(table, key)]
            if key not in _NAMES:
                names.setdefault(key, []).append((table, key))
    return names


def sound_part(data: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Return what is sound of a file's ``data``, in the same layout, and note the rest in ``problems``.

    ``exclude`` is returned as ``Exclusion`` objects, ``gate`` as a ``GateSpec``.
    """
    return _Shape(problems).scenario(data)


class _Shape:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def scenario(self, data: Mapping[str, Any]) -> dict[str, Any]:
        for key in data:
            if key not in TOP:
                self.unknown((key,), TOP)
        sound: dict[str, Any] = {
            key: data[key]
            for key, field in (("title", _TEXT), ("description", _TEXT), ("device", DEVICE))
            if key in data and self.value(field, data[key], (key,))
        }
        sound["models"] = self.named("models", "model", data)
        sound["methods"] = self.named("methods", "method", data)
        if "data" not in data:
            self.problems.add((), 'there is no [data] table; say what to train on, e.g. source = "synthetic"')
        gate = data.get("gate", {})
        sound["gate"] = self.gate(gate) if self.is_table(gate, ("gate",)) else GateSpec()
        return sound | self.sections(data, ()) | {"exclude": self.exclusions(data.get("exclude", []))}

    def named(self, what: str, part: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tables [models.NAME] or [methods.NAME], less those that name nothing."""
        tables = data.get(what, {})
        if not self.is_table(tables, (what,)):
            return {}
        if not tables:
            self.problems.add((what,), f"there is no [{what}.NAME] table; add one")
        sound = {}
        for name, table in tables.items():
            path = (what, name)
            if self.value(NAME, name, path) and self.is_table(table, path):
                own = {key: value for key, value in table.items() if key not in SECTIONS}
                if what == "methods" and name in METHODS:
                    own = {"kind": name} | own
                kept = self.table(part, own, path, others=SECTIONS)
                sections = self.sections(table, path)
                if what == "methods" and "kind" not in own:
                    self.problems.add(path, 'kind is missing; write kind = "full", "lora", "qlora" or "peft"')
                elif all(key in kept for key in own if key in _ESSENTIAL):
                    sound[name] = kept | sections
        return sound

    def sections(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        return {
            section: self.table(section, data[section], (*path, section))
            for section in SECTIONS
            if section in data and self.is_table(data[section], (*path, section))
        }

    def table(
        self, part: str, table: Mapping[str, Any], path: Path, others: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return the keys of a table that its part of a cell has, and whose values fit."""
        fields = fields_of(part)
        sound = {}
        for key, value in table.items():
            if key not in fields:
                self.unknown((*path, key), (*fields, *others))
            elif self.entry(key, fields[key], value, (*path, key)):
                sound[key] = value
        return sound

    def entry(self, key: str, field: FieldInfo, value: object, path: Path) -> bool:
        """Check one key: a choice of type, a table of settings, a catalogued name or a plain lever."""
        if key in CHOICES:
            return self.one_of(value, CHOICES[key], path)
        if key == "overrides" and isinstance(value, dict):
            fits = [self.lever(_SETTING, one, (*path, name)) for name, one in value.items()]
            return all(fits)
        if not self.lever(field, value, path):
            return False
        if key in CATALOGUED:
            what, known = CATALOGUED[key]
            for name in axis_of(field, value) or [value]:
                if name not in known():
                    self.problems.add(path, f"unknown {what} {shown(name)}", name, known())
                    return False
        return True

    def lever(self, field: FieldInfo, value: object, path: Path) -> bool:
        """Check one value, or each value of an axis."""
        axis = axis_of(field, value)
        if axis is None:
            return self.value(field, value, path)
        if not axis:
            self.problems.add(path, "an empty list leaves nothing to run; give at least one value")
            return False
        if len(axis) > MOST_VALUES:
            self.problems.add(path, f"has {len(axis):,} values, more than {MOST_VALUES:,}; shorten the list")
            return False
        fits = [self.value(field, one, (*path, index)) for index, one in enumerate(axis)]
        if not all(fits):
            return False
        seen: set[str] = set()
        for index, one in enumerate(axis):
            text = json.dumps(one, sort_keys=True)
            if text in seen:
                self.problems.add((*path, index), f"{shown(one)} is given twice; remove one")
                return False
            seen.add(text)
        return True

    def value(self, field: FieldInfo, value: object, path: Path) -> bool:
        complaint = complaint_about(field, value)
        if complaint is not None:
            wrong = value if isinstance(value, str) else ""
            self.problems.add(path, complaint.message, wrong, complaint.known)
        return complaint is None

    def one_of(self, value: object, known: Mapping[str, object], path: Path) -> bool:
        if isinstance(value, str) and value in known:
            return True
        choices = ", ".join(f'"{name}"' for name in known)
        wrong = value if isinstance(value, str) else ""
        self.problems.add(path, f"must be one of {choices}, not {shown(value)}", wrong, known)
        return False

    def is_table(self, value: object, path: Path) -> bool:
        if not isinstance(value, dict):
            self.problems.add(path, f"must be a table, not {shown(value)}")
        return isinstance(value, dict)

    def unknown(self, path: Path, known: Iterable[str]) -> None:
        self.problems.add(path, "there is no such key here", str(path[-1]), known)

    def exclusions(self, tables: object) -> list[Exclusion]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.add(("exclude",), f"must be written as [[exclude]] tables, not {shown(tables)}")
            return []
        if len(tables) > MOST_EXCLUSIONS:
            message = f"has {len(tables):,} tables, more than {MOST_EXCLUSIONS}; merge some"
            self.problems.add(("exclude",), message)
            return []
        read = [self.exclusion(table, ("exclude", index)) for index, table in enumerate(tables)]
        return [exclusion for exclusion in read if exclusion is not None]

    def exclusion(self, table: Mapping[str, Any], path: Path) -> Exclusion | None:
        """Return an exclusion, or None after noting what is wrong with it."""
        flat: dict[tuple[str, ...], Any] = {}
        for key, value in table.items():  # TOML reads the dotted key training.seed as a table in a table
            inner = value if isinstance(value, dict) and key in TABLES else None
            flat |= {(key,): value} if inner is None else {(key, name): one for name, one in inner.items()}
        if not flat:
            self.problems.add(path, "excludes nothing; give at least one condition, or remove it")
        conditions = []
        for keys, value in flat.items():
            name = ".".join(keys)
            fields = _conditions().get(name, [])
            values = value if isinstance(value, list) else [value]
            if not fields:
                self.problems.add((*path, *keys), "no cell has such a field", name, _conditions())
            elif len(fields) > 1:
                choices = " or ".join(".".join(map(str, field)) for field in fields)
                self.problems.add((*path, *keys), f"could be several fields; write {choices}")
            elif not values or not all(isinstance(one, str | int | float) for one in values):
                message = f"must be a value or a list of values, not {shown(value)}"
                self.problems.add((*path, *keys), message)
            else:
                conditions.append((fields[0], tuple(values)))
        sound = len(conditions) == len(flat) > 0
        return Exclusion(path=path, conditions=tuple(conditions)) if sound else None

    def gate(self, table: Mapping[str, Any]) -> GateSpec:
        """Return the gate of the [gate] table; what is wrong with it is noted and left out."""
        metrics = table.get("metrics", {})
        own = {key: value for key, value in table.items() if key != "metrics"}
        sound = self.plain(GateSpec.model_fields, own, ("gate",))
        if not isinstance(metrics, dict) or not all(isinstance(one, dict) for one in metrics.values()):
            message = f"must be tables [gate.metrics.NAME], not {shown(metrics)}"
            self.problems.add(("gate", "metrics"), message)
            metrics = {}
        sound["metrics"] = {}
        for name, one in metrics.items():
            path = ("gate", "metrics", name)
            if name in METRICS:
                sound["metrics"][name] = self.plain(MetricGate.model_fields, one, path)
            else:
                self.problems.add(path, "there is no such metric", name, METRICS)
        try:
            return GateSpec.model_validate(sound)
        except ValidationError as error:
            reason = error.errors()[0].get("ctx", {}).get("error")
            if not isinstance(reason, GateContradictionError):
                raise
            for key, message in reason.problems:
                self.problems.add(("gate", *key), message)
            return GateSpec()

    def plain(self, fields: Mapping[str, FieldInfo], table: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Return the keys of a table without axes that are known, and whose values fit."""
        sound = {}
        for key, value in table.items():
            if key not in fields:
                self.unknown((*path, key), fields)
            elif self.value(fields[key], value, (*path, key)):
                sound[key] = value
        return sound
