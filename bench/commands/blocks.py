"""Generated blocks in pages that people write: filled from committed records, and checked to be in step.

A block stands between ``<!-- bench:begin KIND FOLDER -->`` and ``<!-- bench:end -->``, each on its own line;
FOLDER holds records and is relative to the root of the repository; the kind ``prediction`` names a file that
``bench validate`` made, the kinds ``plan`` and ``plan-details`` one of ``bench plan --json``, ``self-check``
one of ``bench gate --self-check``, ``names`` the table of names, ``keys`` the schema; ``gate`` names the
folder of a sitting, which is judged anew; ``claims`` names that of all results; KIND ``figure:NAME`` shows a
figure of records or of a plan, ``study:METHOD`` sets methods against that one over seeds, ``levers`` sets
changes of one thing against the plain method. What is outside is never touched.

Each picture under report/figures ends with a digest of its specification, data and all, and of itself: other
fonts and versions of the renderer draw the same specification a little differently, so that nothing is drawn
to check it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.claims.page import render_committed
from bench.commands.material import read_material
from bench.compare.comparison import compare
from bench.compare.gate_report import judge_folder
from bench.errors import InfrastructureError, UsageError, listed
from bench.io import make_folder, read_data, write_text
from bench.records.predictions import read_plan
from bench.records.published.score import read_validation
from bench.records.records import Record
from bench.records.store import gather
from bench.report.figures import Figure, comparison_figures, plan_figures
from bench.report.gate import render_block
from bench.report.pages import render_details, render_methods, render_summary
from bench.report.predicted import plan
from bench.report.self_check import render_self_check, render_validation
from bench.report.studies import render_levers, render_study
from bench.report.text import markdown
from bench.scenario.layout import json_schema
from bench.scenario.names import render_names
from bench.stats.simulation import read_self_check

_BEGIN = re.compile(r"<!-- bench:begin (?P<kind>\S+) (?P<folder>\S+) -->")
_END = "<!-- bench:end -->"
_FIGURES = Path("report") / "figures"
_FIGURE = "figure:"
_SOURCE = "its records; run `bench report --update`"
_STUDY = "study:"


def _shown_code(path: Path) -> str:
    """Return a file of Python between fences. Raises UsageError where there is none."""
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path} is no file of Python; name one")
    return f"```python\n{read_data(path).decode().strip()}\n```"


_KINDS: dict[str, Callable[[Path], str]] = {
    "comparison": lambda folder: render_summary(compare(_records(folder))),
    "details": lambda folder: render_details(compare(_records(folder))),
    "methods": lambda folder: render_methods(compare(_records(folder))),
    "levers": lambda folder: render_levers(_records(folder)),
    "prediction": lambda path: render_validation(read_validation(path)),
    "plan": lambda path: plan.render_summary(read_plan(path)),
    "plan-details": lambda path: plan.render_details(read_plan(path)),
    "gate": lambda path: render_block(judge_folder(path)),
    "claims": render_committed,
    "names": lambda _: render_names(),
    "keys": lambda _: render_keys(),
    "self-check": lambda path: render_self_check(read_self_check(path)),
    "source": _shown_code,
}


@dataclass(frozen=True)
class _PageFigure:
    """A figure of a page, and the file that shows it."""

    figure: Figure
    path: Path

    def is_in_step(self) -> bool:
        """Tell whether the file was drawn from what the records give now, and is as it was drawn."""
        if self.figure.missing:
            return True
        try:
            drawn, _, mark = read_data(self.path).decode().rpartition("\n<!-- ")
        except (OSError, UnicodeDecodeError):
            return False
        return mark == self._mark(drawn)

    def write(self) -> None:
        """Draw the figure. Raises InfrastructureError if it cannot be written."""
        drawn = self.figure.svg()
        try:
            make_folder(self.path.parent)
        except OSError as error:
            raise InfrastructureError(
                f"{self.path.parent}: cannot make the folder ({error.strerror}); make room for it"
            ) from None
        write_text(self.path, f"{drawn}\n<!-- {self._mark(drawn)}")

    def _mark(self, drawn: str) -> str:
        """Return what ends the file. The version of Vega-Lite's schema is not what a figure shows."""
        shown = {key: value for key, value in self.figure.specification().items() if key != "$schema"}
        text = f"{json.dumps(shown, sort_keys=True, allow_nan=False)}\n{drawn}"
        return f"sha256 {hashlib.sha256(text.encode()).hexdigest()} -->\n"

    def content(self, page: Path) -> str:
        if self.figure.missing:
            return markdown(f"No figure of {self.figure.title.lower()}: {self.figure.missing}")
        link = Path(os.path.relpath(self.path, page.parent)).as_posix()
        return f"![{markdown(self.figure.title)}]({link})\n\n{markdown(self.figure.caption)}"


def update(root: Path) -> list[Path]:
    """Fill the blocks of README.md, docs/*.md and report/*.md; return the pages and figures that changed.

    Raises UsageError when a block is malformed or its folder holds no readable record.
    """
    changed = []
    for page in _pages(root):
        for path, write in _stale(page, root):
            write()
            changed.append(path)
    return changed


def check(root: Path) -> list[str]:
    """Return one line for each page or figure out of step with its records and each block beyond filling."""
    problems = []
    for page in _pages(root):
        try:
            stale = [path.relative_to(root) for path, _ in reversed(_stale(page, root))]
        except UsageError as error:
            problems.append(str(error))
        else:
            problems += [f"{path}: not in step with {_SOURCE}" for path in stale]
    return problems


def require_in_step(root: Path) -> None:
    if problems := check(root):
        raise UsageError("\n".join(problems))


def _pages(root: Path) -> list[Path]:
    folders = (root / "docs", root / "report")
    pages = (root / "README.md", *(page for folder in folders for page in sorted(folder.glob("*.md"))))
    return [page for page in pages if page.is_file()]


def _stale(page: Path, root: Path) -> list[tuple[Path, Callable[[], None]]]:
    """Return the figures of a page, and the page, that are out of step, each with what writes it anew."""
    text = read_data(page).decode()
    filled, figures = fill(text, page, root)
    stale = [(figure.path, figure.write) for figure in figures if not figure.is_in_step()]
    return [*stale, (page, partial(write_text, page, filled))] if filled != text else stale


def fill(text: str, page: Path, root: Path) -> tuple[str, list[_PageFigure]]:
    """Return the text with every block filled anew, and the figures that it shows.

    Raises UsageError with the page and the line.
    """
    lines: list[str] = []
    figures: list[_PageFigure] = []
    inside_since: int | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        begin, ends = _BEGIN.fullmatch(line.strip()), line.strip() == _END
        where = f"{page.relative_to(root)}:{number}"
        if begin and inside_since is not None:
            raise UsageError(f"{where}: a block begins inside another; end the first with {_END}")
        if ends and inside_since is None:
            raise UsageError(f"{where}: a block ends that has not begun; remove the line")
        if begin or ends or inside_since is None:
            lines.append(line)
        if begin:
            content = _content(begin["kind"], begin["folder"], where, root)
            if isinstance(content, _PageFigure):
                figures.append(content)
                content = content.content(page)
            lines += ["", *content.split("\n"), ""]
            inside_since = number
        elif ends:
            inside_since = None
    if inside_since is not None:
        raise UsageError(f"{page.relative_to(root)}:{inside_since}: the block has no end; add {_END}")
    return "\n".join(lines), figures


def _content(kind: str, folder: str, where: str, root: Path) -> str | _PageFigure:
    kinds = (*_KINDS, f"{_FIGURE}NAME", f"{_STUDY}METHOD")
    if kind not in kinds and not kind.startswith((_FIGURE, _STUDY)):
        raise UsageError(f"{where}: unknown block {kind}; choose one of {', '.join(kinds)}")
    source = root / folder
    if not source.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{where}: {folder} leads out of the repository; name a folder inside it")
    try:
        if kind.startswith(_FIGURE):
            return _page_figure(kind.removeprefix(_FIGURE), source, root)
        if kind.startswith(_STUDY):
            return render_study(_records(source), kind.removeprefix(_STUDY))
        return _KINDS[kind](source)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _records(folder: Path) -> Sequence[Record]:
    """Return the records of a folder. Raises UsageError where one cannot be read."""
    loaded = gather([folder])
    if loaded.problems:
        raise UsageError(loaded.problems[0])
    return loaded.records


def _page_figure(name: str, source: Path, root: Path) -> _PageFigure:
    material = read_material([source])
    if material.comparison and material.comparison.problems:
        raise UsageError(material.comparison.problems[0])
    figures = [figure for plan in material.plans for figure in plan_figures(plan)]
    figures += comparison_figures(material.comparison) if material.comparison else ()
    found = {figure.name: figure for figure in figures}
    if name not in found:
        raise UsageError(f"unknown figure {name}; choose one of {', '.join(found)}")
    return _PageFigure(found[name], root / _FIGURES / f"{source.stem}-{name}.svg")


_MOST_NAMES = 12
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS_OF_VALUES = {"array": "list", "object": "table", None: "any"}


def render_keys() -> str:
    """Return a table of the keys at the top of a file, then one of the keys of each of its tables."""
    schema = json_schema()
    parts = {"At the top": schema["properties"]}
    parts |= {f"`[{name}]`": one["properties"] for name, one in schema["$defs"].items()}
    parts["`[gate]`"] = gate = schema["properties"]["gate"]["properties"]
    parts["`[gate.metrics.NAME]`"] = gate["metrics"]["additionalProperties"]["properties"]
    return "\n\n".join("\n".join(_lines_of_keys(title, keys)) for title, keys in parts.items())


def _lines_of_keys(title: str, keys: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n\n| Key | Value | Default | What it says |\n| :--- | :--- | :--- | :--- |"
    for name, key in keys.items():
        default = f"`{json.dumps(key['default'])}`" if "default" in key else ""
        cells = (f"`{name}`", _values(key), default, key.get("description", ""))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _values(key: Mapping[str, Any]) -> str:
    """Say what may stand there, without the list of it that nearly every key takes."""
    kinds = key.get("anyOf", [key])
    single = [one for one in kinds if one.get("type") != "array"] or kinds
    return " or ".join(dict.fromkeys(map(_kind, single)))


def _kind(one: Mapping[str, Any]) -> str:
    if "enum" in one:
        return listed([f"`{json.dumps(name)}`" for name in one["enum"]], _MOST_NAMES)
    if "$ref" in one:
        return f"a table of the keys of `[{one['$ref'].rpartition('/')[2]}]`"
    told = ", ".join(f"{sign} {one[name]:,}" for name, sign in _LIMITS.items() if name in one)
    return f"{_KINDS_OF_VALUES.get(one.get('type'), one.get('type'))} {told}".strip()
