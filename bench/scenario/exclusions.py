"""[[exclude]]: cells of the matrix that are not to be run. All conditions of one table must hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from bench.scenario.layout import TABLES, fields_of
from bench.scenario.positions import Path
from bench.scenario.problems import Problems, shown
from bench.scenario.types import Cell

_NAMES = {"device": ("device",), "model": ("model", "name"), "method": ("method", "name")}
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Conditions on the fields of a cell; each holds for one of its values, strings being glob patterns."""

    path: Path
    conditions: tuple[tuple[Path, tuple[Any, ...]], ...]

    def matches(self, cell: Cell) -> bool:
        """Tell whether every condition holds for a cell."""
        return all(
            any(_matches(_field(cell, field), wanted) for wanted in values)
            for field, values in self.conditions
        )


def read_exclusion(table: Mapping[str, Any], path: Path, problems: Problems) -> Exclusion | None:
    """Return an exclusion, or None after noting what is wrong with it."""
    conditions = []
    flat = _flattened(table)
    if not flat:
        problems.add(path, "excludes nothing; give at least one condition, or remove it")
    for keys, value in flat.items():
        name = ".".join(keys)
        fields = _fields().get(name, [])
        values = value if isinstance(value, list) else [value]
        if not fields:
            problems.add((*path, *keys), "no cell has such a field", name, _fields())
        elif len(fields) > 1:
            choices = " or ".join(".".join(map(str, field)) for field in fields)
            problems.add((*path, *keys), f"could be several fields; write {choices}")
        elif not values or not all(isinstance(one, str | int | float) for one in values):
            problems.add((*path, *keys), f"must be a value or a list of values, not {shown(value)}")
        else:
            conditions.append((fields[0], tuple(values)))
    sound = len(conditions) == len(flat) > 0
    return Exclusion(path=path, conditions=tuple(conditions)) if sound else None


@cache
def _fields() -> dict[str, list[Path]]:
    """Return what a condition may be called, in full or by its last part, and the fields so called."""
    names: dict[str, list[Path]] = {name: [field] for name, field in _NAMES.items()}
    for table in TABLES:
        for key in fields_of(table):
            names[f"{table}.{key}"] = [(table, key)]
            if key not in _NAMES:
                names.setdefault(key, []).append((table, key))
    return names


def _flattened(table: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Undo TOML's reading of the dotted key ``training.seed`` as a table in a table."""
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and key in TABLES:
            flat |= {(key, inner): one for inner, one in value.items()}
        else:
            flat[(key,)] = value
    return flat


def _field(cell: Cell, field: Path) -> object:
    value: object = cell
    for part in field:
        value = getattr(value, str(part), _ABSENT)
    return value


def _matches(found: object, wanted: object) -> bool:
    if isinstance(found, str) and isinstance(wanted, str):
        return fnmatchcase(found, wanted)
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
