"""The gates' simulated error rates beside what is promised, as a table. No arithmetic."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bench.records.published import ScoredMeasurement, ScoredRow, Source, Summary, Validation, summarise
from bench.report.text import (
    GIBIBYTES,
    NOT_APPLICABLE,
    Table,
    bullets,
    markdown,
    markdown_table,
    share,
    terminal_table,
    words,
)
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


_SUMMARY = (
    "Source",
    "Tier",
    "Counter",
    "Moment",
    "Numbers",
    "Median",
    "Mean",
    "Largest",
    "Signed",
    "In band",
)
_ROW = ("Run", "Counter", "Moment", "Measured", "Predicted", "Error", "Band", "Set by")


def render_validation(validation: Validation) -> str:
    """Return the summary, then a section a source with every number and every refusal."""
    versions = ", ".join(f"{name} {number}" for name, number in validation.versions.items())
    how_to_read = (
        f"Traced with {markdown(versions)}. Errors are predicted over measured, less one: plus is too much. "
        "The median, the mean and the largest are of their sizes."
    )
    summary = tuple(map(_summary_line, summarise(validation.rows)))
    parts = [
        how_to_read,
        markdown_table(Table(header=_SUMMARY, rows=summary, left=4)),
        _counts(validation.rows),
    ]
    for source in validation.sources:
        parts += _section(source, [row for row in validation.rows if row.source == source.name])
    return "\n\n".join(parts)


def _counts(rows: Sequence[ScoredRow]) -> str:
    predicted = sum(row.refused is None for row in rows)
    by_file = sum(row.inexpressible for row in rows)
    return (
        f"Rows: {len(rows)}. Predicted: {predicted}. Refused because the run cannot be expressed: {by_file}. "
        f"Refused while tracing: {len(rows) - predicted - by_file}."
    )


def _section(source: Source, rows: Sequence[ScoredRow]) -> list[str]:
    where = source.repository if not source.commit else f"{source.repository} at {source.commit}"
    parts = [
        f"### {markdown(source.title)}",
        f"Source: {markdown(where)}. Licence: {markdown(source.licence)}.",
    ]
    parts += [markdown(text) for text in (source.note, source.fitted) if text]
    lines = [
        _row_line(row, one) for row in rows for one in row.measurements if one.predicted_bytes is not None
    ]
    if lines:
        parts.append(markdown_table(Table(header=_ROW, rows=tuple(lines), left=3)))
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row.refused is not None:
            refused.setdefault(row.refused, []).append(row.name)
    if refused:
        listed = bullets(
            f"{markdown(reason)} ({len(names)}: {markdown(', '.join(names))})"
            for reason, names in refused.items()
        )
        parts.append(f"Refused:\n\n{listed}")
    return parts


def _summary_line(summary: Summary) -> tuple[str, ...]:
    return (
        summary.source,
        str(summary.tier),
        summary.metric,
        words(summary.moment),
        str(summary.count),
        share(summary.median_error, 2),
        share(summary.mean_error, 2),
        share(summary.largest_error, 2),
        share(summary.signed_error, 2),
        f"{summary.in_band} of {summary.with_band}" if summary.with_band else NOT_APPLICABLE,
    )


def _row_line(row: ScoredRow, one: ScoredMeasurement) -> tuple[str, ...]:
    measured = one.measured
    hit = {True: "hit", False: "miss", None: NOT_APPLICABLE}[one.in_band]
    return (
        row.name,
        measured.metric,
        words(measured.moment),
        GIBIBYTES.show(measured.size_bytes),
        GIBIBYTES.show(one.predicted_bytes),
        share(one.error, 2),
        hit,
        row.peak if measured.moment == "peak" else NOT_APPLICABLE,
    )
