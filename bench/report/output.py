"""What ``bench report`` writes: Markdown or HTML by the file's name, and figures; records and plans alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.io import write_text
from bench.records.plans import Plan, read_plan
from bench.records.store import LoadedRecords
from bench.report import plan as plan_pages
from bench.report.comparison import render_page
from bench.report.sources import gather
from bench.scenario.catalogue import Card

_PAGES = (".html", ".htm", ".md", ".markdown", ".txt")
# Where ``bench plan --json`` writes it; a record has no such member.
_PLAN_MARK = b'"plan_version"'


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a report is about: records, plans or both."""

    loaded: LoadedRecords | None
    plans: tuple[Plan, ...]


def read_material(paths: Sequence[Path]) -> Material:
    """Read results folders, record files and plans. Raises UsageError where one of them is none of these."""
    plans = [path for path in paths if _is_plan(path)]
    records = [path for path in paths if path not in plans]
    loaded = gather(records) if records or not plans else None
    return Material(loaded=loaded, plans=tuple(read_plan(path) for path in plans))


def _is_plan(path: Path) -> bool:
    """Tell whether the first bytes of a plain file are those of a plan."""
    if path.suffix != ".json" or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return _PLAN_MARK in file.read(200)


def render_markdown(material: Material) -> str:
    """Return the Markdown pages of all material, one after the other."""
    pages = [render_page(material.loaded)] if material.loaded else []
    return "\n".join([*pages, *(plan_pages.render_markdown(plan) for plan in material.plans)])


def write_page(material: Material, path: Path, cards: Sequence[Card]) -> None:
    """Write a page of the kind that its name ends in. Raises UsageError for another ending."""
    if path.suffix.lower() not in _PAGES:
        raise UsageError(f"{path}: a report is written as .html or .md; give one of these endings")
    if path.suffix.lower() in {".html", ".htm"}:
        from bench.report.html import render_html

        write_text(path, render_html(material.loaded, material.plans, cards))
    else:
        write_text(path, render_markdown(material))


def write_all_figures(material: Material, folder: Path, cards: Sequence[Card]) -> Iterator[str]:
    """Write the figures of the records to a folder, those of a plan to one inside; yield a line on each."""
    from bench.compare.comparison import compare
    from bench.report.figures import comparison_figures, plan_figures, write_figures

    if material.loaded:
        yield from write_figures(comparison_figures(compare(material.loaded.records), cards), folder)
    for index, plan in enumerate(material.plans, start=1):
        alone = material.loaded is None and len(material.plans) == 1
        yield from write_figures(plan_figures(plan), folder if alone else folder / f"plan-{index}")
