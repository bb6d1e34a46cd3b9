"""Loading a scenario: from a TOML file and those it extends to its cells, or to everything wrong with it."""

import difflib
import errno
import fnmatch
import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from bench.errors import ScenarioError, UsageError
from bench.io import parse_json, read_data
from bench.scenario.catalogue import (
    architecture,
    architecture_of,
    architecture_spelt,
    architecture_within,
    architectures,
    cards,
)
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
from bench.scenario.shape import Shape
from bench.scenario.types import ModelSpec

MAX_BYTES = 1024**2
MAX_CHAIN = 10
"""Files that may extend one another."""
MOST_AN_HOUR = 1e6
"""Of a price."""
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


def load_scenario(path: FilePath, text: str | None = None) -> Scenario:
    """Read a scenario and all it extends, and expand it; ``text`` is what the file would hold.

    Raises ``ScenarioError`` with every mistake, one "file:line: key: what is wrong" each.
    """
    data, problems = read_document(path, text)
    name = path.stem
    if complaint_about(NAME, name) is not None:
        problems.add((), "the file's name must be letters, digits, dots, dashes and underscores; rename it")
        name = "unnamed"
    sound = Shape(problems).scenario(data)
    cells, excluded = expand(sound, name, problems)
    if problems:
        raise problems.error()
    return Scenario(
        name=name,
        title=sound.get("title", name),
        description=sound.get("description", ""),
        path=path,
        cells=cells,
        excluded=excluded,
        gate=sound["gate"],
    )


def choose_cells(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """Return the cells whose id matches a shell pattern; ``*`` crosses slashes, and ``seed1`` is seed=1, too.

    Raises ``UsageError`` with near ids when none does.
    """
    if pattern is None:
        return list(cells)
    chosen = [
        cell
        for cell in cells
        if any(fnmatch.fnmatchcase(each, pattern) for each in (cell.id, cell.id.replace("=", "")))
    ]
    if not chosen:
        ids = [cell.id for cell in cells]
        near = [id_ for id_ in ids if pattern.strip("*?") in id_][:NEAR_IDS]
        near = near or difflib.get_close_matches(pattern, ids, n=NEAR_IDS, cutoff=0.3) or ids[:NEAR_IDS]
        raise UsageError(f"--only {pattern} matches no cell; perhaps you meant {' or '.join(near)}")
    return chosen


def read_prices(path: FilePath) -> dict[str, float]:
    """Return prices by the catalogue's name of a card, from a file of lines such as ``rtx4090 = 0.5``.

    Raises ``ScenarioError`` with every mistake, and ``UsageError`` for a file without a price.
    """
    data, problems = read_document(path)
    for name, price in data.items():
        if name not in cards():
            problems.add((name,), "is no card of the catalogue", name, tuple(cards()))
        elif type(price) not in {int, float} or not 0 < price <= MOST_AN_HOUR:
            wrong = f"must be a price an hour, above zero and up to {MOST_AN_HOUR:,.0f}, not {shown(price)}"
            problems.add((name,), wrong)
    if problems:
        raise problems.error()
    if not data:
        raise UsageError(f"{path} holds no price; write lines such as rtx4090 = 0.5")
    return {name: float(price) for name, price in data.items()}


def read_document(path: FilePath, text: str | None = None) -> tuple[dict[str, Any], Problems]:
    """Read ``path`` and, first to last, what it extends; a nearer file's value wins over a farther one's.

    ``text`` is what ``path`` would hold. Tables are merged key by key, anything else is replaced. Returns the
    content, and where to note what is wrong with it. Raises ``ScenarioError``.
    """
    data: dict[str, Any] = {}
    locations: dict[Path, Location] = {}
    chain: list[FilePath] = []
    current, asked_from = path, ""
    while True:
        if len(chain) == MAX_CHAIN:
            raise ScenarioError([f"{asked_from}more than {MAX_CHAIN} files extend one another; merge some."])
        known = text if text is not None and not chain else _read_text(current, asked_from)
        content, lines = _parse(current, known)
        chain.append(current.resolve())
        name = content.pop("extends", None)
        data = merged(data, content)
        locations = {key: Location(len(chain), line, str(current)) for key, line in lines.items()} | locations
        if name is None:
            return data, Problems(locations, Location(rank=1, line=1, file=str(path)))
        asked_from = f"{current}:{lines.get(('extends',), 1)}: extends: "
        current = _extended(current, name, asked_from, chain)


def _read_text(path: FilePath, asked_from: str) -> str:
    """Return the text of a regular file of at most ``MAX_BYTES`` in UTF-8, line ends unified."""
    name = f"{asked_from}{shown(str(path)) if asked_from else path}"
    wrong, content = "", b""
    try:
        if path.is_dir():
            wrong = "is a folder; name a file (.toml)"
        elif not path.exists():
            wrong = "does not exist; check the path"
        elif not path.is_file():
            wrong = "is not a regular file; name a file (.toml)"
        else:
            content = read_data(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        wrong = f"cannot be read ({reason}); check the path"
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            wrong = f"is {reason}, which no such file needs; check the path"
    if wrong:
        raise ScenarioError([f"{name} {wrong}."])
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"byte {error.start} is not UTF-8; save the file as UTF-8."
        raise ScenarioError([f"{name}:{line}: {wrong}"]) from None


def _parse(path: FilePath, text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Return the content, and the line of each key. The place that tomllib names leads the message."""
    try:
        lines = key_lines(text)
        return tomllib.loads(text), lines
    except NestingError as error:
        line, wrong = error.line, f"{error}; flatten it"
    except RecursionError:
        line, wrong = 1, "nested too deeply; flatten it"
    except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python reads
        reason = str(error)
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", reason)
        if place is None:
            line, wrong = 1, f"not TOML: {reason.split(';', maxsplit=1)[0]}; correct it"
        else:
            line = int(place[1]) if place[1] else text.count("\n") + 1
            column = f"column {place[2]}" if place[2] else "end of file"
            what = reason[:1].lower() + reason[1 : place.start()]
            wrong = f"not TOML: {what} (line {line}, {column}); correct it"
    raise ScenarioError([f"{path}:{line}: {wrong}."])


def _extended(path: FilePath, name: object, asked_from: str, chain: list[FilePath]) -> FilePath:
    """Return the file that ``path`` extends; ``chain`` are the files that led here."""
    if not isinstance(name, str):
        raise ScenarioError([f"{asked_from}must be a file name in quotes, not {shown(name)}."])
    if FilePath(name).is_absolute() or not name.endswith(".toml"):
        raise ScenarioError([f"{asked_from}must be a .toml file relative to this one, not {shown(name)}."])
    target = path.parent / name
    try:
        if target.resolve() in chain:
            raise ScenarioError([f"{asked_from}{shown(name)} extends this file in turn; break the circle."])
    except (OSError, ValueError, RuntimeError) as error:  # a circle of links, or a NUL in the name
        raise ScenarioError(
            [f"{asked_from}{shown(name)} cannot be followed ({error}); check the path."]
        ) from None
    return target


MOST_TOKENS = 131_072
MOST_RANK = 1024


def named_model(text: str) -> tuple[ModelSpec, str | None]:
    """Return the model that a user names, and what is assumed of it.

    It is a catalogued one, a folder with a config.json, a hub's, whose configuration is looked for as for a
    plan, or one whose name says which catalogued one it derives from.
    """
    known = architectures().get(text) or (None if "/" in text else architecture_spelt(text))
    if known is not None:
        return ModelSpec(name=known.name, random=known.name), None
    folder = FilePath(text)
    if (folder / "config.json").is_file():
        return ModelSpec(name=_safe_name(folder.resolve().name), path=text), None
    if folder.is_dir():
        raise UsageError(f"folder {text} has no config.json; give the folder of a transformers model")
    if text.startswith((".", "~")) or ("/" in text and not re.fullmatch(r"[^/]+/[^/]+", text)):
        raise UsageError(f"there is no folder {text}; check the path, or name a catalogued model or a hub's")
    name = _safe_name(text.rpartition("/")[2])
    if "/" in text:
        return ModelSpec(name=name, hub=text), None
    known = architecture_within(text) or architecture(text)  # which raises, naming the nearest
    return ModelSpec(name=name, random=known.name), known.assumed_for(text)


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or "model"


def limits_of(model: ModelSpec) -> tuple[int, int]:
    """Return the positions and the hidden size of a model, where they are known without a network."""
    known, file = architecture_of(model), None
    if model.path is not None:
        file = FilePath(model.path) / "config.json"
    elif model.hub is not None and known is None:
        from huggingface_hub import try_to_load_from_cache

        with suppress(ValueError):  # no name that the hub could have
            cached = try_to_load_from_cache(model.hub, "config.json")
            file = FilePath(cached) if isinstance(cached, str) else None
        known = architecture_within(model.hub) if file is None else None
    if known is not None:
        return min(known.max_positions, MOST_TOKENS), known.hidden_size
    config: dict[str, object] = {}
    if file is not None:
        try:
            read = parse_json(read_data(file))
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read as JSON ({error})") from None
        config = read if isinstance(read, dict) else {}
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    hidden = config.get("hidden_size") or config.get("n_embd")
    return (
        min(positions, MOST_TOKENS) if isinstance(positions, int) else MOST_TOKENS,
        hidden if isinstance(hidden, int) else MOST_RANK,
    )
