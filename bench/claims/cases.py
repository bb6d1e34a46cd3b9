"""What claims are judged by: measured, published and predicted cells in one form, and which pair up."""

import math
import statistics
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from packaging.version import Version

from bench.compare import grouped
from bench.compare.comparison import measure
from bench.compare.measured import Measured, without_seed
from bench.metrics import TENSORS
from bench.records.derived_metrics import speed_disturbed
from bench.records.predictions import CardFit, Plan, Prediction
from bench.records.published import MeasuredSpeed, RowFile
from bench.records.records import Record
from bench.scenario.catalogue import Architecture, architecture_of
from bench.scenario.cell import HOW_IT_LEARNS, Cell

Instrument = Literal["measured CPU", "measured GPU", "published", "predicted"]
Scalar = str | int | float | bool
Where = dict[str, Scalar | tuple[Scalar, ...]]

DTYPE_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}

PUBLISHED_MARGIN: Final = 0.05
"""By how much, as a share, two published speeds have to differ: few say how far their repeats do."""
_PARTS: Final = ("model", "method", "data", "training", "window", "evaluation")
# Beside data and training: the place stands for the device, and methods are compared field by field.
_NOT_PAIRED_BY: Final = {"device", "model", "method", "window", "evaluation", "training.seed", *HOW_IT_LEARNS}
_ADAPTERS_MAY_DIFFER: Final = {"method.kind", "method.name", "method.alpha"}
_BASE: Final = {"method.kbit_preparation"}  # all that LoRA's and QLoRA's bases have in common


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One cell by one instrument. None and empty: not known.

    Only cases of one ``place`` are compared: one folder and environment, one published source, card and
    versions, or one predicted platform. ``shape`` is the catalogue's. ``peak_bytes`` is of live tensors on
    the CPU, else what torch's allocator had allocated. ``cards`` are verdicts, each with the card's memory as
    sold, in bytes. ``measured`` are the runs of what was run here, from which speed and accuracy are read;
    ``told_speeds`` are tokens/s, low, point and high, by the card of a prediction or by how a published run
    counted.
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
    told_speeds: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The cell's fields by dotted path, such as method.rank."""
        return {f"{part}.{name}": value for part in _PARTS for name, value in getattr(self.cell, part)}

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
        runs = [run.measurement for run in good if not speed_disturbed(run.measurement.caveats)]
        return tuple(statistics.median(run.tokens_per_second) for run in runs if run.tokens_per_second)

    @property
    def disturbed_runs(self) -> int:
        """How many runs have a speed that is not their own."""
        return self.measured.disturbed_runs if self.measured else 0

    @property
    def study(self) -> tuple[Hashable, ...]:
        """What cases share whose accuracies over seeds are judged together; empty where nothing was run."""
        asked = self.cell.evaluation
        return (self.source, self.measured.setting, asked.limit, asked.num_fewshot) if self.measured else ()

    def matches(self, where: Where) -> bool:
        """Tell whether each named field has the value, or one of the values, that it is to have."""
        wanted = {path: value if isinstance(value, tuple) else (value,) for path, value in where.items()}
        return all(self.fields.get(path) in values for path, values in wanted.items())


def cases_of_records(records: Sequence[Record], source: str) -> tuple[Case, ...]:
    """Return a case for each cell and environment that has a good run; other seeds are repeats."""
    found = []
    for one in measure(records):
        if not one.ok:
            continue
        peak, cause = one.peak(TENSORS[one.device]), one.cause
        case = Case(
            cell=one.cell.model_copy(update={"id": without_seed(one.cell.id)}),
            instrument="measured GPU" if one.device == "cuda" else "measured CPU",
            source=source,
            place=(source, one.where.place, one.device_name),
            shape=architecture_of(one.cell.model),
            trainable=one.parameters_trainable,
            peak_bytes=peak.peak_bytes if peak else None,
            quantisation_state_bytes=cause.categories_at_peak_bytes.get("quantisation_state")
            if cause
            else None,
            measured=one,
        )
        found.append(case)
    return tuple(found)


def cases_of_plan(plan: Plan, source: str) -> tuple[Case, ...]:
    """Return a case for each cell and platform that could be predicted for CUDA."""
    memory = {card.name: card.memory_bytes for card in plan.cards}
    alone = [one for one in plan.cells if not one.cell.parallel.several]  # claims are of one GPU
    predicted = [(one, one.answer) for one in alone if isinstance(one.answer, Prediction)]
    return tuple(
        Case(
            cell=one.cell,
            instrument="predicted",
            source=source,
            place=_place(answer),
            shape=architecture_of(one.cell.model),
            trainable=_attached(one.cell, answer),
            peak_bytes=answer.allocated_peak_bytes,
            loaded_bytes=answer.phase_ends_bytes.get("load"),
            quantisation_state_bytes=answer.categories_at_peak_bytes.get("quantisation_state"),
            cards=tuple((memory[fit.card], fit) for fit in one.verdicts if fit.card in memory),
            told_speeds={
                fit.card: (speed.low, speed.point, speed.high)
                for fit in one.verdicts
                if (speed := fit.tokens_per_second) and not speed.refused
            },
        )
        for one, answer in predicted
        if answer.platform.device == "cuda"
    )


def _place(prediction: Prediction) -> tuple[Hashable, ...]:
    """Return the platform of a prediction, whether a version is written 5.23 or 5.23.0."""
    platform = prediction.platform
    versions = (platform.torch, platform.bitsandbytes, platform.transformers)
    return platform.capability, *map(Version, versions), prediction.allocator


def _attached(cell: Cell, prediction: Prediction) -> int | None:
    """Return the parameters trained: all of them, or what attaching adapters to a 16- or 32-bit base added.

    Over a quantised base peft converts other weights at the same moment, so the two are not distinguishable.
    """
    method, ends = cell.method, prediction.phase_ends_bytes
    if method.kind == "full":
        shape = architecture_of(cell.model)
        return shape.parameters if shape else None
    if method.kind != "lora" or method.base != "as-trained" or not {"load", "adapt"} <= ends.keys():
        return None
    dtype = cell.training.dtype if method.adapter_dtype == "weights" else "fp32"
    return (ends["adapt"] - ends["load"]) // DTYPE_BYTES[dtype]


def cases_of_published(files: Iterable[RowFile]) -> tuple[Case, ...]:
    """Return the published peaks of torch's allocator on one GPU, and speeds, each a case of its own."""
    return tuple(
        Case(
            cell=row.cell,
            instrument="published",
            source=file.source.title,
            place=(file.source.title, row.gpu, row.software, row.date),
            shape=architecture_of(row.cell.model),
            peak_bytes=next(
                (one.size_bytes for one in row.sizes if (one.metric, one.moment) == ("allocated", "peak")),
                None,
            ),
            told_speeds=dict(_published_speed(row.cell, one) for one in row.speeds if not one.cold),
        )
        for file in files
        for row in file.rows
        if row.cell is not None and not row.cell.parallel.several
    )


def _published_speed(cell: Cell, one: MeasuredSpeed) -> tuple[str, tuple[float, float, float]]:
    """Return how tokens were counted, and tokens/s with half of the margin of a ratio on either side."""
    training = cell.training
    tokens = training.micro_batch * training.gradient_accumulation * (one.length or training.sequence_length)
    rate = one.value if one.metric == "tokens_per_second" else tokens / one.value
    half = math.sqrt(1 + PUBLISHED_MARGIN)
    return f"{one.metric}, {one.counted}, {one.length}", (rate / half, rate, rate * half)


def like_pairs(
    subjects: Iterable[Case], references: Iterable[Case], free: Collection[str]
) -> list[tuple[Case, Case]]:
    """Return each subject with each reference that it may be compared with, but for the ``free`` fields.

    Place, model, data and training have to be the same; kinds of methods too, unless ``method.kind`` is free.
    Of two adapters, rank, targets and all else that both have are the same; of one kind, their bases as well.
    """
    alike = grouped(references, lambda reference: _likeness(reference, free))
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
    kinds = {first.cell.method.kind, second.cell.method.kind}
    apart = {*free, *_ADAPTERS_MAY_DIFFER, *(_BASE if len(kinds) > 1 else ())}
    common = (first.fields.keys() & second.fields.keys()) - apart
    method = [path for path in common if path.startswith("method.")]
    return "full" in kinds or all(first.fields[path] == second.fields[path] for path in method)
