"""Whether a scenario file's tables and keys are known and each value fits its field.

What depends on several keys together is checked where the cells are built.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from bench.scenario.exclusions import Exclusion, read_exclusion
from bench.scenario.gate import read_gate
from bench.scenario.layout import CATALOGUED, CHOICES, DEVICE, METHODS, NAME, SECTIONS, TOP, fields_of
from bench.scenario.positions import Path
from bench.scenario.problems import Problems, shown
from bench.scenario.values import axis_of, complaint_about

MOST_VALUES = 1000
MOST_EXCLUSIONS = 200

_ESSENTIAL = ("kind", "hub", "path", "wheel", "random")
_TEXT = FieldInfo(annotation=str)
_SETTING = FieldInfo(annotation=int | float | bool | str)


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
        sound["gate"] = read_gate(gate if self.is_table(gate, ("gate",)) else {}, self.problems)
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
                    self.problems.add(
                        path, f"there is no {what} {shown(name)} in the catalogue", name, known()
                    )
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
            self.problems.add(
                path, complaint.message, value if isinstance(value, str) else "", complaint.known
            )
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
            self.problems.add(
                ("exclude",), f"has {len(tables):,} tables, more than {MOST_EXCLUSIONS}; merge some"
            )
            return []
        read = [
            read_exclusion(table, ("exclude", index), self.problems) for index, table in enumerate(tables)
        ]
        return [exclusion for exclusion in read if exclusion is not None]
