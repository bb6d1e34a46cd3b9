"""The gates' simulated error rates beside what is promised; predictions beside published measurements."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import RenderableType

from bench.compare.predictions import loops_beside, summarise
from bench.records.published import Source
from bench.records.published.score import Validation
from bench.report.columns import TerminalTable
from bench.report.predicted.speed import validation_tables
from bench.report.tables import Line, described_table
from bench.report.text import (
    NOT_APPLICABLE,
    Table,
    grouped,
    markdown_table,
    render_page,
    share,
    table_of,
    words,
)
from bench.stats.simulation import CheckRow, SelfCheck

_WORDS = {"undecided": "inconclusive", "any regression": "regression of any cell"}


def render_self_check(check: SelfCheck) -> str:
    """Return the tables as Markdown: the false alarms of sweeps first."""
    return "\n\n".join(markdown_table(table) for table in (_sweeps(check), _table(check)) if table.rows)


def render_terminal(check: SelfCheck) -> RenderableType:
    """Return the table for a terminal, every rate in a row of its own."""
    return TerminalTable(_table(check, every=True), "Error rates of the gates, simulated")


def _sweeps(check: SelfCheck) -> Table:
    """Return how often sweeps of unchanged code had a false alarm, with a column for each number of cells."""
    rows = grouped((row.situation, row) for row in check.rows if row.cells is not None)
    sizes = sorted({row.cells for row in check.rows if row.cells is not None})

    def rate(found: Sequence[CheckRow], cells: int) -> str:
        return next((share(row.rate, 2) for row in found if row.cells == cells), NOT_APPLICABLE)

    return table_of(
        list(rows.items()),
        ("Unchanged code", lambda pair: pair[0]),
        *[
            (
                f"{cells} cell{'s' * (cells > 1)}",
                partial(lambda pair, cells: rate(pair[1], cells), cells=cells),
            )
            for cells in sizes
        ],
        ("Promised", lambda pair: f"{pair[1][0].side} {share(pair[1][0].bound, 0)}"),
        ("Kept", lambda pair: "yes" if all(row.holds for row in pair[1]) else "NO"),
        ("Trials each", lambda pair: f"{pair[1][0].trials:,}"),
        left=1,
    )


def _table(check: SelfCheck, *, every: bool = False) -> Table:
    return described_table(
        "error rates",
        [row for row in check.rows if every or row.cells is None],
        {
            "situation": lambda row: f"{row.cells} cells, {row.situation}" if row.cells else row.situation,
            "event": lambda event: str(_WORDS.get(event, event)),
            "promised": lambda row: f"{row.side} {share(row.bound, 0)}" if row.side else NOT_APPLICABLE,
            "kept": lambda row: NOT_APPLICABLE if row.bound is None else "yes" if row.holds else "NO",
        },
    )


def render_validation(validation: Validation) -> str:
    """Return the summary, then a section a source with every number and every refusal."""

    def in_bands(one: Any) -> str:
        return f"{one.in_band} of {one.with_band}" if one.with_band else NOT_APPLICABLE

    rows = [row for row in validation.rows if row.loop == "window"]  # of every measured run there is one
    unanswered = Counter(
        f"{one.measured.metric} at {words(one.measured.moment)}"
        for row in rows
        for one in row.measurements
        if row.refused is None and one.predicted_bytes is None
    )
    return render_page(
        "validation.md.j2",
        versions=", ".join(f"{name} {number}" for name, number in validation.versions.items()),
        summary=described_table("errors of memory", summarise(validation.rows), {"in_bands": in_bands}),
        loops=described_table("loops beside", loops_beside(validation.rows)),
        rows=rows,
        readings=sum(len(row.measurements) for row in rows),
        compared=sum(one.predicted_bytes is not None for row in rows for one in row.measurements),
        unanswered=unanswered.total(),
        unanswered_by=", ".join(f"{reading}: {count}" for reading, count in unanswered.items()),
        predicted=sum(row.refused is None for row in rows),
        inexpressible=sum(row.inexpressible for row in rows),
        speed=validation_tables(validation.rows),
        sections=[_section(source, validation) for source in validation.sources],
    )


def _section(
    source: Source, validation: Validation
) -> tuple[Source, Table, dict[str, list[str]], dict[str, list[str]]]:
    """Return a source, the table of its numbers, refused rows by the reason, and rows by caveats."""
    rows = [row for row in validation.rows if row.source == source.name]
    refused = grouped((row.refused, row.run) for row in rows if row.refused is not None)
    table = described_table(
        "memory published",
        [Line(row, one) for row in rows for one in row.measurements if one.predicted_bytes is not None],
        {
            "codes": lambda caveats: ", ".join(one.code for one in caveats) or NOT_APPLICABLE,
            "set_by": lambda line: line.row.peak if line.one.measured.moment == "peak" else NOT_APPLICABLE,
        },
        without=() if any(row.loop != "window" for row in rows) else ("Loop",),
    )
    caveats = grouped((f"{one.code}: {one.message}", row.run) for row in rows for one in row.caveats)
    return source, table, refused, caveats
