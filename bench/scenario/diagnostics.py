"""Everything wrong with a scenario file, each mistake with its line: the list, value checks, key positions.

``tomllib`` does not say where a key stands, so ``key_lines`` splits a text into keys and values, in one
linear pass, and leaves their verdict to ``tomllib``. TOML has types, so no value is converted.
"""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime, time
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from bench.errors import ScenarioError, UsageError

MAX_DEPTH = 32
"""Levels allowed: ``tomllib`` takes quadratic time over the parts of a key and recurses into arrays."""

MOST_PROBLEMS = 50
_LONGEST_SHOWN = 60
"""Characters of a value or key; names worth a guess are shorter too."""

Path = tuple[str | int, ...]


class Location(NamedTuple):
    """A line of a file; ``rank`` orders the files of a chain of ``extends``, the one asked for first."""

    rank: int
    line: int
    file: str


class Problems:
    """Every mistake once, listed in file order."""

    def __init__(self, locations: Mapping[Path, Location], whole: Location) -> None:
        self._locations = locations
        self._whole = whole
        self._found: set[tuple[Location, str]] = set()
        self._wrong: set[Path] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def full(self) -> bool:
        """Whether there are so many that looking for more is of no use."""
        return len(self._found) >= MOST_PROBLEMS

    def add(self, path: Path, message: str, wrong: object = "", known: Iterable[str] = ()) -> None:
        """Note a mistake at ``path``; of the ``known`` names, the one nearest to ``wrong`` is proposed."""
        if self.full:
            return
        self._wrong.add(path)
        key = f"{shown_path(path)}: " if path else ""
        self._found.add((self.locate(path), f"{key}{message}. {perhaps(wrong, known)}".rstrip()))

    def locate(self, path: Path) -> Location:
        """Return the place of a key, or of the nearest table around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._locations:
                return self._locations[path[:length]]
        return self._whole

    def stands(self, path: Path) -> bool:
        """Report whether a file of the scenario holds exactly this key."""
        return path in self._locations

    def wrong(self, path: Path) -> bool:
        """Report whether a mistake was noted there or below, so that the value is not known."""
        return any(one[: len(path)] == path for one in self._wrong)

    def error(self) -> ScenarioError:
        lines = [f"{at.file}:{at.line}: {message}" for at, message in sorted(self._found)]
        if self.full:
            last = f"the list stops at {MOST_PROBLEMS} mistakes; correct these first."
            lines.append(f"{self._whole.file}: {last}")
        return ScenarioError(lines)


def perhaps(wrong: object, known: Iterable[str], most: int = 1) -> str:
    """Return 'Perhaps you meant "…"?' with the known names nearest to a wrong one; empty if none is near."""
    if not isinstance(wrong, str) or not 0 < len(wrong) <= _LONGEST_SHOWN:
        return ""
    begun = [name for name in known if name.startswith(wrong.lower())]
    near = begun or get_close_matches(wrong, known, n=most) or get_close_matches(wrong.lower(), known, n=most)
    names = " or ".join(f'"{name}"' for name in near[:most])
    return f"Perhaps you meant {names}?" if near else ""


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
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", part) and len(part) <= _LONGEST_SHOWN
            text += ("." if text else "") + (part if plain else shown(part))
    return text


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WORDS = (
    ("Value error, ", ""),
    ("Input should be ", "must be "),
    ("String should ", "must "),
    ("an object", "a table"),
    ("a valid array", "a list"),
    ("a valid integer", "an integer"),
    ("a valid boolean", "true or false"),
    ("a valid ", "a "),
    ("'", '"'),
)
"""Pydantic's words and ours."""


class Complaint(NamedTuple):
    """What is wrong with a value, and the values that would have been right where they can be listed."""

    message: str
    known: tuple[str, ...] = ()


def axis_of(field: FieldInfo, value: object) -> list[Any] | None:
    """Return the values of an axis, or None for a single value.

    A list is an axis, except where the field is a list by nature: there a list that holds lists is.
    """
    if not isinstance(value, list):
        return None
    by_nature = any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))
    return value if not by_nature or any(isinstance(one, list) for one in value) else None


def complaint_about(field: FieldInfo, value: object) -> Complaint | None:
    """Return what is wrong with a single value of ``field``; None if it fits."""
    if (odd := _oddity(value)) is not None:
        return Complaint(odd)
    try:
        _adapter(field).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return _in_our_words(error, value)
    return None


def _oddity(value: object) -> str | None:
    """Return what JSON or a terminal could not bear in a value, however deep."""
    if isinstance(value, dict | list):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return next((odd for odd in map(_oddity, inside) if odd is not None), None)
    if isinstance(value, date | datetime | time):
        return "dates and times have no meaning here; remove it"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "must be an integer of at most 64 bits"
    if isinstance(value, str) and _CONTROL.search(value):
        return "must not hold control characters"
    return None


@cache
def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _in_our_words(error: ValidationError, value: object) -> Complaint:
    """Put pydantic's errors into one sentence: a union as its alternatives."""
    details = error.errors(include_url=False)
    if details[0]["type"] == "string_pattern_mismatch":
        return Complaint("must be letters, digits, dots, dashes and underscores, the first a letter or digit")
    messages = []
    known: tuple[str, ...] = ()
    for detail in details:
        message = detail["msg"]
        for theirs, ours in _WORDS:
            message = message.replace(theirs, ours)
        messages.append(message)
        if detail["type"] == "literal_error":
            known = tuple(re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    said = " or ".join(dict.fromkeys(messages)).replace(" or must be ", " or ")
    return Complaint(f"{said}, not {shown(value)}", known)


# Groups repeat without possessive quantifiers, which Python before 3.11.5 gets wrong (cpython issue 106052).
_PART = r"""(?: "(?: [^"\\\n]++ | \\[^\n] )*"(?!") | '[^'\n]*+'(?!') | [A-Za-z0-9_-]++ )"""
_KEY = rf"(?P<key> {_PART} (?: [ \t]*+ \. [ \t]*+ {_PART} )* )"
_HEADER = re.compile(
    rf"^[ \t]*+ (?P<many> \[ )? \[ [ \t]*+ {_KEY} [ \t]*+ (?P<header> \] )", re.VERBOSE | re.MULTILINE
)
_TOKEN = re.compile(
    rf"""\n++ | [ \t]++ | \#[^\n]*+ | {_KEY} (?P<assigned> [ \t]*+ = )? | (?P<mark> [\[\]{{}},] )
    | (?P<text> \"""(?: [^"\\]++ | \\. | "(?!"") )* "{{3,5}} | \'''(?: [^']++ | '(?!'') )* '{{3,5}}
    | [^\s"'\#\[\]{{}}=,]++ )""",
    re.VERBOSE | re.DOTALL,
)


class NestingError(UsageError):
    """A key or value lies deeper than ``MAX_DEPTH``; ``line`` says where."""

    def __init__(self, line: int) -> None:
        self.line = line
        super().__init__(f"nested more than {MAX_DEPTH} levels deep")


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every table, key and array element by its path.

    The lines of ``text`` end in a line feed alone. What is not TOML ends the search: ``tomllib`` says what is
    wrong, and where. Raises ``NestingError``.
    """
    scanner, position = _Scanner(), 0
    with suppress(tomllib.TOMLDecodeError):
        while found := scanner.match(text, position):
            scanner.take(found)
            scanner.line += found.group().count("\n")
            position = found.end()
    return scanner.lines


class _Scanner:
    """Takes headers, assigned keys, pieces of values and brackets, and notes where each path begins."""

    def __init__(self) -> None:
        self.line = 1
        self.lines: dict[Path, int] = {}
        self._table: Path = ()
        self._value: Path = ()
        self._counts: dict[Path, int] = {}  # of the tables so far, by array of tables
        self._open: list[tuple[Path, int]] = []  # arrays with the index of their element; inline tables: -1

    def match(self, text: str, position: int) -> re.Match[str] | None:
        """Return the next token; within brackets it is no header."""
        header = None if self._open else _HEADER.match(text, position)
        return header or _TOKEN.match(text, position)

    def take(self, found: re.Match[str]) -> None:
        match found.lastgroup, found.group():
            case "header", _:
                *parents, last = self._parts(found["key"])
                path = (*self._inside((), parents), last)
                if found["many"]:
                    self._counts[path] = self._counts.get(path, 0) + 1
                self._table = self._inside(path[:-1], [last])
            case "assigned", _:
                around = self._open[-1][0] if self._open else self._table
                self._value = self._inside(around, self._parts(found["key"]))
            case "mark", ("[" | "{") as mark:
                if len(self._open) > MAX_DEPTH:
                    raise NestingError(self.line)
                self._open.append((self._element(), 0 if mark == "[" else -1))
            case "mark", ",":
                if self._open and self._open[-1][1] >= 0:
                    self._open[-1] = self._open[-1][0], self._open[-1][1] + 1
            case "mark", _:
                self._open = self._open[:-1]
            case (("key" | "text"), text):
                self._element(text)

    def _parts(self, key: str) -> list[str]:
        """Return the parts of a dotted key, the escapes of quoted ones decoded."""
        parts = re.findall(_PART, key, re.VERBOSE)
        if len(parts) > MAX_DEPTH:
            raise NestingError(self.line)
        return [tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part for part in parts]

    def _element(self, text: str = "") -> Path:
        """Return where the value is that begins or goes on here.

        A key without a value is refused for its depth as well: it costs ``tomllib`` as much.
        """
        if text.count(".") >= MAX_DEPTH:
            self._parts(text)
        if not self._open or self._open[-1][1] < 0:
            return self._value
        return self._note((*self._open[-1][0], self._open[-1][1]))

    def _inside(self, path: Path, key: list[str]) -> Path:
        """Follow a key, in arrays of tables to the last one."""
        for part in key:
            path = self._note((*path, part))
            if path in self._counts:
                path = self._note((*path, self._counts[path] - 1))
        return path

    def _note(self, path: Path) -> Path:
        if len(path) > MAX_DEPTH:
            raise NestingError(self.line)
        self.lines.setdefault(path, self.line)
        return path
