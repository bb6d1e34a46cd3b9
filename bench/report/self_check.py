"""The gates' simulated error rates beside what is promised; predictions beside published measurements."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from bench.records.published import Source
from bench.records.published.score import (
    ScoredMeasurement,
    ScoredRow,
    Validation,
    loops_beside,
    summarise,
)
from bench.report.columns import terminal_table
from bench.report.speed import validation_tables
from bench.report.text import (
    GIBIBYTES,
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

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_WORDS = {"undecided": "inconclusive", "any regression": "regression of any cell"}
_IN_BAND = {True: "hit", False: "miss", None: NOT_APPLICABLE}


def render_self_check(check: SelfCheck) -> str:
    """Return the tables as Markdown: the false alarms of sweeps first."""
    return "\n\n".join(markdown_table(table) for table in (_sweeps(check), _table(check)) if table.rows)


def render_terminal(check: SelfCheck) -> "RichTable":
    """Return the table for a terminal, every rate in a row of its own."""
    return terminal_table(_table(check, every=True), "Error rates of the gates, simulated")


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
    return table_of(
        [row for row in check.rows if every or row.cells is None],
        (
            "Situation",
            lambda row: row.situation if row.cells is None else f"{row.cells} cells, {row.situation}",
        ),
        ("Verdict", lambda row: _WORDS.get(row.event, row.event)),
        ("Rate", lambda row: share(row.rate, 2)),
        ("99.9 % interval", lambda row: f"{share(row.low, 2)} to {share(row.high, 2)}"),
        ("Promised", lambda row: f"{row.side} {share(row.bound, 0)}" if row.side else NOT_APPLICABLE),
        ("Kept", lambda row: NOT_APPLICABLE if row.bound is None else "yes" if row.holds else "NO"),
        ("Trials", lambda row: f"{row.trials:,}"),
        left=2,
    )


def render_validation(validation: Validation) -> str:
    """Return the summary, then a section a source with every number and every refusal."""
    summary = table_of(
        summarise(validation.rows),
        ("Source", lambda one: one.source),
        ("Loop", lambda one: one.loop),
        ("Tier", lambda one: str(one.tier)),
        ("Counter", lambda one: one.metric),
        ("Moment", lambda one: words(one.moment)),
        ("Numbers", lambda one: str(one.count)),
        ("Median", lambda one: share(one.median_error, 2)),
        ("Mean", lambda one: share(one.mean_error, 2)),
        ("Largest", lambda one: share(one.largest_error, 2)),
        ("Signed", lambda one: share(one.signed_error, 2)),
        ("In band", lambda one: f"{one.in_band} of {one.with_band}" if one.with_band else NOT_APPLICABLE),
        left=5,
    )
    rows = [row for row in validation.rows if row.loop == "window"]  # of every measured run there is one
    unanswered = _unanswered(rows)
    return render_page(
        "validation.md.j2",
        versions=", ".join(f"{name} {number}" for name, number in validation.versions.items()),
        summary=summary,
        loops=_loops(validation),
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


def _loops(validation: Validation) -> Table:
    """Return what the imitation and the real loop of each source are off, and how far they are apart."""

    def sizes(errors: Sequence[float]) -> str:
        spread = [abs(error) for error in errors]
        return f"{share(median(spread), 3)}, {share(max(spread), 3)}"

    return table_of(
        loops_beside(validation.rows),
        ("Source", lambda one: one.source),
        ("Loop", lambda one: one.loop),
        ("Counter", lambda one: one.metric),
        ("Numbers", lambda one: str(one.count)),
        ("Imitated: median, largest", lambda one: sizes(one.imitated_errors)),
        ("Real: median, largest", lambda one: sizes(one.real_errors)),
        ("Apart: median, largest", lambda one: sizes(one.apart)),
        ("Real as near or nearer", lambda one: f"{one.nearer} of {one.count}"),
        left=3,
    )


def _unanswered(rows: Sequence[ScoredRow]) -> Counter[str]:
    """Count the readings of predicted rows that no figure of a prediction answers, by counter and moment."""
    return Counter(
        f"{one.measured.metric} at {words(one.measured.moment)}"
        for row in rows
        for one in row.measurements
        if row.refused is None and one.predicted_bytes is None
    )


def _section(
    source: Source, validation: Validation
) -> tuple[Source, Table, dict[str, list[str]], dict[str, list[str]]]:
    """Return a source, the table of its numbers, refused rows by the reason, and rows by caveats."""
    rows = [row for row in validation.rows if row.source == source.name]
    refused = grouped((row.refused, row.run) for row in rows if row.refused is not None)
    pairs: list[tuple[ScoredRow, ScoredMeasurement]] = [
        (row, one) for row in rows for one in row.measurements if one.predicted_bytes is not None
    ]
    several = any(row.loop != "window" for row in rows)
    table = table_of(
        pairs,
        ("Run", lambda pair: pair[0].name),
        *([("Loop", lambda pair: pair[0].loop)] if several else []),
        ("Counter", lambda pair: pair[1].measured.metric),
        ("Moment", lambda pair: words(pair[1].measured.moment)),
        ("Measured", lambda pair: GIBIBYTES.show(pair[1].measured.size_bytes)),
        ("Predicted", lambda pair: GIBIBYTES.show(pair[1].predicted_bytes)),
        ("Error", lambda pair: share(pair[1].error, 2)),
        ("Band", lambda pair: _IN_BAND[pair[1].in_band]),
        ("Caveats", lambda pair: ", ".join(one.code for one in pair[0].caveats) or NOT_APPLICABLE),
        ("Set by", lambda pair: pair[0].peak if pair[1].measured.moment == "peak" else NOT_APPLICABLE),
        left=3 + several,
    )
    caveats = grouped((f"{one.code}: {one.message}", row.run) for row in rows for one in row.caveats)
    return source, table, refused, caveats
