"""What the settings of other trainers are called here, from one table (``names.toml``), and their files.

It answers whoever writes a scenario with the names of trl, peft, transformers, axolotl or LLaMA-Factory, says
which arguments of their trainers a scenario sets itself, and reads their files, for ``translate.py``. Nothing
of a file is imported or run: tags are refused, and so are aliases, whose values could multiply.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from bench.errors import UsageError, first_line
from bench.io import own_toml, read_data
from bench.scenario.diagnostics import MAX_DEPTH, shown

_NOTHING: tuple[object, ...] = (None, False, "", "no", "none", 0)
"""How a setting that is off is written."""
_ARGS = "loop.args."
_LONGEST_SHOWN = 60
_CONTROL = re.compile(r"[\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class Name:
    """A setting of other trainers, as ``names.toml`` explains its fields."""

    theirs: list[str]
    write: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    say: str = ""
    here: list[Any] = field(default_factory=list)
    lever: str = ""
    over: bool = False

    def fields(self, key: str, value: object) -> dict[str, Any] | None:
        """Return what to write for a value, by field: nothing where it is so here, None for no equivalent."""
        if value is None or value in ("", [], {}) or any(_same(value, one) for one in self.here):
            return {}
        mapped = self.values.get(_text(value), self.values.get("*"))
        if mapped is None:
            if self.say or not self.write:
                return {} if any(_same(value, off) for off in _NOTHING) else None
            mapped = value
        if isinstance(mapped, dict):
            return mapped
        return {} if mapped == "" else {one.format(key): mapped for one in self.write}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of file: the keys by which it is known, the loop that it is for, and what it leaves unsaid."""

    name: str
    marks: list[str]
    driver: str
    defaults: dict[str, Any] = field(default_factory=dict)


@cache
def _table() -> dict[str, Any]:
    return own_toml("bench.scenario", "names.toml")


@cache
def _groups() -> dict[str, list[Name]]:
    return {group["title"]: [Name(**one) for one in group["names"]] for group in _table()["group"]}


@cache
def sources() -> tuple[Source, ...]:
    """Return the kinds of files, the most telling first."""
    return tuple(Source(**one) for one in _table()["source"])


@cache
def name_of(key: str) -> Name | None:
    """Return the setting that other trainers call ``key``, if it is known."""
    names = [name for group in _groups().values() for name in group]
    exact = (name for name in names if key in name.theirs)
    alike = (name for name in names if any(fnmatchcase(key, one) for one in name.theirs))
    return next(exact, None) or next(alike, None)


def lever_of(argument: str) -> str:
    """Return the field of a scenario that sets an argument of a trainer; empty if none does."""
    name = name_of(argument)
    if name is None:
        return ""
    return name.lever or next((one for one in name.write if not one.startswith(_ARGS)), "")


def answer(path: tuple[str | int, ...], value: object) -> str:
    """Return what to write in a scenario in the place of another trainer's key; empty if it is not known."""
    key = str(path[-1])
    name = name_of(key)
    if name is None:
        return ""
    found = name.fields(key, value)
    if not found:
        return name.say or "leave it out: so it is here when nothing is written"
    texts: dict[str, list[str]] = {}
    for one, here in found.items():
        table, _, inside = one.partition(".")
        if table == "method":
            table = f"methods.{path[1] if path[0] == 'methods' and len(path) > 1 else 'NAME'}"
        outer, _, inner = inside.partition(".")
        shown = text if len(text := toml(here)) <= _LONGEST_SHOWN else "…"
        text = f"{outer} = {{ {inner} = {shown} }}" if inner else f"{inside or table} = {shown}"
        texts.setdefault(table if inside else "", []).append(text)
    around = ".".join(map(str, path[:-1]))
    parts = [
        " and ".join(some) + (f" in [{table}]" if table and table != around else "")
        for table, some in texts.items()
    ]
    library = ", whose driver is hf-trainer or one of trl's" if "loop" in texts and around != "loop" else ""
    return f"write {', '.join(parts)}{library}"


def toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key_toml(key)} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return _CONTROL.sub(lambda one: f"\\u{ord(one[0]):04x}", json.dumps(str(value), ensure_ascii=False))


def key_toml(key: object) -> str:
    """Return a key as TOML has it, in quotes where it needs them."""
    text = str(key)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else toml(text)


def _text(value: object) -> str:
    return value.lower() if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def render_names() -> str:
    lines: list[str] = []
    for title, names in _groups().items():
        lines += ["", f"| {title}: there | Here |", "| :--- | :--- |"]
        lines += [f"| {_coded(name.theirs)} | {'; '.join(_here(name))} |" for name in names]
    return "\n".join(lines).strip()


def _here(name: Name) -> Iterator[str]:
    plain = [value for value in name.values.values() if value not in ("", {}) and not isinstance(value, dict)]
    if name.write:
        fields = " and ".join(f"`{one.format('…')}`" for one in name.write)
        yield f"{fields}: {_coded(dict.fromkeys(map(toml, plain)))}" if plain else fields
    for theirs, value in name.values.items():
        if isinstance(value, dict):
            yield f"{theirs}: " + _coded(f"{one} = {toml(here)}" for one, here in value.items())
    if name.say:
        yield name.say


def _coded(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


MAX_BYTES = 256 * 1024
_SECRET = re.compile(r"(^|_)(token|api_key|secret|password)$")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_PICKLES = (".bin", ".pt", ".pkl", ".pth")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of the file with its value; line 0 is a default of the trainer."""

    key: str
    value: Any
    line: int = 0

    def text(self, file: str) -> str:
        """Return the key with its value, if that is no secret, and where it stands."""
        value = "…" if _SECRET.search(self.key) and self.value else shown(self.value)
        return f"{safe(self.key)} = {value} ({file}:{self.line})"

    def place(self, file: str) -> str:
        return f"{safe(self.key)} ({file}:{self.line})"


def safe(name: str) -> str:
    """Return a name that a stranger chose so that it can stand in a comment."""
    return name if re.fullmatch(r"[\w.,: -]{1,80}", name) and "\n" not in name else shown(name)


def read_settings(path: Path) -> list[Setting]:
    """Return the keys of a YAML or JSON file in its order. Raises ``UsageError``."""
    import yaml

    text = _text_of(path)
    wrong = "give axolotl's or LLaMA-Factory's YAML, or TrainingArguments.to_json_string()"
    try:
        _require_plain(text, path)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path} holds no settings by name; {wrong}")
        settings: dict[str, Setting] = {}
        for key_node, node in root.value:
            key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            if key in settings:
                raise UsageError(f"{path}:{line}: {shown(key)} is given twice; remove one")
            settings[key] = Setting(
                key=key, value=_plain(loader.construct_object(node, deep=True)), line=line
            )
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise UsageError(f"{path}{place} is not plain YAML or JSON ({reason}); {wrong}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply; {wrong}") from None
    return list(settings.values())


def _require_plain(text: str, path: Path) -> None:
    """Raise for what YAML could multiply or take quadratic time over, before a value is made of it."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{path} uses aliases (*name), which are not followed; write their values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError


def _text_of(path: Path) -> str:
    if path.suffix in _PICKLES:
        raise UsageError(f"{path} would run code when read; save the arguments with to_json_string()")
    try:
        return read_data(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text in UTF-8; save it as YAML or JSON") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON would have it; 1e-4 is a number, though YAML reads it as text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value if isinstance(value, str | int | float | None) else str(value)
