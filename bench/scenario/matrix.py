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
from bench.scenario.cell import Cell, contradictions
from bench.scenario.diagnostics import Path, Problems, axis_of
from bench.scenario.layout import CHOICES, SECTIONS, fields_of, type_of
from bench.scenario.types import Frozen, FullMethod, LoraMethod, Optimizer, PeftMethod

MOST_CELLS = 20_000
"""A scenario with more is a slip; a sweep of that size would run for months."""

_LEVERS: dict[Path, str | dict[object, str]] = {
    ("method", "target_modules"): "on-{}",
    ("method", "bias"): "bias-{}",
    ("method", "adapter_dtype"): {"weights": "adapter-as-weights"},
    ("method", "implementation"): {"reference": "reference"},
    ("method", "compute_dtype"): "compute-{}",
    ("method", "kbit_preparation"): {False: "unprepared"},
    ("method", "quantise_lm_head"): {True: "head"},
    ("method", "recast_embeddings"): {True: "recast"},
    ("training", "gradient_accumulation"): "ga{}",
    ("training", "dtype"): "{}",
    ("training", "autocast"): "autocast-{}",
    ("training", "gradient_checkpointing"): {"non-reentrant": "ckpt", "reentrant": "ckpt-reentrant"},
    ("training", "attention"): {"eager": "eager", "flash_attention_2": "fa2", "flex_attention": "flex"},
    ("training", "kernels"): "{}",
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
    ("loop", "driver"): "{}",
    ("method", "quant_storage"): "stored-{}",
    ("parallel", "strategy"): "{}",
    ("parallel", "gpus"): "x{}",
    ("parallel", "reshard_after_forward"): {False: "unresharded"},
    ("parallel", "cpu_offload"): {True: "offloaded"},
    ("parallel", "param_dtype"): "params-{}",
    ("parallel", "reduce_dtype"): "reduce-{}",
    ("parallel", "wrap"): "wrap-{}",
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

_HOLDERS = {"model": "model", "method": "method", "loop": "method"}
"""Parts of a cell, and the part of its id that tells of them; the window tells of all others."""

_LONGEST_VALUE = 40


@dataclass(frozen=True, kw_only=True)
class _Combination:
    """One model with one method: the tables of its cells, lists not yet expanded."""

    model: str
    method: str
    tables: dict[str, dict[str, Any]]
    problems: Problems

    @cached_property
    def axes(self) -> dict[Path, list[Any]]:
        """Every field given as a list, with its values."""
        axes: dict[Path, list[Any]] = {}
        for part, table in self.tables.items():
            for key, value in table.items():
                if key == "overrides":
                    lists = {one: values for one, values in value.items() if isinstance(values, list)}
                    axes |= {(part, key, one): values for one, values in lists.items()}
                elif key != "name" and (values := axis_of(fields_of(part)[key], value)) is not None:
                    axes[part, key] = values
        return axes

    def candidates(self, checked: dict[tuple[str, str], Frozen | None], **facts: str) -> Iterator[Cell]:
        """Yield each cell, not yet checked across its parts and without an id, until there is too much wrong.

        ``checked`` holds the parts so far: equal tables are checked once and shared.
        """
        for values in product(*self.axes.values()):
            if self.problems.full:
                return
            tables = {part: dict(table) for part, table in self.tables.items()}
            for (part, key, *inside), value in zip(self.axes, values, strict=True):
                table = tables[str(part)]
                table[str(key)] = table[str(key)] | {inside[0]: value} if inside else value
            parts: dict[str, Any] = {"id": "", **facts}
            for name, table in tables.items():
                content = json.dumps(table, sort_keys=True)
                if (name, content) not in checked:
                    checked[name, content] = self._checked(name, table, content)
                parts[name] = checked[name, content]
            if None not in parts.values():
                yield Cell.model_construct(**parts)

    def _checked(self, part: str, table: dict[str, Any], content: str) -> Frozen | None:
        """Return a part of a cell from its table, as JSON its ``content``; None if it is wrong."""
        kind = type_of(part, table)
        if kind is None:
            if self._given(part, "source") is None:
                choices = " or ".join(f'"{source}"' for source in CHOICES["source"])
                self.tell(part, message=f"source is missing; write source = {choices}")
            return None
        try:
            return kind.model_validate_json(content, strict=True)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._explain(part, [str(place) for place in detail["loc"]], detail["type"], detail["msg"])
            return None

    def _explain(self, part: str, inside: list[str], kind: str, message: str) -> None:
        """Note what pydantic found wrong with a part whose keys are each right on their own."""
        if kind == "extra_forbidden":
            choice = next(key for key in CHOICES if key in self.tables[part])
            value = self.tables[part][choice]
            others = [name for name, type_ in CHOICES[choice].items() if inside[0] in type_.model_fields]
            right = " or ".join(f'"{name}"' for name in others)
            message = f'has no meaning where {choice} is "{value}"; remove it, or set {choice} to {right}'
            self.tell(part, *inside, message=message)
        elif kind == "missing" and self._given(part, *inside) is None:
            self.tell(part, *inside, message=f'is missing; add "{inside[-1]} = …"')
        elif kind == "value_error":
            self.tell(part, *inside, message=message.removeprefix("Value error, "))

    def tell(self, part: str, *inside: str, message: str) -> None:
        """Note what is wrong with a field of a cell, where a file holds it or would."""
        self.problems.add(self._given(part, *inside) or self._places(part, *inside)[-1], message)

    def refused(self, part: str, field: str) -> bool:
        """Tell whether a field has a mistake of its own, on which what is said of others would rest."""
        return any(map(self.problems.wrong, self._places(part, field)))

    def _given(self, part: str, *inside: str) -> Path | None:
        """Return where the files of the scenario hold a field of a cell, if they do."""
        return next(filter(self.problems.stands, self._places(part, *inside)), None)

    def _places(self, part: str, *inside: str) -> list[Path]:
        """Return where a file may hold a field of a cell, the place that wins first."""
        if part in ("model", "method"):
            return [(f"{part}s", getattr(self, part), *inside)]
        over = [("methods", self.method, part, *inside), ("models", self.model, part, *inside)]
        return [*over, (part, *inside)]

    def refuse_twin(self, cell: Cell, twin: Cell | None) -> None:
        """Note that two cells would share an id, and the fields that would tell them apart."""
        if twin is not None:
            differing = [
                f"{part}.{key}"
                for part in self.tables
                for key, value in getattr(cell, part)
                if value != getattr(getattr(twin, part), key, None)
            ]
            message = f"two cells are called {cell.id}; rename a model or a method"
            path = ("methods", self.method)
            self.problems.add(path, f"{message} (they differ in {', '.join(differing)})")


def expand(scenario: Mapping[str, Any], name: str, problems: Problems) -> tuple[tuple[Cell, ...], int]:
    """Return the cells of what ``Shape`` found sound, and how many its exclusions took away."""
    complete = not problems  # else what was left out would be missed here for the wrong reason
    exclusions = scenario["exclude"]
    unused = set(exclusions)
    cells: dict[str, Cell] = {}
    excluded = 0
    checked: dict[tuple[str, str], Frozen | None] = {}
    for combination in _combinations(scenario, problems):
        for cell in combination.candidates(checked, scenario=name, device=scenario.get("device", "cpu")):
            matching = [exclusion for exclusion in exclusions if exclusion.matches(cell)]
            if matching:
                unused.difference_update(matching)
                excluded += 1
                continue
            found = [*absurdities(cell), *contradictions(cell)]
            for part, field, message in found:
                if part != "parallel" or not combination.refused(part, "strategy"):
                    combination.tell(part, *field.split("."), message=message)
            if not found:
                named = cell.model_copy(update={"id": cell_id(cell, combination.axes)})
                combination.refuse_twin(named, cells.get(named.id))
                cells[named.id] = named
    if complete:
        for exclusion in unused:
            problems.add(exclusion.path, "matches no cell; correct its conditions, or remove it")
        if not cells and not problems:
            problems.add(("exclude",), "no cell is left; remove an exclusion")
    return tuple(cells.values()), excluded


def _combinations(scenario: Mapping[str, Any], problems: Problems) -> list[_Combination]:
    """Return every model with every method; none, and a problem, where that makes too many cells."""
    models, methods = scenario["models"], scenario["methods"]
    size = len(models) * len(methods)
    combinations = []
    if size <= MOST_CELLS:
        combinations = [_combine(scenario, model, method, problems) for model in models for method in methods]
        size = sum(prod(map(len, combination.axes.values())) for combination in combinations)
    if size <= MOST_CELLS:
        return combinations
    lengths = {
        ".".join(map(str, axis)): len(values) for one in combinations for axis, values in one.axes.items()
    }
    longest = sorted(lengths, key=lambda axis: -lengths[axis])[:3]
    what = f"shorten its lists ({', '.join(longest)})" if longest else "name fewer models or methods"
    problems.add((), f"expands into {size:,} cells, more than {MOST_CELLS:,}; {what}")
    return []


def _combine(scenario: Mapping[str, Any], model: str, method: str, problems: Problems) -> _Combination:
    tables: dict[str, dict[str, Any]] = {}
    sections = {section: scenario.get(section, {}) for section in SECTIONS}
    for part, name in (("model", model), ("method", method)):
        table = scenario[f"{part}s"][name]
        tables[part] = {"name": name} | {key: value for key, value in table.items() if key not in SECTIONS}
        sections = {section: merged(table.get(section, {}), below) for section, below in sections.items()}
    return _Combination(model=model, method=method, tables=tables | sections, problems=problems)


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
            parts[_HOLDERS.get(part, "window")].append(token)
    for axis in sorted(axes, key=str):
        if axis not in _LEVERS and axis not in _BUILT_IN:
            part, value, _ = _value(cell, axis)
            parts[_HOLDERS.get(part, "window")].append(f"{axis[-1]}={_safe(value)}")
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
