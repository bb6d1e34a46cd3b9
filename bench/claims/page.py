"""Claims and the verdicts on them, for the terminal, as Markdown and as JSON; no arithmetic."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.claims.catalogue import shipped_claims
from bench.claims.findings import Condition, Conjunction, Evidence, Figure, Finding, Outcome, Unit, Verdict
from bench.claims.judge import ClaimVerdict, committed_paths, judge_claims, read_cases
from bench.errors import UsageError
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    Table,
    bullets,
    markdown,
    markdown_table,
    plain,
    share,
    significant,
    small_share,
    terminal_table,
)

if TYPE_CHECKING:
    from rich.console import Group

MOST_SHOWN = 8
_TITLE = "Common claims about LoRA and QLoRA, tested"
_AGREES = {True: "yes", False: "no", None: "inconclusive"}
_COUNTED: Mapping[Verdict, tuple[str, str]] = {
    "holds": ("1 holds", "{} hold"),
    "holds conditionally": ("1 holds conditionally", "{} hold conditionally"),
    "contradicted": ("1 is contradicted", "{} are contradicted"),
    "untestable": ("1 is untestable with this data", "{} are untestable with this data"),
}
_SMALL_SHARE = 0.01


def render_block(verdicts: Sequence[ClaimVerdict]) -> str:
    """Return the verdicts as a table and, folded, the evidence for each."""
    return "\n\n".join(
        [_count(verdicts), markdown_table(_summary(verdicts)), "## Evidence", *map(_folded, verdicts)]
    )


def render_committed(results: Path) -> str:
    """Return the block for what a repository keeps below its results folder.

    Raises UsageError where there is nothing, or where a file cannot be read.
    """
    cases, problems = read_cases(committed_paths(results))
    if problems:
        raise UsageError(problems[0])
    return render_block(judge_claims(shipped_claims(), cases))


def render_markdown(verdicts: Sequence[ClaimVerdict]) -> str:
    """Return a page of its own."""
    return f"# {_TITLE}\n\n{render_block(verdicts)}\n"


def render_terminal(verdicts: Sequence[ClaimVerdict], *, details: bool = False) -> "Group":
    """Return the verdicts for a rich console; with details all evidence of each."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [terminal_table(_summary(verdicts), _TITLE), Text(_count(verdicts))]
    for one in verdicts if details else ():
        parts.append(Text(plain(f"\n{one.claim.id}: {one.verdict}"), style="bold"))
        parts += [Text(plain(f"- {line}")) for line in _facts(one)]
        if one.by_setting:
            parts.append(terminal_table(_by_setting(one), "By setting"))
        for finding in one.findings:
            parts += [Text(plain(f"- {line}")) for line in _told(finding)]
            if finding.deciding:
                parts.append(terminal_table(_evidence(finding.deciding), finding.part or "Evidence"))
    if not details:
        parts.append(Text("--details shows every cell and figure behind each verdict."))
    return Group(*parts)


def render_json(verdicts: Sequence[ClaimVerdict]) -> str:
    """Return every verdict with all of its evidence; the claim as in its catalogue."""
    content = [
        {
            "claim": one.claim.model_dump(mode="json"),
            "verdict": one.verdict,
            "by_setting": [{"setting": found.part, "verdict": found.verdict} for found in one.by_setting],
            "findings": [dataclasses.asdict(finding) for finding in one.findings],
        }
        for one in verdicts
    ]
    return json.dumps(content, indent=1) + "\n"


def _count(verdicts: Sequence[ClaimVerdict]) -> str:
    counts = Counter(one.verdict for one in verdicts)
    told = [_COUNTED[name][count > 1].format(count) for name in _COUNTED if (count := counts[name])]
    return f"{len(verdicts)} claims: {', '.join(told)}."


def _summary(verdicts: Sequence[ClaimVerdict]) -> Table:
    rows = tuple((one.claim.id, one.claim.statement, one.verdict, _why(one)) for one in verdicts)
    return Table(header=("Claim", "Statement", "Verdict", "Why"), left=4, rows=rows)


def _why(one: ClaimVerdict) -> str:
    said = [(finding.part, sentence(finding)) for finding in one.findings]
    return " ".join(f"{_capital(part)}: {text}" if part else text for part, text in said)


def _folded(one: ClaimVerdict) -> str:
    """Return one claim behind its summary line; ids and verdicts are ours and need no escape."""
    lines = [markdown(line) for line in _facts(one)]
    parts = [f"<details><summary>{one.claim.id}: {one.verdict}</summary>", bullets(lines)]
    if one.by_setting:
        parts.append(markdown_table(_by_setting(one)))
    for finding in one.findings:
        if finding.part:
            parts.append(f"**{markdown(_capital(finding.part))}: {finding.verdict}**")
        parts.append(bullets(markdown(line) for line in _told(finding)))
        if finding.deciding:
            shown = telling(finding.deciding)
            parts.append(markdown_table(_evidence(shown)))
            left = len(finding.deciding) - len(shown)
            if left:
                parts.append(f"{left} more between these: `bench claims --details`.")
    return "\n\n".join([*parts, "</details>"])


def _facts(one: ClaimVerdict) -> list[str]:
    claim = one.claim
    facts = [f"Statement: {claim.statement}", f"Source: {claim.source}", f"Scope: {claim.about}."]
    return [*facts, f"Interpretation: {claim.reading}"] if claim.reading else facts


def _told(finding: Finding) -> list[str]:
    """Return why a part was judged so, what its boundary leaves open, and what models out of scope show."""
    told, boundary = [sentence(finding)], finding.boundary
    if boundary and not boundary.exact:
        told.append(f"{boundary.agreeing - boundary.covered} more agree that no three settings explain.")
    groups: dict[tuple[str, str], list[Evidence]] = {}
    for row in finding.beside:
        groups.setdefault((row.model, row.instrument), []).append(row)
    for (model, _), rows in groups.items():
        agreeing = sum(row.agrees is True for row in rows)
        told.append(f"Out of scope, not counted: {model}: {_range(rows)}; {agreeing} of {len(rows)} agree.")
    return told


def telling(rows: Sequence[Evidence]) -> list[Evidence]:
    """Return all rows if they are few, else the lowest and highest figures of each answer, in their order.

    One row stands for each source of measurements, and for predictions, that is not among these.
    """
    if len(rows) <= MOST_SHOWN:
        return list(rows)
    chosen: set[int] = set()
    for answer in _AGREES:
        group = [index for index, row in enumerate(rows) if row.agrees is answer]
        group.sort(key=lambda index: rows[index].figure.value)
        chosen.update(group[:2] + group[-2:])
    sources = [(row.instrument, "" if row.instrument == "predicted" else row.source) for row in rows]
    for source in set(sources) - {sources[index] for index in chosen}:
        of_it = [index for index in range(len(rows)) if sources[index] == source]
        chosen.add(next((index for index in of_it if rows[index].agrees), of_it[0]))
    return [row for index, row in enumerate(rows) if index in chosen]


def _by_setting(one: ClaimVerdict) -> Table:
    rows = tuple((found.part, found.verdict, sentence(found)) for found in one.by_setting)
    return Table(header=("Setting", "Verdict", "Why"), left=3, rows=rows)


def _evidence(rows: Sequence[Evidence]) -> Table:
    paired = any(len(row.cells) > 1 for row in rows)
    header = ("Cell", *(("Reference",) if paired else ()), "Agrees", "Instrument")
    return Table(
        header=(*header, _capital(rows[0].figure.name), "Computed from"),
        left=4 if paired else 3,
        rows=tuple(
            (
                *(row.cells if len(row.cells) > 1 or not paired else (*row.cells, NOT_APPLICABLE)),
                _AGREES[row.agrees],
                f"{row.instrument} ({row.source})",
                figure_text(row.figure),
                "; ".join(
                    [*(f"{one.name} {figure_text(one)}" for one in row.basis), *filter(None, [row.note])]
                )
                or "the configuration",
            )
            for row in rows
        ),
    )


def sentence(finding: Finding) -> str:
    """Return why a part of a claim was judged so."""
    rows, runs = finding.deciding, finding.disturbed_runs
    told = ["Not tested" + (f": it needs {finding.needs}." if finding.needs else ".")]
    if rows:
        told = [f"{_agreement(finding)}: {_range(rows)}.", *_when(finding), *_outcomes(rows)]
    if runs:
        whose = "1 run is" if runs == 1 else f"{runs} runs are"
        told.append(f"The speeds of {whose} left out: the machine was busy or the GPU throttled.")
    return " ".join(told)


def _agreement(finding: Finding) -> str:
    rows = finding.deciding
    what = "comparisons" if len(rows[0].cells) > 1 else "cells"
    told = finding.agreeing + finding.disagreeing
    if not told:
        return f"None of {len(rows)} {what} is conclusive"
    agreed = f"{finding.agreeing} of {told} {what} {'agrees' if finding.agreeing == 1 else 'agree'}"
    return agreed if told == len(rows) else f"{agreed}, {len(rows) - told} inconclusive"


def _range(rows: Sequence[Evidence]) -> str:
    """Return the least and the most of the rows' figure, with one unit, and the instruments."""
    name = rows[0].figure.name
    instruments = " and ".join(sorted({row.instrument for row in rows}))
    told = f"{name} {_span_of(rows)}"
    if name.startswith("times "):
        told = f"{_span_of(rows).removesuffix(' times')} {name}"
    return f"{told}, {instruments}"


def _span_of(rows: Sequence[Evidence]) -> str:
    values = [row.figure.value for row in rows]
    show = _SHOWN[rows[0].figure.unit]
    return _span(show(min(values)), show(max(values)))


def _span(low: str, high: str) -> str:
    number, _, unit = low.partition(" ")
    return high if low == high else f"{number if high.endswith(f' {unit}') else low} to {high}"


def _when(finding: Finding) -> list[str]:
    boundary = finding.boundary
    if boundary is None or not boundary.alternatives:
        return []
    when = "; or when ".join(map(_conjunction, boundary.alternatives))
    if boundary.exact:
        return [f"Holds only when {when}."]
    return [f"Always holds when {when}: {boundary.covered} of the {boundary.agreeing}."]


def _conjunction(conjunction: Conjunction) -> str:
    """Return conditions that are met together; two bounds on one setting are told as one."""
    told = []
    for setting in dict.fromkeys(condition.setting for condition in conjunction):
        of_it = {one.relation: one for one in conjunction if one.setting == setting}
        if of_it.keys() == {"at least", "at most"}:
            told.append(f"{setting} is {_value(of_it['at least'])} to {_value(of_it['at most'])}")
        else:
            told += [
                f"{setting} {_SIGNS.get(one.relation, one.relation)} {_value(one)}" for one in of_it.values()
            ]
    return " and ".join(told)


_SIGNS = {"at least": "≥", "at most": "≤"}


def _value(condition: Condition) -> str:
    value = condition.value
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int | float) else value


def _outcomes(rows: Sequence[Evidence]) -> list[str]:
    """Return a sentence for each skill on what comparisons of accuracies showed."""
    topics: dict[str, dict[str, list[Evidence]]] = {}
    for row in rows:
        if row.outcome:
            topics.setdefault(row.outcome.topic, {}).setdefault(_shown(row.outcome), []).append(row)
    told = []
    for topic, kinds in topics.items():
        each = [f"{len(alike)} {kind} ({_span_of(alike)})" for kind, alike in kinds.items()]
        told.append(f"On {topic}: {'; '.join(each)}.")
    return told


def _shown(one: Outcome) -> str:
    """Say what is significant, and what is only not significant: no difference shown is not no difference."""
    margin = _SHOWN["points"](one.margin)
    little = f"at most {margin} lower" if one.one_sided else f"within {margin}"
    if one.direction == "higher" and one.one_sided:
        return "significantly higher"
    if one.direction:
        return f"significantly {one.direction}" + (f", but {little}" if one.within else "")
    return f"not significantly different, {'and' if one.within else 'but not'} shown to be {little}"


def figure_text(figure: Figure) -> str:
    """Return a figure in its unit, with its interval."""
    show = _SHOWN[figure.unit]
    if figure.low is None or figure.high is None:
        return show(figure.value)
    return f"{show(figure.value)} (95 %: {_span(show(figure.low), show(figure.high))})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bytes(value: float) -> str:
    return (MEBIBYTES if value < GIBIBYTES.size_bytes else GIBIBYTES).show(round(value))


_SHOWN: Mapping[Unit, Callable[[float], str]] = {
    "share": lambda value: small_share(value) if 0 < value < _SMALL_SHARE else share(value),
    "fold": lambda value: f"{significant(value)} times",
    "bytes": _bytes,
    "count": lambda value: f"{round(value):,}",
    "tokens/s": lambda value: f"{significant(value)} tokens/s",
    "bits": lambda value: f"{significant(value)} bits",
    "points": lambda value: f"{share(value).removesuffix(' %')} points",
    "times the tolerance": lambda value: f"{significant(value)} times the tolerance",
}
