"""Files of JSON rows as people have them: a list, pretty or on one line, or objects one after another.

Read piece by piece, with the line on which each row begins; a byte order mark and every kind of line end
are passed over. What is wrong is said with file and line, and repeats nothing that the file holds.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bench.errors import UsageError
from bench.io import open_data, single_names

LONGEST_ROW = 64 * 1024**2
"""Characters of a row, at most."""
_PIECE = 1024**2
_LONGEST_WORD = 16  # characters: what a piece may cut in two, besides text in quotes
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder(object_pairs_hook=single_names)
_AS_LINES = "write its rows as JSON lines"
_OTHER_FILES = {
    b"PAR1": f"is a Parquet file; {_AS_LINES} (pandas: to_json(…, orient='records', lines=True))",
    b"\x1f\x8b": "is compressed; unpack it",
    b"PK\x03\x04": f"is a zip archive or a workbook; unpack it, or {_AS_LINES}",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
"""By how a file begins, what it is instead, and what to do."""


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a file with its line. Raises ``UsageError``, also for what is no plain file."""
    try:
        with open_data(path) as file:
            begin = file.read(4)
            for mark, what in _OTHER_FILES.items():
                if begin.startswith(mark):
                    raise UsageError(f"The data file {path} {what}.")
            file.seek(0)
            with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
                yield from _Rows(path, text).read()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"Cannot read the data file {path} ({reason}); correct data.path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The data file {path} is not UTF-8 text; convert it.") from error


def kind_of(value: object) -> str:
    """Return what a value is, in JSON's words."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _is_text(value: object) -> bool:
    """Report whether all text in a value can be written: an escape may be half a pair of surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class _Rows:
    """Holds as much of a file as its row at hand needs; ``_at`` is a place in it, on line ``_line``."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._line = "", 0, 1

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        listed = self._next() == "["
        after = ","
        if listed:
            self._at += 1
            after = "]" if self._next() == "]" else ","
            self._at += after == "]"
        while after == "," and self._next():
            yield self._line, self._row()
            if listed:
                after = self._next()
                if after not in (",", "]"):
                    what = "a comma or the end of the list belongs" if after else "the list is not closed"
                    raise self._wrong(f"not JSON: {what} after this row")
                self._at += 1
        if listed and (after == "," or self._next()):
            end = "the list is not closed" if after == "," else "something follows the end of the list"
            raise self._wrong(f"not JSON: {end}")

    def _row(self) -> dict[str, Any]:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._wrong("nested too deeply to be a row") from None
            except ValueError as error:  # JSONDecodeError, or an integer of more digits than Python reads
                if "stands twice" in str(error):
                    raise self._wrong("a key stands twice in one object; remove one") from None
                if self._may_go_on(error) and self._more():
                    continue
                raise self._not_json(error) from None
            if not isinstance(value, dict):
                raise self._wrong(f"{kind_of(value)}, where a row, an object in braces, belongs")
            if "\\ud" in self._text[self._at : end].lower() and not _is_text(value):
                raise self._wrong("an escape such as \\ud800 is half a character; write it whole")
            self._pass(end)
            return value

    def _may_go_on(self, error: ValueError) -> bool:
        """Report whether the mistake may be that what is held ends within a row."""
        place = getattr(error, "pos", self._at)
        return len(self._text) - place < _LONGEST_WORD or "Unterminated" in str(error)

    def _not_json(self, error: ValueError) -> UsageError:
        reason = getattr(error, "msg", "a number of thousands of digits")
        line = self._line + self._text.count("\n", self._at, getattr(error, "pos", self._at))
        here = "" if line == self._line else f" in line {line}"
        reason = f"{reason[:1].lower()}{reason[1:]}".removesuffix(" starting at").removesuffix(" at")
        return self._wrong(f"not JSON ({reason}{here}); give JSON objects, one per line or in one list")

    def _next(self) -> str:
        """Pass over white space; return the character that follows, or nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._pass(self._at if match is None else match.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _pass(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """Read on, as much again as is still needed; report whether there was more."""
        held = self._text[self._at :]
        if len(held) > LONGEST_ROW:
            raise self._wrong(f"a row of more than {LONGEST_ROW:,} characters; shorten it")
        piece = self._file.read(max(_PIECE, len(held)))
        self._text, self._at = held + piece, 0
        return bool(piece)

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._path}, line {self._line}: {what}.")
