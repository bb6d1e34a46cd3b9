"""Loading a scenario: from a TOML file and those it extends to its cells, or to everything wrong with it."""

import difflib
import fnmatch
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from bench.errors import ScenarioError, UsageError
from bench.scenario.cell import Cell
from bench.scenario.diagnostics import (
    Location,
    NestingError,
    Path,
    Problems,
    complaint_about,
    key_lines,
    shown,
)
from bench.scenario.gate import GateSpec
from bench.scenario.layout import NAME
from bench.scenario.matrix import expand, merged
from bench.scenario.shape import sound_part

MAX_BYTES = 1024**2
MAX_CHAIN = 10
"""Files that may extend one another."""
NEAR_IDS = 5
"""Cells named at most where a pattern matches none."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario file, expanded. ``name`` is the file's name without its ending."""

    name: str
    title: str
    description: str
    path: FilePath
    cells: tuple[Cell, ...]
    excluded: int
    gate: GateSpec


def load_scenario(path: FilePath) -> Scenario:
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


def choose_cells(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """Return the cells whose id matches a shell pattern; ``*`` crosses slashes.

    Raises ``UsageError`` with near ids when none does.
    """
    if pattern is None:
        return list(cells)
    chosen = [cell for cell in cells if fnmatch.fnmatchcase(cell.id, pattern)]
    if not chosen:
        ids = [cell.id for cell in cells]
        near = [id_ for id_ in ids if pattern.strip("*?") in id_][:NEAR_IDS]
        near = near or difflib.get_close_matches(pattern, ids, n=NEAR_IDS, cutoff=0.3) or ids[:NEAR_IDS]
        raise UsageError(f"--only {pattern} matches no cell; perhaps you meant {' or '.join(near)}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Document:
    """The merged content of a scenario file and all it extends."""

    path: FilePath
    data: dict[str, Any]
    locations: dict[Path, Location]


def read_document(path: FilePath) -> Document:
    """Read ``path`` and, first to last, what it extends; a nearer file's value wins over a farther one's.

    Tables are merged key by key, anything else is replaced. Raises ``ScenarioError``.
    """
    data: dict[str, Any] = {}
    locations: dict[Path, Location] = {}
    seen: list[FilePath] = []
    following: FilePath | None = path
    asked_from = ""
    while following is not None:
        current = following
        if len(seen) == MAX_CHAIN:
            raise ScenarioError([f"{asked_from}more than {MAX_CHAIN} files extend one another; merge some."])
        text = _read_text(current, asked_from)
        seen.append(current.resolve())
        content, lines = _parse(current, text)
        own = {key: Location(len(seen), line, str(current)) for key, line in lines.items()}
        following = None
        if "extends" in content:
            asked_from = f"{current}:{lines[('extends',)]}: extends: "
            following = _extended(current, content.pop("extends"), asked_from, seen)
        data = merged(data, content)
        locations = own | locations
    return Document(path=path, data=data, locations=locations)


def _read_text(path: FilePath, asked_from: str) -> str:
    """Return the text of a regular file of at most ``MAX_BYTES`` in UTF-8, line ends unified."""
    shown_name = f"{asked_from}{shown(str(path)) if asked_from else path}"
    try:
        if path.is_dir():
            raise ScenarioError([f"{shown_name} is a folder; name a scenario file (.toml)."])
        if not path.exists():
            raise ScenarioError([f"{shown_name} does not exist; check the path."])
        if not path.is_file():
            raise ScenarioError([f"{shown_name} is not a regular file; name a scenario file (.toml)."])
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ScenarioError([f"{shown_name} cannot be read ({reason}); check the path."]) from None
    if len(content) > MAX_BYTES:
        raise ScenarioError(
            [f"{shown_name} is larger than {MAX_BYTES:,} bytes, which no scenario needs; check the path."]
        )
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ScenarioError(
            [f"{shown_name}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8."]
        ) from None


def _parse(path: FilePath, text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    try:
        lines = key_lines(text)
        return tomllib.loads(text), lines
    except NestingError as error:
        raise ScenarioError([f"{path}:{error.line}: {error}; flatten it."]) from None
    except RecursionError:
        raise ScenarioError([f"{path}:1: nested too deeply; flatten it."]) from None
    except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
        return _refuse_syntax(path, text, str(error))


def _refuse_syntax(path: FilePath, text: str, reason: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Turn tomllib's "What (at line 3, column 5)" into a line that begins with the place."""
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", reason)
    if place is None:
        raise ScenarioError([f"{path}:1: not TOML: {reason.split(';', maxsplit=1)[0]}; correct it."])
    line = int(place[1]) if place[1] else text.count("\n") + 1
    column = f", column {place[2]}" if place[2] else ", end of file"
    what = reason[: place.start()]
    raise ScenarioError(
        [f"{path}:{line}: not TOML: {what[:1].lower()}{what[1:]} (line {line}{column}); correct it."]
    )


def _extended(path: FilePath, name: object, asked_from: str, seen: list[FilePath]) -> FilePath:
    """Return the file that ``path`` extends; ``seen`` are the files that led here."""
    if not isinstance(name, str):
        raise ScenarioError([f"{asked_from}must be a file name in quotes, not {shown(name)}."])
    if FilePath(name).is_absolute() or not name.endswith(".toml"):
        raise ScenarioError([f"{asked_from}must be a .toml file relative to this one, not {shown(name)}."])
    target = path.parent / name
    try:
        if target.resolve() in seen:
            raise ScenarioError([f"{asked_from}{shown(name)} extends this file in turn; break the circle."])
    except (OSError, ValueError, RuntimeError) as error:  # a circle of links, or a NUL in the name
        raise ScenarioError(
            [f"{asked_from}{shown(name)} cannot be followed ({error}); check the path."]
        ) from None
    return target
