"""The cases that claims are judged by: records, plans, published measurements in one form. Reads no file."""

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.compare.environments import environments_of
from bench.compare.measured import setting_of, without_seed
from bench.metrics import MERGE_TOLERANCES
from bench.records.derived_metrics import (
    evaluated_tasks,
    evaluation,
    peak_bytes,
    speed_disturbed,
    step_tokens_per_second,
)
from bench.records.predictions import Answer, Plan, PlannedCell, Prediction
from bench.records.published.rows import Row, RowFile
from bench.records.records import EvaluationItem, Record
from bench.records.run_summary import conditions_of
from bench.scenario.catalogue import Architecture, architecture_of
from bench.scenario.types import Cell, ModelSpec

Instrument = Literal["measured CPU", "measured GPU", "published", "predicted"]

DTYPE_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class OnCard:
    """The answer for one card; ``memory_bytes`` is as sold, ``needed_bytes`` counts the CUDA context."""

    card: str
    memory_bytes: int
    answer: Answer
    needed_bytes: int
    usable_bytes: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One task's answers after training, of the run with this seed."""

    seed: int
    task: str
    items: tuple[EvaluationItem, ...]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What merging an adapter did to the largest logit, as a share of it, and the share that rounding may."""

    changed_share: float
    tolerated_share: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell by one instrument, over its runs and seeds. None and empty: not read.

    Two cases are only ever compared where ``place`` is the same: one folder and machine, one published
    source, card and versions, or one predicted platform. ``peak_bytes`` is of live tensors on the CPU, else
    what torch's allocator had allocated. ``speeds`` are tokens/s, one a run, without the ``disturbed_runs``.
    Accuracies of several seeds are judged among all cases of one ``study``.
    """

    cell: Cell
    instrument: Instrument
    source: str
    place: tuple[object, ...]
    model: str
    parameters: int | None = None
    quantisable_parameters: int | None = None
    trainable: int | None = None
    peak_bytes: int | None = None
    loaded_bytes: int | None = None
    quantisation_state_bytes: int | None = None
    adapter_file_bytes: int | None = None
    cards: tuple[OnCard, ...] = ()
    speeds: tuple[float, ...] = ()
    disturbed_runs: int = 0
    study: tuple[Hashable, ...] = ()
    answers: tuple[Answers, ...] = ()
    merges: tuple[Merged, ...] = field(default=())


def cases_of_records(records: Sequence[Record], source: str) -> tuple[Case, ...]:
    """Return one case for each cell and machine; runs that differ only in ``training.seed`` are one case.

    Runs that did not end well are left out.
    """
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.outcome == "ok":
            key = (with_default_seed(record.cell).digest, *_place(record, source))
            groups.setdefault(key, []).append(record)
    return tuple(_measured(group, source) for group in groups.values())


def with_default_seed(cell: Cell) -> Cell:
    """Return the cell with the default seed of training."""
    return cell.model_copy(update={"training": cell.training.model_copy(update={"seed": 0})})


def _place(record: Record, source: str) -> tuple[object, ...]:
    return (source, *conditions_of(record.environment), *sorted(record.environment.versions.items()))


def _measured(group: Sequence[Record], source: str) -> Case:
    first = group[0]
    cell, facts, ledger = first.cell, first.measurement.model, first.measurement.ledger
    on_gpu = cell.device == "cuda"
    live = ledger.peak_bytes if ledger else None
    at_rest = [record for record in group if not speed_disturbed(record.measurement.caveats)]
    speeds = [step_tokens_per_second(record) for record in at_rest]
    asked = first.cell.evaluation
    setting = (*setting_of(first, environments_of(group)[0]), asked.limit, asked.num_fewshot)
    state = ledger.categories_at_peak_bytes.get("quantisation_state") if ledger else None
    return Case(
        cell=cell.model_copy(update={"id": without_seed(cell.id)}),
        instrument="measured GPU" if on_gpu else "measured CPU",
        source=source,
        place=_place(first, source),
        model=_model_name(cell.model),
        parameters=facts.parameters_total if facts else None,
        quantisable_parameters=_quantisable(architecture_of(cell.model)),
        trainable=facts.parameters_trainable if facts else None,
        peak_bytes=peak_bytes(first, "cuda_allocated_peak_bytes") if on_gpu else live,
        quantisation_state_bytes=state,
        adapter_file_bytes=facts.adapter_file_bytes if facts else None,
        speeds=tuple(statistics.median(steps) for steps in speeds if steps),
        disturbed_runs=len(group) - len(at_rest),
        study=(source, *setting),
        answers=tuple(answer for record in group for answer in _answers(record)),
        merges=tuple(merge for record in group for merge in _merges(record)),
    )


def _answers(record: Record) -> Iterable[Answers]:
    seed = record.cell.training.seed
    for task in evaluated_tasks(record):
        reading = evaluation(record, task, "after")
        if reading is not None and reading.items:
            yield Answers(seed=seed, task=task, items=reading.items)


def _merges(record: Record) -> Iterable[Merged]:
    merge, facts = record.measurement.merge, record.measurement.model
    if merge is not None and facts is not None and merge.reference_max_abs > 0:
        tolerated = MERGE_TOLERANCES[record.cell.training.dtype]
        share = merge.max_abs_difference / merge.reference_max_abs
        yield Merged(changed_share=share, tolerated_share=tolerated)


def cases_of_plan(plan: Plan, source: str) -> tuple[Case, ...]:
    """Return one case for each cell and platform that could be predicted for CUDA."""
    memory = {card.name: card.memory_bytes for card in plan.cards}
    return tuple(
        _predicted(planned, planned.answer, memory, source)
        for planned in plan.cells
        if isinstance(planned.answer, Prediction) and planned.answer.platform.device == "cuda"
    )


def _predicted(planned: PlannedCell, prediction: Prediction, memory: Mapping[str, int], source: str) -> Case:
    cell, shape = planned.cell, architecture_of(planned.cell.model)
    return Case(
        cell=cell,
        instrument="predicted",
        source=source,
        place=(prediction.platform, prediction.allocator),
        model=_model_name(cell.model),
        parameters=shape.parameters if shape else None,
        quantisable_parameters=_quantisable(shape),
        trainable=_attached(cell, prediction, shape),
        peak_bytes=prediction.allocated_peak_bytes,
        loaded_bytes=prediction.phase_ends_bytes.get("load"),
        quantisation_state_bytes=prediction.categories_at_peak_bytes.get("quantisation_state"),
        cards=tuple(
            OnCard(
                card=verdict.card,
                memory_bytes=memory[verdict.card],
                answer=verdict.answer,
                needed_bytes=verdict.needed_bytes,
                usable_bytes=verdict.usable_bytes,
            )
            for verdict in planned.verdicts
            if verdict.card in memory
        ),
    )


def _attached(cell: Cell, prediction: Prediction, shape: Architecture | None) -> int | None:
    """Return the parameters trained: all of them, or what attaching adapters to a 16- or 32-bit base added.

    Over a quantised base peft changes other weights at the same moment, so there they are not told apart.
    """
    if cell.method.kind == "full":
        return shape.parameters if shape else None
    ends = prediction.phase_ends_bytes
    if cell.method.kind != "lora" or cell.method.base != "as-trained" or not {"load", "adapt"} <= ends.keys():
        return None
    dtype = cell.training.dtype if cell.method.adapter_dtype == "weights" else "fp32"
    return (ends["adapt"] - ends["load"]) // DTYPE_BYTES[dtype]


def cases_of_published(files: Iterable[RowFile]) -> tuple[Case, ...]:
    """Return the published peaks of torch's allocator, each a case of its own."""
    return tuple(
        _published(row, file.source.title) for file in files for row in file.rows if row.cell is not None
    )


def _published(row: Row, title: str) -> Case:
    assert row.cell is not None  # noqa: S101 - the caller leaves the others out
    cell, shape = row.cell, architecture_of(row.cell.model)
    peaks = [one.size_bytes for one in row.measured if (one.metric, one.moment) == ("allocated", "peak")]
    return Case(
        cell=cell,
        instrument="published",
        source=title,
        place=(title, row.gpu, row.software, row.date),
        model=_model_name(cell.model),
        parameters=shape.parameters if shape else None,
        quantisable_parameters=_quantisable(shape),
        peak_bytes=peaks[0] if peaks else None,
    )


def _model_name(model: ModelSpec) -> str:
    """Return the catalogue's name where it knows the model, else the scenario's."""
    known = architecture_of(model)
    return known.name if known else model.name


def _quantisable(shape: Architecture | None) -> int | None:
    """Return the parameters outside embedding and output layer; norms, a few in a million, are counted in."""
    if shape is None or "vocab_size" not in shape.config:
        return None
    ends = 1 if shape.config.get("tie_word_embeddings", False) else 2
    return shape.parameters - ends * int(shape.config["vocab_size"]) * shape.hidden_size
