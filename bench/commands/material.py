"""What ``bench report`` is about, records, plans or both; and how it is written, by the file's name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.compare.comparison import Comparison
from bench.errors import UsageError
from bench.io import write_text
from bench.records.predictions import Plan
from bench.report.pages import render_latex, render_markdown
from bench.report.predicted import plan as plan_pages
from bench.scenario.catalogue import Card

_PAGES = (".html", ".htm", ".md", ".markdown", ".txt", ".tex")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a report is about: records compared, plans or both."""

    comparison: Comparison | None
    plans: tuple[Plan, ...]


def render_material(material: Material) -> str:
    pages = [render_markdown(material.comparison)] if material.comparison else []
    return "\n".join([*pages, *(plan_pages.render_markdown(plan) for plan in material.plans)])


def write_material(material: Material, path: Path, cards: Sequence[Card]) -> None:
    """Write a page of the kind that its name ends in. Raises UsageError for another ending."""
    if path.suffix.lower() not in _PAGES:
        raise UsageError(f"{path}: a report is written as .html, .md or .tex; give one of these endings")
    if path.suffix.lower() == ".tex":
        if material.comparison is None or material.plans:
            raise UsageError(f"{path}: LaTeX tables are of records; write plans as .html or .md")
        write_text(path, render_latex(material.comparison))
        return
    if path.suffix.lower() in {".html", ".htm"}:
        from bench.report.html import render_html

        write_text(path, render_html(material.comparison, material.plans, cards))
    else:
        write_text(path, render_material(material))


def write_all_figures(material: Material, folder: Path, cards: Sequence[Card]) -> Iterator[str]:
    """Write the figures of the records to a folder, those of a plan to one inside; yield a line on each."""
    from bench.report.figures import comparison_figures, plan_figures, write_figures

    if material.comparison:
        yield from write_figures(comparison_figures(material.comparison, cards), folder)
    for index, plan in enumerate(material.plans, start=1):
        alone = material.comparison is None and len(material.plans) == 1
        yield from write_figures(plan_figures(plan), folder if alone else folder / f"plan-{index}")


def read_material(paths: Sequence[Path]) -> Material:
    """Load records and plans, and compare the records.

    Raises UsageError where a path is neither of the two.
    """
    from bench.compare.comparison import compare
    from bench.records.store import read_results

    loaded, plans = read_results(paths)
    return Material(comparison=compare(loaded.records, loaded.problems) if loaded else None, plans=plans)
