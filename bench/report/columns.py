"""Columns described once, and the tables made of them: a page's, a narrow terminal's, HTML's, a DataFrame.

What is shown of a row stands in its columns alone; the tables know no metric. Nothing is computed here.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from bench.report.text import NOT_APPLICABLE, Table, plain, table_of

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")
Tone = Literal["", "good", "close", "bad"]
Place = Literal["", "cell", "speed", "memory", "accuracy"]
NotesOf = Callable[[R, Place], Sequence[str]]


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table of ``R``: its ``text``, and the ``value`` it is sorted by (without one, the text).

    ``frame`` is its name in a DataFrame, which holds the value: bytes, ns, shares. ``narrow`` is its title
    on a narrow terminal, where a column without one is left out, and ``narrow_text`` what it shows there.
    What is not on a ``page`` is in the HTML table only, where ``choice`` offers texts or ``tags`` as a
    filter, ``at_most`` a limit in a unit of size ``scale``, and ``place`` says which notes it bears. ``bar``
    draws the value beside those of other rows; ``link`` is the anchor that the text leads to.
    """

    title: str
    text: Callable[[R], str]
    value: Callable[[R], float | None] | None = None
    _: KW_ONLY
    words: bool = False
    frame: str = ""
    page: bool = True
    narrow: str = ""
    narrow_text: Callable[[R], str] | None = None
    choice: str = ""
    at_most: str = ""
    scale: float = 1.0
    place: Place = ""
    bar: bool = False
    link: Callable[[R], str | None] = lambda _: None
    tags: Callable[[R], tuple[str, ...]] = lambda _: ()
    tone: Callable[[R], Tone] = lambda _: ""

    @property
    def numeric(self) -> bool:
        """Whether it is aligned and sorted as numbers."""
        return self.value is not None and not self.words

    def order(self, row: R) -> float | str | None:
        """Return what the row is sorted by and a DataFrame holds."""
        return self.text(row) if self.value is None else self.value(row)

    def key(self, row: R) -> float | str | None:
        """Return what the row is sorted by in HTML; None comes last."""
        value = self.order(row)
        return value / self.scale if isinstance(value, float | int) and self.scale != 1 else value

    def choices(self, rows: Sequence[tuple[str, R]]) -> tuple[str, ...]:
        """Return what can be chosen of rows with their anchors, where there is a choice."""
        found = (tag for _, row in rows if self.choice for tag in self.tags(row) or (self.text(row),))
        several = tuple(dict.fromkeys(found))
        return several if len(several) > 1 else ()


def page_table(columns: Sequence[Column[R]], rows: Sequence[R]) -> Table:
    shown = [column for column in columns if column.page]
    left = sum(1 for _ in takewhile(lambda column: column.choice, shown)) or 1
    return table_of(rows, *((column.title, column.text) for column in shown), left=left)


def narrow_table(columns: Sequence[Column[R]], rows: Sequence[R]) -> Table:
    """Return fewer columns, for a terminal: savings and relative speed in brackets."""
    shown = [(column.narrow, column.narrow_text or column.text) for column in columns if column.narrow]
    return table_of(rows, *shown)


def frame(columns: Sequence[Column[R]], rows: Sequence[R]) -> "pd.DataFrame":
    """Return the columns that a DataFrame has a name for; missing is NA."""
    import pandas as pd

    named = {column.frame: [column.order(row) for row in rows] for column in columns if column.frame}
    return pd.DataFrame(named).convert_dtypes()


@dataclass(frozen=True, kw_only=True)
class Grid(Generic[R]):
    """A table to sort and filter. Links find a row by its anchor; the notes are numbered from 1.

    ``constants`` are title and value of the columns in which all rows are alike, ``of_all`` notes on all of
    them: told once, not shown.
    """

    name: str
    title: str
    rows: Sequence[tuple[str, R]]
    columns: tuple[Column[R], ...]
    notes: tuple[str, ...]
    notes_of: NotesOf[R]
    constants: tuple[tuple[str, str], ...]
    of_all: tuple[str, ...] = ()

    def bar(self, column: Column[R], row: R) -> float | None:
        """Return how long the bar of a value is, in percent of the largest; None where there is none."""
        own = column.value(row) if column.bar and column.value else None
        return None if own is None else 100 * max(0.0, own) / (self._largest[column.title] or 1)

    @cached_property
    def _largest(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in self.columns:
            if one.bar and one.value:
                values = (one.value(row) for _, row in self.rows)
                found[one.title] = max((value for value in values if value is not None), default=0.0)
        return found

    def numbers(self, column: Column[R], row: R) -> list[int]:
        return (
            [self.notes.index(text) + 1 for text in self.notes_of(row, column.place)] if column.place else []
        )


def grid(  # noqa: PLR0917 - a table has as many parts
    name: str,
    title: str,
    columns: Sequence[Column[R]],
    rows: Sequence[tuple[str, R]],
    notes_of: NotesOf[R],
    of_all: Sequence[str] = (),
) -> Grid[R]:
    """Return the HTML table of rows with their anchors; the first column names them and is always shown."""

    def notes(column: Column[R], row: R) -> tuple[str, ...]:
        return tuple(notes_of(row, column.place)) if column.place else ()

    alike = [
        [(one.text(row), one.key(row), one.tone(row), one.tags(row), notes(one, row)) for _, row in rows]
        for one in columns
    ]
    told = dict.fromkeys(text for cells in alike for *_, texts in cells for text in texts)
    shown = varying([column.title for column in columns], alike)
    shown = [index for index, cells in enumerate(alike) if index in shown or cells[0][-1]]
    return Grid(
        name=name,
        title=title,
        rows=rows,
        columns=tuple(columns[index] for index in shown),
        notes=tuple(told),
        notes_of=notes_of,
        constants=tuple((columns[i].title, cells[0][0]) for i, cells in enumerate(alike) if i not in shown),
        of_all=tuple(of_all),
    )


def varying(titles: Sequence[str], columns: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return the columns but those in which all rows, if there are several, are alike.

    The first column stays, since it names the rows, and so does a title that occurs twice.
    """
    return [
        index
        for index, cells in enumerate(columns)
        if index == 0 or len(cells) == 1 or len(set(cells)) != 1 or titles.count(titles[index]) > 1
    ]


def told_once(table: Table) -> Table:
    """Return a table with each column in which all rows are alike among its constants; names are no table."""
    columns = list(zip(*table.rows, strict=True))
    kept = varying(table.header, columns)
    if not kept[1:]:
        return table
    return Table(
        header=tuple(table.header[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in table.rows),
        left=sum(index < table.left for index in kept),
        constants=tuple((table.header[i], cells[0]) for i, cells in enumerate(columns) if i not in kept),
    )


@dataclass(frozen=True)
class TerminalTable:
    """A table for a rich console, in parts below each other where that is narrow; one row as a list.

    Each part begins with the columns that tell its rows apart. Of ids, what all have in common stands above.
    Only words longer than a third of the width are broken, ids after a slash or a hyphen; nothing is cut off.
    """

    table: Table
    title: str

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RichTable | Text]:
        """Yield the parts; room that is left goes to words that are broken, then to the narrowest columns."""
        width, table = options.max_width, self.table
        texts = [[plain(text) for text in column] for column in zip(table.header, *table.rows, strict=True)]
        if len(table.rows) == 1 and _taken(max(map(cell_len, column)) for column in texts) > width:
            yield self._listed([column[0] for column in texts], [column[1] for column in texts])
            return
        pattern, texts[0] = said_once(texts[0])
        most = [max(map(cell_len, column)) for column in texts]
        longest = [max(map(cell_len, _WORDS.findall(" ".join(column))), default=1) for column in texts]
        least = [min(size, width // 3) for size in longest]
        least[0] = min(longest[0], max(width - max(least[1:], default=0) - _taken([0, 0]), width // 3))
        first = self._naming(least, width)
        title = self.title
        if pattern:
            yield Text(f"{title}\nCells: {pattern}", style="italic")
            title = ""
        for part in _parts(first, least, width):
            widths = {index: least[index] for index in part}
            left = width - _taken(widths.values())
            for wanted in (longest, most):
                while left > 0 and (growing := [index for index in part if widths[index] < wanted[index]]):
                    widths[min(growing, key=widths.__getitem__)] += 1
                    left -= 1
            yield self._part(texts, widths, title)
            title = ""

    def _naming(self, least: Sequence[int], width: int) -> list[int]:
        """Return the first columns that tell the rows apart; fewer where these leave little room."""
        rows = self.table.rows
        enough = next(
            (end for end in range(1, len(least)) if len({row[:end] for row in rows}) == len(rows)), 1
        )
        fitting = [end for end in range(1, enough + 1) if _taken(least[:end]) <= width * 2 // 3]
        return [*range(max(fitting, default=1))]

    def _part(self, texts: Sequence[Sequence[str]], widths: Mapping[int, int], title: str) -> RichTable:
        shown = self._empty(title)
        for index, width in widths.items():
            justify: JustifyMethod = "left" if index < self.table.left else "right"
            shown.add_column(Text(texts[index][0]), justify=justify, overflow="fold", width=width)
        for line in range(1, len(self.table.rows) + 1):
            shown.add_row(*(Text(_broken(texts[index][line], widths[index])) for index in widths))
        return shown

    def _listed(self, titles: Sequence[str], values: Sequence[str]) -> RichTable:
        """Return the only row as a list of what it holds."""
        shown = self._empty(self.title)
        shown.show_header = False
        shown.add_column(no_wrap=True)
        shown.add_column(overflow="fold")
        for title, value in zip(titles, values, strict=True):
            shown.add_row(Text(title), Text(value))
        return shown

    def _empty(self, title: str) -> RichTable:
        return RichTable(title=Text(plain(title)) if title else None, title_justify="left", box=box.SIMPLE)


_WORDS = re.compile(r"\S+(?: (?:%|GiB|MiB)(?!\S))?")
"""What is not broken: words, and numbers with their unit."""


def said_once(column: Sequence[str]) -> tuple[str, list[str]]:
    """Return what ids have in common as a pattern, and the column with what differs; nothing of others."""
    parts = [text.split("/") for text in column[1:]]
    if len(set(column[1:])) < _FEWEST or any(len(each) != _ID_PARTS for each in parts):
        return "", [*column]
    *names, windows = zip(*parts, strict=True)
    window_pattern, differing = _in_common([window.split("-") for window in windows])
    pattern = [*(texts[0] if len(set(texts)) == 1 else "*" for texts in names), window_pattern]
    if pattern == ["*"] * _ID_PARTS:
        return "", [*column]
    shown = [
        " ".join(
            filter(
                None, ("/".join(text for text, one in zip(each, pattern, strict=False) if one == "*"), window)
            )
        )
        for each, window in zip(zip(*names, strict=True), differing, strict=True)
    ]
    return "/".join(pattern), [column[0], *(text or NOT_APPLICABLE for text in shown)]


def _in_common(windows: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """Return what windows have in common, as a pattern that matches each, and what is left of each."""
    common = [token for token in windows[0] if all(each.count(token) == 1 for each in windows)]
    if any([token for token in each if token in common] != common for each in windows):
        common = []  # in another order
    pattern = ""
    for index, groups in enumerate(zip(*(_around(each, common) for each in windows), strict=True)):
        if any(groups):
            pattern += "-*" if pattern and all(groups) else "*"
        if index < len(common):
            pattern += "-" if pattern and (index or all(groups)) else ""
            pattern += common[index]
    return pattern, ["-".join(token for token in each if token not in common) for each in windows]


def _around(tokens: Sequence[str], common: Sequence[str]) -> list[list[str]]:
    """Return what stands before each of the common tokens, and after the last."""
    groups: list[list[str]] = [[]]
    for token in tokens:
        if token in common:
            groups.append([])
        else:
            groups[-1].append(token)
    return groups


_FEWEST = 2  # rows of which something is said once
_ID_PARTS = 3  # model, method and window


def _broken(text: str, width: int) -> str:
    """Return a word that is too long in lines that end with a slash or a hyphen, where it has some."""
    if len(text) <= width or " " in text:
        return text
    lines = [""]
    for piece in re.findall(r"[^/-]*[/-]?", text):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _taken(widths: Iterable[int]) -> int:
    """Return how wide columns are with what stands between and around them."""
    return 1 + sum(width + 3 for width in widths)


def _parts(first: list[int], least: Sequence[int], width: int) -> Iterator[list[int]]:
    part = [*first]
    for index in range(len(first), len(least)):
        if len(part) > len(first) and _taken(least[each] for each in [*part, index]) > width:
            yield part
            part = [*first]
        part.append(index)
    yield part
