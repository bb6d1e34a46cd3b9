"""Cells that differ in one lever: accuracy by rank and by quantisation, memory and speed by length and batch.

A series has two values of its lever at least; everything else about its cells is the same.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.compare.frontier import INSTRUMENTS
from bench.compare.measured import Comparison, Instrument, Measured
from bench.compare.seeds import mean_over_seeds, without_seed
from bench.records.plans import PlannedCell, needed_bytes
from bench.records.predictions import Prediction
from bench.scenario.types import Cell, LoraMethod, QloraMethod

Lever = Literal["sequence_length", "micro_batch"]
_TOKENS: dict[Lever, str] = {"sequence_length": r"s\d+", "micro_batch": r"b\d+"}
_APART = {"id", "scenario", "limits"}
_SEED_APART: dict[str, Any] = {**dict.fromkeys(_APART, True), "training": {"seed"}}


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

    return _accuracies(comparison, rank, {"rank", "alpha", "name"})


def accuracy_by_quantisation(comparison: Comparison) -> tuple[AccuracyPoint, ...]:
    """Return adapters over bases stored in several formats that are alike in all else."""
    apart = {
        "kind",
        "name",
        "base",
        "quantisation",
        "double_quantisation",
        "compute_dtype",
        "quantise_lm_head",
        "recast_embeddings",
        "kbit_preparation",
    }
    return _accuracies(comparison, base_format, apart)


def base_format(cell: Cell) -> str | None:
    """Return how an adapter's frozen base is stored; None without an adapter of LoRA's."""
    method = cell.method
    if isinstance(method, QloraMethod):
        return f"{method.quantisation}, double" if method.double_quantisation else method.quantisation
    if isinstance(method, LoraMethod):
        return "int8" if method.base == "int8" else cell.training.dtype
    return None


def _accuracies(
    comparison: Comparison,
    value_of: Callable[[Cell], str | int | None],
    apart: set[str],
) -> tuple[AccuracyPoint, ...]:
    found: dict[Any, dict[str, list[AccuracyPoint]]] = {}
    for row in comparison.rows:
        cell = row.cell
        value = value_of(cell)
        for result in row.accuracies if value is not None else ():
            if result.after is None or value is None:
                continue
            alike = cell.model_dump_json(exclude=_SEED_APART | {"method": apart})
            error = result.after_error or 0.0
            point = AccuracyPoint(
                row=row,
                task=result.task,
                series=_without_value(row, value),
                value=value,
                accuracy=result.after,
                low=max(0.0, result.after - error),
                high=min(1.0, result.after + error),
            )
            series = found.setdefault((alike, result.task, row.environment), {})
            series.setdefault(cell.model_dump_json(exclude=_SEED_APART), []).append(point)
    return tuple(
        _over_seeds(points)
        for series in found.values()
        if len({points[0].value for points in series.values()}) > 1
        for points in series.values()
    )


def _over_seeds(points: Sequence[AccuracyPoint]) -> AccuracyPoint:
    """Return the one point of cells that differ in their seed alone."""
    if len(points) == 1:
        return points[0]
    found = mean_over_seeds([point.accuracy for point in points])
    low, high = (found.mean if bound is None else bound for bound in (found.low, found.high))
    return replace(points[0], accuracy=found.mean, low=max(0.0, low), high=min(1.0, high), seeds=len(points))


def _without_value(row: Measured, value: str | int) -> str:
    """Name a series: the method without its rank, or without its format, and the window."""
    method = re.sub(r"-r\d+\b", "", row.method) if isinstance(value, int) else _rank_only(row.method)
    return f"{row.model}, {method}, {without_seed(row.window)}"


def _rank_only(method: str) -> str:
    rank = re.search(r"\br(\d+)\b", method)
    return f"rank {rank[1]}" if rank else "adapters"


def scaling(comparison: Comparison, lever: Lever) -> tuple[ScalingPoint, ...]:
    """Return measured cells that differ in sequence length or batch only."""
    found: dict[Any, list[ScalingPoint]] = {}
    for row in comparison.rows:
        instrument = next((one for one in INSTRUMENTS[row.device] if row.peak(one)), None)
        peak = row.peak(instrument) if instrument else None
        if peak is None or instrument is None:
            continue
        cell, speed = row.cell, row.throughput
        point = ScalingPoint(
            cell=row.id,
            series=_series(row.id, lever),
            lever=lever,
            value=getattr(cell.training, lever),
            memory_bytes=peak.peak_bytes,
            instrument=instrument,
            tokens_per_second=speed.tokens_per_second if speed else None,
            low=speed.low if speed else None,
            high=speed.high if speed else None,
        )
        found.setdefault((_alike(cell, lever), row.environment, instrument), []).append(point)
    return _several(found.values())


def planned_scaling(planned: Iterable[PlannedCell], lever: Lever) -> tuple[ScalingPoint, ...]:
    """Return predicted cells that differ in sequence length or batch only."""
    found: dict[Any, list[ScalingPoint]] = {}
    for one in planned:
        if isinstance(one.answer, Prediction):
            point = ScalingPoint(
                cell=one.cell.id,
                series=_series(one.cell.id, lever),
                lever=lever,
                value=getattr(one.cell.training, lever),
                memory_bytes=needed_bytes(one.answer),
                instrument="predicted",
            )
            alike = _alike(one.cell, lever), one.answer.platform.model_dump_json()
            found.setdefault(alike, []).append(point)
    return _several(found.values())


def _several(groups: Iterable[list[ScalingPoint]]) -> tuple[ScalingPoint, ...]:
    return tuple(
        point
        for points in groups
        if len({one.value for one in points}) > 1
        for point in sorted(points, key=_value)
    )


def _value(point: ScalingPoint) -> int:
    return point.value


def _alike(cell: Cell, lever: Lever) -> str:
    return cell.model_copy(update={"training": cell.training.model_copy(update={lever: 1})}).model_dump_json(
        exclude=_APART
    )


def _series(cell: str, lever: Lever) -> str:
    """Return a cell's id without the lever's token."""
    *parts, window = cell.split("/")
    rest = "-".join(token for token in window.split("-") if not re.fullmatch(_TOKENS[lever], token))
    return "/".join([*parts, rest]) if rest else "/".join(parts)
