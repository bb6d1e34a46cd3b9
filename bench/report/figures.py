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
from bench.compare.measured import Measured
from bench.compare.plans import PlanRow, plan_rows
from bench.compare.predictions import Choice, card_choices
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
from bench.io import make_folder, write_bytes, write_text
from bench.metrics import INSTRUMENT_NAMES
from bench.records.predictions import Plan
from bench.report.columns import said_once
from bench.report.comparison_columns import memory_unit
from bench.report.text import GIBIBYTES, MemoryUnit, texts
from bench.scenario.catalogue import Card

MOST_ROWS = 40
MOST_SERIES = 10
MOST_FRONTIERS = 4
MOST_MODELS = 4
_MOST_LABELS = 25
_LEVERS: dict[Lever, str] = {
    "sequence_length": "sequence length, tokens",
    "micro_batch": "batch, sequences",
    "gpus": "number of GPUs",
}
P = TypeVar("P", AccuracyPoint, ScalingPoint)
Limits = Sequence[tuple[str, int]]
Draw = Callable[[ModuleType], Any]
"""Given ``bench.report.charts``, which is not imported before."""


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when it is asked for. ``missing`` says why there is none."""

    name: str
    title: str
    caption: str = ""
    draw: Draw | None = None
    missing: str | None = None

    def specification(self, **size: int) -> dict[str, Any]:
        """Return the Vega-Lite specification. Raises UsageError where altair is not installed."""
        drawn = self._drawn
        from bench.report import charts

        return charts.specification(drawn, **size)

    @cached_property
    def _drawn(self) -> dict[str, Any]:
        """What is the same at every width; tests check it against the schema, which takes its time."""
        require_libraries()
        from bench.report import charts

        assert self.draw is not None  # noqa: S101 - asked for only where something is drawn
        found: dict[str, Any] = self.draw(charts).to_dict(validate=False)
        return found

    def svg(self, **size: int) -> str:
        """Return the figure as SVG, of so many pixels' ``width`` where that is told."""
        import vl_convert

        return vl_convert.vegalite_to_svg(self.specification(**size), allowed_base_urls=[])

    def png(self) -> bytes:
        """Return the figure as PNG, at twice its size in points."""
        import vl_convert

        return vl_convert.vegalite_to_png(self.specification(), scale=2, allowed_base_urls=[])


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


def write_figures(figures: Sequence[Figure], folder: Path) -> Iterator[str]:
    """Write each figure as SVG and PNG; yield a line on each. Raises InfrastructureError if it cannot."""
    require_libraries()
    try:
        make_folder(folder)
        for figure in figures:
            if figure.missing:
                yield f"no figure {figure.name}: {figure.missing}"
                continue
            write_text(folder / f"{figure.name}.svg", figure.svg())
            write_bytes(folder / f"{figure.name}.png", figure.png())
            yield f"wrote {folder / figure.name}.svg and .png"
    except OSError as error:
        why = f"cannot write figures ({error.strerror}); choose another place"
        raise InfrastructureError(f"{folder}: {why}") from None


def _figure(kind: str, shown: Sequence[object], draw: Draw, name: str = "", **values: str) -> Figure:
    """Return a figure, or where nothing is ``shown`` why there is none; ``values`` fill in its texts."""
    told = texts("figures", kind)
    made = Figure(name or kind, told["title"].format(**values))
    if not shown:
        return replace(made, missing=told["missing"].format(**values))
    return replace(made, caption=told["caption"].format(**values), draw=draw)


def _more(left_out: int, what: str = "cells") -> str:
    return f" Not drawn: {left_out} more {what}, which are in the table." if left_out else ""


def _numbered(name: str, index: int) -> str:
    return f"{name}-{index + 1}" if index else name


def comparison_figures(comparison: Comparison, cards: Sequence[Card] = ()) -> tuple[Figure, ...]:
    names, common = _short_names(comparison)
    unit = memory_unit(comparison.rows)
    limits = [(card.title, card.usable_bytes) for card in cards]
    figures = [
        _memory(measured_breakdowns(comparison, names), limits, unit),
        _over_step(comparison, names, unit),
        _predicted(comparison, names, unit),
        _speeds(comparison, names),
        *_frontiers(comparison, unit),
        _accuracy("rank", "rank", accuracy_by_rank(comparison)),
        _accuracy("quantisation", "how the frozen base is stored", accuracy_by_quantisation(comparison)),
        *(_scaling(lever, scaling(comparison, lever, names), unit, limits) for lever in _LEVERS),
    ]
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


def plan_figures(plan: Plan, rows: Sequence[PlanRow] = ()) -> tuple[Figure, ...]:
    """Return the figures of a plan, whose ``rows`` need not be worked out again where they are at hand."""
    card = plan.cards[0] if len(plan.cards) == 1 else None
    limits = [(card.name, card.usable_bytes) for card in plan.cards]
    rows = rows or plan_rows(plan)
    stacks, left_out = planned_breakdowns(rows, card, plan.cells)
    pattern, (_, *names) = said_once(["", *(stack.cell for stack in stacks)])
    named = [replace(stack, cell=name) for stack, name in zip(stacks, names, strict=True)]
    memory = _memory((named, left_out), limits, GIBIBYTES, predicted=True, whole=card is not None)
    return (
        *_cards(card_choices(plan, rows)),
        replace(memory, caption=f"{memory.caption} Cells: {pattern}.") if pattern else memory,
        *(figure for lever in _LEVERS for figure in _planned_scaling(plan, lever)),
    )


def _cards(choices: Sequence[Choice]) -> Iterator[Figure]:
    """Yield which card is for the job, where prices were given."""
    cells = list(dict.fromkeys(one.cell for one in choices))
    drawn = [one for one in choices if one.cell in cells[:MOST_SERIES]]
    if drawn:
        more = _more(len(cells[MOST_SERIES:]))
        yield _figure("cards", drawn, lambda charts: charts.cards(drawn), more=more)


def _planned_scaling(plan: Plan, lever: Lever) -> Iterator[Figure]:
    """Yield one figure, or where that has too many series one for each model."""
    points, told = planned_scaling(plan.cells, lever), texts("figures", "scaling")
    models = list(series_of_models(points, MOST_SERIES).items())[:MOST_MODELS]
    drawn = {point.series for _, own in models for point in own}
    left_out = len({point.series for point in points} - drawn)
    limits = [(card.name, card.torch_bytes) for card in plan.cards]
    for index, (model, own) in enumerate(models or [("", ())]):
        figure = _scaling(lever, own, GIBIBYTES, limits)
        caption = figure.caption + (told["beside_context"] if limits and not figure.missing else "")
        if model and left_out:
            caption += told["chosen"] + _more(left_out, "series of all models")
        title = f"{figure.title}: {model}" if model else figure.title
        yield replace(figure, name=_numbered(figure.name, index), title=title, caption=caption)


def _memory(
    breakdowns: Breakdowns, limits: Limits, unit: MemoryUnit, *, predicted: bool = False, whole: bool = False
) -> Figure:
    stacks, left_out = breakdowns
    told = texts("figures", "memory")
    own = sorted({stack.limit_bytes for stack in stacks if stack.limit_bytes})
    lines = [*limits, *(("the card it ran on", size) for size in own)]
    if predicted and not whole:
        lines = _near(lines, [stack.total_bytes for stack in stacks])
    return _figure(
        "memory",
        stacks,
        lambda charts: charts.stacked_memory(stacks, lines, unit),
        what="Predicted memory" if predicted else "Memory",
        beside=told["whole"] if whole else told["besides"] if lines else "",
        chosen=told["chosen"] if predicted and left_out else "",
        more=_more(left_out),
    )


def _near(lines: Limits, sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Leave out cards so large that they would squeeze everything else into a corner; join equal ones."""
    nearest = min((size for _, size in lines if size >= max(sizes, default=0)), default=None)
    joined: dict[str, tuple[str, int]] = {}
    for name, size in lines:
        if nearest is None or size <= nearest:
            shown = f"{GIBIBYTES.scaled(size):.1f}"
            joined[shown] = (f"{joined[shown][0]}, {name}", size) if shown in joined else (name, size)
    return list(joined.values())


def _over_step(comparison: Comparison, names: Names, unit: MemoryUnit) -> Figure:
    drawn, left_out = memory_timelines(comparison, names)
    return _figure(
        "memory-over-step", drawn, lambda charts: charts.memory_over_step(drawn, unit), more=_more(left_out)
    )


def _predicted(comparison: Comparison, names: Names, unit: MemoryUnit) -> Figure:
    pairs = [
        (f"{names[row.key]}, {INSTRUMENT_NAMES[one.instrument]}", one)
        for row in comparison.rows
        for one in row.predictions
    ]
    return _figure(
        "predicted",
        pairs,
        lambda charts: charts.predicted_and_read(pairs[:MOST_ROWS], unit),
        more=_more(len(pairs[MOST_ROWS:]), "readings"),
    )


def _speeds(comparison: Comparison, names: Names) -> Figure:
    read = [(names[row.key], speed) for row in comparison.rows if (speed := row.throughput)]
    return _figure(
        "speed",
        read,
        lambda charts: charts.speeds(read[:MOST_ROWS]),
        spreads=" or ".join(dict.fromkeys(speed.spread for _, speed in read)),
        more=_disturbed(comparison.rows) + _more(len(read[MOST_ROWS:])),
    )


def _disturbed(rows: Sequence[Measured]) -> str:
    return " Other processes disturbed some of the speeds." if any(row.disturbed_runs for row in rows) else ""


def _frontiers(comparison: Comparison, unit: MemoryUnit) -> Iterator[Figure]:
    found = comparison.frontiers
    if not found:
        yield _figure("frontier", (), lambda _: None, of="", accuracy=", accuracy", where="")
    several = len({one.rows[0].environment for one in found}) > 1
    more = _more(len(found[MOST_FRONTIERS:]), "models or machines")
    for index, one in enumerate(found[:MOST_FRONTIERS]):
        where = f" ({one.rows[0].environment})" if several else ""
        yield _frontier(one, unit, name=_numbered("frontier", index), where=where, more=more)


def _frontier(one: Frontier, unit: MemoryUnit, **values: str) -> Figure:
    windows = list(dict.fromkeys(row.window for row in one.rows))
    window = windows[0] if len(windows) == 1 else f"{len(windows)} windows"
    instrument, label = INSTRUMENT_NAMES[one.instrument], len(one.rows) <= _MOST_LABELS
    return _figure(
        "frontier",
        one.rows,
        lambda charts: charts.frontier(one, unit, instrument, label=label),
        of=f" of {one.rows[0].model}, {window}",
        accuracy=", accuracy" if one.task else "",
        colour="accuracy is the colour" if one.task else "no task was evaluated in all cells",
        device=one.rows[0].device_name,
        left_out=_disturbed(one.rows)
        + (f" Without memory or speed, and not drawn: {one.left_out}." if one.left_out else ""),
        **values,
    )


def _accuracy(lever: str, axis: str, points: Sequence[AccuracyPoint]) -> Figure:
    shown, more = _first_series(points)
    spreads = dict.fromkeys(
        f"the 95 % interval over {point.seeds} training seeds"
        if point.seeds > 1
        else "one standard error over the questions to each side (one training run)"
        for point in shown
    )
    return _figure(
        "accuracy",
        points,
        lambda charts: charts.accuracies(shown, axis),
        f"accuracy-by-{lever}",
        lever=lever,
        spreads=" or ".join(spreads),
        more=more,
    )


def _scaling(lever: Lever, points: Sequence[ScalingPoint], unit: MemoryUnit, limits: Limits) -> Figure:
    first, more = _first_series(points)
    near = _near(limits, [point.memory_bytes for point in first])
    names = [*dict.fromkeys(point.series for point in first)]
    pattern, (_, *short) = said_once(["", *names])
    called = dict(zip(names, short, strict=True))
    shown = [replace(point, series=called[point.series]) for point in first]
    instruments = dict.fromkeys(
        "predicted, reserved" if point.instrument == "predicted" else INSTRUMENT_NAMES[point.instrument]
        for point in shown
    )
    figure = _figure(
        "scaling",
        points,
        lambda charts: charts.scaling(shown, _LEVERS[lever], unit, near),
        f"scaling-{lever.replace('_', '-')}",
        lever=_LEVERS[lever].partition(",")[0],
        instruments=" and ".join(instruments),
        more=more,
    )
    return replace(figure, caption=f"{figure.caption} Cells: {pattern}.") if pattern else figure


def _first_series(points: Sequence[P]) -> tuple[list[P], str]:
    """Return the points of as many series as can be told apart by colour, and how many more there are."""
    names = list(dict.fromkeys(point.series for point in points))
    shown = [point for point in points if point.series in names[:MOST_SERIES]]
    return shown, _more(len(names[MOST_SERIES:]), "series")
