"""The figures of a comparison or a plan: which there are, what is said under each, and why one is left out.

Rendering is done by vl-convert, in this process and without a network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bench.compare.comparison import Comparison
from bench.compare.highlights import Frontier
from bench.compare.plans import plan_rows
from bench.compare.series import (
    AccuracyPoint,
    Breakdowns,
    Lever,
    Names,
    ScalingPoint,
    accuracy_by_quantisation,
    accuracy_by_rank,
    measured_breakdowns,
    memory_timelines,
    planned_breakdowns,
    planned_scaling,
    scaling,
    series_of_models,
)
from bench.errors import InfrastructureError, UsageError
from bench.metrics import INSTRUMENT_NAMES
from bench.records.predictions import Plan
from bench.report.comparison_columns import memory_unit
from bench.report.text import GIBIBYTES, MemoryUnit
from bench.scenario.catalogue import Card

MOST_ROWS = 40
MOST_SERIES = 10
MOST_FRONTIERS = 4
MOST_MODELS = 4
_MOST_LABELS = 25
_CHOSEN = " Of each model and method the cell at the longest sequence that needs least."
_BESIDE_CONTEXT = "Lines are what a card has beside its CUDA context."
_CHOSEN_SERIES = " Of each method of many windows the one that needs least."
P = TypeVar("P", AccuracyPoint, ScalingPoint)
_LEVERS: dict[Lever, str] = {"sequence_length": "sequence length, tokens", "micro_batch": "batch, sequences"}


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when it is asked for. ``missing`` says why there is none."""

    name: str
    title: str
    caption: str = ""
    draw: Callable[[ModuleType], Any] | None = None  # given bench.report.charts, which is not imported before
    missing: str | None = None

    @cached_property
    def specification(self) -> dict[str, Any]:
        """Return the Vega-Lite specification. Raises UsageError where altair is not installed."""
        require_libraries()
        from bench.report import charts

        assert self.draw is not None  # noqa: S101 - asked for only where something is drawn
        return charts.specification(self.draw(charts))

    def svg(self) -> str:
        """Return the figure as SVG."""
        import vl_convert

        specification = self.specification
        return vl_convert.vegalite_to_svg(specification, allowed_base_urls=[])

    def png(self) -> bytes:
        """Return the figure as PNG, at twice its size in points."""
        import vl_convert

        specification = self.specification
        return vl_convert.vegalite_to_png(specification, scale=2, allowed_base_urls=[])


def require_libraries() -> None:
    """Raise UsageError where what draws figures is not installed."""
    try:
        import altair as alt  # noqa: F401 - whether it is there
        import vl_convert  # noqa: F401 - the same
    except ModuleNotFoundError as error:
        raise UsageError(
            f"figures and HTML pages need {error.name}, which is not installed here; "
            "run: pip install altair vl-convert-python"
        ) from None


def comparison_figures(comparison: Comparison, cards: Sequence[Card] = ()) -> tuple[Figure, ...]:
    """Return every figure of a comparison, drawn or missing; ``cards`` are limits to show."""
    names, common = _short_names(comparison)
    unit = memory_unit(comparison.rows)
    limits = [(card.title, card.usable_bytes) for card in cards]
    figures = [
        _memory(measured_breakdowns(comparison, names), limits, unit),
        _over_step(comparison, names, unit),
        _predicted(comparison, names, unit),
        _speeds(comparison, names),
        *_frontiers(comparison, unit),
        _accuracy("rank", accuracy_by_rank(comparison)),
        _accuracy("quantisation", accuracy_by_quantisation(comparison)),
    ]
    levers = ((lever, scaling(comparison, lever, names)) for lever in _LEVERS)
    figures += [_scaling(lever, points, unit, limits) for lever, points in levers]
    return tuple(replace(one, caption=f"{one.caption}{common}") for one in figures)


def _short_names(comparison: Comparison) -> tuple[Names, str]:
    """Name each cell by what not all have in common, no two alike; and say what all have in common."""
    rows = comparison.rows
    parts = [(row.model, row.method, row.window) for row in rows]
    shared = [index for index in (0, 2) if len({part[index] for part in parts}) == 1]
    names = ["/".join(name for index, name in enumerate(part) if index not in shared) for part in parts]
    if len(comparison.environments) > 1:
        names = [f"{name} ({row.environment})" for name, row in zip(names, rows, strict=True)]
    again = [names[:index].count(name) for index, name in enumerate(names)]
    names = [f"{name} [{count + 1}]" if count else name for name, count in zip(names, again, strict=True)]
    told = f" All of {', '.join(parts[0][index] for index in shared)}." if shared else ""
    return {row.key: name for row, name in zip(rows, names, strict=True)}, told


def plan_figures(plan: Plan) -> tuple[Figure, ...]:
    """Return every figure of a plan, drawn or missing."""
    rows = plan_rows(plan)
    card = plan.cards[0] if len(plan.cards) == 1 else None
    limits = [(card.name, card.usable_bytes) for card in plan.cards]
    unit = GIBIBYTES
    stacks = planned_breakdowns(rows, card, plan.cells)
    memory = _memory(stacks, limits, unit, predicted=True, whole=card is not None)
    levers = ((lever, planned_scaling(plan.cells, lever)) for lever in _LEVERS)
    beside_context = [(card.name, card.torch_bytes) for card in plan.cards]
    return (
        memory,
        *(figure for lever, points in levers for figure in _planned_scaling(lever, points, beside_context)),
    )


def _planned_scaling(
    lever: Lever, points: Sequence[ScalingPoint], limits: Sequence[tuple[str, int]]
) -> Iterator[Figure]:
    """Yield one figure, or where that has too many series one for each model."""
    models = series_of_models(points, MOST_SERIES)
    drawn = {point.series for own in list(models.values())[:MOST_MODELS] for point in own}
    left_out = len({point.series for point in points} - drawn)
    for index, (model, own) in enumerate(list(models.items())[:MOST_MODELS] or [("", ())]):
        figure = _scaling(lever, own, GIBIBYTES, limits)
        if limits and not figure.missing:
            figure = replace(figure, caption=f"{figure.caption} {_BESIDE_CONTEXT}")
        if model:
            chosen = _CHOSEN_SERIES + _more(left_out, "series of all models") if left_out else ""
            figure = replace(figure, title=f"{figure.title}: {model}", caption=f"{figure.caption}{chosen}")
        yield replace(figure, name=f"{figure.name}-{index + 1}") if index else figure


def write_figures(figures: Sequence[Figure], folder: Path) -> Iterator[str]:
    """Write each figure as SVG and PNG; yield a line on each. Raises InfrastructureError if it cannot."""
    require_libraries()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            if figure.missing:
                yield f"no figure {figure.name}: {figure.missing}"
                continue
            (folder / f"{figure.name}.svg").write_text(figure.svg(), encoding="utf-8")
            (folder / f"{figure.name}.png").write_bytes(figure.png())
            yield f"wrote {folder / figure.name}.svg and .png"
    except OSError as error:
        raise InfrastructureError(
            f"{folder}: cannot write figures ({error.strerror}); choose another place"
        ) from None


def _more(left_out: int, what: str = "cells") -> str:
    return f" Not drawn: {left_out} more {what}, which are in the table." if left_out else ""


def _memory(
    breakdowns: Breakdowns,
    limits: Sequence[tuple[str, int]],
    unit: MemoryUnit,
    *,
    predicted: bool = False,
    whole: bool = False,
) -> Figure:
    title = "Predicted memory at the peak, by category" if predicted else "Memory at the peak, by category"
    stacks, left_out = breakdowns
    if not stacks:
        return Figure("memory", title, missing="no cell has a ledger's reading or a prediction.")
    own = sorted({stack.limit_bytes for stack in stacks if stack.limit_bytes})
    lines = [*limits, *(("the card it ran on", size) for size in own)]
    if predicted and not whole:
        lines = _near(lines, [stack.total_bytes for stack in stacks])
    told = "Live tensors at the moment of most bytes"
    if whole:
        told += ", what the allocator reserves beyond them, and the CUDA context: all of it has to fit"
    elif lines:
        told += "; what the allocator reserves beyond them and the CUDA context have to fit besides"
    return Figure(
        "memory",
        title,
        f"{told}.{_CHOSEN if predicted and left_out else ''}{_more(left_out)}",
        lambda charts: charts.stacked_memory(stacks, lines, unit),
    )


def _near(lines: Sequence[tuple[str, int]], sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Leave out cards so large that they would squeeze everything else into a corner; join equal ones."""
    above = [size for _, size in lines if size >= max(sizes, default=0)]
    near = [(name, size) for name, size in lines if size <= min(above, default=size)]
    joined: dict[str, tuple[str, int]] = {}
    for name, size in near:
        shown = f"{GIBIBYTES.scaled(size):.1f}"
        joined[shown] = (f"{joined[shown][0]}, {name}", size) if shown in joined else (name, size)
    return list(joined.values())


def _over_step(comparison: Comparison, names: Names, unit: MemoryUnit) -> Figure:
    title = "Memory over the step"
    drawn, left_out = memory_timelines(comparison, names)
    if not drawn:
        reason = "no record holds the ledger's timeline; records made before it was kept have none."
        return Figure("memory-over-step", title, missing=reason)
    caption = (
        "Bytes of live tensors over a steady pair of steps, by the ledger. The axis counts allocations "
        f"and frees of tensors, not time; between two points the highest is shown.{_more(left_out)}"
    )
    return Figure("memory-over-step", title, caption, lambda charts: charts.memory_over_step(drawn, unit))


def _predicted(comparison: Comparison, names: Names, unit: MemoryUnit) -> Figure:
    title = "Predicted against measured memory"
    pairs = [
        (f"{names[row.key]}, {INSTRUMENT_NAMES[one.instrument]}", one)
        for row in comparison.rows
        for one in row.predictions
    ]
    if not pairs:
        reason = "no record holds both a prediction and a reading by its instrument."
        return Figure("predicted", title, missing=reason)
    caption = (
        "Predicted before the run, for sequences at their full length: shorter ones need less. Where it is a "
        "band, the allocator may reserve anything in it. "
        f"The axis need not begin at zero.{_more(len(pairs[MOST_ROWS:]), 'readings')}"
    )
    return Figure(
        "predicted", title, caption, lambda charts: charts.predicted_and_read(pairs[:MOST_ROWS], unit)
    )


def _speeds(comparison: Comparison, names: Names) -> Figure:
    read = [(names[row.key], speed) for row in comparison.rows if (speed := row.throughput)]
    if not read:
        return Figure("speed", "Speed", missing="no cell has a measured step.")
    spreads = " or ".join(dict.fromkeys(speed.spread for _, speed in read))
    caption = f"Tokens/s, the line being the {spreads}.{_more(len(read[MOST_ROWS:]))}"
    return Figure("speed", "Speed", caption, lambda charts: charts.speeds(read[:MOST_ROWS]))


def _frontiers(comparison: Comparison, unit: MemoryUnit) -> tuple[Figure, ...]:
    found = comparison.frontiers
    if not found:
        reason = "no two cells of one model, data and machine have both memory and speed."
        return (Figure("frontier", "The frontier: memory, speed, accuracy", missing=reason),)
    more = _more(len(found[MOST_FRONTIERS:]), "models or machines")
    drawn, several = found[:MOST_FRONTIERS], len({one.rows[0].environment for one in found}) > 1
    return tuple(
        replace(figure, title=f"{figure.title} ({one.rows[0].environment})") if several else figure
        for index, one in enumerate(drawn)
        for figure in [_frontier(one, index, unit, more)]
    )


def _frontier(one: Frontier, index: int, unit: MemoryUnit, more: str) -> Figure:
    instrument, label = INSTRUMENT_NAMES[one.instrument], len(one.rows) <= _MOST_LABELS
    accuracy = "accuracy is the colour" if one.task else "no task was evaluated in all cells"
    caption = (
        "Left and up is better; "
        + accuracy
        + ". Grey: another cell is as good in all of these and better in one, "
        f"spreads not considered. {one.rows[0].device_name}.{more}"
    )
    if one.left_out:
        caption += f" Without memory or speed, and not drawn: {one.left_out}."
    return Figure(
        "frontier" if index == 0 else f"frontier-{index + 1}",
        f"The frontier of {one.rows[0].model}, {_windows(one)}: memory, speed"
        + (", accuracy" if one.task else ""),
        caption,
        lambda charts: charts.frontier(one, unit, instrument, label=label),
    )


def _windows(one: Frontier) -> str:
    names = dict.fromkeys(row.window for row in one.rows)
    return next(iter(names)) if len(names) == 1 else f"{len(names)} windows"


def _accuracy(lever: str, points: Sequence[AccuracyPoint]) -> Figure:
    name, title = f"accuracy-by-{lever}", f"Accuracy by {lever}"
    if not points:
        reason = f"no two evaluated cells differ in {lever} alone."
        return Figure(name, title, missing=reason)
    shown, left_out = _first_series(points)
    spreads = dict.fromkeys(
        f"the 95 % interval over {point.seeds} training seeds"
        if point.seeds > 1
        else "one standard error over the questions to each side (one training run)"
        for point in shown
    )
    caption = (
        "Share of questions answered correctly after training, with "
        f"{' or '.join(spreads)}.{_more(left_out, 'series')}"
    )
    axis = "rank" if lever == "rank" else "how the frozen base is stored"
    return Figure(name, title, caption, lambda charts: charts.accuracies(shown, axis))


def _scaling(
    lever: Lever, points: Sequence[ScalingPoint], unit: MemoryUnit, limits: Sequence[tuple[str, int]]
) -> Figure:
    name, title = f"scaling-{lever.replace('_', '-')}", f"Scaling with {_LEVERS[lever].partition(',')[0]}"
    if not points:
        return Figure(
            name, title, missing=f"no two cells differ in {_LEVERS[lever].partition(',')[0]} alone."
        )
    shown, left_out = _first_series(points)
    near = _near(limits, [point.memory_bytes for point in shown])
    instruments = dict.fromkeys(point.instrument for point in shown)
    told = " and ".join(
        "predicted, reserved" if one == "predicted" else INSTRUMENT_NAMES[one] for one in instruments
    )
    caption = f"Memory ({told}) on logarithmic axes.{_more(left_out, 'series')}"
    return Figure(name, title, caption, lambda charts: charts.scaling(shown, _LEVERS[lever], unit, near))


def _first_series(points: Sequence[P]) -> tuple[list[P], int]:
    """Return the points of as many series as can be told apart by colour, and how many more there are."""
    names = list(dict.fromkeys(point.series for point in points))
    kept = set(names[:MOST_SERIES])
    return [point for point in points if point.series in kept], len(names[MOST_SERIES:])
