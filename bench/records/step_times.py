"""Step times in the JSON format of pytest-benchmark 5, so that its tools read our results and we read theirs.

It knows one timing for each benchmark and nothing of memory or accuracy: those go along as ``extra_info``.
"""

import json
import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from bench.records.records import Environment
from bench.records.run_summary import RunSummary, conditions_of

NS_PER_SECOND = 1_000_000_000
FORMAT_VERSION = "5.1.0"
"""Of pytest-benchmark, whose files carry it."""

_Seconds = Annotated[float, Meta(gt=0)]


class _Stats(Struct):
    median: _Seconds
    data: tuple[_Seconds, ...] = ()


class _Benchmark(Struct):
    fullname: Annotated[str, Meta(min_length=1)]
    stats: _Stats


class _Cpu(Struct):
    brand_raw: str | None = None
    count: int | None = None


class _Machine(Struct):
    system: str | None = None
    machine: str | None = None
    python_version: str | None = None
    cpu: _Cpu = msgspec.field(default_factory=_Cpu)


class _Commit(Struct):
    id: str | None = None
    dirty: bool | None = None


class _Document(Struct):
    benchmarks: tuple[_Benchmark, ...]
    machine_info: _Machine
    datetime: str
    commit_info: _Commit = msgspec.field(default_factory=_Commit)


_DECODER = msgspec.json.Decoder(_Document)


def read_step_times(content: bytes) -> tuple[RunSummary, ...] | None:
    """Return each benchmark of a pytest-benchmark file as one run; None where the content is no such file.

    A file is what one process measured, so it is one run, however many rounds it has. Without
    ``--benchmark-save-data`` the run is the median alone.
    """
    try:
        document = _DECODER.decode(content)
    except msgspec.DecodeError:
        return None
    machine, commit = document.machine_info, document.commit_info
    environment = Environment(
        machine={
            "system": machine.system,
            "architecture": machine.machine,
            "cpu_model": machine.cpu.brand_raw,
            "cpu_cores": machine.cpu.count,
        },
        versions={"python": machine.python_version} if machine.python_version else {},
        git={"commit": commit.id, "dirty": commit.dirty},
        threads={},
    )
    return tuple(_run(benchmark, document.datetime, environment) for benchmark in document.benchmarks)


def _run(benchmark: _Benchmark, started_at: str, environment: Environment) -> RunSummary:
    rounds = benchmark.stats.data or (benchmark.stats.median,)
    times_ns = tuple(seconds * NS_PER_SECOND for seconds in rounds)
    return RunSummary(
        cell_id=benchmark.fullname,
        cell=None,
        inputs_digest=None,
        key=f"pytest-benchmark {started_at}",
        run=1,
        outcome="ok",
        started_at=started_at,
        environment=environment,
        conditions=conditions_of(environment),
        instruments=(),
        values={"step_time_ns": statistics.median(times_ns)},
        samples={"step_time_ns": times_ns},
        answers=(),
    )


def step_times_json(runs: Sequence[RunSummary]) -> str:
    """Return the measured steps as a pytest-benchmark file: a benchmark for each cell, a round for each step.

    The steps of all runs of a cell that ended ok stand in one benchmark, in seconds. The host's name is left
    out.
    """
    cells: dict[str, list[RunSummary]] = {}
    for run in runs:
        if run.outcome == "ok" and run.samples.get("step_time_ns"):
            cells.setdefault(run.cell_id, []).append(run)
    first = runs[0].environment
    document = {
        "machine_info": {
            "node": "",
            "processor": "",
            "machine": first.machine.get("architecture") or "",
            "python_implementation": "CPython",
            "python_version": first.versions.get("python", ""),
            "release": first.machine.get("kernel") or "",
            "system": first.machine.get("system") or "",
            "cpu": {
                "brand_raw": first.machine.get("cpu_model") or "",
                "count": first.machine.get("cpu_cores"),
            },
        },
        "commit_info": {
            "id": first.git.get("commit") or "unversioned",
            "time": None,
            "author_time": None,
            "dirty": bool(first.git.get("dirty")),
            "project": "finetune-bench",
            "branch": "(unknown)",
        },
        "benchmarks": [_benchmark(cell, found) for cell, found in cells.items()],
        "datetime": min((run.started_at for run in runs), default=datetime.now(UTC).isoformat()),
        "version": FORMAT_VERSION,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _benchmark(cell: str, runs: Sequence[RunSummary]) -> dict[str, Any]:
    seconds = [time_ns / NS_PER_SECOND for run in runs for time_ns in run.samples["step_time_ns"]]
    values = {name: value for name, value in runs[-1].values.items() if value is not None}
    return {
        "group": None,
        "name": cell,
        "fullname": cell,
        "params": None,
        "param": None,
        "extra_info": {**values, "runs": len(runs)},
        "options": {
            "disable_gc": False,
            "timer": "perf_counter_ns",
            "min_rounds": len(seconds),
            "warmup": True,
        },
        "stats": _stats(seconds),
    }


def _stats(seconds: Sequence[float]) -> dict[str, Any]:
    """Return the statistics that pytest-benchmark stores, by its definitions (``pytest_benchmark.stats``)."""
    mean, median = statistics.fmean(seconds), statistics.median(seconds)
    deviation = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
    first, _, third = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    reach = 1.5 * (third - first)
    inside = [value for value in seconds if first - reach <= value <= third + reach]
    far = sum(abs(value - mean) > deviation for value in seconds)
    return {
        "min": min(seconds),
        "max": max(seconds),
        "mean": mean,
        "stddev": deviation,
        "rounds": len(seconds),
        "median": median,
        "iqr": third - first,
        "q1": first,
        "q3": third,
        "iqr_outliers": len(seconds) - len(inside),
        "stddev_outliers": far,
        "outliers": f"{far};{len(seconds) - len(inside)}",
        "ld15iqr": min(inside, default=min(seconds)),
        "hd15iqr": max(inside, default=max(seconds)),
        "ops": 1 / mean,
        "total": math.fsum(seconds),
        "data": list(seconds),
        "iterations": 1,
    }
