"""Rows of a file or of a hub's data set, read and checked one by one.

A layout is named in the scenario or told from the keys of the first row. A row that is wrong ends the reading
with file and line; one that cannot be trained on here, such as one with an image, is left out and counted.
Text only: no torch, no tokens, so that data can be checked before anything heavy is imported.

Files are JSON rows as people have them: a list, pretty or on one line, or objects one after another. They are
read piece by piece, with the line on which each row begins; a byte order mark and every kind of line end are
passed over. What is wrong is said with file and line, and repeats nothing that the file holds.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from bench.errors import UnavailableError, UsageError, counted, first_line
from bench.io import open_data, single_names
from bench.scenario.types import DataFormat, HubData, JsonlData, RowFormat
from bench.training.rows.row_layouts import (
    REQUESTS_AND_ANSWERS,
    ROW_OF,
    LeftOutError,
    Row,
    WrongRowError,
    kind_of,
    question_of,
    request_and_answer,
)

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_LINES_NAMED = 3

_KEYS: dict[RowFormat, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "text": ("text",),
}
"""The keys by which each layout is known, in the order in which they are looked for."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of data with their lines, and the lines of those that were left out, by why.

    ``names`` says what a layout's fields are called where these are not its own names, and what is not read.
    """

    name: str
    format: RowFormat
    names: str = ""
    rows: list[tuple[int, Row]]
    left_out: dict[str, list[int]] = field(default_factory=dict)
    whole: bool = True

    def summary(self) -> str:
        """Return in one line what the data was read as."""
        read = len(self.rows) + sum(map(len, self.left_out.values()))
        first = "" if self.whole else "the first "
        text = f"{self.name}: read as {self.format}{self.names}: {first}{counted(read, 'row')}"
        return f"{text}, {told(self.left_out)}" if self.left_out else text


def told(left_out: dict[str, list[int]]) -> str:
    """Return how many rows were left out, why, and where the first ones are."""
    parts = []
    for why, lines in left_out.items():
        named = ", ".join(map(str, lines[:_LINES_NAMED])) + (" …" if len(lines) > _LINES_NAMED else "")
        parts.append(f"{len(lines):,} {why} (line{'s' if len(lines) > 1 else ''} {named})")
    return f"{sum(map(len, left_out.values())):,} left out: {', '.join(parts)}"


def read_rows(data: JsonlData | HubData, *, pairs: bool = False, most: int | None = None) -> Rows:
    """Read and check the rows of a file or of a hub's data set: of two answers each if ``pairs`` are wanted.

    Raises ``UsageError`` for data that is wrong or leaves nothing, ``UnavailableError`` for a hub that cannot
    be reached.
    """
    limit = min((one for one in (data.max_items, most) if one is not None), default=None)
    name, numbered = (data.path, json_rows(Path(data.path))) if isinstance(data, JsonlData) else _of_hub(data)
    place = "line" if isinstance(data, JsonlData) else "row"
    rows: list[tuple[int, Row]] = []
    left_out: dict[str, list[int]] = {}
    chosen: RowFormat | None = None
    names = ""
    for line, fields in islice(numbered, limit):
        where = f"{name}, {place} {line}: "
        if chosen is None:
            chosen = _format_of(data.format, fields, pairs, where)
            names = _names(fields, chosen)
        try:
            rows.append((line, ROW_OF[chosen](fields)))
        except WrongRowError as error:
            how = "first row" if data.format == "auto" else "scenario"
            raise UsageError(
                f"{where}{error}; correct the row, or data.format (now {chosen}, by the {how})."
            ) from None
        except LeftOutError as error:
            left_out.setdefault(str(error), []).append(line)
    if chosen is None:
        raise UsageError(f"The data {name} holds no rows; give JSON objects, one per line or in one list.")
    if not rows:
        raise UsageError(f"{name}: no row can be trained on here: {told(left_out)}.")
    partial = limit is not None and len(rows) + sum(map(len, left_out.values())) == limit
    return Rows(name=name, format=chosen, names=names, rows=rows, left_out=left_out, whole=not partial)


def require_hub_id(name: str) -> None:
    """Raise ``UsageError`` for a path: a script must not be loaded in the place of a data set."""
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise UsageError(
            f"{name!r} is not the id of a data set on the hub; give owner/name, or use source jsonl."
        )


def _of_hub(data: HubData) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Download (or take from the cache) a hub data set; only data files are read."""
    require_hub_id(data.dataset)
    import datasets

    split = data.split if data.max_items is None else f"{data.split}[:{data.max_items}]"
    try:
        table = datasets.load_dataset(data.dataset, name=data.config, split=split, revision=data.revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UnavailableError(
            f"The data set {data.dataset} cannot be fetched ({first_line(error)}); connect this machine "
            "to the hub once so that it is cached, or use source jsonl with a local copy."
        ) from error
    except ValueError as error:  # what the library raises for an unknown configuration or split
        raise UsageError(
            f"The data set {data.dataset} cannot be read ({first_line(error)}); "
            "correct data.config or data.split."
        ) from error
    return f"{data.dataset}, {data.split}", enumerate(table)


def _format_of(named: DataFormat, fields: dict[str, Any], pairs: bool, where: str) -> RowFormat:  # noqa: FBT001 - as its caller has it
    """Return the layout that the scenario names, or the first whose keys a row has."""
    if named != "auto":
        return named
    fitting: list[RowFormat] = [name for name, keys in _KEYS.items() if fields.keys() >= set(keys)]
    if not fitting and any(fields.keys() >= {*pair} for pair in REQUESTS_AND_ANSWERS):
        fitting = ["completion"]
    if pairs and "preference" not in fitting:
        raise UsageError(f"{where}loop.driver trl-dpo needs rows with prompt, chosen and rejected.")
    if fitting == ["preference"] and not pairs:
        raise UsageError(f"{where}rows of two answers, chosen and rejected, are for loop.driver trl-dpo.")
    if not fitting:
        inside = (key for key, value in fields.items() if isinstance(value, list) and value)
        if held := next((key for key in inside if isinstance(fields[key][0], dict)), None):
            raise UsageError(f"{where}the rows lie under {json.dumps(held)[:40]}; write that list alone.")
        keys = ", ".join(json.dumps(key)[:40] for key in islice(fields, 6)) or "none"
        known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in _KEYS.items())
        raise UsageError(
            f"{where}the row's keys ({keys}) are of no layout known here; rename them ({known})."
        )
    return fitting[0] if pairs or fitting[0] != "preference" else fitting[1]


def _names(fields: dict[str, Any], chosen: RowFormat) -> str:
    """Say which fields are read, unless they have the layout's own names, and which are not."""
    own = request_and_answer(fields) if chosen == "completion" else _KEYS["completion"]
    if chosen == "preference" and (question := question_of(fields)):
        own = (question, *_KEYS["preference"])
    if own == _KEYS["completion"]:
        return ""
    rest = ", ".join(json.dumps(name)[:40] for name in islice(fields, 8) if name not in {*own, "tools"})
    return f" ({', '.join(own[:-1])} and {own[-1]}{rest and f'; not read: {rest}'})"


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
                yield from _JsonReader(path, text).read()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"Cannot read the data file {path} ({reason}); name another file.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The data file {path} is not UTF-8 text; convert it.") from error


def _is_text(value: object) -> bool:
    """Report whether all text in a value can be written: an escape may be half a pair of surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class _JsonReader:
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
