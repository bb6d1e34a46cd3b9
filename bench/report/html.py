"""A comparison, plans or both as one HTML file that asks the network for nothing; no arithmetic.

Text comes from strangers: the template escapes all of it, and the page's own policy runs no script but ours.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.compare.plans import plan_rows
from bench.errors import counted
from bench.io import own_text
from bench.metrics import PEAK_TITLES
from bench.records.predictions import Plan
from bench.records.readings import ModuleBytes
from bench.report.columns import Column, Grid, told_once
from bench.report.comparison_columns import comparison_grid, group_title, memory_unit
from bench.report.details import ending_table, how_read, section_tables
from bench.report.figures import Figure, comparison_figures, plan_figures, require_libraries
from bench.report.flame import MOST_FLAMES, Flame, flame_anchor, flame_of
from bench.report.highlights import one_environment, sentences
from bench.report.predicted.fit import (
    MOST_SENTENCES,
    PREDICTED,
    card_notes,
    fit_sentences,
    loop_sentences,
    notes_on,
    plan_sentences,
    why_untried,
)
from bench.report.predicted.methods import method_rows, methods_grid
from bench.report.predicted.plan import detail_tables, plan_grid
from bench.report.predicted.speed import any_speed
from bench.report.text import GIBIBYTES, MemoryUnit, Sentence, Table, markdown, plain, templates, visible
from bench.scenario.catalogue import Card

_MOST_GROUPS = 6
_PEAKS = (PEAK_TITLES["ledger"], "Allocated")
_LEADING = ("frontier", "memory")
_LEAD_WIDTH = 440  # pixels of the figure beside the first table
_LONG = 18  # letters of a cell that may be broken into lines
_BAR = (
    '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
    '<rect width="{:.1f}" height="1"/></svg>'
)
_FEW_ROWS = 30  # for which no filters are spread out
_MEMORY_ONLY = "Memory only: speed is not told here."
_THEMED = {
    "#1a1c20": "currentColor",
    "#fefefe": "transparent",
    "#fdfdfd": "var(--paper)",
    "#b9bdc6": "var(--faint)",
    "#dd3333": "var(--limit)",
}


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The sentences of one model, window and place, or of a plan; ``folded`` are those shown on demand."""

    title: str
    sentences: Sequence[Sentence]
    folded: Sequence[Sentence] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """One set of records or one plan, ready for the template. ``prefix`` keeps its anchors apart."""

    prefix: str
    title: str
    opening: tuple[str, ...]
    problems: tuple[str, ...] = ()
    answered: tuple[Answered, ...] = ()
    unanswered: int = 0
    assumed: tuple[str, ...] = ()  # of the cards that fits are about
    anchors: Mapping[str, str]
    grid: Grid[Any]
    lead: Grid[Any] | None = None  # what is shown first, where that is not the grid of all cells
    figures: tuple[Figure, ...]
    flames: tuple[Flame, ...] = ()
    failures: Table | None = None
    folded: tuple[tuple[str, Table], ...]
    differences: tuple[str, ...] = ()
    how_read: tuple[str, ...]

    @property
    def drawn(self) -> list[Figure]:
        """Return the figures that there are, that beside the first table first: the frontier, or memory."""
        found = [figure for figure in self.figures if not figure.missing]
        return sorted(found, key=lambda figure: [*_LEADING, figure.name].index(figure.name))


def render_html(
    comparison: Comparison | None, plans: Sequence[Plan], cards: Sequence[Card] = (), *, home: str = ""
) -> str:
    """Return the page of records, if there are any, and of each plan; ``cards`` are limits to show.

    ``home`` is the start page that it leads back to, where it is part of a site.

    Raises UsageError where the libraries that draw figures are not installed.
    """
    require_libraries()
    sections = [_measured(comparison, cards)] if comparison else []
    sections += [_planned(plan, f"p{index}-") for index, plan in enumerate(plans, start=1)]
    title = sections[0].title if len(sections) == 1 else "Measured and planned"
    return render_template(
        "report.html.j2",
        title=title,
        sections=sections,
        lead_width=_LEAD_WIDTH,
        few_rows=_FEW_ROWS,
        home=home,
    )


def _measured(comparison: Comparison, cards: Sequence[Card]) -> Section:
    anchors = {row.key: f"m-cell-{index}" for index, row in enumerate(comparison.rows, start=1)}
    unit, groups = memory_unit(comparison.rows), comparison.groups
    held = ((row, row.cause.modules_at_peak_bytes) for row in comparison.rows if row.cause)
    flames = _flames(((row.id, row.key, modules or {}) for row, modules in held), anchors, unit)
    endings, alike = ending_table(comparison.rows), one_environment(comparison)
    return Section(
        prefix="m-",
        title=f"{', '.join(comparison.scenarios)}: methods compared",
        opening=(*_opening(comparison), *([alike] if alike else [])),
        problems=comparison.problems,
        answered=tuple(
            Answered(title=group_title(one.rows, comparison), sentences=sentences(one, unit))
            for one in groups[:_MOST_GROUPS]
        ),
        unanswered=len(groups[_MOST_GROUPS:]),
        anchors=anchors,
        grid=_linked(comparison_grid(comparison, anchors), flames),
        flames=flames,
        figures=comparison_figures(comparison, cards),
        failures=endings if endings.rows else None,
        folded=tuple((title, told_once(table)) for title, table in folded_tables(comparison)),
        differences=() if alike else comparison.differences,
        how_read=tuple(how_read(comparison.rows)),
    )


def _linked(grid: Grid[Any], flames: Sequence[Flame]) -> Grid[Any]:
    """Return a grid whose peaks of tensors lead to what holds them."""
    shown = {flame.anchor for flame in flames}
    leading = {id(row): anchor for name, row in grid.rows if (anchor := flame_anchor(name)) in shown}
    columns = (
        replace(one, link=lambda row: leading.get(id(row))) if one.title in _PEAKS else one
        for one in grid.columns
    )
    return replace(grid, columns=tuple(columns))


def _flames(
    held: Iterable[tuple[str, str, ModuleBytes]], anchors: Mapping[str, str], unit: MemoryUnit
) -> tuple[Flame, ...]:
    """Return the flames of cells, each with the key of its row and what its modules hold."""
    flames = (flame_of(cell, flame_anchor(anchors[key]), modules, unit) for cell, key, modules in held)
    return tuple(islice(filter(None, flames), MOST_FLAMES))


def _opening(comparison: Comparison) -> Iterator[str]:
    endings = ", ".join(f"{count} {outcome}" for outcome, count in comparison.outcomes.items())
    yield (
        f"Measured: {comparison.records} runs of {len(comparison.rows)} cells ({endings}), the first begun "
        f"at {comparison.first_started_at}. Only cells of one model, window and machine are compared."
    )


def folded_tables(comparison: Comparison) -> Iterator[tuple[str, Table]]:
    def name(row: Measured) -> str:
        return row.id if len(comparison.environments) == 1 else f"{row.id} ({row.environment})"

    yield from section_tables(comparison, name)
    for place in comparison.environments:
        header = ("Fact", f"Environment {place.label}")
        facts = Table(header=header, rows=tuple(place.facts.items()), left=2)
        yield f"Test environment {place.label}: {counted(place.records, 'record')}", facts


def _planned(plan: Plan, prefix: str) -> Section:
    rows = plan_rows(plan)
    anchors = {row.cell: f"{prefix}cell-{index}" for index, row in enumerate(rows, start=1)}
    told = fit_sentences(plan)
    methods = method_rows(plan)
    # Of the cells that the first table names, at the longest sequences.
    named = [one.at[max(one.at)].cell for one in methods] or [row.cell for row in rows]
    forecasts = {row.cell: row.forecast for row in rows if row.forecast}
    held = ((cell, cell, forecasts[cell].modules_at_peak_bytes) for cell in named if cell in forecasts)
    flames = _flames(held, anchors, GIBIBYTES)
    loops = Answered(title="Loops", sentences=loop_sentences(plan, rows))
    fitting = Answered(title="What fits", sentences=told[:MOST_SENTENCES], folded=told[MOST_SENTENCES:])
    return Section(
        prefix=prefix,
        title=f"{plan.title}: predicted memory",
        opening=(
            PREDICTED if any_speed(rows) else f"{PREDICTED} {_MEMORY_ONLY}",
            *plan_sentences(plan, rows),
        ),
        answered=((fitting,) if told else ()) + ((loops,) if loops.sentences else ()),
        assumed=tuple(card_notes(plan)),
        anchors=anchors,
        grid=_linked(plan_grid(plan, rows, anchors), flames),
        lead=methods_grid(plan, rows, methods, anchors, prefix) if plan.cards and rows[1:] else None,
        figures=plan_figures(plan, rows),
        flames=flames,
        folded=tuple((title, told_once(table)) for title, table in detail_tables(plan, rows) if table.rows),
        how_read=tuple(markdown(line) for line in (*notes_on(plan, rows), *why_untried(plan))),
    )


def render_template(name: str, **values: Any) -> str:
    """Return a page with our style and script inside and a policy that allows nothing else."""
    template = _environment().get_template(name)
    style, script = (own_text("bench.report", "templates", f"page.{kind}") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return template.render(policy=policy, style=Markup(style), script=Markup(script), **values) + "\n"  # noqa: S704 - our own files


@cache
def _environment() -> Environment:
    environment = templates(visible).overlay(
        autoescape=True,
        # Not of our own markup, which has a type of its own.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    filters = {
        "figure": _themed_svg,
        "grid_lines": _grid_lines,
        "inline": _inline,
        "lines": _lines,
        "plain": plain,
    }
    environment.filters = environment.filters | filters
    return environment


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inline(text: str) -> Markup:
    """Return a line of our own Markdown as HTML; tags in it are shown, not obeyed."""
    text = text.replace("\u2060", "")  # what keeps GitHub from reading a mention
    return Markup(MarkdownIt("js-default", {"html": False}).renderInline(text))  # noqa: S704 - it escapes


@lru_cache(maxsize=10_000)  # the cells of large tables are seldom new
def _shown(text: str) -> str:
    return str(escape(plain(text)))


def _lines(table: Table) -> Markup:
    """Return the lines of a table; in a template the thousands of a large plan take five times as long."""
    numbers = [index >= table.left for index in range(len(table.header))]
    before = ['<th scope="row">', *('<td class="number">' if number else "<td>" for number in numbers[1:])]
    after = ["</th>", *("</td>" for _ in numbers[1:])]
    lines = (map("".join, zip(before, map(_shown, line), after, strict=True)) for line in table.rows)
    return Markup("\n".join(f"<tr>{''.join(line)}</tr>" for line in lines))  # noqa: S704 - cells are escaped


def _grid_lines(grid: Grid[Any], prefix: str) -> Markup:
    """Return the lines of a table to sort and filter, likewise."""
    tags = ['th scope="row"', *("td" for _ in grid.columns[1:])]
    columns = [*zip(tags, grid.columns, strict=True)]
    lines = (
        f'<tr id="{anchor}">{"".join(_cell(grid, prefix, *each, row) for each in columns)}</tr>'
        for anchor, row in grid.rows
    )
    return Markup("\n".join(lines))  # noqa: S704 - cells are escaped


def _cell(grid: Grid[Any], prefix: str, tag: str, column: Column[Any], row: Any) -> str:
    text, value, tone, link = column.text(row), column.key(row), column.tone(row), column.link(row)
    kinds, long = column.tags(row), grid.bar(column, row)
    known = "" if value is None else str(value)
    classes = f"{'number' if column.numeric else ''}{'' if column.page else ' more'}"
    classes += " long" if len(text) > _LONG else ""
    shown = f'<span class="{tone}">{_shown(text)}</span>' if tone else _shown(text)
    marks = (_mark(prefix, note, grid.notes[note - 1]) for note in grid.numbers(column, row))
    return "".join(
        (
            f'<{tag} class="{classes}"',
            "" if known == text else f' data-v="{_shown(known)}"',
            f' data-tags="{escape(chr(10).join(kinds))}"' if kinds else "",
            f'><a href="#{link}">{shown}</a>' if link else f">{shown}",
            "<sup>, ".join(("", *marks)).replace("<sup>, ", "<sup>", 1),
            "" if long is None else _BAR.format(long),
            f"</{tag[:2]}>",
        )
    )


def _mark(prefix: str, note: int, text: str) -> str:
    """Return what follows ``<sup>`` at a number that a note is about."""
    title = f'title="{_shown(text)}" aria-label="note {note}"'
    return f'<a href="#{prefix}note-{note}" {title}>{note}</a></sup>'


def _themed_svg(figure: Figure, prefix: str, width: int | None) -> Markup:
    """Return a figure for wide and for narrow screens, in the colours of the page, its ids made unique."""
    from bench.report.charts import NARROW, WIDE

    drawn = ""
    for name, pixels in (("wide", width or WIDE), ("narrow", NARROW)):
        svg = figure.svg(width=pixels)
        for literal, themed in _THEMED.items():
            svg = svg.replace(f'"{literal}"', f'"{themed}"')
        svg = re.sub(r'(?<= )id="', f'id="{prefix}{figure.name}-{name}-', svg)
        svg = svg.replace("url(#", f"url(#{prefix}{figure.name}-{name}-")
        svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
        drawn += f'<div class="{name}">{svg}</div>'
    return Markup(drawn)  # noqa: S704 - vl-convert escapes what it draws
