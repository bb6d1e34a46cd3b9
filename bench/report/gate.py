"""Verdicts as Markdown and in the terminal, worst first; and baselines. No arithmetic, no files.

Everything that comes from a record or a scenario is escaped here; what does not fit is counted.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from bench.errors import counted
from bench.metrics import METRICS
from bench.records.result_sets import Baseline
from bench.records.sessions import JUDGED_BY_ITSELF
from bench.records.verdicts import OUTCOME, WORST_FIRST, MetricVerdict, Verdicts
from bench.report.tables import described_table
from bench.report.text import (
    NOT_APPLICABLE,
    Table,
    markdown,
    markdown_table,
    metric_value,
    plain,
    points,
    render_page,
)
from bench.stats.trend import ChangePoint

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table as RichTable

_SHOWN = {"regression": "REGRESSION", "inconclusive": "inconclusive", "not comparable": "not comparable"}
_ROOM_FOR_COUNT = 202
_MOST_TERMINAL_ROWS = 40
_MOST_DIFFERENCES = 20
_HELD_SHARE = 0.01  # of what is reserved as a phase ends: less is the allocator's order
_DESIGNS = {
    "one sitting": "both sides ran in turn in one session",
    "one sitting by steps": "both sides ran in one session, step by step in turn on the same cores",
    "stored baseline": "stored results against an accepted baseline",
    "two result sets": "two sets of stored results",
    "two plans": "both sides predicted without a GPU, once each, since a prediction does not vary",
}


def headline(verdicts: Verdicts) -> str:
    """Return the verdict, what it rests on and what it leaves out in one line of plain text.

    A pass says no more than that no regression was found in what was gated.
    """
    if verdicts.void is not None:
        return verdicts.void.message
    gated = verdicts.gated_counts
    metrics = counted(gated.total(), "gated metric")
    counts = ", ".join(f"{gated[name]} {name}" for name in WORST_FIRST if gated[name])
    text = f"{verdicts.verdict}: of {metrics} {counts or 'none could be judged'}"
    if verdicts.verdict == "pass":
        text = f"no regression found in what was gated: {metrics} {'pass' if gated.total() > 1 else 'passes'}"
    elif verdicts.verdict == "inconclusive" and set(gated) == {"pass"} and not verdicts.failed_cells:
        text = "inconclusive: every run finished, but no gated metric was measured on both sides"
    differ, undecided = verdicts.not_gated_counts
    rest = [f"{differ} {'differs' if differ == 1 else 'differ'}"] if differ else []
    rest += [f"{undecided} inconclusive"] if undecided else []
    return f"{text}; not gated: {', '.join(rest)}" if rest else text


def opening(verdicts: Verdicts) -> str:
    """Return in one line of plain text what was compared, whose code, where, and what could not be seen."""
    sides = (verdicts.baseline, verdicts.candidate)
    noun = _noun(verdicts)
    before, after = (f"{side.understood or side.given} ({counted(side.runs, noun)})" for side in sides)
    itself = any(caveat.code == JUDGED_BY_ITSELF for caveat in verdicts.caveats)
    made = "predicted" if verdicts.design == "two plans" else "measured"
    who = "bench judged by itself" if itself else f"{made} by {verdicts.judge}" if verdicts.judge else ""
    there = verdicts.candidate.environment
    machine = [
        there[name] for name in ("machine.cpu_model", "device.cuda_name", "gpu.name") if there.get(name)
    ]
    on = f"on {', '.join(machine)}" if machine else "on a machine that is not named"
    if verdicts.design == "two plans":
        unseen = "; ".join((*verdicts.unseen, "what the caveats say"))
        return plain(f"Compared: {before} against {after}; {who or 'predicted'}. Not seen: {unseen}.")
    unseen = "; ".join(verdicts.unseen) or "any change: nothing that is gated was measured on both sides"
    missed = f"Would not have been seen (with 95 %): {unseen}."
    return plain(f"Compared: {before} against {after}; {', '.join(filter(None, (who, on)))}. {missed}")


def _noun(verdicts: Verdicts) -> str:
    return "prediction" if verdicts.design == "two plans" else "run"


def subject(judged: MetricVerdict) -> str:
    """Return a metric's name, for accuracy with its task."""
    return judged.metric if judged.task is None else f"{judged.metric} ({judged.task})"


def verdict_text(judged: MetricVerdict) -> str:
    """Return the verdict as a table shows it."""
    text = _SHOWN.get(judged.verdict, "better" if judged.improved else "pass")
    if not judged.gated:
        return f"{'worse' if judged.verdict == 'regression' else text} (not gated)"
    return text


def message(judged: MetricVerdict) -> str:
    """Return one judgement as one line of plain text."""
    values = f" ({_value(judged, judged.baseline)} → {_value(judged, judged.candidate)})"
    known = judged.baseline is not None and judged.candidate is not None
    return plain(
        f"{judged.cell}: {subject(judged)} {judged.verdict}{values if known else ''}: {judged.reason}"
    )


def gate_table(judgements: Sequence[MetricVerdict]) -> Table:
    return described_table(
        "verdicts",
        judgements,
        {
            "subject": subject,
            "verdict": verdict_text,
            "baseline": lambda one: _value(one, one.baseline),
            "candidate": lambda one: _value(one, one.candidate),
            "change": _change,
            "interval": _interval,
        },
    )


def _value(judged: MetricVerdict, value: float | None) -> str:
    return NOT_APPLICABLE if judged.kind == "outcome" else metric_value(METRICS[judged.metric], value)


def _change(judged: MetricVerdict) -> str:
    return _ratio(judged.ratio) if judged.difference is None else points(judged.difference)


def _interval(judged: MetricVerdict) -> str:
    if judged.ratio_low is not None and judged.ratio_high is not None:
        return f"{judged.ratio_low:.4g} to {judged.ratio_high:.4g}"
    if judged.difference_low is not None and judged.difference_high is not None:
        return f"{points(judged.difference_low)} to {points(judged.difference_high)}"
    return NOT_APPLICABLE


def render_markdown(verdicts: Verdicts, *, most_bytes: int, title: str) -> str:
    """Return a page of at most so many bytes of UTF-8. Rows that would not fit are counted instead."""
    left = most_bytes - len(_page(verdicts, title).encode()) - _ROOM_FOR_COUNT
    if left < 0:  # facts and caveats of strangers may be of any length; the verdict comes first
        return f"## {markdown(title)}\n\n**{markdown(headline(verdicts))}**\n"
    rows = _shown(verdicts, verdicts.judgements)
    head, lines = _lines(verdicts, rows)
    sizes = accumulate((len(line.encode()) + 1 for line in lines), initial=len(head))
    fitting = bisect_right([*sizes][1:], left)
    table = head + "\n".join(lines[:fitting]) if fitting else ""
    hidden = rows[fitting:]
    more = f"{_counted(hidden)}; the JSON document has all of them." if hidden else ""
    return _page(verdicts, title, table, more) + "\n"


def render_block(verdicts: Verdicts) -> str:
    """Return what a page shows of a gate: what is gated, and everything to be known, without a title."""
    rows = _shown(verdicts, verdicts.judgements if verdicts.design == "two plans" else verdicts.gated)
    head, lines = _lines(verdicts, rows)
    return _page(verdicts, "", head + "\n".join(lines) if rows else "")


def _lines(verdicts: Verdicts, rows: Sequence[MetricVerdict]) -> tuple[str, list[str]]:
    """Return what stands above the rows, and a line for each: of a table, or below the name of its cell."""
    if verdicts.design != "two plans":
        header, ruler, *lines = markdown_table(gate_table(rows)).split("\n")
        return f"{header}\n{ruler}\n", lines
    above = (None, *(one.cell for one in rows))
    return "", [
        f"- **{markdown(one.cell)}**\n" * (one.cell != cell)
        + f"  - {markdown(f'{verdict_text(one)} {_told(one)}')}"
        for cell, one in zip(above, rows, strict=False)
    ]


def _shown(verdicts: Verdicts, judged: Sequence[MetricVerdict]) -> Sequence[MetricVerdict]:
    """Return what is shown: of predictions, whose figures are many, only those that say something, by cell.

    A phase does where it has another verdict than the whole peak, whose reason tells of it; what is not
    gated of a metric does where the whole has nothing to say.
    """
    if verdicts.design != "two plans":
        return judged
    telling = [
        one
        for one in judged
        if (one.gated and (one.verdict != "pass" or one.improved))
        or (not one.gated and (one.kind == "outcome" or (one.task is not None and one.size > _HELD_SHARE)))
    ]
    whole = {(one.cell, one.metric): verdict_text(one) for one in telling if one.task is None}
    found = [
        one
        for one in telling
        if one.task is None
        or (text := whole.get((one.cell, one.metric))) is None
        or (one.gated and text != verdict_text(one))
    ]
    cells, metrics = list(dict.fromkeys(one.cell for one in found)), [OUTCOME, *METRICS]
    return sorted(found, key=lambda one: (cells.index(one.cell), metrics.index(one.metric)))


def _page(verdicts: Verdicts, title: str, table: str = "", hidden: str = "") -> str:
    return render_page(
        "gate.md.j2",
        title=title,
        opening=opening(verdicts),
        headline=headline(verdicts),
        verdicts=verdicts,
        design=_DESIGNS[verdicts.design],
        noun=_noun(verdicts),
        calls=round(1 / verdicts.alpha) if verdicts.alpha else None,
        most_lines=_MOST_DIFFERENCES,
        table=table,
        hidden=hidden,
    )


def _counted(hidden: Sequence[MetricVerdict]) -> str:
    found = Counter((judged.gated, judged.verdict) for judged in hidden)
    counts = (
        f"{count} {name}{'' if gated else ' (not gated)'}"
        for gated in (True, False)
        for name in WORST_FIRST
        if (count := found[gated, name])
    )
    return f"Not shown: {', '.join(counts)}"


def render_terminal(verdicts: Verdicts, title: str) -> "Group":
    """Return the verdicts cell by cell: what passes by its name alone, what is not gated without a reason."""
    from rich.console import Group
    from rich.text import Text

    rows = _shown(verdicts, verdicts.judgements)
    shown, hidden = rows[:_MOST_TERMINAL_ROWS], rows[_MOST_TERMINAL_ROWS:]
    parts: list[RenderableType] = [Text(plain(line)) for line in (opening(verdicts), title)]
    for cell in dict.fromkeys(one.cell for one in shown):
        parts += [Text(plain(cell), style="bold"), _cell_lines([one for one in shown if one.cell == cell])]
    lines = [
        *([f"{_counted(hidden)}; -o FILE.json has all of them."] if hidden else []),
        *(f"differs: {line}" for line in verdicts.differences[:_MOST_DIFFERENCES]),
        *(f"- {caveat.message}" for caveat in verdicts.caveats),
        *(f"not read: {problem}" for problem in verdicts.problems[:_MOST_DIFFERENCES]),
        headline(verdicts),
    ]
    parts.extend(Text(plain(line)) for line in lines)
    return Group(*parts)


def _told(judged: MetricVerdict) -> str:
    """Return what a verdict is on, its values and its reason."""
    return f"{_valued(judged)}: {judged.reason}"


def _valued(judged: MetricVerdict) -> str:
    change = ", ".join(text for text in (_change(judged), _interval(judged)) if text != NOT_APPLICABLE)
    values = f" {_value(judged, judged.baseline)} → {_value(judged, judged.candidate)} ({change})"
    return f"{subject(judged)}{values if change else ''}"


def _cell_lines(judgements: Sequence[MetricVerdict]) -> "RichTable":
    from rich.table import Table as RichTable
    from rich.text import Text

    told: list[tuple[str, str]] = []
    named: dict[str, list[str]] = {}
    for one in judgements:
        if (one.verdict == "pass" and not one.improved) or (not one.gated and one.verdict != "regression"):
            name = subject(one) if one.verdict == "pass" else _valued(one)
            named.setdefault(verdict_text(one), []).append(name)
            continue
        told.append((verdict_text(one), _told(one)))
    lines = RichTable.grid(padding=(0, 2))
    for verdict, text in (*told, *((verdict, ", ".join(names)) for verdict, names in named.items())):
        lines.add_row("", Text(verdict), Text(plain(text), overflow="fold"))
    return lines


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
    writers = {
        "commit": lambda revision: (revision or NOT_APPLICABLE)[:12],
        "count": lambda files: str(len(files)),
    }
    return described_table("history", baseline.accepted, writers)


def changes_table(changes: Sequence[ChangePoint]) -> Table:
    writers = {
        "before": lambda one: metric_value(METRICS[one.metric], one.before),
        "after": lambda one: metric_value(METRICS[one.metric], one.after),
        "factor": _ratio,
    }
    return described_table("changes of level", changes, writers)


def _ratio(ratio: float | None) -> str:
    return NOT_APPLICABLE if ratio is None else f"× {ratio:.4g}"  # noqa: RUF001 - the sign of a factor
