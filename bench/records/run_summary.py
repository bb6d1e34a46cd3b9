"""What a verdict goes by of one run: values, samples and answers, and what they were read with and on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Literal, NamedTuple

import msgspec

from bench.metrics import METRICS
from bench.records.derived_metrics import STEPS_IN_TURN, read_metrics, read_samples
from bench.records.records import Environment, EvaluationReading, Outcome, Record
from bench.records.sessions import SAME_MACHINE
from bench.scenario.types import Cell

Samples = Mapping[str, tuple[float, ...]]
Questions = tuple[tuple[int, str], ...]
Facts = tuple[tuple[str, str | int | None], ...]
Instruments = tuple[tuple[str, str], ...]

CARD_CONDITIONS = ("card", "driver", "power limit in mW")
BY_STEP = ("step_time_ns", "tokens_per_second")
"""Metrics with a sample for each measured step."""

_MACHINE = ("system", *SAME_MACHINE)


class Answer(NamedTuple):
    """One question of an evaluation and whether it was answered correctly."""

    doc_id: int
    doc_hash: str
    correct: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """One task's evaluation; ``questions`` is one and the same object for all runs that saw the same ones."""

    task: str
    when: Literal["before", "after"]
    metric: str
    instrument: str
    num_fewshot: int
    questions: Questions
    correct: bytes

    @property
    def items(self) -> list[Answer]:
        """The questions with their answers."""
        return [
            Answer(*question, bool(right))
            for question, right in zip(self.questions, self.correct, strict=True)
        ]

    @property
    def accuracy(self) -> float | None:
        """The share of questions answered correctly."""
        return sum(self.correct) / len(self.correct) if self.correct else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """One run. ``values`` has each metric in its unit, ``samples`` those that vary: by step or one a run.

    Accuracy is in ``answers`` only. ``cell`` is None for what other tools measured, of which only the id is
    known. ``conditions`` are what speed depends on besides the program and its versions: machine, threads,
    card, driver. ``instruments`` names what read a metric where that can differ.
    """

    cell_id: str
    cell: Cell | None
    inputs_digest: str | None
    key: str
    run: int
    outcome: Outcome
    started_at: str
    environment: Environment
    conditions: Facts
    instruments: Instruments
    values: Mapping[str, float | int | None]
    samples: Samples
    answers: tuple[Answers, ...]


def summarise_run(record: Record) -> RunSummary:
    """Return the summary of a record. What runs have in common is one object, so that thousands are held."""
    environment, conditions = _environment(msgspec.json.encode(record.environment))
    values = read_metrics(record)
    samples = read_samples(record, values)
    values = {name: value for name, value in values.items() if METRICS[name].kind != "paired"}
    return RunSummary(
        cell_id=record.cell.id,
        cell=record.cell,
        inputs_digest=record.inputs_digest,
        key=record.key,
        run=record.run,
        outcome=record.outcome,
        started_at=record.started_at,
        environment=environment,
        conditions=conditions + _steps(record) + _card(record),
        instruments=_instruments(record),
        values=values,
        samples=samples,
        answers=tuple(map(_answers, record.measurement.evaluations)),
    )


@lru_cache(maxsize=1000)
def _environment(text: bytes) -> tuple[Environment, Facts]:
    environment = msgspec.json.decode(text, type=Environment)
    return environment, conditions_of(environment)


def conditions_of(environment: Environment) -> Facts:
    """Return what speed depends on besides versions; what a machine did not record is left out."""
    machine = [(name, environment.machine[name]) for name in _MACHINE if name in environment.machine]
    return (*machine, *sorted(environment.threads.items()))


def _steps(record: Record) -> Facts:
    in_turn = any(caveat.code == STEPS_IN_TURN for caveat in record.measurement.caveats)
    return (("steps", "in turn with another run's" if in_turn else "one after the other"),)


def _card(record: Record) -> Facts:
    device, gpu = record.measurement.device, record.measurement.gpu
    if gpu is None and (device is None or device.cuda_name is None):
        return ()
    found = (
        device.cuda_name if device else None,
        gpu.facts.driver_version if gpu else None,
        gpu.facts.power_limit_mw if gpu else None,
    )
    return tuple(zip(CARD_CONDITIONS, found, strict=True))


def _instruments(record: Record) -> Instruments:
    device, gpu = record.measurement.device, record.measurement.gpu
    return (
        ("NVML", gpu.isolation if gpu else "not asked"),
        ("host memory", device.host_peak_instrument if device else "unavailable"),
    )


_QUESTION, _CORRECT = attrgetter("doc_id", "doc_hash"), attrgetter("correct")
_SEEN: dict[Questions, Questions] = {}


def _answers(reading: EvaluationReading) -> Answers:
    questions = tuple(map(_QUESTION, reading.items))
    return Answers(
        task=reading.task,
        when=reading.when,
        metric=reading.metric,
        instrument=reading.instrument,
        num_fewshot=reading.num_fewshot,
        questions=_SEEN.setdefault(questions, questions),
        correct=bytes(map(_CORRECT, reading.items)),
    )
