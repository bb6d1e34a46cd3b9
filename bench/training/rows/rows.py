"""Rows of a file or of a hub's data set, read and checked one by one.

A layout is named in the scenario or told from the keys of the first row. A row that is wrong ends the reading
with file and line; one that cannot be trained on here, such as one with an image, is left out and counted.
Text only: no torch, no tokens, so that data can be checked before anything heavy is imported.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench.errors import UnavailableError, UsageError, counted, first_line
from bench.scenario.types import DataFormat, HubData, JsonlData, RowFormat
from bench.training.rows.json_rows import json_rows
from bench.training.rows.row_layouts import ROW_OF, LeftOutError, Row, WrongRowError

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
    """The rows of data with their lines, and the lines of those that were left out, by why."""

    name: str
    format: RowFormat
    rows: list[tuple[int, Row]]
    left_out: dict[str, list[int]] = field(default_factory=dict)
    whole: bool = True

    def summary(self) -> str:
        """Return in one line what the data was read as."""
        read = len(self.rows) + sum(map(len, self.left_out.values()))
        text = (
            f"{self.name}: read as {self.format}: {'' if self.whole else 'the first '}{counted(read, 'row')}"
        )
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
    for line, fields in islice(numbered, limit):
        where = f"{name}, {place} {line}: "
        chosen = chosen or _format_of(data.format, fields, pairs, where)
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
    return Rows(name=name, format=chosen, rows=rows, left_out=left_out, whole=not partial)


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
