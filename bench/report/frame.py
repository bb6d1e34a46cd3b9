"""The tidy table on a terminal: what names a run, how it ended, and the headline metrics that were read."""

from numbers import Integral
from typing import TYPE_CHECKING, Any

from bench.metrics import METRICS
from bench.report.text import NOT_MEASURED, plain

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

# As many as a terminal of 80 columns holds; a file has all of them.
_HEADLINES = ("ledger_peak_bytes", "cuda_allocated_peak_bytes", "tokens_per_second", "accuracy_after")


def render_frame(frame: "pd.DataFrame") -> "Group":
    """Return one line per run; below it, how many columns a file would hold besides."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    metrics = [name for name in _HEADLINES if frame[name].notna().any()]
    shown = ["cell", "run", "outcome", *metrics]
    table = Table(box=box.SIMPLE)
    for name in shown:
        number = name in METRICS or name == "run"
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in frame[shown].itertuples(index=False, name=None):
        table.add_row(*(Text(_cell(value)) for value in line))
    rest = len(frame.columns) - len(shown)
    return Group(table, Text(f"{rest} more columns in a file: bench table … -o FILE.csv or FILE.parquet"))


def _cell(value: Any) -> str:
    """Write one value; whole numbers with thousands separated."""
    import pandas as pd

    if value is pd.NA or value is None:
        return NOT_MEASURED
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, Integral) else plain(str(value))
