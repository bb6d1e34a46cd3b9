"""A comparison as a Markdown page, as a block of one, and as a table in the terminal; no arithmetic."""

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.metrics import METRICS
from bench.report import details
from bench.report.columns import narrow_table, page_table
from bench.report.comparison_columns import comparison_columns, group_title, memory_unit
from bench.report.details import gpu_table, isolation_table, torch_table
from bench.report.highlights import one_environment, opening, sentences, trained_with
from bench.report.methodology import how_read
from bench.report.text import NOT_MEASURED, Table, bullets, markdown, markdown_table, plain, terminal_table

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group, RenderableType

    from bench.records.readings import Caveat

_MOST_NAMES = 8
_MOST_GROUPS = 4  # with their highlights; of more the tables alone are shown


def render_markdown(comparison: Comparison) -> str:
    """Return the whole page as GitHub-flavoured Markdown."""
    title = markdown(", ".join(comparison.scenarios))
    parts = [f"# {title}: methods compared", render_summary(comparison), *_details(comparison)]
    return "\n\n".join(parts) + "\n"


def render_summary(comparison: Comparison) -> str:
    """Return the sentences, the comparison tables, what did not end ok and the caveats, without a title."""
    unit = memory_unit(comparison.rows)
    found = comparison.groups
    parts = [markdown(opening(comparison))]
    if len(found) > _MOST_GROUPS:
        parts.append(f"The {len(found)} combinations of model, window and machine have a table each.")
    if comparison.problems:
        listed = bullets(markdown(problem) for problem in comparison.problems)
        parts.append(f"**Not everything could be read, and what follows leaves it out:**\n\n{listed}")
    for one in found:
        parts.append(f"**{markdown(group_title(one.rows, comparison))}**")
        shown = sentences(one, unit) if len(found) <= _MOST_GROUPS else [trained_with(one)]
        parts.append(bullets(f"{markdown(each.about)}: {markdown(each.text)}" for each in shown))
        parts.append(markdown_table(page_table(comparison_columns(one.rows, unit), one.rows)))
    return "\n\n".join([*parts, *_reservations(comparison)])


def render_methods(comparison: Comparison) -> str:
    """Return the comparison tables, what did not end ok and the caveats, without the highlights."""
    unit = memory_unit(comparison.rows)
    parts = []
    for one in comparison.groups:
        table = markdown_table(page_table(comparison_columns(one.rows, unit), one.rows))
        parts.append(f"**{markdown(group_title(one.rows, comparison))}**\n\n{table}")
    return "\n\n".join([*parts, *_reservations(comparison)])


def _reservations(comparison: Comparison) -> Iterator[str]:
    endings = details.ending_table(comparison.rows)
    if endings.rows:
        yield f"Runs that did not end ok:\n\n{markdown_table(endings)}"
    caveats = list(_caveats(comparison.rows))
    if caveats:
        yield "Caveats:\n\n" + bullets(caveats)


def render_details(comparison: Comparison) -> str:
    """Return everything below the summary: causes, categories, speed, accuracy, loss, times, environment."""
    return "\n\n".join(_details(comparison))


def render_terminal(comparison: Comparison) -> "Group":
    """Return the comparison tables and the caveats for a rich console."""
    from rich.console import Group
    from rich.text import Text

    unit = memory_unit(comparison.rows)
    parts: list[RenderableType] = []
    for one in comparison.groups:
        content = narrow_table(comparison_columns(one.rows, unit), one.rows)
        parts.append(terminal_table(content, group_title(one.rows, comparison)))
    for cell, run, outcome, _, why in details.ending_table(comparison.rows).rows:
        parts.append(Text(plain(f"{cell}, run {run}, {outcome}: {why}")))
    parts.extend(Text(plain(f"- {message} ({cells})")) for message, cells in _gathered(comparison.rows))
    return Group(*parts)


def section_tables(comparison: Comparison, name: Callable[[Measured], str]) -> Iterator[tuple[str, Table]]:
    """Yield title and table of each section that has something to show; ``name`` says which row is which."""
    rows, unit = comparison.rows, memory_unit(comparison.rows)
    sections = (
        ("What was trained", details.model_table(rows, name)),
        ("What set each peak of live tensors", details.cause_table(rows, name)),
        ("Live tensors at the peak, by category", details.category_table(rows, name, unit)),
        ("Peak memory by each instrument", details.memory_table(rows, name, unit)),
        ("What NVML's peak is of", isolation_table(rows, name)),
        ("The GPU during the measured steps", gpu_table(rows, name, unit)),
        ("Peak memory, predicted and read", details.predicted_table(rows, name, unit)),
        ("Speed", details.speed_table(rows, name)),
        ("How torch was set", torch_table(rows, name)),
        ("Accuracy", details.accuracy_table(rows, name)),
        ("Training loss", details.loss_table(rows, name)),
        ("Merging the adapter into the base", details.merge_table(rows, name)),
        ("Where the wall time went", details.time_table(rows, name)),
    )
    yield from ((title, table) for title, table in sections if table.rows)


def _details(comparison: Comparison) -> Iterator[str]:
    """Yield each section that has something to show."""
    rows = comparison.rows
    for title, table in section_tables(comparison, _namer(comparison)):
        yield f"## {title}\n\n{markdown_table(table)}"
    yield "## Test environment\n\n" + _places(comparison)
    yield "## Methodology\n\n" + bullets(how_read(rows))


def _namer(comparison: Comparison) -> Callable[[Measured], str]:
    """Name a row by its method where that is enough, else by its cell, and by its environment if several."""
    one_group, one_place = len(comparison.groups) == 1, len(comparison.environments) == 1

    def name(row: Measured) -> str:
        text = row.method if one_group else row.id
        return text if one_place else f"{text} ({row.environment})"

    return name


def _caveats(rows: Sequence[Measured]) -> Iterator[str]:
    """Yield each caveat with the cells it holds for, escaped."""
    for message, cells in _gathered(rows):
        yield f"{markdown(message)} ({markdown(cells)})"


def _gathered(rows: Sequence[Measured]) -> Iterator[tuple[str, str]]:
    """Yield each caveat's message once, with the cells it holds for."""
    found: dict[Caveat, list[str]] = {}
    for row in rows:
        for caveat in row.caveats:
            found.setdefault(caveat, []).append(row.id)
    measured = [row.id for row in rows if row.outcome == "ok"]
    for caveat, cells in found.items():
        everywhere = len(measured) > 1 and cells == measured
        listed = ", ".join(cells[:_MOST_NAMES])
        if len(cells) > _MOST_NAMES:
            listed += f" and {len(cells) - _MOST_NAMES} more"
        yield caveat.message, "all measured cells" if everywhere else listed


def _places(comparison: Comparison) -> str:
    """Return each environment's facts, and first what differs between them."""
    parts = [f"Records: {comparison.records}, the first begun at {markdown(comparison.first_started_at)}."]
    told = one_environment(comparison)
    if told:
        parts.append(markdown(told))
    elif comparison.differences:
        listed = bullets(markdown(line) for line in comparison.differences)
        parts.append(f"**The records are from different environments.** They differ in:\n\n{listed}")
    for where in comparison.environments:
        facts = Table(header=("Fact", f"Environment {where.label}"), rows=tuple(where.facts.items()), left=2)
        parts.append(markdown_table(facts))
    return "\n\n".join(parts)


# As many as a terminal of 80 columns holds; a file has all of them.
_HEADLINES = ("ledger_peak_bytes", "cuda_allocated_peak_bytes", "tokens_per_second", "accuracy_after")


def render_frame(frame: "pd.DataFrame") -> "Group":
    """Return one line per run or group; below it, how many columns a file would hold besides."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    metrics = [name for name in _HEADLINES if name in frame and frame[name].notna().any()]
    names = ["cell", "run", "outcome"] if "cell" in frame else [one for one in frame if one not in METRICS]
    shown = [*names, *metrics]
    table = Table(box=box.SIMPLE)
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
