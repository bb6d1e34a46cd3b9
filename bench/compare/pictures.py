"""What figures show of memory: parts of a peak stacked, and the bytes alive over the step. Plain rows.

More cells than a figure can hold are not drawn; ``left_out`` says how many, and never hides it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.compare.measured import Comparison, Measured
from bench.compare.plan_rows import PlanRow
from bench.compare.series import ScalingPoint
from bench.records.plans import PlannedCell
from bench.records.records import Record
from bench.records.stored import Category
from bench.records.timelines import Timeline
from bench.scenario.catalogue import Card

MOST_BARS = 40
MOST_TIMELINES = 6


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The parts of one cell's peak, in bytes. ``limit_bytes`` is what the card it ran on has."""

    cell: str
    parts_bytes: Mapping[str, int]
    total_bytes: int
    limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Bars to draw, and how many more cells there are; ``chosen``: one of each model and method."""

    stacks: tuple[Stack, ...]
    left_out: int
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Course:
    """Live bytes over a steady pair of steps of one run, and what set the peak."""

    row: Measured
    timeline: Timeline
    peak_entry: int
    peak_bytes: int
    op: str
    module: str
    spans: tuple[tuple[str, int, int], ...]  # phase, first and last entry


def measured_stacks(comparison: Comparison, records: Sequence[Record]) -> Stacks:
    """Return the live tensors at each cell's peak by category, as the ledger saw them."""
    totals = {
        record.key: facts.cuda_total_bytes
        for record in records
        if (facts := record.measurement.device) and record.cell.device == "cuda"
    }
    stacks = [
        Stack(
            cell=row.id,
            parts_bytes=_in_order(cause.categories_bytes),
            total_bytes=sum(cause.categories_bytes.values()),
            limit_bytes=totals.get(row.key),
        )
        for row in comparison.rows
        if (cause := row.cause)
    ]
    return _bounded(stacks)


def planned_stacks(rows: Sequence[PlanRow], card: Card | None, planned: Sequence[PlannedCell]) -> Stacks:
    """Return what is predicted by category; for a card with what is reserved beyond, and the context.

    Of more cells than can be drawn, each model and method has the one at its longest sequence that needs
    least.
    """
    stacks = []
    for row in rows:
        forecast = row.forecast
        if forecast is None:
            continue
        parts = dict(_in_order(forecast.categories_bytes))
        if card is not None and forecast.reserved_high_bytes is not None:
            parts["reserved beyond"] = max(0, forecast.reserved_high_bytes - sum(parts.values()))
            parts["CUDA context"] = card.context_bytes
        stacks.append(Stack(cell=row.cell, parts_bytes=parts, total_bytes=sum(parts.values())))
    if len(stacks) <= MOST_BARS:
        return _bounded(stacks)
    lengths = {one.cell.id: one.cell.training.sequence_length for one in planned}
    found: dict[tuple[str, ...], Stack] = {}
    for stack in sorted(stacks, key=lambda one: (-lengths[one.cell], one.total_bytes)):
        found.setdefault(_model_and_method(stack.cell), stack)
    order = dict.fromkeys(_model_and_method(stack.cell) for stack in stacks)
    drawn = [found[name] for name in order][:MOST_BARS]
    return Stacks(stacks=tuple(drawn), left_out=len(stacks) - len(drawn), chosen=True)


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
    order = ("weights", "quantisation_state", "optimizer_state", "gradients", "inputs", "activations")
    names = [*order, *(name for name in categories if name not in order)]
    return {name.replace("_", " "): size for name in names if (size := categories.get(name, 0))}  # type: ignore[call-overload]  # a category by construction


def _bounded(stacks: Sequence[Stack]) -> Stacks:
    return Stacks(stacks=tuple(stacks[:MOST_BARS]), left_out=max(0, len(stacks) - MOST_BARS))


def courses(comparison: Comparison, records: Sequence[Record]) -> tuple[tuple[Course, ...], int]:
    """Return the first cells that have a timeline, of the run with the highest peak; then how many more."""
    found: dict[str, Course] = {}
    rows = {row.key: row for row in comparison.rows}
    for record in records:
        ledger = record.measurement.ledger
        if record.outcome != "ok" or ledger is None or ledger.timeline is None or not ledger.timeline.entries:
            continue
        timeline = ledger.timeline
        highest = max(range(len(timeline.entries)), key=timeline.live_bytes.__getitem__)
        course = Course(
            row=rows[record.key],
            timeline=timeline,
            peak_entry=timeline.entries[highest],
            peak_bytes=timeline.live_bytes[highest],
            op=ledger.peak_op,
            module=ledger.peak_module,
            spans=_spans(timeline),
        )
        known = found.get(record.key)
        if known is None or course.peak_bytes > known.peak_bytes:
            found[record.key] = course
    ordered = [found[row.key] for row in comparison.rows if row.key in found]
    return tuple(ordered[:MOST_TIMELINES]), max(0, len(ordered) - MOST_TIMELINES)


def _spans(timeline: Timeline) -> tuple[tuple[str, int, int], ...]:
    """Return where each phase begins and ends; one without an entry is left out."""
    ends = [*(start.entry for start in timeline.phases[1:]), timeline.last_entry]
    return tuple(
        (start.phase, start.entry, end)
        for start, end in zip(timeline.phases, ends, strict=False)
        if end > start.entry
    )
