"""What claims are judged by: measured, published and predicted cells in one form, and which pair up."""

import math
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Final, Literal

import numpy as np
from scipy.special import stdtrit

from bench.compare.accuracy import CONFIDENCE
from bench.compare.comparison import measure
from bench.compare.measured import Measured, without_seed
from bench.metrics import TENSORS
from bench.records.derived_metrics import speed_disturbed
from bench.records.predictions import CardFit, Plan, Prediction
from bench.records.published import RowFile
from bench.records.records import Record
from bench.scenario.catalogue import Architecture, architecture_of
from bench.scenario.cell import HOW_IT_LEARNS, Cell

Instrument = Literal["measured CPU", "measured GPU", "published", "predicted"]
Unit = Literal["share", "fold", "bytes", "count", "tokens/s", "bits", "points", "times the tolerance"]
Scalar = str | int | float | bool
Where = dict[str, Scalar | tuple[Scalar, ...]]

DTYPE_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}

_PARTS: Final = ("model", "method", "data", "training", "window", "evaluation")
# Beside data and training: the place stands for the device, and methods are compared field by field.
_NOT_PAIRED_BY: Final = {"device", "model", "method", "window", "evaluation", "training.seed", *HOW_IT_LEARNS}
_ADAPTERS_MAY_DIFFER: Final = {"method.kind", "method.name", "method.alpha"}
_BASE: Final = {"method.kbit_preparation"}  # all that LoRA's and QLoRA's bases have in common


@dataclass(frozen=True)
class Figure:
    """One number with its name and unit; an interval where there is one."""

    name: str
    unit: Unit
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
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
            quantisation_state_bytes=cause.categories_bytes.get("quantisation_state") if cause else None,
            measured=one,
        )
        found.append(case)
    return tuple(found)


def cases_of_plan(plan: Plan, source: str) -> tuple[Case, ...]:
    """Return a case for each cell and platform that could be predicted for CUDA."""
    memory = {card.name: card.memory_bytes for card in plan.cards}
    predicted = [(one, one.answer) for one in plan.cells if isinstance(one.answer, Prediction)]
    return tuple(
        Case(
            cell=one.cell,
            instrument="predicted",
            source=source,
            place=(answer.platform, answer.allocator),
            shape=architecture_of(one.cell.model),
            trainable=_attached(one.cell, answer),
            peak_bytes=answer.allocated_peak_bytes,
            loaded_bytes=answer.phase_ends_bytes.get("load"),
            quantisation_state_bytes=answer.categories_at_peak_bytes.get("quantisation_state"),
            cards=tuple((memory[fit.card], fit) for fit in one.verdicts if fit.card in memory),
        )
        for one, answer in predicted
        if answer.platform.device == "cuda"
    )


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
    kinds = {first.cell.method.kind, second.cell.method.kind}
    apart = {*free, *_ADAPTERS_MAY_DIFFER, *(_BASE if len(kinds) > 1 else ())}
    common = (first.fields.keys() & second.fields.keys()) - apart
    method = [path for path in common if path.startswith("method.")]
    return "full" in kinds or all(first.fields[path] == second.fields[path] for path in method)


# A value and what it was computed from; None where it is not known.
_Found = tuple[float, list[Figure]] | None


def quantity_of(name: str, cells: Sequence[Case]) -> tuple[Figure, list[Figure]] | None:
    """Return a quantity of a cell or of two, of speed with an interval, and what it was computed from."""
    unit, measure_it = QUANTITIES["value" if len(cells) == 1 else "pair"][name]
    if (found := measure_it(*cells)) is None:
        return None
    interval = ratio_interval(*(case.speeds for case in cells)) if name == "speed" else (None, None)
    return Figure(name, unit, found[0], *interval), found[1]


def _trained(of: Callable[[int, int], float], case: Case) -> _Found:
    trained, every = case.trainable, case.parameters
    if not trained or not every:
        return None
    return of(trained, every), [
        Figure("parameters trained", "count", trained),
        Figure("parameters", "count", every),
    ]


def _needed_on_any(case: Case) -> _Found:
    """Return the top of the reserved band with the largest context of the cards that it was judged for."""
    needed = [card.needed_bytes for _, card in case.cards]
    return (max(needed), [Figure("allocated at the peak", "bytes", case.peak_bytes or 0)]) if needed else None


def _adapter_bits(case: Case) -> _Found:
    """Return bits as read from the saved adapter where there is one, else as the cell says."""
    method, facts = case.cell.method, case.measured.facts if case.measured else None
    if method.kind == "full":
        return None
    if facts and facts.adapter_file_bytes and case.trainable:
        # The file has a header of some kilobytes, so that whole bytes a parameter are meant.
        bits = 8 * round(facts.adapter_file_bytes / case.trainable)
        size = Figure("saved adapter", "bytes", facts.adapter_file_bytes)
        return bits, [size, Figure("parameters trained", "count", case.trainable)]
    return 8 * DTYPE_BYTES[case.cell.training.dtype if method.adapter_dtype == "weights" else "fp32"], []


def _compute_bits(case: Case) -> _Found:
    method = case.cell.method
    return (8 * DTYPE_BYTES[method.compute_dtype], []) if method.kind == "qlora" else None


def _merge_change(case: Case) -> _Found:
    """Return the largest change of a logit over runs, in units of what rounding may do."""
    if not case.measured or not (merge := case.measured.merge):
        return None
    change, tolerated = merge.worst_share, merge.tolerated_share
    return change / tolerated, [
        Figure("largest change", "share", change),
        Figure("tolerated", "share", tolerated),
    ]


def _sizes(
    name: str, read: Callable[[Case], int | None], of: Callable[[int, int], float], *cells: Case
) -> _Found:
    ours, theirs = map(read, cells)
    return (of(ours, theirs), both(name, ours, theirs)) if ours and theirs else None


def _state_bits(subject: Case, reference: Case) -> _Found:
    """Return how many bits less the constants of quantisation take a parameter that can be quantised."""
    parameters = subject.quantisable_parameters
    saved = _state(lambda ours, theirs: theirs - ours, subject, reference)
    if not saved or not parameters:
        return None
    return 8 * saved[0] / parameters, [
        *saved[1],
        Figure("parameters outside embeddings", "count", parameters),
    ]


def _speed(subject: Case, reference: Case) -> _Found:
    ours, theirs = subject.speeds, reference.speeds
    if not ours or not theirs:
        return None
    ratio = statistics.geometric_mean(ours) / statistics.geometric_mean(theirs)
    return ratio, both("speed", statistics.median(ours), statistics.median(theirs), "tokens/s")


def both(name: str, ours: float, theirs: float, unit: Unit = "bytes") -> list[Figure]:
    """Return one number of the subject and of the reference."""
    return [Figure(name, unit, ours), Figure(f"{name}, reference", unit, theirs)]


_peak = partial(_sizes, "peak", attrgetter("peak_bytes"))
_loaded = partial(_sizes, "once loaded", attrgetter("loaded_bytes"))
_state = partial(_sizes, "state", attrgetter("quantisation_state_bytes"))
_Measure = tuple[Unit, Callable[..., _Found]]
QUANTITIES: dict[str, dict[str, _Measure]] = {
    "value": {
        "parameters trained": ("count", partial(_trained, lambda trained, _: trained)),
        "share of parameters trained": ("share", partial(_trained, lambda trained, every: trained / every)),
        "times fewer parameters trained": ("fold", partial(_trained, lambda trained, every: every / trained)),
        "memory needed on a card": ("bytes", _needed_on_any),
        "bits of an adapter's parameter": ("bits", _adapter_bits),
        "bits that products are computed in": ("bits", _compute_bits),
        "change of the largest logit": ("times the tolerance", _merge_change),
    },
    "pair": {
        "less peak memory": ("share", partial(_peak, lambda ours, theirs: 1 - ours / theirs)),
        "more peak memory": ("share", partial(_peak, lambda ours, theirs: ours / theirs - 1)),
        "times less peak memory": ("fold", partial(_peak, lambda ours, theirs: theirs / ours)),
        "times less memory once loaded": ("fold", partial(_loaded, lambda ours, theirs: theirs / ours)),
        "bits of quantisation state saved": ("bits", _state_bits),
        "speed": ("fold", _speed),
    },
}
"""Units of what a cell has, or what two give together, and how it is read."""


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return a 95 % interval of the ratio of two geometric means (Welch 1947, Biometrika 34:28).

    None where either side has fewer than two runs.
    """
    sizes = np.array([len(ours), len(theirs)])
    if sizes.min() < 2:  # noqa: PLR2004 - a spread takes two
        return None, None
    logs = [np.log(side) for side in (ours, theirs)]
    errors = np.array([side.var(ddof=1) for side in logs]) / sizes
    half, difference = 0.0, float(logs[0].mean() - logs[1].mean())
    if errors.any():
        freedom = errors.sum() ** 2 / (errors**2 / (sizes - 1)).sum()
        half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(errors.sum()))
    return math.exp(difference - half), math.exp(difference + half)
