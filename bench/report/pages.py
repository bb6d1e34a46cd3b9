"""A comparison as a Markdown page, as a block of one, and as a table in the terminal; no arithmetic."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.errors import listed
from bench.metrics import METRICS
from bench.report.columns import TerminalTable, narrow_table, page_table, told_once
from bench.report.comparison_columns import comparison_columns, group_title, memory_unit
from bench.report.details import ending_table, how_read, section_tables
from bench.report.highlights import one_environment, opening, sentences, trained_with
from bench.report.text import NOT_APPLICABLE, NOT_MEASURED, Sentence, Table, grouped, plain, render_page

if TYPE_CHECKING:
    import pandas as pd

_MOST_NAMES = 8
_MOST_GROUPS = 4  # with their highlights; of more the tables alone are shown


def render_markdown(comparison: Comparison) -> str:
    return _page(comparison, "title", "opening", "methods", "details") + "\n"


def render_summary(comparison: Comparison) -> str:
    """Return the sentences, the comparison tables, what did not end ok and the caveats, without a title."""
    return _page(comparison, "opening", "methods")


def render_methods(comparison: Comparison) -> str:
    """Return the comparison tables, what did not end ok and the caveats, without the highlights."""
    return _page(comparison, "methods")


def render_details(comparison: Comparison) -> str:
    """Return everything below the summary: causes, categories, speed, accuracy, loss, times, environment."""
    return _page(comparison, "details")


def _page(comparison: Comparison, *parts: str) -> str:
    def name(row: Measured) -> str:
        """Name a row by its method where that is enough, else by its cell; and by its environment."""
        text = row.method if len(comparison.groups) == 1 else row.id
        return text if len(comparison.environments) == 1 else f"{text} ({row.environment})"

    def groups() -> Iterator[tuple[str, Sequence[Sentence], Table]]:
        unit = memory_unit(comparison.rows)
        for one in comparison.groups:
            few = len(comparison.groups) <= _MOST_GROUPS
            told = sentences(one, unit) if few else (trained_with(one),)
            table = page_table(comparison_columns(one.rows, unit), one.rows)
            yield group_title(one.rows, comparison), told, table

    return render_page(
        "comparison.md.j2",
        parts=parts,
        comparison=comparison,
        opening=opening(comparison),
        most_groups=_MOST_GROUPS,
        groups=groups,
        endings=ending_table(comparison.rows),
        caveats=list(_caveats(comparison)),
        sections=lambda: section_tables(comparison, name),
        alike=one_environment(comparison),
        how_read=lambda: how_read(comparison.rows),
    )


_TEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\N{MINUS SIGN}": "$-$",
        "→": r"$\to$",
        "±": r"$\pm$",
        "\N{EN DASH}": "--",
    }
)


def render_latex(comparison: Comparison) -> str:
    """Return each group's table for booktabs; what it compares, what its rows share and caveats are comments.

    Titles stand in lines, with what the cells below end with, such as a unit. Text is escaped. Columns in
    which nothing was measured are left out, and savings stand in brackets.
    """
    unit, parts = memory_unit(comparison.rows), []
    for one in comparison.groups:
        table = told_once(page_table(comparison_columns(one.rows, unit), one.rows))
        columns = _united(zip(table.header, *table.rows, strict=True))
        _, *rows = zip(*columns, strict=True)
        places = "l" * table.left + "r" * (len(columns) - table.left)
        shared = (f"{title}: {value}" for title, value in table.constants if value not in _ABSENT)
        lines = [
            *(f"% {plain(text)}" for text in (group_title(one.rows, comparison), *shared)),
            r"{\small\setlength{\tabcolsep}{4pt}%",
            rf"\begin{{tabular}}{{@{{}}{places}@{{}}}}",
            r"\toprule",
            _tex_line(map(_stacked, columns, places)),
            r"\midrule",
            *(_tex_line(map(_tex, row)) for row in rows),
            *(r"\bottomrule", r"\end{tabular}}"),
        ]
        parts.append("\n".join(lines) + "\n")
    caveats = [f"% Caveat: {plain(message)} ({cells})\n" for message, cells in _caveats(comparison)]
    return "".join(caveats) + "\n".join(parts)


_ABSENT = {NOT_MEASURED, NOT_APPLICABLE}
_END = re.compile(r" (%|[KMG]iB|\((?:\d+ seeds, )?n = [\d,]+\)|over \d+ seeds[^()]*\))$")
_TITLE_LETTERS = 12  # of a line of a LaTeX table's title, at least


def _united(columns: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return columns whose titles have what all cells end with, and savings behind what they are of."""
    found: list[list[str]] = []
    for title, *cells in columns:
        ends = {ending[1] if (ending := _END.search(text)) else "" for text in cells if text not in _ABSENT}
        if title == "Saving" and ends:
            pairs = zip(found[-1][1:], cells, strict=True)
            joined = (size if saved in _ABSENT else f"{size} ({saved})" for size, saved in pairs)
            found[-1] = [f"{found[-1][0]} (saving)", *joined]
        elif len(ends) == 1 and (end := ends.pop()):
            unit = f" {end}" if end.startswith("(") else f", {end.removesuffix(')')}"
            bracket = ")" if end.startswith("over") else ""  # of an interval, which stays
            short = (text if text in _ABSENT else text.removesuffix(f" {end}") + bracket for text in cells)
            found.append([title + unit, *short])
        elif {*cells} - _ABSENT:
            found.append([title, *cells])
    return found


def _tex(text: str) -> str:
    return plain(text).translate(_TEX)


def _stacked(column: Sequence[str], place: str) -> str:
    """Return a title in lines no longer than what is below; what = or → joins stays together."""
    title, width = column[0], max(_TITLE_LETTERS, *map(len, column[1:]))
    whole = re.sub(" ([=→]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", title)
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    if not lines[1:]:
        return _tex(title)
    return rf"\begin{{tabular}}[b]{{@{{}}{place}@{{}}}}" + r" \\ ".join(map(_tex, lines)) + r"\end{tabular}"


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def render_terminal(comparison: Comparison) -> Group:
    unit = memory_unit(comparison.rows)
    parts: list[RenderableType] = []
    for one in comparison.groups:
        content = narrow_table(comparison_columns(one.rows, unit), one.rows)
        parts.append(TerminalTable(content, group_title(one.rows, comparison)))
    ended = grouped(
        ((run.outcome, failure.message), f"{run.cell.id}, run {run.run}")
        for row in comparison.rows
        for run, failure in row.endings
    )
    lines = [
        f"{outcome}: {message} ({listed(runs, _MOST_NAMES)})" for (outcome, message), runs in ended.items()
    ]
    lines += [f"- {message} ({cells})" for message, cells in _caveats(comparison)]
    return Group(*parts, *(Text(plain(line)) for line in lines))


def _caveats(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each caveat once, with the cells it holds for."""
    for message, rows in comparison.caveats.items():
        everywhere = message in comparison.caveats_of_all
        cells = [*dict.fromkeys(row.id for row in rows.values())]
        yield message, "all measured cells" if everywhere else listed(cells, _MOST_NAMES)


# As many as a terminal of 80 columns holds; a file has all of them.
_HEADLINES = ("ledger_peak_bytes", "cuda_allocated_peak_bytes", "tokens_per_second", "accuracy_after")


def render_frame(frame: "pd.DataFrame") -> Group:
    """Return one line per run or group; below it, how many columns a file would hold besides."""
    metrics = [name for name in _HEADLINES if name in frame and frame[name].notna().any()]
    names = ["cell", "run", "outcome"] if "cell" in frame else [one for one in frame if one not in METRICS]
    shown = [*names, *metrics]
    table = RichTable(box=box.SIMPLE)
    for name in shown:
        number = name in METRICS or name in {"run", "runs_ok"}
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in frame[shown].itertuples(index=False, name=None):
        table.add_row(*(Text(_cell(value)) for value in line))
    rest = len(frame.columns) - len(shown)
    return Group(table, Text(f"{rest} more columns in a file: bench table … -o FILE.csv"))


def _cell(value: Any) -> str:
    """Write one value; whole numbers with thousands separated."""
    import pandas as pd

    if value is pd.NA or value is None:
        return NOT_MEASURED
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, Integral) else plain(str(value))
