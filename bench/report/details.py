"""What stands below a comparison: its tables in tables.toml, and how each number was measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import get_args

from bench.compare.accuracy import Accuracy, AccuracyDifference
from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.compare.readings import GpuSeen
from bench.metrics import INSTRUMENT_NAMES
from bench.records.derived_metrics import LEAST_ENERGY_TIME_NS
from bench.records.readings import Category
from bench.records.records import NS_PER_SECOND
from bench.report.comparison_columns import after, memory_unit, saving
from bench.report.highlights import interval
from bench.report.predicted.fit import WHAT_SET_IT
from bench.report.tables import Line, described, described_table, if_known
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    SMALL_MEBIBYTES,
    MemoryUnit,
    Table,
    p_value,
    points,
    render_page,
    share,
    significant,
    words,
)
from bench.stats.trend import SIGNIFICANCE, SMALLEST_DRIFT_SHARE, Trend

_Name = Callable[[Measured], str]
_ISOLATIONS = {
    "process": "of the process",
    "device_delta": "of the device, less what was on it before",
    "unavailable": "none",
}


def section_tables(comparison: Comparison, name: _Name) -> Iterator[tuple[str, Table]]:
    """Yield title and table of each section that has something to show; ``name`` says which row is which."""
    writers = {**_WRITERS, **_sizes(memory_unit(comparison.rows)), "cell": name}
    for title, section in described().items():
        rows = [row for row in comparison.rows if not section.device or row.device == section.device]
        lines = [Line(row, one) for row in rows for one in _read(row, section.of)] if section.of else []
        if lines:
            more = () if section.columns[1:] else _category_columns(rows)
            yield title, described_table(title, lines, writers, more=more)


def _read(row: Measured, path: str) -> Sequence[object]:
    """Return what a row has there: nothing, one thing, or several as a tuple."""
    name, _, inner = path.partition(".")
    found: object = getattr(row, name)
    found = getattr(found, inner) if found and inner else found
    return found if isinstance(found, tuple) else () if found is None else (found,)


def _category_columns(rows: Sequence[Measured]) -> list[tuple[str, str]]:
    sizes = [row.cause.categories_at_peak_bytes for row in rows if row.cause]
    present = [one for one in get_args(Category) if any(each.get(one) for each in sizes)]
    return [(words(one), f"{{one.categories_at_peak_bytes:{one}}}") for one in present]


def _sizes(unit: MemoryUnit) -> dict[str, Callable[..., str]]:
    def size_of(category: Category, sizes: Mapping[Category, int]) -> str:
        return unit.show(sizes.get(category, 0))

    return {
        **{name: partial(size_of, name) for name in get_args(Category)},
        "memory": unit.show,
        "predicted": lambda one: unit.span(one.low_bytes, one.high_bytes),
        "over_runs": lambda line: _over_runs(line, unit),
    }


def _over_runs(line: Line, unit: MemoryUnit) -> str:
    low, high = unit.show(line.one.low_bytes), unit.show(line.one.high_bytes)
    return f"{low} to {high}" if line.row.runs_ok > 1 else "one run"


def _adapter_file(line: Line) -> str:
    full = line.row.kind == "full"
    return NOT_APPLICABLE if full else SMALL_MEBIBYTES.show(line.one.adapter_file_bytes)


def _clocks(gpu: GpuSeen) -> str:
    low_mhz, high_mhz = gpu.sm_clock_min_mhz, gpu.sm_clock_max_mhz
    if low_mhz is None or high_mhz is None:
        return NOT_MEASURED
    return f"{high_mhz:,} MHz" if low_mhz == high_mhz else f"{low_mhz:,} to {high_mhz:,} MHz"


def _trend(trend: Trend) -> str:
    if trend.drift_share is None or trend.p_value is None:
        return trend.verdict
    return f"{trend.verdict} (drift {share(trend.drift_share)}, {p_value(trend.p_value)})"


def _after(result: Accuracy) -> str:
    error = result.after_error if len(result.seeds) > 1 else None
    return after(result, "" if error is None else f"± {error * 100:.1f} over items")


def _change(result: Accuracy) -> str:
    one = result.change
    if one is None or len(one.seeds) == 1:
        return _paired(one)
    spread = interval(one.difference.low, one.difference.high).removesuffix(" %")
    return points(one.share) if one.p_value is None else f"{points(one.share)} ({spread})"


def _against_full(line: Line) -> str:
    if line.row.kind == "full":
        return NOT_APPLICABLE
    full = line.row.against_full
    return _paired(full.accuracy(line.one.task) if full else None)


def _paired(one: AccuracyDifference | None) -> str:
    if one is None:
        return NOT_MEASURED
    p = "the same in all seeds" if one.p_value is None else p_value(one.p_value)
    return f"{points(one.share)} ({one.gained}, {one.lost}), {p}"


_WRITERS: Mapping[str, Callable[..., str]] = {
    "accuracy_after": _after,
    "accuracy_change": _change,
    "adapter_file": _adapter_file,
    "against_full": _against_full,
    "celsius": if_known("{} °C".format),
    "clocks": _clocks,
    "isolation": lambda one: _ISOLATIONS[one[0]],
    "isolation_reason": lambda one: one[1],
    "mJ": if_known(lambda value: f"{significant(value)} mJ"),
    "milliseconds": lambda time_ns: f"{time_ns / 1e6:,.0f} ms" if time_ns else NOT_MEASURED,
    "mW": if_known(lambda value: f"{significant(value / 1000)} W"),
    "or_default": lambda name: name or "by default",
    "plus_minus": lambda error: "" if error is None else f" ± {error * 100:.1f}",
    "saving": lambda line: saving(line.row, line.one.instrument),
    "switch": if_known(lambda value: "on" if value else "off"),
    "trend": _trend,
    "verdict": lambda within: "as before, within tolerance" if within else "changed",
    "source": lambda model: ", ".join(filter(None, (model.source, model.weights_note))),
}


def ending_table(rows: Sequence[Measured]) -> Table:
    endings = [Line(*ending) for row in rows for ending in row.endings]
    writers = {"phase": lambda name: words(name) if name else NOT_APPLICABLE}
    return described_table("endings", endings, writers)


def how_read(rows: Sequence[Measured]) -> list[str]:
    """Return one line of Markdown for each kind of number that the rows hold: how it was measured."""
    text = render_page(
        "methodology.md.j2",
        names=INSTRUMENT_NAMES,
        peaks={peak.instrument for row in rows for peak in row.peaks},
        several_seeds=any(len(row.seeds) > 1 for row in rows),
        has=lambda name: any(getattr(row, name) for row in rows),
        what_set_it=WHAT_SET_IT,
        energy_time=f"{LEAST_ENERGY_TIME_NS / NS_PER_SECOND:g} s",
        significance=SIGNIFICANCE,
        smallest_drift=share(SMALLEST_DRIFT_SHARE, 0),
    )
    return [" ".join(line.split()) for line in text.split("\n\n")]
