"""A comparison, plans or both as one HTML file that asks the network for nothing; no arithmetic.

Text comes from strangers: the template escapes all of it, and the page's own policy runs no script but ours.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.compare.plans import ModelFits, card_fits, plan_rows
from bench.errors import counted
from bench.io import own_text
from bench.records.predictions import Plan
from bench.report.columns import Grid, told_once
from bench.report.comparison_columns import comparison_grid, group_title, memory_unit
from bench.report.details import ending_table, how_read, section_tables
from bench.report.figures import Figure, comparison_figures, plan_figures, require_libraries
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
from bench.report.predicted.plan import detail_tables, plan_grid
from bench.report.sentences import Sentence
from bench.report.text import Table, markdown, plain, visible
from bench.scenario.catalogue import Card

_MOST_GROUPS = 6
_NOT_RUN = (
    f"{PREDICTED} Memory only: speed and accuracy are not predicted. "
    "Run the cells that fit (bench run) to learn what they cost in time."
)
_THEMED = {
    "#1a1c20": "currentColor",
    "#fefefe": "transparent",
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
    fits: tuple[ModelFits, ...] = ()
    assumed: tuple[str, ...] = ()  # of the cards that fits are about
    anchors: Mapping[str, str]
    grid: Grid[Any]
    figures: tuple[Figure, ...]
    failures: Table | None = None
    folded: tuple[tuple[str, Table], ...]
    differences: tuple[str, ...] = ()
    how_read: tuple[str, ...]


def render_html(comparison: Comparison | None, plans: Sequence[Plan], cards: Sequence[Card] = ()) -> str:
    """Return the page of records, if there are any, and of each plan; ``cards`` are limits to show.

    Raises UsageError where the libraries that draw figures are not installed.
    """
    require_libraries()
    sections = [_measured(comparison, cards)] if comparison else []
    sections += [_planned(plan, f"p{index}-") for index, plan in enumerate(plans, start=1)]
    title = sections[0].title if len(sections) == 1 else "Measured and planned"
    return render_template("report.html.j2", title=title, sections=sections)


def _measured(comparison: Comparison, cards: Sequence[Card]) -> Section:
    anchors = {row.key: f"m-cell-{index}" for index, row in enumerate(comparison.rows, start=1)}
    unit, groups = memory_unit(comparison.rows), comparison.groups
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
        grid=comparison_grid(comparison, anchors),
        figures=comparison_figures(comparison, cards),
        failures=endings if endings.rows else None,
        folded=tuple((title, told_once(table)) for title, table in folded_tables(comparison)),
        differences=() if alike else comparison.differences,
        how_read=tuple(how_read(comparison.rows)),
    )


def _opening(comparison: Comparison) -> Iterator[str]:
    endings = ", ".join(f"{count} {outcome}" for outcome, count in comparison.outcomes.items())
    yield (
        f"Measured: {comparison.records} runs of {len(comparison.rows)} cells ({endings}), the first begun "
        f"at {comparison.first_started_at}. Only cells of one model, window and machine are compared."
    )
    if notes := dict.fromkeys(row.weights_note for row in comparison.rows if row.weights_note):
        yield f"Weights: {'; '.join(notes)}."


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
    loops = Answered(title="Loops", sentences=loop_sentences(plan, rows))
    fitting = Answered(title="What fits", sentences=told[:MOST_SENTENCES], folded=told[MOST_SENTENCES:])
    return Section(
        prefix=prefix,
        title=f"{plan.title}: predicted memory",
        opening=(_NOT_RUN, *plan_sentences(plan, rows)),
        answered=((fitting,) if told else ()) + ((loops,) if loops.sentences else ()),
        fits=card_fits(plan),
        assumed=tuple(card_notes(plan)),
        anchors=anchors,
        grid=plan_grid(plan, rows, anchors),
        figures=plan_figures(plan),
        folded=tuple((title, told_once(table)) for title, table in detail_tables(plan) if table.rows),
        how_read=tuple(markdown(line) for line in (*notes_on(plan, rows), *why_untried(plan))),
    )


def render_template(name: str, **values: Any) -> str:
    """Return a page with our style and script inside and a policy that allows nothing else."""
    template = _environment().get_template(name)
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return template.render(policy=policy, style=Markup(style), script=Markup(script), **values) + "\n"  # noqa: S704 - our own files


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Not of our own markup, which has a type of its own.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(figure=_themed_svg, inline=_inline, plain=plain)
    return environment


@cache
def _asset(name: str) -> str:
    return own_text("bench.report", "templates", name)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inline(text: str) -> Markup:
    """Return a line of our own Markdown as HTML; tags in it are shown, not obeyed."""
    text = text.replace("\u2060", "")  # what keeps GitHub from reading a mention
    return Markup(MarkdownIt("js-default", {"html": False}).renderInline(text))  # noqa: S704 - it escapes


def _themed_svg(figure: Figure, prefix: str) -> Markup:
    """Return a figure's SVG in the colours of the page, its ids made unique."""
    svg = figure.svg()
    for literal, themed in _THEMED.items():
        svg = svg.replace(f'"{literal}"', f'"{themed}"')
    svg = re.sub(r'(?<= )id="', f'id="{prefix}{figure.name}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}{figure.name}-")
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))  # noqa: S704 - vl-convert escapes what it draws
