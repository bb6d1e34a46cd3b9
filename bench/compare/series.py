"""What figures show: cells that differ in one lever, parts of a peak stacked, bytes alive over the step.

A series has two values of its lever at least; everything else about its cells is the same. Of more than a
figure can hold the first are drawn, and how many more there are stands beside them.
"""

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeVar

from bench.compare import grouped
from bench.compare.comparison import Comparison
from bench.compare.highlights import HOW_BASE_IS_STORED
from bench.compare.measured import Measured
from bench.compare.plans import PlanRow
from bench.metrics import HEADLINES, Instrument
from bench.records.predictions import PlannedCell, Prediction
from bench.records.readings import Category, Timeline
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.types import LoraMethod, QloraMethod

MOST_BARS = 40
MOST_TIMELINES = 6
Lever = Literal["sequence_length", "micro_batch", "gpus"]
Names = Mapping[str, str]
"""What a figure calls the cell of each key."""

_TOKENS: dict[Lever, str] = {
    "sequence_length": r"s\d+",
    "micro_batch": r"b\d+",
    "gpus": r"ddp|fsdp2|x\d+",
}
_OF_GPUS = frozenset({"parallel.gpus", "parallel.strategy", "method.quant_storage"})
"""What a cell's number of GPUs brings with it; see ``bench.predict.plan``."""
_STEP_ORDER: tuple[Category, ...] = (
    "weights",
    "quantisation_state",
    "optimizer_state",
    "gradients",
    "inputs",
    "activations",
)


@dataclass(frozen=True, kw_only=True)
class AccuracyPoint:
    """Accuracy after training for one value of a lever, and how far it may be off to each side.

    That is one standard error over the items of a single training run; of several ``seeds`` the accuracy is
    their mean, with its 95 % t-interval. ``alike`` is what the points of a series share.
    """

    alike: Hashable
    task: str
    series: str
    value: str | int
    accuracy: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """What one value of a lever takes; for a plan what is needed, reserved at the top of the band."""

    alike: Hashable
    series: str
    value: int
    memory_bytes: int
    instrument: Instrument | Literal["predicted"]
    tokens_per_second: float | None = None


P = TypeVar("P", AccuracyPoint, ScalingPoint)


def accuracy_by_rank(comparison: Comparison) -> tuple[AccuracyPoint, ...]:
    """Return adapters of several ranks that are alike in all else; alpha may follow the rank."""

    def rank(cell: Cell) -> int | None:
        return cell.method.rank if isinstance(cell.method, LoraMethod | QloraMethod) else None

    ignored = {"method.rank", "method.alpha", "method.name", "training.seed"}
    return _accuracies(comparison, rank, lambda method: re.sub(r"-r\d+\b", "", method), ignored)


def accuracy_by_quantisation(comparison: Comparison) -> tuple[AccuracyPoint, ...]:
    """Return adapters over bases stored in several formats that are alike in all else."""

    def base_format(cell: Cell) -> str | None:
        method = cell.method
        if isinstance(method, QloraMethod):
            return f"{method.quantisation}, double" if method.double_quantisation else method.quantisation
        if isinstance(method, LoraMethod):
            return "int8" if method.base == "int8" else cell.training.dtype
        return None

    def rank(method: str) -> str:
        found = re.search(r"\br(\d+)\b", method)
        return f"rank {found[1]}" if found else "adapters"

    return _accuracies(comparison, base_format, rank, HOW_BASE_IS_STORED | {"training.seed"})


def _accuracies(
    comparison: Comparison,
    value_of: Callable[[Cell], str | int | None],
    series_of: Callable[[str], str],
    ignored: Collection[str],
) -> tuple[AccuracyPoint, ...]:
    points = []
    evaluated = ((row, value_of(row.cell), one) for row in comparison.rows for one in row.accuracies)
    for row, value, result in evaluated:
        after, error = result.after_seeds, result.after_error or 0.0
        if value is None or after is None:
            continue
        point = AccuracyPoint(
            alike=(row.cell.comparison_key(ignored), result.task, row.environment),
            task=result.task,
            series=f"{row.model}, {series_of(row.method)}, {row.window}",
            value=value,
            accuracy=after.mean,
            low=max(0.0, after.mean - error if after.low is None else after.low),
            high=min(1.0, after.mean + error if after.high is None else after.high),
            seeds=len(result.seeds),
        )
        points.append(point)
    return tuple(point for alike in _with_several(points) for point in alike)


def _with_several(points: Iterable[P]) -> list[list[P]]:
    """Return the points of each series that has several values."""
    series = grouped(points, lambda point: point.alike).values()
    return [alike for alike in series if len({point.value for point in alike}) > 1]


def scaling(comparison: Comparison, lever: Lever, names: Names) -> tuple[ScalingPoint, ...]:
    headlines = ((row, map(row.peak, HEADLINES[row.device])) for row in comparison.rows)
    return _along(
        ScalingPoint(
            alike=(_alike(row.cell, lever, {"training.seed"}), row.environment, peak.instrument),
            series=_series(names[row.key], lever),
            value=_value(row.cell, lever),
            memory_bytes=peak.peak_bytes,
            instrument=peak.instrument,
            tokens_per_second=row.throughput.tokens_per_second if row.throughput else None,
        )
        for row, peaks in headlines
        if (peak := next(filter(None, peaks), None))
    )


def planned_scaling(planned: Sequence[PlannedCell], lever: Lever) -> tuple[ScalingPoint, ...]:
    return _along(
        ScalingPoint(
            alike=(_alike(one.cell, lever), one.answer.platform),
            series=_series(one.cell.id, lever),
            value=_value(one.cell, lever),
            memory_bytes=one.answer.needed_bytes,
            instrument="predicted",
        )
        for one in planned
        if isinstance(one.answer, Prediction)
    )


def _value(cell: Cell, lever: Lever) -> int:
    value: int = getattr(cell.parallel if lever == "gpus" else cell.training, lever)
    return value


def _alike(cell: Cell, lever: Lever, ignored: Collection[str] = ()) -> Hashable:
    """Return what cells share that differ in a lever alone; one GPU stands with those of FSDP2."""
    if lever != "gpus":
        return cell.comparison_key({f"training.{lever}", *ignored})
    return cell.comparison_key({*_OF_GPUS, *ignored}), cell.parallel.strategy == "ddp"


def _along(points: Iterable[ScalingPoint]) -> tuple[ScalingPoint, ...]:
    return tuple(
        point for alike in _with_several(points) for point in sorted(alike, key=lambda point: point.value)
    )


def _series(cell: str, lever: Lever) -> str:
    """Return a cell's id without the lever's token."""
    *parts, window = cell.split("/")
    rest = "-".join(token for token in window.split("-") if not re.fullmatch(_TOKENS[lever], token))
    return "/".join([*parts, rest] if rest else parts)


def series_of_models(points: Sequence[ScalingPoint], most: int) -> dict[str, tuple[ScalingPoint, ...]]:
    """Return the points of each model, and of a model with more series than ``most`` one of each method.

    It is the one that needs least where it needs most. All points are under one empty name where they are
    few enough for one figure.
    """
    series = grouped(points, lambda point: point.series)
    if len(series) <= most:
        return {"": tuple(points)} if points else {}
    models = grouped(series, lambda name: name.partition("/")[0])
    return {
        model: tuple(point for name in _few(series, names, most) for point in series[name])
        for model, names in models.items()
    }


def _few(series: Mapping[str, Sequence[ScalingPoint]], names: Sequence[str], most: int) -> Sequence[str]:
    if len(names) <= most:
        return names
    return [
        min(alike, key=lambda name: max(point.memory_bytes for point in series[name]))
        for alike in grouped(names, _model_and_method).values()
    ]


def _model_and_method(name: str) -> tuple[str, ...]:
    return tuple(name.split("/")[:2])


@dataclass(frozen=True, kw_only=True)
class MemoryBreakdown:
    """The parts of one cell's peak, in bytes. ``limit_bytes`` is what the card it ran on has."""

    cell: str
    parts_bytes: Mapping[str, int]
    total_bytes: int
    limit_bytes: int | None = None


Breakdowns = tuple[Sequence[MemoryBreakdown], int]
"""Those to draw, and how many more there are."""


def measured_breakdowns(comparison: Comparison, names: Names) -> Breakdowns:
    found = [
        MemoryBreakdown(
            cell=names[row.key],
            parts_bytes=_in_order(cause.categories_at_peak_bytes),
            total_bytes=sum(cause.categories_at_peak_bytes.values()),
            limit_bytes=_card_bytes(row),
        )
        for row in comparison.rows
        if (cause := row.cause)
    ]
    return found[:MOST_BARS], len(found[MOST_BARS:])


def _card_bytes(row: Measured) -> int | None:
    found = (record.measurement.device for record in row.records if record.cell.device == "cuda")
    return next((facts.cuda_total_bytes for facts in found if facts), None)


def planned_breakdowns(
    rows: Sequence[PlanRow], card: Card | None, planned: Sequence[PlannedCell]
) -> Breakdowns:
    """Return what is predicted by category; for a card with what is reserved beyond, and the context.

    Of more cells than can be drawn, each model and method has the one at its longest sequence that needs
    least.
    """
    found: list[MemoryBreakdown] = []
    for row in rows:
        if forecast := row.forecast:
            parts = _in_order(forecast.categories_at_peak_bytes)
            if card is not None and forecast.reserved_high_bytes is not None:
                parts["reserved beyond"] = max(0, forecast.reserved_high_bytes - sum(parts.values()))
                parts["CUDA context"] = card.context_bytes
            one = MemoryBreakdown(cell=row.cell, parts_bytes=parts, total_bytes=sum(parts.values()))
            found.append(one)
    if len(found) <= MOST_BARS:
        return found, 0
    lengths = {one.cell.id: one.cell.training.sequence_length for one in planned}
    drawn = [
        replace(min(alike, key=lambda one: (-lengths[one.cell], one.total_bytes)), cell="/".join(name))
        for name, alike in grouped(found, lambda one: _model_and_method(one.cell)).items()
    ][:MOST_BARS]
    return drawn, len(found) - len(drawn)


def _in_order(categories: Mapping[Category, int]) -> dict[str, int]:
    """Return the parts that are there, with words for names, in the order in which a step fills them."""
    names = dict.fromkeys((*_STEP_ORDER, *categories))
    return {name.replace("_", " "): size for name in names if (size := categories.get(name, 0))}


@dataclass(frozen=True, kw_only=True)
class MemoryTimeline:
    """Live bytes over a steady pair of steps of one run, and what set the peak."""

    cell: str
    timeline: Timeline
    peak_entry: int
    peak_bytes: int
    op: str
    module: str
    spans: tuple[tuple[str, int, int], ...]  # phase, first and last entry


def memory_timelines(comparison: Comparison, names: Names) -> tuple[Sequence[MemoryTimeline], int]:
    found = [one for row in comparison.rows if (one := _memory_timeline(row, names[row.key]))]
    return found[:MOST_TIMELINES], len(found[MOST_TIMELINES:])


def _memory_timeline(row: Measured, name: str) -> MemoryTimeline | None:
    ledgers = (record.measurement.ledger for record in row.ok)
    kept = [(one, one.timeline) for one in ledgers if one and one.timeline and one.timeline.entries]
    if not kept:
        return None
    ledger, timeline = max(kept, key=lambda pair: max(pair[1].live_bytes))
    peak_bytes = max(timeline.live_bytes)
    starts = [*timeline.phases, None]
    spans = (
        (start.phase, start.entry, after.entry if after else timeline.last_entry)
        for start, after in pairwise(starts)
        if start
    )
    return MemoryTimeline(
        cell=name,
        timeline=timeline,
        peak_entry=timeline.entries[timeline.live_bytes.index(peak_bytes)],
        peak_bytes=peak_bytes,
        op=ledger.peak_op,
        module=ledger.peak_module,
        spans=tuple(span for span in spans if span[2] > span[1]),  # a phase without an entry is left out
    )
