"""The gates' simulated error rates beside what is promised, as a table. No arithmetic."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.report.text import NOT_APPLICABLE, Table, markdown_table, share, terminal_table
from bench.stats.simulation import CheckRow, SelfCheck

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_HEADER = ("Situation", "Verdict", "Rate", "95 % interval", "Promised", "Kept", "Trials")
_WORDS = {"undecided": "inconclusive", "any regression": "regression of any cell"}


def render_self_check(check: SelfCheck) -> str:
    """Return the table as Markdown."""
    return markdown_table(_table(check.rows))


def render_terminal(check: SelfCheck) -> "RichTable":
    """Return the table for a terminal."""
    return terminal_table(_table(check.rows), "Error rates of the gates, simulated")


def _table(rows: Iterable[CheckRow]) -> Table:
    return Table(header=_HEADER, rows=tuple(map(_line, rows)), left=2)


def _line(row: CheckRow) -> tuple[str, ...]:
    promised = NOT_APPLICABLE if row.bound is None else f"{row.side} {share(row.bound, 0)}"
    kept = NOT_APPLICABLE if row.bound is None else ("yes" if row.holds else "NO")
    interval = f"{share(row.low, 2)} to {share(row.high, 2)}"
    event = _WORDS.get(row.event, row.event)
    return (row.situation, event, share(row.rate, 2), interval, promised, kept, f"{row.trials:,}")
