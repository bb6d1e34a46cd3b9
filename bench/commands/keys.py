"""Every key of a scenario file as tables of Markdown, from the schema that editors read."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bench.scenario.layout import json_schema

_MOST_NAMES = 12
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS = {"array": "list", "object": "table", None: "any"}


def render_keys() -> str:
    """Return a table of the keys at the top of a file, then one of the keys of each of its tables."""
    schema = json_schema()
    parts = {"At the top": schema["properties"]}
    parts |= {f"`[{name}]`": one["properties"] for name, one in schema["$defs"].items()}
    return "\n\n".join("\n".join(_lines(title, keys)) for title, keys in parts.items())


def _lines(title: str, keys: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n\n| Key | Value | Default | What it says |\n| :--- | :--- | :--- | :--- |"
    for name, key in keys.items():
        default = f"`{json.dumps(key['default'])}`" if "default" in key else ""
        cells = (f"`{name}`", _values(key), default, key.get("description", ""))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _values(key: Mapping[str, Any]) -> str:
    """Say what may stand there, without the list of it that nearly every key takes."""
    kinds = key.get("anyOf", [key])
    single = [one for one in kinds if one.get("type") != "array"] or kinds
    return " or ".join(dict.fromkeys(map(_kind, single)))


def _kind(one: Mapping[str, Any]) -> str:
    if "enum" in one:
        names = [f"`{json.dumps(name)}`" for name in one["enum"][:_MOST_NAMES]]
        more = len(one["enum"]) - len(names)
        return ", ".join(names) + (f" and {more} more" if more else "")
    if "$ref" in one:
        return f"a table of the keys of `[{one['$ref'].rpartition('/')[2]}]`"
    told = ", ".join(f"{sign} {one[name]:,}" for name, sign in _LIMITS.items() if name in one)
    return f"{_KINDS.get(one.get('type'), one.get('type'))} {told}".strip()
