"""What a verdict goes by of one run: values, samples and answers, and what they were read with and on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Literal, NamedTuple

from msgspec import Raw

from bench.metrics import METRICS
from bench.records.briefs import (
    BriefEvaluation,
    BriefItem,
    BriefRecord,
    as_record,
    read_brief,
    read_cell_name,
    read_items,
)
from bench.records.calibrations import SAME_MACHINE
from bench.records.derived_metrics import (
    STEPS_IN_TURN,
    measured_steps,
    read_metrics,
    tokens_per_second,
)
from bench.records.records import Environment, EvaluationItem, EvaluationReading, Outcome, Record
from bench.scenario.types import Cell

Samples = Mapping[str, tuple[float, ...]]
Questions = tuple[tuple[int, str], ...]
Facts = tuple[tuple[str, str | int | None], ...]
Instruments = tuple[tuple[str, str], ...]

CARD_CONDITIONS = ("card", "driver", "power limit in mW")
BY_STEP = ("step_time_ns", "tokens_per_second")
"""Metrics with a sample for each measured step."""

_VARYING = tuple(name for name, metric in METRICS.items() if metric.kind == "statistical")
_PAIRED = tuple(name for name, metric in METRICS.items() if metric.kind == "paired")
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
        """Return the questions with their answers."""
        return [
            Answer(*question, bool(right))
            for question, right in zip(self.questions, self.correct, strict=True)
        ]

    @property
    def accuracy(self) -> float | None:
        """Return the share of questions answered correctly."""
        return sum(self.correct) / len(self.correct) if self.correct else None


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """Which cell was run. Of the same ``text``, which runs of a cell share, there is one object.

    ``text`` is the cell in a record; empty for what other tools measured, of which only the name is known.
    Checking it takes longer than all the rest of a record, so it is done where two texts differ.
    """

    id: str
    scenario: str | None
    text: bytes = field(compare=False, repr=False)

    @cached_property
    def cell(self) -> Cell | None:
        """The whole cell. Raises ``ValidationError`` where the text is none."""
        return Cell.model_validate_json(self.text) if self.text else None

    @cached_property
    def digest(self) -> str | None:
        """Its digest."""
        return None if self.cell is None else self.cell.digest


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """One run. ``values`` has each metric in its unit, ``samples`` those that vary: by step or one a run.

    Accuracy is in ``answers`` only.
    ``conditions`` are what speed depends on besides the program and its versions: machine, threads, card,
    driver. ``instruments`` names what read a metric where that can differ.
    """

    cell: CellFacts
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

    @property
    def cell_id(self) -> str:
        """The id of its cell."""
        return self.cell.id


def facts_of_content(content: bytes) -> RunFacts:
    """Return the facts of a record's text. Raises ``msgspec.DecodeError`` or ``ValidationError``."""
    brief = read_brief(content)
    return _facts(brief, _cell(bytes(brief.cell)), *_environment(bytes(brief.environment)))


def facts_of(record: Record) -> RunFacts:
    """Return the facts of a record that was read whole."""
    where = record.environment
    cell = _cell(record.cell.model_dump_json().encode())
    return _facts(record, cell, where, conditions_of(where))


@lru_cache(maxsize=20_000)
def _cell(text: bytes) -> CellFacts:
    name = read_cell_name(text)
    return CellFacts(id=name.id, scenario=name.scenario, text=text)


@lru_cache(maxsize=1000)
def _environment(text: bytes) -> tuple[Environment, Facts]:
    environment = Environment.model_validate_json(text)
    return environment, conditions_of(environment)


def conditions_of(environment: Environment) -> Facts:
    """Return what speed depends on besides versions; what a machine did not record is left out."""
    machine = [(name, environment.machine[name]) for name in _MACHINE if name in environment.machine]
    return (*machine, *sorted(environment.threads.items()))


def _facts(
    record: Record | BriefRecord, cell: CellFacts, environment: Environment, conditions: Facts
) -> RunFacts:
    whole = record if isinstance(record, Record) else as_record(record)
    values = read_metrics(whole)
    for name in _PAIRED:
        del values[name]
    evaluations = (
        record.measurement.evaluations if isinstance(record, Record) else record.measurement.brief_evaluations
    )
    return RunFacts(
        cell=cell,
        inputs_digest=record.inputs_digest,
        key=record.key,
        run=record.run,
        outcome=record.outcome,
        started_at=record.started_at,
        environment=environment,
        conditions=conditions + _steps(whole) + _card(whole),
        instruments=_instruments(whole),
        values=values,
        samples=_samples(whole, values),
        answers=tuple(map(_answers, evaluations)),
    )


def _samples(record: Record, values: Mapping[str, float | None]) -> Samples:
    # A rate or a size of 0 has no logarithm, and no machine measures one.
    found: dict[str, tuple[float, ...]] = {
        name: (value,) for name in _VARYING if (value := values[name]) is not None and value > 0
    }
    if steps := measured_steps(record):
        found["step_time_ns"] = tuple(step.step_time_ns for step in steps)
        found["tokens_per_second"] = tokens_per_second(steps)
    return found


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
_LATEST: dict[tuple[str, str], tuple[Raw, tuple[Questions, bytes]]] = {}


def _answers(reading: EvaluationReading | BriefEvaluation) -> Answers:
    if isinstance(reading, EvaluationReading):
        questions, correct = _counted(reading.items)
    else:
        questions, correct = _read_items(reading)
    return Answers(
        task=reading.task,
        when="before" if reading.when == "before" else "after",
        metric=reading.metric,
        instrument=reading.instrument,
        num_fewshot=reading.num_fewshot,
        questions=questions,
        correct=correct,
    )


def _read_items(reading: BriefEvaluation) -> tuple[Questions, bytes]:
    """Return questions and answers.

    Before training, and often after it, one run after another holds the same text. It is compared with the
    latest, which takes a tenth of finding it by its hash.
    """
    kind = reading.task, reading.when
    latest = _LATEST.get(kind)
    if latest is None or latest[0] != reading.items:
        latest = _LATEST[kind] = reading.items, _counted(read_items(reading.items))
    return latest[1]


def _counted(items: Sequence[EvaluationItem | BriefItem]) -> tuple[Questions, bytes]:
    questions = tuple(map(_QUESTION, items))
    return _SEEN.setdefault(questions, questions), bytes(map(_CORRECT, items))
