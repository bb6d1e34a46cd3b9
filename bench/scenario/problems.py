"""The mistakes of a scenario, collected so that all are told at once. Knows nothing of what a scenario is."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from bench.errors import ScenarioError
from bench.scenario.positions import Path

MOST_PROBLEMS = 50
"""Told at once; a file with more is told so."""

_LONGEST_SHOWN = 60
"""Characters of a value or key; names worth a guess are shorter too."""


class Location(NamedTuple):
    """A line of a file; ``rank`` orders the files of a chain of ``extends``, the one asked for first."""

    rank: int
    line: int
    file: str


class Problems:
    """Every mistake once, told in file order."""

    def __init__(self, locations: Mapping[Path, Location], whole: Location) -> None:
        """Take where each key stands, and where to point for what stands nowhere."""
        self._locations = locations
        self._whole = whole
        self._found: set[tuple[Location, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def full(self) -> bool:
        """Whether there are so many that looking for more is of no use."""
        return len(self._found) >= MOST_PROBLEMS

    def add(self, path: Path, message: str, wrong: str = "", known: Iterable[str] = ()) -> None:
        """Note a mistake at ``path``; of the ``known`` names, the one nearest to ``wrong`` is proposed."""
        if self.full:
            return
        nearest = get_close_matches(wrong, known, n=1) if 0 < len(wrong) <= _LONGEST_SHOWN else []
        hint = f' Perhaps you meant "{nearest[0]}"?' if nearest else ""
        key = f"{shown_path(path)}: " if path else ""
        self._found.add((self.locate(path), f"{key}{message}.{hint}"))

    def locate(self, path: Path) -> Location:
        """Return the place of a key, or of the nearest table around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._locations:
                return self._locations[path[:length]]
        return self._whole

    def stands(self, path: Path) -> bool:
        """Tell whether a file of the scenario holds exactly this key."""
        return path in self._locations

    def error(self) -> ScenarioError:
        """Return everything found as one error, a line each."""
        lines = [f"{at.file}:{at.line}: {message}" for at, message in sorted(self._found)]
        if self.full:
            lines.append(
                f"{self._whole.file}: the list stops at {MOST_PROBLEMS} mistakes; correct these first."
            )
        return ScenarioError(lines)


def shown(value: object) -> str:
    """Return a value from a stranger's file as short JSON: no control characters, one line."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def shown_path(path: Path) -> str:
    """Return a path as it would be written in TOML, array elements by their number from 0."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = (
                part.isascii()
                and part.replace("-", "").replace("_", "").isalnum()
                and len(part) <= _LONGEST_SHOWN
            )
            text += ("." if text else "") + (part if plain else shown(part))
    return text
