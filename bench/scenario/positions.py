"""The line of every key in a TOML text, which ``tomllib`` does not tell.

Not a parser: it splits a text into keys and values and leaves their verdict to ``tomllib``. Where the text is
not TOML it stops and returns what it has. One pass, in time linear in the length of the text.
"""

import re
import tomllib
from bisect import bisect_right
from contextlib import suppress

from bench.errors import UsageError

MAX_DEPTH = 32
"""Levels allowed: ``tomllib`` takes quadratic time over the parts of a key and recurses into arrays."""

Path = tuple[str | int, ...]

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
                table = self._array_header() if self._accept("[") else self._table_header()
            else:
                self._value(self._key(table, "="))

    def _table_header(self) -> Path:
        path: Path = ()
        for part in self._parts("]"):
            path = self._latest((*path, part))
            self._note(path)
        return path

    def _array_header(self) -> Path:
        *parents, last = self._parts("]")
        self._expect("]")
        path: Path = ()
        for part in parents:
            path = self._latest((*path, part))
            self._note(path)
        path = (*path, last)
        self._note(path)
        index = self._elements.get(path, 0)
        self._elements[path] = index + 1
        self._note((*path, index))
        return (*path, index)

    def _latest(self, path: Path) -> Path:
        """Step into the table opened last where ``path`` is an array of tables."""
        return (*path, self._elements[path] - 1) if path in self._elements else path

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
