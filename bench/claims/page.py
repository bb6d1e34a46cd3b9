"""Claims and the verdicts on them, for the terminal, as Markdown and as JSON; no arithmetic."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from operator import attrgetter, itemgetter
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from bench.claims.cases import Scalar
from bench.claims.evidence import Evidence, Figure, Outcome, Unit
from bench.claims.judge import (
    ClaimVerdict,
    Conjunction,
    Finding,
    Verdict,
    committed_paths,
    judge_claims,
    read_cases,
    shipped_claims,
)
from bench.compare import grouped
from bench.errors import UsageError
from bench.report.columns import TerminalTable
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    Table,
    plain,
    points,
    render_page,
    share,
    significant,
    small_share,
    table_of,
)

MOST_SHOWN = 8
_TITLE = "Common claims about LoRA and QLoRA, tested"
_AGREES = {True: "yes", False: "no", None: "inconclusive"}
_COUNTED: Mapping[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "holds conditionally": ("holds conditionally", "hold conditionally"),
    "contradicted": ("is contradicted", "are contradicted"),
    "untestable": ("is untestable with this data", "are untestable with this data"),
}
_SIGNS = {"at least": "≥", "at most": "≤"}
_SMALL_SHARE = 0.01
_SHOWN: Mapping[Unit, Callable[[float], str]] = {
    "share": lambda value: small_share(value) if 0 < value < _SMALL_SHARE else share(value),
    "fold": lambda value: f"{significant(value)} times",
    "bytes": lambda value: (MEBIBYTES if value < GIBIBYTES.size_bytes else GIBIBYTES).show(round(value)),
    "count": lambda value: f"{round(value):,}",
    "tokens/s": lambda value: f"{significant(value)} tokens/s",
    "bits": lambda value: f"{significant(value)} bits",
    "points": points,
    "times the tolerance": lambda value: f"{significant(value)} times the tolerance",
}


def render_block(verdicts: Sequence[ClaimVerdict]) -> str:
    return render_page(
        "claims.md.j2",
        verdicts=verdicts,
        count=_count(verdicts),
        themes=grouped(verdicts, attrgetter("claim.theme")),
        summary=_in_short,
        titled=_titled,
        facts=_facts,
        by_setting=_by_setting,
        told=_told,
        telling=telling,
        evidence=_evidence,
        capital=_capital,
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
    return f"# {_TITLE}\n\n{render_block(verdicts)}\n"


def render_terminal(verdicts: Sequence[ClaimVerdict], *, details: bool = False) -> Group:
    themes = grouped(verdicts, attrgetter("claim.theme")).items()
    parts: list[RenderableType] = [TerminalTable(_summary(those), theme) for theme, those in themes]
    parts.append(Text(_count(verdicts)))
    for one in verdicts if details else ():
        parts.append(Text(plain(f"\n{one.claim.id}: {one.verdict}"), style="bold"))
        parts += [Text(plain(f"- {line}")) for line in _facts(one)]
        if one.by_setting:
            parts.append(TerminalTable(_by_setting(one), "By setting"))
        for finding in one.findings:
            parts += [Text(plain(f"- {line}")) for line in _told(finding)]
            if finding.deciding:
                parts.append(TerminalTable(_evidence(finding.deciding), finding.part or "Evidence"))
    if not details:
        parts.append(Text("--details shows every cell and figure behind each verdict."))
    return Group(*parts)


def render_json(verdicts: Sequence[ClaimVerdict]) -> str:
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
    told = [f"{counts[name]} {words[counts[name] > 1]}" for name, words in _COUNTED.items() if counts[name]]
    return f"{len(verdicts)} claims: {', '.join(told)}."


def _summary(verdicts: Sequence[ClaimVerdict]) -> Table:
    return table_of(
        verdicts,
        ("Claim", attrgetter("claim.id")),
        ("Statement", attrgetter("claim.statement")),
        ("Verdict", _in_a_line),
        left=3,
    )


def _in_short(verdicts: Sequence[ClaimVerdict]) -> Table:
    """Return statements with their verdicts in few words: a telephone shows each in three lines."""
    return table_of(verdicts, ("Claim", attrgetter("claim.statement")), ("Verdict", _few_words), left=2)


def _few_words(one: ClaimVerdict) -> str:
    """Return the verdict, of how many cells, and when a claim holds where one setting tells."""
    boundary, told = one.findings[0].boundary, str(one.verdict)
    if not one.findings[1:] and boundary and boundary.exact and [*map(len, boundary.alternatives)] == [1]:
        told = f"holds when {_conjunction(boundary.alternatives[0])}"
    return f"{told}: {' and '.join(map(_agreeing, one.findings))}"


def _agreeing(finding: Finding) -> str:
    answers = [row.agrees for row in finding.deciding]
    unknown = f" ({answers.count(None)} inconclusive)" if None in answers else ""
    return f"{_share(answers)}{unknown}" if answers else "not tested"


def _titled(one: ClaimVerdict) -> str:
    """Return the statement as what a fold is called, in HTML."""
    return escape(plain(one.claim.statement), quote=False)


def _in_a_line(one: ClaimVerdict) -> str:
    """Say the verdict, how much of each part agrees, and when that has few words; the rest is evidence."""
    told = (f"{f'{part}: ' if (part := finding.part) else ''}{_brief(finding)}" for finding in one.findings)
    return f"{one.verdict}: {'; '.join(told)}"


def _brief(finding: Finding) -> str:
    if not finding.deciding:
        return "not tested"
    boundary = finding.boundary
    if boundary and boundary.exact and len(boundary.alternatives) == 1:
        return f"{_agreement(finding)}, when {_conjunction(boundary.alternatives[0])}"
    return _agreement(finding)


def _facts(one: ClaimVerdict) -> list[str]:
    claim = one.claim
    facts = [f"Statement: {claim.statement}", f"Source: {claim.source}", f"Scope: {claim.about}."]
    return [*facts, f"Interpretation: {claim.reading}"] if claim.reading else facts


def _told(finding: Finding) -> list[str]:
    told, boundary = [sentence(finding)], finding.boundary
    if boundary and not boundary.exact:
        others = " others" if boundary.covered else ""
        told.append(f"No three settings explain why {boundary.agreeing - boundary.covered}{others} agree.")
    for (model, _), rows in grouped(finding.beside, lambda row: (row.model, row.instrument)).items():
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
    columns = (("Setting", attrgetter("part")), ("Verdict", attrgetter("verdict")), ("Why", sentence))
    return table_of(one.by_setting, *columns, left=3)


def _evidence(rows: Sequence[Evidence]) -> Table:
    paired = any(len(row.cells) > 1 for row in rows)
    reference = ("Reference", lambda row: (*row.cells, NOT_APPLICABLE)[1])
    return table_of(
        rows,
        ("Cell", lambda row: row.cells[0]),
        *([reference] if paired else []),
        ("Agrees", lambda row: _AGREES[row.agrees]),
        ("Instrument", lambda row: f"{row.instrument} ({row.source})"),
        (_capital(rows[0].figure.name), lambda row: figure_text(row.figure)),
        ("Computed from", _basis),
        left=4 if paired else 3,
    )


def _basis(row: Evidence) -> str:
    told = [f"{one.name} {figure_text(one)}" for one in row.basis]
    return "; ".join([*told, *filter(None, [row.note])]) or "the configuration"


def sentence(finding: Finding) -> str:
    rows, runs = finding.deciding, finding.disturbed_runs
    told = ["Not tested" + (f": it needs {finding.needs}." if finding.needs else ".")]
    if rows:
        told = [f"{_agreement(finding)}: {_range(rows)}.", *_when(finding), *_outcomes(rows)]
    if runs:
        whose = "speed of 1 run is" if runs == 1 else f"speeds of {runs} runs are"
        told.append(f"The {whose} left out: the machine was busy or the GPU throttled.")
    return " ".join(told)


def _agreement(finding: Finding) -> str:
    answers = [row.agrees for row in finding.deciding]
    what = "comparisons" if len(finding.deciding[0].cells) > 1 else "cells"
    agreeing, unknown = answers.count(True), answers.count(None)
    if unknown == len(answers):
        one = f"The one {what[:-1]} is inconclusive"
        return f"None of {unknown} {what} is conclusive" if unknown > 1 else one
    agreed = f"{agreeing} of {len(answers) - unknown} {what} {'agrees' if agreeing == 1 else 'agree'}"
    return f"{agreed}, {unknown} inconclusive" if unknown else agreed


def _range(rows: Sequence[Evidence]) -> str:
    name, span = rows[0].figure.name, _span_of(rows)
    told = f"{span.removesuffix(' times')} {name}" if name.startswith("times ") else f"{name} {span}"
    instruments = grouped(rows, lambda row: row.instrument)
    if len(instruments) == 1:
        return f"{told}, {rows[0].instrument}"
    each = (f"{name}: {_share([row.agrees for row in those])}" for name, those in sorted(instruments.items()))
    return f"{told} ({'; '.join(each)})"


def _share(answers: Sequence[bool | None]) -> str:
    conclusive = len(answers) - answers.count(None)
    return f"{answers.count(True)} of {conclusive}" if conclusive else "none conclusive"


def _span_of(rows: Sequence[Evidence]) -> str:
    values = [row.figure.value for row in rows]
    return _span(rows[0].figure.unit, min(values), max(values))


def _span(unit: Unit, least: float, most: float) -> str:
    low, high = _SHOWN[unit](least), _SHOWN[unit](most)
    number, _, name = low.partition(" ")
    return high if low == high else f"{number if high.endswith(f' {name}') else low} to {high}"


def _when(finding: Finding) -> Iterator[str]:
    boundary = finding.boundary
    if boundary and boundary.alternatives:
        when = "; or when ".join(map(_conjunction, boundary.alternatives))
        if boundary.exact:
            yield f"Holds only when {when}."
        else:
            yield f"Always holds when {when}: {boundary.covered} of the {boundary.agreeing}."


def _conjunction(conjunction: Conjunction) -> str:
    """Return conditions that are met together; two bounds on one setting are told as one."""
    told = []
    for setting in dict.fromkeys(condition.setting for condition in conjunction):
        of_it = {one.relation: _value(one.value) for one in conjunction if one.setting == setting}
        if of_it.keys() == {"at least", "at most"}:
            told.append(f"{setting} is {of_it['at least']} to {of_it['at most']}")
        else:
            told += [f"{setting} {_SIGNS.get(name, name)} {value}" for name, value in of_it.items()]
    return " and ".join(told)


def _value(value: Scalar) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int | float) else value


def _outcomes(rows: Sequence[Evidence]) -> Iterator[str]:
    told = [(row.outcome.topic, _shown(row.outcome), row) for row in rows if row.outcome]
    for topic, of_it in grouped(told, itemgetter(0)).items():
        kinds = grouped(of_it, itemgetter(1)).items()
        each = [f"{len(alike)} {kind} ({_span_of([row for *_, row in alike])})" for kind, alike in kinds]
        yield f"On {topic}: {'; '.join(each)}."


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
    shown = _SHOWN[figure.unit](figure.value)
    if figure.low is None or figure.high is None:
        return shown
    return f"{shown} ({figure.interval}: {_span(figure.unit, figure.low, figure.high)})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
