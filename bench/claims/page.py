"""Claims and the verdicts on them, for the terminal, as Markdown and as JSON; no arithmetic."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.claims.catalogue import shipped_claims
from bench.claims.findings import Evidence, Figure, Finding
from bench.claims.material import committed_paths, read_material
from bench.claims.rules import Judged, judge_claims
from bench.claims.text import beside, capital, conditions, figure_text, sentence, verdict_text
from bench.errors import UsageError
from bench.report.text import NOT_APPLICABLE, Table, bullets, markdown, markdown_table, plain, terminal_table

if TYPE_CHECKING:
    from rich.console import Group

MOST_SHOWN = 8
_ANSWERS = {True: "yes", False: "no", None: "cannot decide"}


def render_block(judged: Sequence[Judged]) -> str:
    """Return the verdicts as a table and, folded, what each rests on."""
    told = [f"{_count(judged)}.", markdown_table(_summary(judged)), "## What each verdict rests on"]
    return "\n\n".join([*told, *map(_folded, judged)])


def render_committed(results: Path) -> str:
    """Return the block for what a repository keeps below its results folder.

    Raises UsageError where there is nothing, or where a file cannot be read.
    """
    material = read_material(committed_paths(results))
    if material.problems:
        raise UsageError(material.problems[0])
    return render_block(judge_claims(shipped_claims(), material.cases))


def render_markdown(judged: Sequence[Judged]) -> str:
    """Return a page of its own."""
    return f"# Claims about LoRA and QLoRA\n\n{render_block(judged)}\n"


def render_terminal(judged: Sequence[Judged], *, details: bool = False) -> "Group":
    """Return the verdicts for a rich console; with details all evidence of each."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [
        terminal_table(_summary(judged), "Claims about LoRA and QLoRA"),
        Text(_count(judged) + "."),
    ]
    for one in judged if details else ():
        parts.append(Text(plain(f"\n{one.claim.id}: {one.verdict}"), style="bold"))
        parts += [Text(plain(f"- {line}")) for line in _facts(one)]
        if one.by_setting:
            parts.append(terminal_table(_settings(one.by_setting), "Setting by setting"))
        for finding in one.findings:
            parts += [Text(plain(f"- {line}")) for line in _told(finding)]
            if finding.deciding:
                parts.append(terminal_table(_table(finding.deciding), finding.part or "Evidence"))
    if not details:
        parts.append(Text("--details shows the cells and figures behind each."))
    return Group(*parts)


def render_json(judged: Sequence[Judged]) -> str:
    """Return every verdict with all of its evidence; the claim as in its catalogue."""
    content = [
        {
            "claim": one.claim.model_dump(mode="json"),
            "verdict": one.verdict,
            "by_setting": [{"setting": found.part, "verdict": found.verdict} for found in one.by_setting],
            "findings": [dataclasses.asdict(finding) for finding in one.findings],
        }
        for one in judged
    ]
    return json.dumps(content, indent=1) + "\n"


def _count(judged: Sequence[Judged]) -> str:
    verdicts = [one.verdict for one in judged]
    counted = (f"{verdicts.count(verdict)} {verdict_text(verdict)}" for verdict in dict.fromkeys(verdicts))
    return f"{len(judged)} claims: {', '.join(counted)}"


def _summary(judged: Sequence[Judged]) -> Table:
    return Table(
        header=("Claim", "Says", "Verdict", "Because"),
        left=4,
        rows=tuple(
            (one.claim.id, one.claim.statement, verdict_text(one.verdict), _because(one)) for one in judged
        ),
    )


def _because(one: Judged) -> str:
    said = [(finding.part, sentence(finding)) for finding in one.findings]
    return " ".join(f"{capital(part)}: {text}" if part else text for part, text in said)


def _folded(one: Judged) -> str:
    """Return one claim behind its summary line; ids and verdicts are ours and need no escape."""
    lines = [markdown(line) for line in _facts(one)]
    parts = [f"<details><summary>{one.claim.id}: {verdict_text(one.verdict)}</summary>", bullets(lines)]
    if one.by_setting:
        parts.append(markdown_table(_settings(one.by_setting)))
    for finding in one.findings:
        if finding.part:
            parts.append(f"**{markdown(capital(finding.part))}: {verdict_text(finding.verdict)}**")
        parts.append(bullets(markdown(line) for line in _told(finding)))
        if finding.deciding:
            shown = telling(finding.deciding)
            parts.append(markdown_table(_table(shown)))
            left = len(finding.deciding) - len(shown)
            if left:
                parts.append(f"{left} more between these: `bench claims --details`.")
    return "\n\n".join([*parts, "</details>"])


def _facts(one: Judged) -> list[str]:
    claim = one.claim
    facts = [f"Says: {claim.statement}", f"Source: {claim.source}", f"About: {claim.about}."]
    return [*facts, f"How it was read: {claim.reading}"] if claim.reading else facts


def _told(finding: Finding) -> list[str]:
    return [sentence(finding), *conditions(finding), *beside(finding)]


def telling(rows: Sequence[Evidence]) -> list[Evidence]:
    """Return all rows if they are few, else the lowest and highest figures of each answer, in their order.

    One row stands for each source of measurements, and for predictions, that is not among these.
    """
    if len(rows) <= MOST_SHOWN:
        return list(rows)
    chosen: set[int] = set()
    for answer in (True, False, None):
        group = [index for index, row in enumerate(rows) if row.agrees is answer]
        group.sort(key=lambda index: rows[index].figure.value)
        chosen.update(group[:2] + group[-2:])
    sources = [(row.instrument, "" if row.instrument == "predicted" else row.source) for row in rows]
    for source in set(sources) - {sources[index] for index in chosen}:
        of_it = [index for index in range(len(rows)) if sources[index] == source]
        chosen.add(next((index for index in of_it if rows[index].agrees), of_it[0]))
    return [row for index, row in enumerate(rows) if index in chosen]


def _settings(found: Sequence[Finding]) -> Table:
    return Table(
        header=("Setting", "Verdict", "Because"),
        left=3,
        rows=tuple((one.part, verdict_text(one.verdict), sentence(one)) for one in found),
    )


def _table(rows: Sequence[Evidence]) -> Table:
    paired = any(len(row.cells) > 1 for row in rows)
    header = (
        "Cell",
        *(("Held against",) if paired else ()),
        "Agrees",
        "Instrument",
        _figure_name(rows),
        "From",
    )
    return Table(
        header=header,
        left=4 if paired else 3,
        rows=tuple(
            (
                row.cells[0],
                *(((row.cells[1] if len(row.cells) > 1 else NOT_APPLICABLE),) if paired else ()),
                _ANSWERS[row.agrees],
                f"{row.instrument} ({row.source})",
                figure_text(row.figure),
                "; ".join([*map(_named, row.basis), *([row.note] if row.note else [])]) or "as set",
            )
            for row in rows
        ),
    )


def _figure_name(rows: Sequence[Evidence]) -> str:
    return capital(rows[0].figure.name)


def _named(figure: Figure) -> str:
    return f"{figure.name} {figure_text(figure)}"
