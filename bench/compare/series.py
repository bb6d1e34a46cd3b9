"""What figures show: cells that differ in one lever, parts of a peak stacked, bytes alive over the step.

A series has two values of its lever at least; everything else about its cells is the same. More cells than a
figure can hold are not drawn; ``left_out`` says how many.
"""

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
Lever = Literal["sequence_length", "micro_batch"]
Names = Mapping[str, str]
"""What a figure calls the cell of each key."""

_TOKENS: dict[Lever, str] = {"sequence_length": r"s\d+", "micro_batch": r"b\d+"}
_STEP_ORDER = ("weights", "quantisation_state", "optimizer_state", "gradients", "inputs", "activations")


@dataclass(frozen=True, kw_only=True)
class AccuracyPoint:
    """Accuracy after training for one value of a lever, and how far it may be off to each side.

    That is one standard error over the items of a single training run; of several ``seeds`` the accuracy is
    their mean, with its 95 % t-interval, and ``row`` is one of theirs.
    """

    row: Measured
    task: str
    series: str
    value: str | int
    accuracy: float
    low: float
    high: float
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """What one value of a lever takes; for a plan what is needed, reserved at the top of the band."""

    cell: str
    series: str
    lever: Lever
    value: int
    memory_bytes: int
    instrument: Instrument | Literal["predicted"]
    tokens_per_second: float | None = None
    low: float | None = None
    high: float | None = None


def accuracy_by_rank(comparison: Comparison) -> tuple[AccuracyPoint, ...]:
    """Return adapters of several ranks that are alike in all else; alpha may follow the rank."""

    def rank(cell: Cell) -> int | None:
        return cell.method.rank if isinstance(cell.method, LoraMethod | QloraMethod) else None

    return _accuracies(comparison, rank, {"method.rank", "method.alpha", "method.name", "training.seed"})


def accuracy_by_quantisation(comparison: Comparison) -> tuple[AccuracyPoint, ...]:
    """Return adapters over bases stored in several formats that are alike in all else."""
    return _accuracies(comparison, base_format, HOW_BASE_IS_STORED | {"training.seed"})


def base_format(cell: Cell) -> str | None:
    """Return how an adapter's frozen base is stored; None without an adapter of LoRA's."""
    method = cell.method
    if isinstance(method, QloraMethod):
        return f"{method.quantisation}, double" if method.double_quantisation else method.quantisation
    if isinstance(method, LoraMethod):
        return "int8" if method.base == "int8" else cell.training.dtype
    return None


def _accuracies(
    comparison: Comparison, value_of: Callable[[Cell], str | int | None], ignored: Collection[str]
) -> tuple[AccuracyPoint, ...]:
    found: dict[Hashable, list[AccuracyPoint]] = {}
    for row in comparison.rows:
        value = value_of(row.cell)
        for result in row.accuracies if value is not None else ():
            after = result.after_seeds
            if after is None or value is None:
                continue
            error = result.after_error or 0.0
            several = after.low is not None and after.high is not None
            low, high = (after.low, after.high) if several else (after.mean - error, after.mean + error)
            point = AccuracyPoint(
                row=row,
                task=result.task,
                series=_without_value(row, value),
                value=value,
                accuracy=after.mean,
                low=max(0.0, low or 0.0),
                high=min(1.0, high or 0.0),
                seeds=len(result.seeds),
            )
            alike = row.cell.comparison_key(ignored), result.task, row.environment
            found.setdefault(alike, []).append(point)
    several_values = (points for points in found.values() if len({point.value for point in points}) > 1)
    return tuple(point for points in several_values for point in points)


def _without_value(row: Measured, value: str | int) -> str:
    """Name a series: the method without its rank, or without its format, and the window."""
    method = re.sub(r"-r\d+\b", "", row.method) if isinstance(value, int) else _rank_only(row.method)
    return f"{row.model}, {method}, {row.window}"


def _rank_only(method: str) -> str:
    rank = re.search(r"\br(\d+)\b", method)
    return f"rank {rank[1]}" if rank else "adapters"


def scaling(comparison: Comparison, lever: Lever, names: Names) -> tuple[ScalingPoint, ...]:
    """Return measured cells that differ in sequence length or batch only."""
    found: dict[Hashable, list[ScalingPoint]] = {}
    for row in comparison.rows:
        peak = next((peak for one in HEADLINES[row.device] if (peak := row.peak(one))), None)
        if peak is None:
            continue
        speed = row.throughput
        point = ScalingPoint(
            cell=names[row.key],
            series=_series(names[row.key], lever),
            lever=lever,
            value=getattr(row.cell.training, lever),
            memory_bytes=peak.peak_bytes,
            instrument=peak.instrument,
            tokens_per_second=speed.tokens_per_second if speed else None,
            low=speed.low if speed else None,
            high=speed.high if speed else None,
        )
        alike = row.cell.comparison_key({f"training.{lever}", "training.seed"})
        found.setdefault((alike, row.environment, peak.instrument), []).append(point)
    return _several(found.values())


def planned_scaling(planned: Iterable[PlannedCell], lever: Lever) -> tuple[ScalingPoint, ...]:
    """Return predicted cells that differ in sequence length or batch only."""
    found: dict[Hashable, list[ScalingPoint]] = {}
    for one in planned:
        if isinstance(one.answer, Prediction):
            point = ScalingPoint(
                cell=one.cell.id,
                series=_series(one.cell.id, lever),
                lever=lever,
                value=getattr(one.cell.training, lever),
                memory_bytes=one.answer.needed_bytes,
                instrument="predicted",
            )
            alike = one.cell.comparison_key({f"training.{lever}"}), one.answer.platform.model_dump_json()
            found.setdefault(alike, []).append(point)
    return _several(found.values())


def _several(groups: Iterable[list[ScalingPoint]]) -> tuple[ScalingPoint, ...]:
    return tuple(
        point
        for points in groups
        if len({one.value for one in points}) > 1
        for point in sorted(points, key=lambda one: one.value)
    )


def _series(cell: str, lever: Lever) -> str:
    """Return a cell's id without the lever's token."""
    *parts, window = cell.split("/")
    rest = "-".join(token for token in window.split("-") if not re.fullmatch(_TOKENS[lever], token))
    return "/".join([*parts, rest]) if rest else "/".join(parts)


@dataclass(frozen=True, kw_only=True)
class MemoryBreakdown:
    """The parts of one cell's peak, in bytes. ``limit_bytes`` is what the card it ran on has."""

    cell: str
    parts_bytes: Mapping[str, int]
    total_bytes: int
    limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryBreakdowns:
    """Bars to draw, and how many more cells there are; ``chosen``: one of each model and method."""

    stacks: tuple[MemoryBreakdown, ...]
    left_out: int
    chosen: bool = False


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


def measured_breakdowns(comparison: Comparison, names: Names) -> MemoryBreakdowns:
    """Return the live tensors at each cell's peak by category, as the ledger saw them."""
    return _bounded(
        [
            MemoryBreakdown(
                cell=names[row.key],
                parts_bytes=_in_order(cause.categories_bytes),
                total_bytes=sum(cause.categories_bytes.values()),
                limit_bytes=_card_bytes(row),
            )
            for row in comparison.rows
            if (cause := row.cause)
        ]
    )


def _card_bytes(row: Measured) -> int | None:
    found = (record.measurement.device for record in row.records if record.cell.device == "cuda")
    return next((facts.cuda_total_bytes for facts in found if facts), None)


def planned_breakdowns(
    rows: Sequence[PlanRow], card: Card | None, planned: Sequence[PlannedCell]
) -> MemoryBreakdowns:
    """Return what is predicted by category; for a card with what is reserved beyond, and the context.

    Of more cells than can be drawn, each model and method has the one at its longest sequence that needs
    least.
    """
    stacks = []
    for row in rows:
        forecast = row.forecast
        if forecast is None:
            continue
        parts = dict(_in_order(forecast.categories_at_peak_bytes))
        if card is not None and forecast.reserved_high_bytes is not None:
            parts["reserved beyond"] = max(0, forecast.reserved_high_bytes - sum(parts.values()))
            parts["CUDA context"] = card.context_bytes
        stacks.append(MemoryBreakdown(cell=row.cell, parts_bytes=parts, total_bytes=sum(parts.values())))
    if len(stacks) <= MOST_BARS:
        return _bounded(stacks)
    lengths = {one.cell.id: one.cell.training.sequence_length for one in planned}
    found: dict[tuple[str, ...], MemoryBreakdown] = {}
    for stack in sorted(stacks, key=lambda one: (-lengths[one.cell], one.total_bytes)):
        found.setdefault(_model_and_method(stack.cell), stack)
    order = dict.fromkeys(_model_and_method(stack.cell) for stack in stacks)
    drawn = [found[name] for name in order][:MOST_BARS]
    return MemoryBreakdowns(stacks=tuple(drawn), left_out=len(stacks) - len(drawn), chosen=True)


def _model_and_method(name: str) -> tuple[str, ...]:
    return tuple(name.split("/")[:2])


def series_of_models(points: Sequence[ScalingPoint], most: int) -> Mapping[str, tuple[ScalingPoint, ...]]:
    """Return the points of each model, and of a model with more series than ``most`` one of each method.

    It is the one that needs least where it needs most. All points are under one empty name where they are
    few enough for one figure.
    """
    series: dict[str, list[ScalingPoint]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    if len(series) <= most:
        return {"": tuple(points)} if points else {}
    models: dict[str, dict[str, list[ScalingPoint]]] = {}
    for name, own in series.items():
        models.setdefault(name.partition("/")[0], {})[name] = own
    return {
        model: tuple(point for own in _few(found, most) for point in own) for model, found in models.items()
    }


def _few(series: Mapping[str, list[ScalingPoint]], most: int) -> list[list[ScalingPoint]]:
    if len(series) <= most:
        return list(series.values())
    methods: dict[tuple[str, ...], list[list[ScalingPoint]]] = {}
    for name, points in series.items():
        methods.setdefault(_model_and_method(name), []).append(points)
    return [
        min(alike, key=lambda points: max(point.memory_bytes for point in points))
        for alike in methods.values()
    ]


def _in_order(categories: Mapping[Category, int]) -> dict[str, int]:
    """Return the parts that are there, with words for names, in the order in which a step fills them."""
    names = [*_STEP_ORDER, *(name for name in categories if name not in _STEP_ORDER)]
    return {name.replace("_", " "): size for name in names if (size := categories.get(name, 0))}  # type: ignore[call-overload]  # a category by construction


def _bounded(stacks: Sequence[MemoryBreakdown]) -> MemoryBreakdowns:
    return MemoryBreakdowns(stacks=tuple(stacks[:MOST_BARS]), left_out=max(0, len(stacks) - MOST_BARS))


def memory_timelines(comparison: Comparison, names: Names) -> tuple[tuple[MemoryTimeline, ...], int]:
    """Return the first cells that have a timeline, of the run with the highest peak; then how many more."""
    found = [one for row in comparison.rows if (one := _memory_timeline(row, names[row.key]))]
    return tuple(found[:MOST_TIMELINES]), max(0, len(found) - MOST_TIMELINES)


def _memory_timeline(row: Measured, name: str) -> MemoryTimeline | None:
    ledgers = (record.measurement.ledger for record in row.ok)
    kept = [(one, one.timeline) for one in ledgers if one and one.timeline and one.timeline.entries]
    if not kept:
        return None
    ledger, timeline = max(kept, key=lambda pair: max(pair[1].live_bytes))
    highest = max(range(len(timeline.entries)), key=timeline.live_bytes.__getitem__)
    return MemoryTimeline(
        cell=name,
        timeline=timeline,
        peak_entry=timeline.entries[highest],
        peak_bytes=timeline.live_bytes[highest],
        op=ledger.peak_op,
        module=ledger.peak_module,
        spans=_spans(timeline),
    )


def _spans(timeline: Timeline) -> tuple[tuple[str, int, int], ...]:
    """Return where each phase begins and ends; one without an entry is left out."""
    ends = [*(start.entry for start in timeline.phases[1:]), timeline.last_entry]
    return tuple(
        (start.phase, start.entry, end)
        for start, end in zip(timeline.phases, ends, strict=False)
        if end > start.entry
    )
