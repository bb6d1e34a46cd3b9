"""Tables of plain text as GitHub-flavoured Markdown and for the terminal; every cell is made safe here."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.text import markdown, plain

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table as RichTable


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header and rows of plain text, not yet escaped; ``left`` columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def told_once(table: Table) -> tuple[Table, tuple[tuple[str, str], ...]]:
    """Return a table without the columns in which all rows are alike, and the title and value of these.

    The first column stays, since it names the rows, and so does a title that occurs twice.
    """
    if len(table.rows) < 2:  # noqa: PLR2004 - one row has no others to be like
        return table, ()
    columns = list(zip(*table.rows, strict=True))
    kept = [
        index
        for index, column in enumerate(columns)
        if index == 0 or len(set(column)) > 1 or table.header.count(table.header[index]) > 1
    ]
    if len(kept) < 2:  # noqa: PLR2004 - names alone would be no table
        return table, ()
    constants = [
        (table.header[index], columns[index][0]) for index in range(len(columns)) if index not in kept
    ]
    varying = Table(
        header=tuple(table.header[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in table.rows),
        left=sum(index < table.left for index in kept),
    )
    return varying, tuple(constants)


def markdown_table(table: Table) -> str:
    """Return a GitHub-flavoured Markdown table, every cell escaped."""
    ruler = [":---" if index < table.left else "---:" for index in range(len(table.header))]
    lines = [[markdown(name) for name in table.header], ruler]
    lines.extend([markdown(cell) for cell in line] for line in table.rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """Return a Markdown list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def terminal_table(table: Table, title: str) -> "RichTable":
    """Return a table for a rich console; where that is narrow, long words are broken, never cut off."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(plain(title)), title_justify="left", box=box.SIMPLE)
    for index, name in enumerate(table.header):
        justify: JustifyMethod = "left" if index < table.left else "right"
        longest_word = max(map(len, plain(name).split()), default=1)
        shown.add_column(Text(plain(name)), justify=justify, overflow="fold", min_width=longest_word)
    for line in table.rows:
        shown.add_row(*(Text(plain(cell)) for cell in line))
    return shown
