"""What a verdict goes by of one run: values, samples and answers, and what they were read with and on.

Step times are also read and written in the JSON format of pytest-benchmark 5, so that its tools read our
results and we read theirs. It has one timing for each benchmark; the rest goes along as ``extra_info``.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from bench.io import require_single_names
from bench.records.derived_metrics import STEPS_IN_TURN, Samples, Value, read_metrics, read_samples
from bench.records.records import (
    NS_PER_SECOND,
    Environment,
    EvaluationItem,
    EvaluationReading,
    Facts,
    Measurement,
    Outcome,
    Record,
)
from bench.scenario.cell import Cell

Questions = tuple[tuple[int, str], ...]
Instruments = tuple[tuple[str, str], ...]

CARD_CONDITIONS = ("card", "driver", "power limit in mW")
BY_STEP = ("step_time_ns", "tokens_per_second")
"""Metrics with a sample for each measured step."""


class Answers(Struct, frozen=True):
    """One task's evaluation; ``questions`` is one and the same object for all runs that saw the same ones."""

    task: str
    when: Literal["before", "after"]
    metric: str
    instrument: str
    num_fewshot: int
    questions: Questions
    correct: bytes
    sources: tuple[int, ...] = ()

    @property
    def items(self) -> list[EvaluationItem]:
        answered = zip(self.questions, self.correct, strict=True)
        return [EvaluationItem(*question, bool(right)) for question, right in answered]

    @property
    def accuracy(self) -> float | None:
        return sum(self.correct) / len(self.correct) if self.correct else None


class RunSummary(Struct, frozen=True, kw_only=True):
    """One run. ``values`` has each metric in its unit, ``samples`` those that vary: by step or one a run.

    Accuracy is in ``answers`` only. ``cell`` is None for what other tools measured, of which only the id is
    known. ``conditions`` are what speed depends on besides the program and its versions: machine, threads,
    card, driver. ``instruments`` names what read a metric where that can differ.
    """

    cell_id: str
    cell: Cell | None = None
    data_digest: str | None = None
    key: str
    run: int
    outcome: Outcome
    failure: str | None = None
    started_at: str
    environment: Environment
    conditions: Facts
    instruments: Instruments = ()
    values: Mapping[str, Value]
    samples: Samples
    answers: tuple[Answers, ...] = ()


def summarise_run(record: Record) -> RunSummary:
    """Return the summary of a record. What runs have in common is one object, so that thousands are held."""
    measurement, values = record.measurement, read_metrics(record, paired=False)
    device, gpu = measurement.device, measurement.gpu
    in_turn = any(caveat.code == STEPS_IN_TURN for caveat in measurement.caveats)
    steps = ("steps", "in turn with another run's" if in_turn else "one after the other")
    host_instrument = device.host_peak_instrument if device else "unavailable"
    return RunSummary(
        cell_id=record.cell.id,
        cell=record.cell,
        failure=record.failure.message if record.failure else None,
        data_digest=record.data_digest,
        key=record.key,
        run=record.run,
        outcome=record.outcome,
        started_at=record.started_at,
        environment=record.environment,
        conditions=(*record.environment.conditions, steps, *_card(measurement)),
        instruments=(("NVML", gpu.isolation if gpu else "not asked"), ("host memory", host_instrument)),
        values=values,
        samples=read_samples(record, values),
        answers=tuple(map(_answers, measurement.evaluations)),
    )


def _card(measurement: Measurement) -> Facts:
    name = measurement.device.cuda_name if measurement.device else None
    if measurement.gpu is None:
        return tuple(zip(CARD_CONDITIONS, (name, None, None), strict=True)) if name else ()
    facts = measurement.gpu.facts
    return tuple(zip(CARD_CONDITIONS, (name, facts.driver_version, facts.power_limit_mw), strict=True))


_QUESTION, _CORRECT = attrgetter("doc_id", "doc_hash"), attrgetter("correct")
_SEEN: dict[Questions, Questions] = {}
_LATEST: dict[tuple[str, str], tuple[object, Questions, bytes]] = {}


def _answers(reading: EvaluationReading) -> Answers:
    # Runs with the same answers share the items: see ``bench.records.readings.share``.
    latest = _LATEST.get((reading.task, reading.when))
    if latest is None or latest[0] is not reading.items:
        questions = tuple(map(_QUESTION, reading.items))
        latest = reading.items, _SEEN.setdefault(questions, questions), bytes(map(_CORRECT, reading.items))
        _LATEST[reading.task, reading.when] = latest
    _, questions, correct = latest
    return Answers(
        task=reading.task,
        when=reading.when,
        metric=reading.metric,
        instrument=reading.instrument,
        num_fewshot=reading.num_fewshot,
        questions=questions,
        correct=correct,
        sources=reading.sources or (),
    )


FORMAT_VERSION = "5.1.0"
"""Of pytest-benchmark, whose files carry it."""

_Seconds = Annotated[float, Meta(gt=0)]


class _Stats(Struct):
    median: _Seconds
    data: tuple[_Seconds, ...] = ()


class _Benchmark(Struct):
    fullname: Annotated[str, Meta(min_length=1)]
    stats: _Stats


class _Document(Struct):
    benchmarks: tuple[_Benchmark, ...]
    machine_info: dict[str, Any]
    datetime: str
    commit_info: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(_Document)


def read_step_times(content: bytes) -> tuple[RunSummary, ...] | None:
    """Return each benchmark of a pytest-benchmark file as one run; None where the content is no such file.

    A file is what one process measured, so it is one run, however many rounds it has. Without
    ``--benchmark-save-data`` the run is the median alone.
    """
    try:
        document = _DECODER.decode(content)
        machine, commit = document.machine_info, document.commit_info
        cpu = msgspec.convert(machine.get("cpu", {}), dict[str, Any])
        facts = {
            "machine": {
                "system": machine.get("system"),
                "architecture": machine.get("machine"),
                "cpu_model": cpu.get("brand_raw"),
                "cpu_cores": cpu.get("count"),
            },
            "versions": {"python": python} if (python := machine.get("python_version")) else {},
            "git": {"commit": commit.get("id"), "dirty": commit.get("dirty")},
            "threads": {},
        }
        environment = msgspec.convert(facts, Environment)
    except (msgspec.DecodeError, RecursionError):
        return None
    require_single_names(content)
    times_ns = [
        tuple(seconds * NS_PER_SECOND for seconds in benchmark.stats.data or (benchmark.stats.median,))
        for benchmark in document.benchmarks
    ]
    return tuple(
        RunSummary(
            cell_id=benchmark.fullname,
            key=f"pytest-benchmark {document.datetime}",
            run=1,
            outcome="ok",
            started_at=document.datetime,
            environment=environment,
            conditions=environment.conditions,
            values={"step_time_ns": statistics.median(times)},
            samples={"step_time_ns": times},
        )
        for benchmark, times in zip(document.benchmarks, times_ns, strict=True)
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
    machine = {name: value or "" for name, value in first.machine.items()}
    document = {
        "machine_info": {
            "node": "",
            "processor": "",
            "machine": machine.get("architecture", ""),
            "python_implementation": "CPython",
            "python_version": first.versions.get("python", ""),
            "release": machine.get("kernel", ""),
            "system": machine.get("system", ""),
            "cpu": {"brand_raw": machine.get("cpu_model", ""), "count": first.machine.get("cpu_cores")},
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
        "datetime": min(run.started_at for run in runs),
        "version": FORMAT_VERSION,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _benchmark(cell: str, runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Return a benchmark with the statistics that are stored, as ``pytest_benchmark.stats`` defines them."""
    seconds = [time_ns / NS_PER_SECOND for run in runs for time_ns in run.samples["step_time_ns"]]
    several, rounds = len(seconds) > 1, len(seconds)
    mean, median = statistics.fmean(seconds), statistics.median(seconds)
    deviation = statistics.stdev(seconds) if several else 0.0
    first, _, third = statistics.quantiles(seconds, n=4) if several else (median,) * 3
    reach = 1.5 * (third - first)
    inside = [value for value in seconds if first - reach <= value <= third + reach] or seconds
    far, outside = sum(abs(value - mean) > deviation for value in seconds), rounds - len(inside)
    values = {name: value for name, value in runs[-1].values.items() if value is not None}
    return {
        "group": None,
        "name": cell,
        "fullname": cell,
        "params": None,
        "param": None,
        "extra_info": {**values, "runs": len(runs)},
        "options": {"disable_gc": False, "timer": "perf_counter_ns", "min_rounds": rounds, "warmup": True},
        "stats": {
            "min": min(seconds),
            "max": max(seconds),
            "mean": mean,
            "stddev": deviation,
            "rounds": rounds,
            "median": median,
            "iqr": third - first,
            "q1": first,
            "q3": third,
            "iqr_outliers": outside,
            "stddev_outliers": far,
            "outliers": f"{far};{outside}",
            "ld15iqr": min(inside),
            "hd15iqr": max(inside),
            "ops": 1 / mean,
            "total": math.fsum(seconds),
            "data": seconds,
            "iterations": 1,
        },
    }
