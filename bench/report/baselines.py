"""Baselines as lines and tables. No arithmetic."""

from collections.abc import Iterator, Sequence

from bench.errors import counted
from bench.metrics import METRICS
from bench.records.baselines import Baseline
from bench.report.gate import value_text
from bench.report.text import NOT_APPLICABLE, Table, plain
from bench.stats.trend import ChangePoint


def list_lines(baselines: Sequence[Baseline]) -> Iterator[str]:
    """Yield a line for each baseline: its size, and what was accepted last."""
    for one in baselines:
        if one.accepted:
            last = one.accepted[-1]
            yield plain(
                f"{one.name}: {counted(len(one.current), 'session')} on level {last.level}, "
                f"{len(one.accepted)} in all; {last.accepted_at}: {last.reason}"
            )


def history_table(baseline: Baseline) -> Table:
    """Return a row for each accepted session, oldest first."""
    rows = tuple(
        (
            str(one.number),
            str(one.level),
            one.accepted_at,
            (one.revision or NOT_APPLICABLE)[:12],
            str(len(one.files)),
            one.reason,
        )
        for one in baseline.accepted
    )
    return Table(header=("Session", "Level", "Accepted", "Revision", "Runs", "Reason"), rows=rows, left=6)


def changes_table(changes: Sequence[ChangePoint]) -> Table:
    """Return a row for each change of level."""
    rows = tuple(
        (
            one.cell,
            one.metric,
            str(one.number),
            value_text(METRICS[one.metric], one.before),
            value_text(METRICS[one.metric], one.after),
            NOT_APPLICABLE if one.ratio is None else f"× {one.ratio:.4g}",  # noqa: RUF001 - the sign of a factor
        )
        for one in changes
    )
    return Table(header=("Cell", "Metric", "From session", "Before", "After", "Change"), rows=rows, left=2)
