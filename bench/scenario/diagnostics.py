"""Everything wrong with a scenario file, each mistake with its line: the list, value checks, key positions.

``tomllib`` does not say where a key stands, so ``key_lines`` splits a text into keys and values, in one
linear pass, and leaves their verdict to ``tomllib``. TOML has types, so no value is converted.
"""

import json
import math
import re
import tomllib
from bisect import bisect_right
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

    def error(self) -> ScenarioError:
        """Return everything found as one error, a line each."""
        lines = [f"{at.file}:{at.line}: {message}" for at, message in sorted(self._found)]
        if self.full:
            last = f"the list stops at {MOST_PROBLEMS} mistakes; correct these first."
            lines.append(f"{self._whole.file}: {last}")
        return ScenarioError(lines)


def perhaps(wrong: str, known: Iterable[str], most: int = 1) -> str:
    """Return 'Perhaps you meant "…"?' with the known names nearest to a wrong one; empty if none is near."""
    if not 0 < len(wrong) <= _LONGEST_SHOWN:
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


_BLANK = re.compile(r"[ \t]*+")
_GAP = re.compile(r"(?:[ \t\n]++|#[^\n]*+)*+")
_BARE = re.compile(r"[A-Za-z0-9_-]++")
_BASIC = re.compile(r'"(?:[^"\\\n]++|\\[^\n])*+"')
_LITERAL = re.compile(r"'[^'\n]*+'")
_LONG_BASIC = re.compile(r'"""(?:[^"\\]++|\\.|"(?!""))*+"{3,5}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''(?:[^']++|'(?!''))*+'{3,5}", re.DOTALL)
_UNQUOTED = re.compile(r"[^,\]}#\n\"'\[{]++")
_SCALARS = {'"""': _LONG_BASIC, "'''": _LONG_LITERAL, '"': _BASIC, "'": _LITERAL, "": _UNQUOTED}  # first fit


class NestingError(UsageError):
    """A key or value lies deeper than ``MAX_DEPTH``."""

    def __init__(self, line: int) -> None:
        """Take the line of the offending key or value."""
        self.line = line
        super().__init__(f"nested more than {MAX_DEPTH} levels deep")


class _NotTomlError(Exception):
    """The text cannot be split further."""


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every table, key and array element by its path.

    The lines of ``text`` end in a line feed alone. Raises ``NestingError``.
    """
    scanner = _Scanner(text)
    with suppress(_NotTomlError):  # tomllib says what is wrong, and where
        scanner.scan()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.lines: dict[Path, int] = {}
        self._line_starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self._elements: dict[Path, int] = {}  # arrays of tables, with how many tables each has so far

    def scan(self) -> None:
        """Read the text statement by statement."""
        table: Path = ()
        while True:
            self._take(_GAP)
            if self.position == len(self.text):
                return
            if self._accept("["):
                table = self._array_header() if self._accept("[") else self._table_header(self._parts("]"))
            else:
                self._value(self._key(table, "="))

    def _table_header(self, parts: list[str]) -> Path:
        path: Path = ()
        for part in parts:
            path = (*path, part)
            path = (*path, self._elements[path] - 1) if path in self._elements else path
            self._note(path)
        return path

    def _array_header(self) -> Path:
        *parents, last = self._parts("]")
        self._expect("]")
        path = (*self._table_header(parents), last)
        self._note(path)
        index = self._elements.get(path, 0)
        self._elements[path] = index + 1
        self._note((*path, index))
        return (*path, index)

    def _key(self, table: Path, end: str) -> Path:
        path = table
        for part in self._parts(end):
            path = (*path, part)
            self._note(path)
        return path

    def _parts(self, end: str) -> list[str]:
        """Read a dotted key and the character that ends it."""
        parts = []
        while True:
            self._take(_BLANK)
            parts.append(self._part())
            if len(parts) > MAX_DEPTH:
                raise NestingError(self._line())
            self._take(_BLANK)
            if not self._accept("."):
                self._expect(end)
                return parts

    def _part(self) -> str:
        if self.text.startswith('"', self.position):
            try:
                return str(tomllib.loads("key = " + self._take(_BASIC))["key"])  # its escapes decoded
            except tomllib.TOMLDecodeError:
                raise _NotTomlError from None
        if self.text.startswith("'", self.position):
            return self._take(_LITERAL)[1:-1]
        return self._take(_BARE)

    def _value(self, path: Path) -> None:
        """Read a value, noting what lies inside arrays and inline tables."""
        self._take(_BLANK)
        if self._accept("["):
            self._array(path)
        elif self._accept("{"):
            self._inline_table(path)
        else:
            opening = next(quote for quote in _SCALARS if self.text.startswith(quote, self.position))
            self._take(_SCALARS[opening])

    def _array(self, path: Path) -> None:
        index = 0
        self._take(_GAP)
        while not self._accept("]"):
            self._note((*path, index))
            self._value((*path, index))
            self._take(_GAP)
            if not self._accept(","):
                self._expect("]")
                return
            self._take(_GAP)
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._take(_GAP)
        while not self._accept("}"):
            self._value(self._key(path, "="))
            self._take(_GAP)
            if not self._accept(","):
                self._expect("}")
                return
            self._take(_GAP)

    def _note(self, path: Path) -> None:
        if len(path) > MAX_DEPTH:
            raise NestingError(self._line())
        self.lines.setdefault(path, self._line())

    def _line(self) -> int:
        return bisect_right(self._line_starts, self.position)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.position)
        if found is None:
            raise _NotTomlError
        self.position = found.end()
        return found.group()

    def _accept(self, character: str) -> bool:
        accepted = self.text.startswith(character, self.position)
        self.position += accepted
        return accepted

    def _expect(self, character: str) -> None:
        if not self._accept(character):
            raise _NotTomlError
