"""Expansion of a scenario into cells: every model with every method, times every list of values.

A model's own [models.NAME.training] (or data, window, …) goes over the top-level table, a method's over both.
The id of a cell is model/method/window, readable, and the same whatever else the scenario holds. Each part is
a name followed by short tokens: always those a practitioner looks for, then one for each lever that differs
from its default, then ``field=value`` for whatever else the scenario gives as a list.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, get_args

from pydantic import ValidationError

from bench.scenario.catalogue import absurdities
from bench.scenario.cell import Cell, ContradictionError
from bench.scenario.diagnostics import Path, Problems, axis_of
from bench.scenario.layout import CHOICES, SECTIONS, fields_of, type_of
from bench.scenario.types import Device, Frozen, FullMethod, LoraMethod, Optimizer, PeftMethod

MOST_CELLS = 20_000
"""A scenario with more is a slip; a sweep of that size would run for months."""

_LEVERS: dict[Path, str | dict[object, str]] = {
    ("method", "target_modules"): "on-{}",
    ("method", "bias"): "bias-{}",
    ("method", "adapter_dtype"): {"weights": "adapter-as-weights"},
    ("method", "compute_dtype"): "compute-{}",
    ("method", "kbit_preparation"): {False: "unprepared"},
    ("method", "quantise_lm_head"): {True: "head"},
    ("method", "recast_embeddings"): {True: "recast"},
    ("training", "gradient_accumulation"): "ga{}",
    ("training", "dtype"): "{}",
    ("training", "autocast"): "autocast-{}",
    ("training", "gradient_checkpointing"): {"non-reentrant": "ckpt", "reentrant": "ckpt-reentrant"},
    ("training", "attention"): {"eager": "eager", "flash_attention_2": "fa2", "flex_attention": "flex"},
    ("training", "optimizer"): {name: name.replace("-", "") for name in get_args(Optimizer)}
    | {"adamw-foreach": "foreach", "adamw-loop": "loop", "sgd-momentum": "momentum"}
    | {"paged-adamw-32bit": "paged32bit", "paged-adamw-8bit": "paged8bit"},
    ("training", "loss"): "loss-{}",
    ("training", "loss_chunk_tokens"): "chunk{}",
    ("training", "upcast_outputs"): {True: "upcast"},
    ("training", "keep_outputs"): {True: "kept"},
    ("training", "use_cache"): {True: "cache"},
    ("training", "empty_cache_steps"): "empty{}",
    ("training", "batching"): {"pad-to-length": "padded", "pack": "pack"},
    ("data", "attention_mask"): {"ones": "mask-ones", "padded": "mask-padded"},
}
"""What shapes memory or speed, and its token where it differs from its default."""

_BUILT_IN: tuple[Path, ...] = (
    ("method", "base"),
    ("method", "quantisation"),
    ("method", "double_quantisation"),
    ("method", "rank"),
    ("training", "micro_batch"),
    ("training", "sequence_length"),
)
"""What ``cell_id`` spells out itself."""

_LONGEST_VALUE = 40


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One model with one method: the tables of its cells, lists not yet expanded."""

    model: str
    method: str
    tables: dict[str, dict[str, Any]]

    @cached_property
    def axes(self) -> dict[Path, list[Any]]:
        """Every field given as a list, with its values."""
        axes: dict[Path, list[Any]] = {}
        for part, table in self.tables.items():
            for key, value in table.items():
                if key == "overrides":
                    axes |= {
                        (part, key, one): values for one, values in value.items() if isinstance(values, list)
                    }
                elif key != "name" and (values := axis_of(fields_of(part)[key], value)) is not None:
                    axes[part, key] = values
        return axes

    @property
    def size(self) -> int:
        """How many cells it expands into."""
        return prod(len(values) for values in self.axes.values())

    def points(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield the tables of each cell, every list replaced by one of its values."""
        for values in product(*self.axes.values()):
            tables = {part: dict(table) for part, table in self.tables.items()}
            for (part, key, *inside), value in zip(self.axes, values, strict=True):
                table = tables[str(part)]
                table[str(key)] = table[str(key)] | {inside[0]: value} if inside else value
            yield tables

    def origins(self, part: str, *inside: str) -> list[Path]:
        """Return where a file may hold a field of a cell, the place that wins first."""
        if part in ("model", "method"):
            return [(f"{part}s", getattr(self, part), *inside)]
        return [
            ("methods", self.method, part, *inside),
            ("models", self.model, part, *inside),
            (part, *inside),
        ]


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """The cells of a scenario, and how many its exclusions took away."""

    cells: tuple[Cell, ...]
    excluded: int


def expand(scenario: Mapping[str, Any], name: str, problems: Problems) -> Expansion:
    """Expand what ``sound_part`` returned into the cells of scenario ``name``."""
    complete = not problems  # else what was left out would be missed here for the wrong reason
    exclusions = scenario["exclude"]
    unused = set(exclusions)
    cells: dict[str, Cell] = {}
    excluded = 0
    builder = _Builder(name, scenario.get("device", "cpu"), problems)
    for combination in _combinations(scenario, problems):
        for tables in combination.points():
            if problems.full:
                break
            candidate = builder.candidate(combination, tables)
            if candidate is None:
                continue
            matching = [exclusion for exclusion in exclusions if exclusion.matches(candidate)]
            unused.difference_update(matching)
            excluded += bool(matching)
            if not matching and (cell := builder.cell(combination, candidate)) is not None:
                _refuse_twin(cells.get(cell.id), cell, combination, problems)
                cells[cell.id] = cell
    if complete:
        for exclusion in unused:
            problems.add(exclusion.path, "matches no cell; correct its conditions, or remove it")
        if not cells and not problems:
            problems.add(("exclude",), "no cell is left; remove an exclusion")
    return Expansion(cells=tuple(cells.values()), excluded=excluded)


def _combinations(scenario: Mapping[str, Any], problems: Problems) -> list[Combination]:
    """Return every model with every method; none, and a problem, where that makes too many cells."""
    models, methods = scenario["models"], scenario["methods"]
    size = len(models) * len(methods)
    combinations = []
    if size <= MOST_CELLS:
        combinations = [_combine(scenario, model, method) for model in models for method in methods]
        size = sum(combination.size for combination in combinations)
    if size <= MOST_CELLS:
        return combinations
    lengths = {
        ".".join(map(str, axis)): len(values) for one in combinations for axis, values in one.axes.items()
    }
    longest = sorted(lengths, key=lambda axis: -lengths[axis])[:3]
    what = f"shorten its lists ({', '.join(longest)})" if longest else "name fewer models or methods"
    problems.add((), f"expands into {size:,} cells, more than {MOST_CELLS:,}; {what}")
    return []


def _combine(scenario: Mapping[str, Any], model: str, method: str) -> Combination:
    model_table, method_table = scenario["models"][model], scenario["methods"][method]
    tables = {
        "model": {"name": model} | {key: value for key, value in model_table.items() if key not in SECTIONS},
        "method": {"name": method}
        | {key: value for key, value in method_table.items() if key not in SECTIONS},
    }
    for section in SECTIONS:
        table = scenario.get(section, {})
        for over in (model_table, method_table):
            table = merged(over.get(section, {}), table)
        tables[section] = table
    return Combination(model=model, method=method, tables=tables)


class _Builder:
    """Turns tables into cells; equal tables are checked once and shared."""

    def __init__(self, scenario: str, device: Device, problems: Problems) -> None:
        self._scenario = scenario
        self._device = device
        self._problems = problems
        self._parts: dict[tuple[str, str], Frozen | None] = {}

    def candidate(self, combination: Combination, tables: dict[str, dict[str, Any]]) -> Cell | None:
        """Return a cell not yet checked across its parts and without an id; None if a part is wrong."""
        parts: dict[str, Any] = {part: self._part(combination, part, table) for part, table in tables.items()}
        if None in parts.values():
            return None
        return Cell.model_construct(id="", scenario=self._scenario, device=self._device, **parts)

    def cell(self, combination: Combination, candidate: Cell) -> Cell | None:
        """Return the finished cell; None if its parts contradict each other."""
        cell = None
        found = absurdities(candidate)
        try:
            cell = Cell(**dict(candidate) | {"id": cell_id(candidate, combination.axes)})
        except ValidationError as error:
            reason = error.errors()[0].get("ctx", {}).get("error")
            if not isinstance(reason, ContradictionError):
                raise
            found += reason.problems
        for part, field, message in found:
            self._problems.add(self._origin(combination, part, *field.split(".")), message)
        return None if found else cell

    def _part(self, combination: Combination, part: str, table: dict[str, Any]) -> Frozen | None:
        content = json.dumps(table, sort_keys=True)
        if (part, content) not in self._parts:
            self._parts[part, content] = self._checked(combination, part, table, content)
        return self._parts[part, content]

    def _checked(
        self, combination: Combination, part: str, table: dict[str, Any], content: str
    ) -> Frozen | None:
        kind = type_of(part, table)
        if kind is None:
            if not self._given(combination, part, "source"):
                choices = " or ".join(f'"{source}"' for source in CHOICES["source"])
                path = self._origin(combination, part)
                self._problems.add(path, f"source is missing; write source = {choices}")
            return None
        try:
            return kind.model_validate_json(content, strict=True)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                inside = [str(place) for place in detail["loc"]]
                self._tell(combination, part, inside, detail["type"], detail["msg"])
            return None

    def _tell(self, combination: Combination, part: str, inside: list[str], kind: str, message: str) -> None:
        """Note what pydantic found wrong with a part whose keys are each right on their own."""
        path = self._origin(combination, part, *inside)
        if kind == "extra_forbidden":
            choice = next(key for key in CHOICES if key in combination.tables[part])
            value = combination.tables[part][choice]
            others = [name for name, type_ in CHOICES[choice].items() if inside[0] in type_.model_fields]
            right = " or ".join(f'"{name}"' for name in others)
            message = f'has no meaning where {choice} is "{value}"; remove it, or set {choice} to {right}'
            self._problems.add(path, message)
        elif kind == "missing" and not self._given(combination, part, *inside):
            self._problems.add(path, f'is missing; add "{inside[-1]} = …"')
        elif kind == "value_error":
            self._problems.add(path, message.removeprefix("Value error, "))

    def _given(self, combination: Combination, part: str, *inside: str) -> bool:
        return any(self._problems.stands(path) for path in combination.origins(part, *inside))

    def _origin(self, combination: Combination, part: str, *inside: str) -> Path:
        origins = combination.origins(part, *inside)
        return next((path for path in origins if self._problems.stands(path)), origins[-1])


def _refuse_twin(twin: Cell | None, cell: Cell, combination: Combination, problems: Problems) -> None:
    """Note that two cells would share an id, and the fields that would tell them apart."""
    if twin is None:
        return
    differing = [
        f"{part}.{key}"
        for part in combination.tables
        for key, value in getattr(cell, part)
        if value != getattr(getattr(twin, part), key, None)
    ]
    problems.add(
        ("methods", combination.method),
        f"two cells are called {cell.id}; rename a model or a method (they differ in {', '.join(differing)})",
    )


def merged(nearer: Any, farther: Any) -> Any:
    """Return ``nearer`` over ``farther``: tables key by key, anything else replaced."""
    if not (isinstance(nearer, dict) and isinstance(farther, dict)):
        return nearer
    if any(key in nearer and key in farther and nearer[key] != farther[key] for key in CHOICES):
        return nearer
    return farther | {
        key: merged(value, farther[key]) if key in farther else value for key, value in nearer.items()
    }


def cell_id(cell: Cell, axes: Iterable[Path]) -> str:
    """Return the id of a cell; ``axes`` are the fields that its scenario gives it as a list."""
    window = [f"b{cell.training.micro_batch}", f"s{cell.training.sequence_length}"]
    parts = {"model": [cell.model.name], "method": _method(cell), "window": window}
    for field, form in _LEVERS.items():
        part, value, default = _value(cell, field)
        if value != default:
            token = form[value] if isinstance(form, dict) else form.format(_safe(value))
            parts["method" if part == "method" else "window"].append(token)
    for axis in sorted(axes, key=str):
        if axis not in _LEVERS and axis not in _BUILT_IN:
            part, value, _ = _value(cell, axis)
            parts[part if part in parts else "window"].append(f"{axis[-1]}={_safe(value)}")
    return "/".join("-".join(tokens) for tokens in parts.values())


def _method(cell: Cell) -> list[str]:
    """Return the method's name, quantisation and rank; what the name says already is not repeated."""
    method = cell.method
    if isinstance(method, FullMethod):
        return [method.name]
    if isinstance(method, PeftMethod):
        return [method.name, *([] if method.type.lower() in method.name.lower() else [_safe(method.type)])]
    if isinstance(method, LoraMethod):
        base = ["int8"] if method.base == "int8" else []
    else:
        base = [method.quantisation, *(["dq"] if method.double_quantisation else [])]
    said = method.name.split("-")
    return [method.name, *(token for token in (*base, f"r{method.rank}") if token not in said)]


def _value(cell: Cell, field: Path) -> tuple[str, object, object]:
    """Return a field's part of the cell, its value and its default; None where there is no such field."""
    part, key, *inside = map(str, field)
    holder = getattr(cell, part)
    if key not in type(holder).model_fields:
        return part, None, None
    value = getattr(holder, key)
    for inner in inside:
        value = value.get(inner)
    return part, value, type(holder).model_fields[key].default


def _safe(value: object) -> str:
    """Return a value as part of a file name; a digest keeps apart what looks the same once shortened."""
    if isinstance(value, tuple):
        text = "+".join(map(str, value))
    elif isinstance(value, float):
        text = f"{value:.12g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:_LONGEST_VALUE]
    return safe if safe == text else f"{safe}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"
