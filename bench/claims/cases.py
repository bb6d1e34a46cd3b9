"""What claims are judged by: measured, published and predicted cells in one form, and which pair up."""

import statistics
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from bench.compare.comparison import measure
from bench.compare.measured import Measured, without_seed
from bench.metrics import TENSORS
from bench.records.derived_metrics import speed_disturbed
from bench.records.predictions import CardFit, Plan, PlannedCell, Prediction
from bench.records.published import RowFile
from bench.records.records import Record
from bench.scenario.catalogue import Architecture, architecture_of
from bench.scenario.cell import HOW_IT_LEARNS, Cell

Instrument = Literal["measured CPU", "measured GPU", "published", "predicted"]
Scalar = str | int | float | bool
Where = dict[str, Scalar | tuple[Scalar, ...]]

DTYPE_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}

# Beside data and training: the place stands for the device, and methods are compared field by field.
_NOT_PAIRED_BY: Final = {"device", "model", "method", "window", "evaluation", "training.seed", *HOW_IT_LEARNS}
_ADAPTERS_MAY_DIFFER: Final = {"method.kind", "method.name", "method.alpha"}
_BASE: Final = {
    "method.base",
    "method.kbit_preparation",
    "method.recast_embeddings",
    "method.quantisation",
    "method.double_quantisation",
    "method.compute_dtype",
    "method.quantise_lm_head",
}
_METHODS: Final = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "peft": "another method"}
_NAMES: Final = {
    "method.rank": "rank",
    "method.target_modules": "target modules",
    "method.adapter_dtype": "adapters' dtype",
    "method.double_quantisation": "double quantisation",
    "method.compute_dtype": "compute dtype",
    "training.sequence_length": "sequence length",
    "training.micro_batch": "micro-batch",
    "training.gradient_checkpointing": "gradient checkpointing",
    "training.gradient_accumulation": "gradient accumulation",
    "training.dtype": "dtype",
    "training.autocast": "autocast",
    "training.optimizer": "optimizer",
    "training.loss": "loss",
    "training.attention": "attention",
    "data.task": "task",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell by one instrument. None and empty: not known.

    Only cases of one ``place`` are compared: one folder and environment, one published source, card and
    versions, or one predicted platform. ``shape`` is the catalogue's. ``peak_bytes`` is of live tensors on
    the CPU, else what torch's allocator had allocated. ``cards`` are verdicts, each with the card's memory as
    sold, in bytes. ``measured`` are the runs of what was run here, from which speed and accuracy are read.
    """

    cell: Cell
    instrument: Instrument
    source: str
    place: tuple[Hashable, ...]
    shape: Architecture | None
    trainable: int | None = None
    peak_bytes: int | None = None
    loaded_bytes: int | None = None
    quantisation_state_bytes: int | None = None
    cards: tuple[tuple[int, CardFit], ...] = ()
    measured: Measured | None = None

    @property
    def model(self) -> str:
        """The catalogue's name where it knows the model, else the scenario's."""
        return self.shape.name if self.shape else self.cell.model.name

    @property
    def parameters(self) -> int | None:
        """How many there are: as counted in the run, else as published."""
        if self.measured:
            return self.measured.facts.parameters_total if self.measured.facts else None
        return self.shape.parameters if self.shape else None

    @property
    def quantisable_parameters(self) -> int | None:
        """Those outside embedding and output layer; norms, a few in a million, are counted in."""
        shape = self.shape
        if shape is None or "vocab_size" not in shape.config:
            return None
        ends = 1 if shape.config.get("tie_word_embeddings", False) else 2
        return shape.parameters - ends * int(shape.config["vocab_size"]) * shape.hidden_size

    @property
    def speeds(self) -> tuple[float, ...]:
        """Tokens/s of each run that nothing disturbed: its median over steps."""
        good = self.measured.ok if self.measured else ()
        runs = [run for run in good if not speed_disturbed(run.measurement.caveats)]
        speeds = [run.measurement.tokens_per_second for run in runs]
        return tuple(statistics.median(steps) for steps in speeds if steps)

    @property
    def disturbed_runs(self) -> int:
        """How many runs have a speed that is not their own."""
        return self.measured.disturbed_runs if self.measured else 0

    @property
    def study(self) -> tuple[Hashable, ...]:
        """What cases share whose accuracies over seeds are judged together; empty where nothing was run."""
        asked = self.cell.evaluation
        return (self.source, self.measured.setting, asked.limit, asked.num_fewshot) if self.measured else ()


def cases_of_records(records: Sequence[Record], source: str) -> tuple[Case, ...]:
    """Return a case for each cell and environment that has a good run; other seeds are repeats."""
    return tuple(_measured(one, source) for one in measure(records) if one.ok)


def _measured(one: Measured, source: str) -> Case:
    cell, facts, peak, cause = one.cell, one.facts, one.peak(TENSORS[one.device]), one.cause
    return Case(
        cell=cell.model_copy(update={"id": without_seed(cell.id)}),
        instrument="measured GPU" if one.device == "cuda" else "measured CPU",
        source=source,
        place=(source, one.where.place, one.device_name),
        shape=architecture_of(cell.model),
        trainable=facts.parameters_trainable if facts else None,
        peak_bytes=peak.peak_bytes if peak else None,
        quantisation_state_bytes=cause.categories_bytes.get("quantisation_state") if cause else None,
        measured=one,
    )


def cases_of_plan(plan: Plan, source: str) -> tuple[Case, ...]:
    """Return a case for each cell and platform that could be predicted for CUDA."""
    memory = {card.name: card.memory_bytes for card in plan.cards}
    return tuple(
        _predicted(planned, planned.answer, memory, source)
        for planned in plan.cells
        if isinstance(planned.answer, Prediction) and planned.answer.platform.device == "cuda"
    )


def _predicted(planned: PlannedCell, prediction: Prediction, memory: Mapping[str, int], source: str) -> Case:
    shape = architecture_of(planned.cell.model)
    return Case(
        cell=planned.cell,
        instrument="predicted",
        source=source,
        place=(prediction.platform, prediction.allocator),
        shape=shape,
        trainable=_attached(planned.cell, prediction, shape),
        peak_bytes=prediction.allocated_peak_bytes,
        loaded_bytes=prediction.phase_ends_bytes.get("load"),
        quantisation_state_bytes=prediction.categories_at_peak_bytes.get("quantisation_state"),
        cards=tuple((memory[one.card], one) for one in planned.verdicts if one.card in memory),
    )


def _attached(cell: Cell, prediction: Prediction, shape: Architecture | None) -> int | None:
    """Return the parameters trained: all of them, or what attaching adapters to a 16- or 32-bit base added.

    Over a quantised base peft converts other weights at the same moment, so the two are not distinguishable.
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
        Case(
            cell=row.cell,
            instrument="published",
            source=file.source.title,
            place=(file.source.title, row.gpu, row.software, row.date),
            shape=architecture_of(row.cell.model),
            peak_bytes=next(
                (one.size_bytes for one in row.measured if (one.metric, one.moment) == ("allocated", "peak")),
                None,
            ),
        )
        for file in files
        for row in file.rows
        if row.cell is not None
    )


def value_at(case: Case, path: str) -> Any:
    """Return a field of a case's cell by its dotted path; None where its kind of method or data has none."""
    found: Any = case.cell
    for name in path.split("."):
        if not isinstance(found, BaseModel) or name not in type(found).model_fields:
            return None
        found = getattr(found, name)
    return found


def matches(case: Case, where: Where) -> bool:
    """Tell whether each named field has the value, or one of the values, that it is to have."""
    return all(
        value_at(case, path) in (wanted if isinstance(wanted, tuple) else (wanted,))
        for path, wanted in where.items()
    )


def like_pairs(
    subjects: Iterable[Case], references: Iterable[Case], free: Collection[str]
) -> list[tuple[Case, Case]]:
    """Return each subject with each reference that it may be compared with, but for the ``free`` fields.

    Place, model, data and training have to be the same; kinds of methods too, unless ``method.kind`` is free.
    Of two adapters, rank, targets and all else that both have are the same; of one kind, their bases as well.
    """
    alike: dict[tuple[Hashable, ...], list[Case]] = {}
    for reference in references:
        alike.setdefault(_likeness(reference, free), []).append(reference)
    return [
        (subject, reference)
        for subject in subjects
        for reference in alike.get(_likeness(subject, free), ())
        if subject is not reference and _same_adapter(subject, reference, free)
    ]


def _likeness(case: Case, free: Collection[str]) -> tuple[Hashable, ...]:
    kind = None if "method.kind" in free else case.cell.method.kind
    steps = case.cell.window.warmup_steps + case.cell.window.measured_steps
    return (case.model, case.place, kind, steps, *case.cell.comparison_key(_NOT_PAIRED_BY | set(free)))


def _same_adapter(first: Case, second: Case, free: Collection[str]) -> bool:
    ours, theirs = dict(first.cell.method), dict(second.cell.method)
    kinds = {ours["kind"], theirs["kind"]}
    apart = {*free, *_ADAPTERS_MAY_DIFFER, *(_BASE if len(kinds) > 1 else ())}
    common = {name for name in ours.keys() & theirs.keys() if f"method.{name}" not in apart}
    return "full" in kinds or all(ours[name] == theirs[name] for name in common)


def settings_of(
    case: Case, reference: Case | None = None, *, free: Collection[str] = ()
) -> dict[str, Scalar]:
    """Return what a boundary may be drawn by, most telling first, and what was free in the reference."""
    method, training = case.cell.method, case.cell.training
    base = "int8" if getattr(method, "base", None) == "int8" else "none"
    found: dict[str, Scalar] = {
        "method": _METHODS[method.kind],
        "quantisation": method.quantisation if method.kind == "qlora" else base,
        **_named(case, _NAMES),
        "tokens in a micro-batch": training.micro_batch * training.sequence_length,
        "model": case.model,
    }
    if case.parameters is not None:
        found["billions of parameters"] = round(case.parameters / 1e9, 2)
    if reference is not None:
        kind = reference.cell.method.kind
        other = _METHODS[kind] if kind != method.kind else "the other"
        found |= {f"{other}'s {name}": value for name, value in _named(reference, free).items()}
    return found


def _named(case: Case, paths: Collection[str]) -> dict[str, Scalar]:
    values = {name: value_at(case, path) for path, name in _NAMES.items() if path in paths}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: object) -> Scalar:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return value if isinstance(value, str | int | float) else str(value)
