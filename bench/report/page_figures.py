"""Figures in pages: a picture under report/figures, and how to tell without drawing whether it is in step.

Each picture ends with a digest of its specification, data and all, and of itself. The same specification is
drawn a little differently by other fonts and versions of the renderer, so that nothing is drawn to check it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from bench.compare.comparison import compare
from bench.errors import InfrastructureError, UsageError
from bench.io import write_text
from bench.report.figures import Figure, comparison_figures, plan_figures
from bench.report.pages import read_material
from bench.report.text import markdown

FOLDER = Path("report") / "figures"


@dataclass(frozen=True)
class PageFigure:
    """A figure and the file that shows it."""

    figure: Figure
    path: Path

    def is_in_step(self) -> bool:
        """Tell whether the file was drawn from what the records give now, and is as it was drawn."""
        if self.figure.missing:
            return True
        try:
            drawn, _, mark = self.path.read_text(encoding="utf-8").rpartition("\n<!-- ")
        except (OSError, UnicodeDecodeError):
            return False
        return mark == _mark(self.figure, drawn)

    def write(self) -> None:
        """Draw the figure. Raises InfrastructureError if it cannot be written."""
        drawn = self.figure.svg()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InfrastructureError(
                f"{self.path.parent}: cannot make the folder ({error.strerror}); make room for it"
            ) from None
        write_text(self.path, f"{drawn}\n<!-- {_mark(self.figure, drawn)}")

    def content(self, page: Path) -> str:
        """Return what a page shows: the picture and what is said under it, or why there is none."""
        if self.figure.missing:
            return markdown(f"No figure of {self.figure.title.lower()}: {self.figure.missing}")
        link = Path(os.path.relpath(self.path, page.parent)).as_posix()
        return f"![{markdown(self.figure.title)}]({link})\n\n{markdown(self.figure.caption)}"


def page_figure(name: str, source: Path, root: Path) -> PageFigure:
    """Return a figure of a folder of records or of a plan, by its name.

    Raises UsageError where there is no such figure.
    """
    material = read_material([source])
    if material.loaded and material.loaded.problems:
        raise UsageError(material.loaded.problems[0])
    found = {
        figure.name: figure
        for records in ([material.loaded.records] if material.loaded else [])
        for figure in comparison_figures(compare(records))
    } | {figure.name: figure for plan in material.plans for figure in plan_figures(plan)}
    if name not in found:
        raise UsageError(f"unknown figure {name}; choose one of {', '.join(found)}")
    return PageFigure(found[name], root / FOLDER / f"{source.stem}-{name}.svg")


def _mark(figure: Figure, drawn: str) -> str:
    """Return what ends the file. The version of Vega-Lite's schema is not what a figure shows."""
    shown = {key: value for key, value in figure.specification.items() if key != "$schema"}
    text = json.dumps(shown, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(f"{text}\n{drawn}".encode()).hexdigest()
    return f"sha256 {digest} -->\n"
