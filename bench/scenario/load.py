"""Loading a scenario: from a TOML file to the cells it asks for, or to everything that is wrong with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scenario.document import read_document
from bench.scenario.gate import GateSpec
from bench.scenario.layout import NAME
from bench.scenario.matrix import expand
from bench.scenario.problems import Location, Problems
from bench.scenario.schema import json_schema
from bench.scenario.shape import sound_part
from bench.scenario.types import Cell
from bench.scenario.values import complaint_about


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario file, expanded. ``name`` is the file's name without its ending."""

    name: str
    title: str
    description: str
    path: Path
    cells: tuple[Cell, ...]
    excluded: int
    gate: GateSpec


def load_scenario(path: Path) -> Scenario:
    """Read a scenario and all it extends, and expand it.

    Raises ``ScenarioError`` with every mistake, one "file:line: key: what is wrong" each.
    """
    document = read_document(path)
    problems = Problems(document.locations, Location(rank=1, line=1, file=str(path)))
    name = path.stem
    if complaint_about(NAME, name) is not None:
        problems.add((), "the file's name must be letters, digits, dots, dashes and underscores; rename it")
        name = "unnamed"
    sound = sound_part(document.data, problems)
    expansion = expand(sound, name, problems)
    if problems:
        raise problems.error()
    return Scenario(
        name=name,
        title=sound.get("title", name),
        description=sound.get("description", ""),
        path=path,
        cells=expansion.cells,
        excluded=expansion.excluded,
        gate=sound["gate"],
    )


def scenario_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of scenario files, for editors."""
    return json_schema()
