"""The tidy table: one row for each record, one column for each lever, outcome and metric.

Missing is NA, never 0. Statistics over runs are not made here.
"""

import io
import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from bench.errors import UsageError
from bench.io import write_bytes
from bench.metrics import METRICS
from bench.records.derived_metrics import (
    WHEN,
    accuracy,
    evaluated_tasks,
    evaluation,
    headline_evaluation,
    read_metrics,
    throttle_reasons,
)
from bench.records.readings import name_events
from bench.records.records import Record
from bench.scenario.layout import TABLES

STATISTICS = ("mean", "median", "min", "max", "std")
_FAILURE = ("phase", "message", "requested_bytes", "allocated_bytes", "reserved_bytes")


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per record, in the order given.

    Columns: what was run (``cell``, ``run``, every lever as ``training_micro_batch``), how it ended
    (``outcome``, ``failure_message``), every metric of ``bench.metrics`` under its name with its unit, the
    accuracy of each task, which of NVML's readings is meant, caveats, and the environment. A lever that a
    method does not have is NA.
    """
    rows = [_row(record) for record in records]
    columns = dict.fromkeys([*_fixed_columns(), *(name for row in rows for name in row)])
    frame = pd.DataFrame(rows, columns=list(columns)).convert_dtypes()
    for name, metric in METRICS.items():
        whole = metric.exact or metric.unit == "bytes"
        frame[name] = frame[name].astype("Int64" if whole else "Float64")
    return frame


def grouped(frame: pd.DataFrame, by: Sequence[str], stat: str) -> pd.DataFrame:
    """Return one row per group of ok runs: how many there are, and a statistic of each metric that was read.

    ``by`` names columns; ``model`` and ``method`` stand for their names. ``stat`` is one of ``STATISTICS``.
    Raises UsageError for another name, with the nearest ones.
    """
    columns = [{"model": "model_name", "method": "method_name"}.get(name, name) for name in by]
    for name in columns:
        if name not in frame.columns:
            near = get_close_matches(name, [str(known) for known in frame.columns], n=3)
            hint = f"; perhaps you meant {' or '.join(near)}" if near else ""
            raise UsageError(f"--group-by {name}: the table has no such column{hint}")
    if stat not in STATISTICS:
        raise UsageError(f"--stat {stat}: unknown statistic; choose one of {', '.join(STATISTICS)}")
    good = frame[frame["outcome"] == "ok"]
    metrics = [name for name in METRICS if name not in columns and good[name].notna().any()]
    groups = good.groupby(columns, dropna=False, sort=False)
    values = groups[metrics].agg(stat).astype("Float64")
    return groups.size().rename("runs_ok").to_frame().join(values).reset_index()


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with texts that a terminal or a spreadsheet only shows.

    Control and bidirectional characters become question marks; a text that a spreadsheet would take for a
    formula gets the apostrophe that keeps it a text (OWASP, "CSV Injection").
    """

    def shown(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = "".join(letter if letter.isprintable() else "?" for letter in value)
        return f"'{text}" if text.lstrip()[:1] in {"=", "+", "-", "@"} else text

    texts = frame.select_dtypes(exclude="number").columns
    return frame.assign(**{name: frame[name].map(shown) for name in texts})


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV, Parquet, LaTeX (booktabs) or an Excel workbook, by the file's ending.

    Raises UsageError for another ending or a missing extra, InfrastructureError where it cannot be written.
    """
    content = io.BytesIO()
    writers: dict[str, Callable[[], object]] = {
        ".csv": lambda: inert(frame).to_csv(content, index=False),
        ".parquet": lambda: frame.to_parquet(content, index=False),
        ".tex": lambda: content.write(_latex(inert(frame)).encode()),
        ".xlsx": lambda: inert(frame).to_excel(content, index=False),
    }
    if path.suffix not in writers:
        raise UsageError(f"{path}: a table is written as {', '.join(writers)}; choose one of these endings")
    try:
        writers[path.suffix]()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path}: needs {error.name}, which is not installed; run: pip install 'finetune-bench[xlsx]'"
        ) from None
    write_bytes(path, content.getvalue())


def _latex(frame: pd.DataFrame) -> str:
    """Return a booktabs tabular without the columns in which nothing was read; text is escaped."""
    shown = frame.dropna(axis="columns", how="all")
    style = shown.style.hide(axis="index").format(escape="latex", na_rep="", precision=3, thousands=",")
    return str(style.format_index(escape="latex", axis="columns").to_latex(hrules=True))


def _fixed_columns() -> list[str]:
    """Return the columns that are there whatever the records hold, in reading order."""
    levers = [
        f"{group}_{name}" for group, types in TABLES.items() for kind in types for name in kind.model_fields
    ]
    return [
        *("cell", "scenario", "key", "run", "outcome", "failure_phase", "failure_message", "device"),
        *(f"failure_{name}" for name in _FAILURE[2:]),
        *METRICS,
        *("nvml_isolation", "throttled"),
        *("accuracy_task", "accuracy_items", "parameters_total", "total_time_ns", "caveats", "started_at"),
        *levers,
    ]


def _row(record: Record) -> dict[str, Any]:
    """Return the columns of one record; with several tasks there are columns for each."""
    cell, measurement, tasks = record.cell, record.measurement, evaluated_tasks(record)
    headline = headline_evaluation(record, "after") or headline_evaluation(record, "before")
    groups = {group: getattr(cell, group).model_dump(mode="json") for group in TABLES}
    groups |= msgspec.to_builtins(record.environment)
    return {
        "cell": cell.id,
        "scenario": cell.scenario,
        "key": record.key,
        "run": record.run,
        "outcome": record.outcome,
        "device": cell.device,
        **{f"failure_{name}": getattr(record.failure, name, None) for name in _FAILURE},
        **read_metrics(record),
        "nvml_isolation": getattr(measurement.gpu, "isolation", None),
        "throttled": ", ".join(name_events(throttle_reasons(record))) or None,
        "accuracy_task": headline and headline.task,
        "accuracy_items": headline and len(headline.items),
        **{
            f"accuracy_{when}_{task}": accuracy(evaluation(record, task, when))
            for task in tasks
            for when in WHEN
            if len(tasks) > 1
        },
        "parameters_total": getattr(measurement.model, "parameters_total", None),
        "total_time_ns": record.total_ns,
        "caveats": "; ".join(caveat.code for caveat in measurement.caveats) or None,
        "started_at": record.started_at,
        **{f"{group}_{name}": _scalar(value) for group in groups for name, value in groups[group].items()},
    }


def _scalar(value: Any) -> Any:
    """Return a list or a table as its JSON text, an empty one as NA."""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True) if value else None
    return value
