"""Whether a scenario file's tables and keys are known and each value fits its field.

What depends on several keys together is checked where the cells are built.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from bench.metrics import METRICS
from bench.scenario.cell import Cell
from bench.scenario.diagnostics import Path, Problems, axis_of, complaint_about, perhaps, shown
from bench.scenario.gate import GateSpec, MetricGate, contradictions
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
from bench.scenario.names import answer, toml

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
        for field, wanted in self.conditions:
            found: Any = cell
            for part in field:
                found = getattr(found, str(part), ...)  # which equals nothing that TOML can hold
            if not any(_alike(found, one) for one in wanted):
                return False
        return True


def _alike(found: object, wanted: object) -> bool:
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


class Shape:
    """Returns of each table what is sound, in the same layout, and notes the rest in ``problems``."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def scenario(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Check a file; ``exclude`` becomes ``Exclusion`` objects, ``gate`` a ``GateSpec``."""
        for key in data:
            if key not in TOP:
                self._unknown((key,), data[key], TOP)
        top = {"title": _TEXT, "description": _TEXT, "device": DEVICE}
        sound = self._table(top, {key: data[key] for key in top if key in data}, ())
        sound["models"] = self._named("models", "model", data)
        sound["methods"] = self._named("methods", "method", data)
        if "data" not in data:
            self.problems.add((), 'there is no [data] table; say what to train on, e.g. source = "synthetic"')
        gate = data.get("gate", {})
        sound["gate"] = self._gate(gate) if self._is_table(gate, ("gate",)) else GateSpec()
        return sound | self._sections(data, ()) | {"exclude": self._exclusions(data.get("exclude", []))}

    def _named(self, what: str, part: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Check the tables [models.NAME] or [methods.NAME]; those that name nothing are left out."""
        tables = data.get(what, {})
        if not self._is_table(tables, (what,)):
            return {}
        if not tables:
            self.problems.add((what,), f"there is no [{what}.NAME] table; add one")
        sound = {}
        for name, table in tables.items():
            path = (what, name)
            if not (self._value(NAME, name, path) and self._is_table(table, path)):
                continue
            own = {key: value for key, value in table.items() if key not in SECTIONS}
            if what == "methods" and name in METHODS:
                own = {"kind": name} | own
            kept = self._table(fields_of(part), own, path, self._entry, SECTIONS)
            sections = self._sections(table, path)
            if what == "methods" and "kind" not in own:
                self.problems.add(path, 'kind is missing; write kind = "full", "lora", "qlora" or "peft"')
            elif all(key in kept for key in own if key in _ESSENTIAL):
                sound[name] = kept | sections
        return sound

    def _sections(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        return {
            section: self._table(fields_of(section), data[section], (*path, section), self._entry)
            for section in SECTIONS
            if section in data and self._is_table(data[section], (*path, section))
        }

    def _table(
        self,
        fields: Mapping[str, FieldInfo],
        table: Mapping[str, Any],
        path: Path,
        fits: Callable[[FieldInfo, object, Path], bool] | None = None,
        others: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Check that a table's keys are known, and that each value fits."""
        sound = {}
        for key, value in table.items():
            if key not in fields:
                self._unknown((*path, key), value, (*fields, *others))
            elif (fits or self._value)(fields[key], value, (*path, key)):
                sound[key] = value
        return sound

    def _entry(self, field: FieldInfo, value: object, path: Path) -> bool:
        """Check one key: a choice of type, a table of settings, a catalogued name or a plain lever."""
        key = str(path[-1])
        if key in CHOICES:
            fits = isinstance(value, str) and value in CHOICES[key]
            if not fits:
                choices = ", ".join(f'"{name}"' for name in CHOICES[key])
                message = f"must be one of {choices}, not {shown(value)}"
                self.problems.add(path, message, value, CHOICES[key])
            return fits
        if key == "overrides" and isinstance(value, dict):
            fit = [self._lever(_SETTING, one, (*path, name)) for name, one in value.items()]
            return all(fit)
        if not self._lever(field, value, path):
            return False
        if key in CATALOGUED:
            what, known = CATALOGUED[key]
            for name in axis_of(field, value) or [value]:
                if name not in known():
                    self.problems.add(path, f"unknown {what} {shown(name)}", name, known())
                    return False
        return True

    def _lever(self, field: FieldInfo, value: object, path: Path) -> bool:
        axis = axis_of(field, value)
        if axis is None:
            return self._value(field, value, path)
        if not 0 < len(axis) <= MOST_VALUES:
            few = "an empty list leaves nothing to run; give at least one value"
            many = f"has {len(axis):,} values, more than {MOST_VALUES:,}; shorten the list"
            self.problems.add(path, many if axis else few)
            return False
        if sum(self._value(field, one, (*path, index)) for index, one in enumerate(axis)) < len(axis):
            return False
        texts = [json.dumps(one, sort_keys=True) for one in axis]
        for index, text in enumerate(texts):
            if text in texts[:index]:
                self.problems.add((*path, index), f"{shown(axis[index])} is given twice; remove one")
                return False
        return True

    def _value(self, field: FieldInfo, value: object, path: Path) -> bool:
        complaint = complaint_about(field, value)
        if complaint is not None:
            near = perhaps(value, complaint.known)
            theirs = "" if near or not complaint.known else answer(path, value)
            helps = theirs and toml(value) not in theirs
            message = f"{complaint.message}; {theirs}" if helps else complaint.message
            self.problems.add(path, message, value, complaint.known)
        return complaint is None

    def _is_table(self, value: object, path: Path) -> bool:
        if not isinstance(value, dict):
            self.problems.add(path, f"must be a table, not {shown(value)}")
        return isinstance(value, dict)

    def _unknown(self, path: Path, value: object, known: Iterable[str]) -> None:
        if theirs := answer(path, value):
            self.problems.add(path, f"there is no such key here; {theirs}")
        else:
            self.problems.add(path, "there is no such key here", path[-1], known)

    def _exclusions(self, tables: object) -> list[Exclusion]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.add(("exclude",), f"must be written as [[exclude]] tables, not {shown(tables)}")
            return []
        if len(tables) > MOST_EXCLUSIONS:
            message = f"has {len(tables):,} tables, more than {MOST_EXCLUSIONS}; merge some"
            self.problems.add(("exclude",), message)
            return []
        read = [self._exclusion(table, ("exclude", index)) for index, table in enumerate(tables)]
        return [exclusion for exclusion in read if exclusion is not None]

    def _exclusion(self, table: Mapping[str, Any], path: Path) -> Exclusion | None:
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

    def _gate(self, table: Mapping[str, Any]) -> GateSpec:
        """Return the gate of the [gate] table; what is wrong with it is noted and left out."""
        metrics = table.get("metrics", {})
        own = {key: value for key, value in table.items() if key != "metrics"}
        sound = self._table(GateSpec.model_fields, own, ("gate",))
        if not isinstance(metrics, dict) or not all(isinstance(one, dict) for one in metrics.values()):
            message = f"must be tables [gate.metrics.NAME], not {shown(metrics)}"
            self.problems.add(("gate", "metrics"), message)
            metrics = {}
        sound["metrics"] = {}
        for name, one in metrics.items():
            path = ("gate", "metrics", name)
            if name in METRICS:
                own = self._table(MetricGate.model_fields, one, path)
                sound["metrics"][name] = MetricGate.model_validate(own)
            else:
                self.problems.add(path, "there is no such metric", name, METRICS)
        found = contradictions(GateSpec.model_construct(**sound))
        for key, message in found:
            self.problems.add(("gate", *key), message)
        return GateSpec() if found else GateSpec.model_validate(sound)
