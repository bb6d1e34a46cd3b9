"""What stands below a comparison: the tables of details.toml, and how each number was measured."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import repeat
from operator import attrgetter
from typing import Any, NamedTuple, get_args

from pydantic import TypeAdapter

from bench.compare.accuracy import Accuracy, AccuracyDifference
from bench.compare.comparison import Comparison
from bench.compare.measured import Measured
from bench.compare.readings import GpuSeen
from bench.metrics import INSTRUMENT_NAMES
from bench.records.derived_metrics import LEAST_ENERGY_TIME_NS
from bench.records.readings import Category, Stored
from bench.records.records import NS_PER_SECOND
from bench.report.comparison_columns import after, memory_unit, saving
from bench.report.fit import WHAT_SET_IT
from bench.report.highlights import interval, points
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    SMALL_MEBIBYTES,
    MemoryUnit,
    Table,
    load_toml,
    operations,
    operator,
    p_value,
    render_page,
    seconds,
    share,
    significant,
    small_share,
    table_of,
    words,
)
from bench.stats.trend import SIGNIFICANCE, SMALLEST_DRIFT_SHARE, Trend

_Name = Callable[[Measured], str]
_ISOLATIONS = {
    "process": "of the process",
    "device_delta": "of the device, less what was on it before",
    "unavailable": "none",
}


class _Section(Stored):
    """A table as details.toml describes it."""

    title: str
    of: str
    device: str = ""
    left: int = 1
    columns: tuple[tuple[str, str], ...]


@cache
def _sections() -> tuple[_Section, ...]:
    return TypeAdapter(tuple[_Section, ...]).validate_python(load_toml("details.toml")["table"])


class _Line(NamedTuple):
    """What a line shows: ``one`` thing that was read of a row."""

    row: Measured
    one: Any

    @property
    def both(self) -> "_Line":
        """The line itself, for what is written of both."""
        return self


def section_tables(comparison: Comparison, name: _Name) -> Iterator[tuple[str, Table]]:
    """Yield title and table of each section that has something to show; ``name`` says which row is which."""
    writers = {**_WRITERS, **_sizes(memory_unit(comparison.rows))}
    for section in _sections():
        rows = [row for row in comparison.rows if not section.device or row.device == section.device]
        lines = [_Line(row, one) for row in rows for one in _read(row, section.of)]
        columns = section.columns or _category_columns(rows)
        cells = [[name(line.row) for line in lines], *(_column(text, lines, writers) for _, text in columns)]
        if lines:
            header = ("Cell", *(title for title, _ in columns))
            yield section.title, Table(header=header, rows=tuple(zip(*cells, strict=True)), left=section.left)


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


def _column(text: str, lines: list[_Line], writers: Mapping[str, Callable[..., str]]) -> Iterable[str]:
    """Return what a column shows of each line: what stands in braces is read of it and written."""
    before, *found = re.split(r"\{([^:}]*):?([^}]*)\}", text)
    pieces: list[Iterable[str]] = [repeat(before)]
    for field, how, behind in zip(found[::3], found[1::3], found[2::3], strict=True):
        write = writers.get(how, f"{{:{how}}}".format)
        pieces += [map(write, map(attrgetter(field), lines)), repeat(behind)]
    return map("".join, zip(*pieces, strict=False))


def _sizes(unit: MemoryUnit) -> dict[str, Callable[..., str]]:
    return {
        **{name: _size_of(name, unit) for name in get_args(Category)},
        "memory": unit.show,
        "predicted": lambda one: unit.span(one.low_bytes, one.high_bytes),
        "over_runs": lambda line: _over_runs(line, unit),
    }


def _size_of(category: Category, unit: MemoryUnit) -> Callable[[Mapping[Category, int]], str]:
    return lambda sizes: unit.show(sizes.get(category, 0))


def _over_runs(line: _Line, unit: MemoryUnit) -> str:
    low, high = unit.show(line.one.low_bytes), unit.show(line.one.high_bytes)
    return f"{low} to {high}" if line.row.runs_ok > 1 else "one run"


def _adapter_file(line: _Line) -> str:
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


def _against_full(line: _Line) -> str:
    if line.row.kind == "full":
        return NOT_APPLICABLE
    full = line.row.against_full
    return _paired(full.accuracy(line.one.task) if full else None)


def _paired(one: AccuracyDifference | None) -> str:
    if one is None:
        return NOT_MEASURED
    p = "the same in all seeds" if one.p_value is None else p_value(one.p_value)
    return f"{points(one.share)} ({one.gained}, {one.lost}), {p}"


def _if_known(write: Callable[..., str]) -> Callable[..., str]:
    return lambda value: NOT_MEASURED if value is None else write(value)


_WRITERS: Mapping[str, Callable[..., str]] = {
    "accuracy_after": _after,
    "accuracy_change": _change,
    "adapter_file": _adapter_file,
    "against_full": _against_full,
    "celsius": _if_known("{} °C".format),
    "clocks": _clocks,
    "fine_share": lambda value: share(value, 2),
    "instrument": lambda name: INSTRUMENT_NAMES[name],
    "isolation": lambda one: _ISOLATIONS[one[0]],
    "isolation_reason": lambda one: one[1],
    "names": lambda names: ", ".join(names) or NOT_APPLICABLE,
    "known": _if_known(str),
    "mJ": _if_known(lambda value: f"{significant(value)} mJ"),
    "milliseconds": lambda time_ns: f"{time_ns / 1e6:,.0f} ms" if time_ns else NOT_MEASURED,
    "mW": _if_known(lambda value: f"{significant(value / 1000)} W"),
    "module": lambda name: name or "outside any module",
    "operations": operations,
    "operator": operator,
    "or_default": lambda name: name or "by default",
    "plus_minus": lambda error: "" if error is None else f" ± {error * 100:.1f}",
    "saving": lambda line: saving(line.row, line.one.instrument),
    "seconds": seconds,
    "share": share,
    "significant": significant,
    "small_share": small_share,
    "switch": _if_known(lambda value: "on" if value else "off"),
    "trend": _trend,
    "verdict": lambda within: "as before, within tolerance" if within else "changed",
    "source": lambda model: ", ".join(filter(None, (model.source, model.weights_note))),
    "whole_share": lambda value: share(value, 0),
    "words": words,
}


def ending_table(rows: Sequence[Measured]) -> Table:
    return table_of(
        [ending for row in rows for ending in row.endings],
        ("Cell", lambda ending: ending[0].cell.id),
        ("Run", lambda ending: str(ending[0].run)),
        ("Outcome", lambda ending: ending[0].outcome),
        ("Phase", lambda ending: words(ending[1].phase) if ending[1].phase else NOT_APPLICABLE),
        ("Why", lambda ending: ending[1].message),
        left=5,
    )


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
