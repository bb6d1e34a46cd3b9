"""Tables that ``templates/tables.toml`` describes: what each column reads of a row, and how it is written."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import repeat
from operator import attrgetter
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from bench.metrics import INSTRUMENT_NAMES
from bench.records.readings import Stored
from bench.report.text import (
    GIBIBYTES,
    NOT_APPLICABLE,
    NOT_MEASURED,
    Table,
    load_toml,
    operations,
    operator,
    seconds,
    share,
    significant,
    small_share,
    words,
)

Writer = Callable[..., str]
Columns = Sequence[tuple[str, str]]


class Described(Stored):
    """A table as the file describes it; ``of`` and ``device`` are for those below a comparison."""

    of: str = ""
    device: str = ""
    left: int = 1
    columns: tuple[tuple[str, str], ...]


@cache
def described() -> dict[str, Described]:
    return TypeAdapter(dict[str, Described]).validate_python(load_toml("tables.toml"))


class Line(NamedTuple):
    """What a line shows: ``one`` thing that was read of a row."""

    row: Any
    one: Any


def described_table(
    name: str,
    rows: Sequence[object],
    writers: Mapping[str, Writer] | None = None,
    *,
    more: Columns = (),
    without: Sequence[str] = (),
) -> Table:
    """Return the table of this name; ``writers`` are its own.

    ``more`` columns stand behind those of the file, of which some may be left out by their titles.
    """
    table, known = described()[name], {**WRITERS, **(writers or {})}
    columns = [*(column for column in table.columns if column[0] not in without), *more]
    cells = [_cells(text, rows, known) for _, text in columns]
    return Table(
        header=tuple(title for title, _ in columns),
        rows=tuple(zip(*cells, strict=True)),
        left=sum(title not in without for title, _ in table.columns[: table.left]),
    )


def _cells(text: str, rows: Sequence[object], writers: Mapping[str, Writer]) -> Iterable[str]:
    """Return what a column shows of each row: what stands in braces is read of it and written."""
    before, *found = re.split(r"\{([^:}]*):?([^}]*)\}", text)
    pieces: list[Iterable[str]] = [repeat(before, len(rows))]
    for field, how, behind in zip(found[::3], found[1::3], found[2::3], strict=True):
        read = map(attrgetter(field), rows) if field else rows
        pieces += [map(writers.get(how, f"{{:{how}}}".format), read), repeat(behind)]
    return map("".join, zip(*pieces, strict=False))


def if_known(write: Writer) -> Writer:
    return lambda value: NOT_MEASURED if value is None else write(value)


WRITERS: dict[str, Writer] = {
    "fine_share": lambda value: share(value, 2),
    "gibibytes": GIBIBYTES.show,
    "in_band": lambda hit: NOT_APPLICABLE if hit is None else "hit" if hit else "miss",
    "instrument": lambda name: INSTRUMENT_NAMES[name],
    "known": if_known(str),
    "known_share": if_known(lambda value: share(value, 0)),
    "module": lambda name: name or "outside any module",
    "names": lambda names: ", ".join(names) or NOT_APPLICABLE,
    "operations": operations,
    "operator": operator,
    "seconds": seconds,
    "share": share,
    "significant": significant,
    "small_share": small_share,
    "thousandths": lambda value: share(value, 3),
    "whole_share": lambda value: share(value, 0),
    "words": words,
    "yes": lambda value: "yes" if value else "no",
}
"""How what is read is written, by name; tables add their own."""
