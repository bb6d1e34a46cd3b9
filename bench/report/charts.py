"""Figures as Altair specifications, from rows whose numbers are worked out; nothing is rendered here.

Colours are literal and few, since an HTML page puts its own in the place of some (``templates/charts.toml``).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import altair as alt

from bench.compare.highlights import Frontier
from bench.compare.readings import Predicted, Throughput
from bench.compare.series import AccuracyPoint, MemoryBreakdown, MemoryTimeline, ScalingPoint
from bench.compare.speeds import Choice
from bench.report.text import MemoryUnit, load_toml, plain, words

INK, FAINT, LIMIT, BLUE, RED = "#1a1c20", "#b9bdc6", "#dd3333", "#4477aa", "#ee6677"
_LOOK = load_toml("charts.toml")
_WIDTH, _HEIGHT, _BAR = 560, 300, 22
_WIDE_RANGE = 0.1  # of accuracies, as shares
Limits = Sequence[tuple[str, int]]
Chart = Any  # altair builds its types at run time
_axis = partial(alt.Axis, format=",~f")
_legend = partial(alt.Legend, title=None, orient="top")
_CELLS = alt.Y("cell:N", sort=None, axis=alt.Axis(title=None, labelLimit=340))
_SERIES = alt.Color("series:N", sort=None, legend=_legend(columns=1, labelLimit=540))


def specification(chart: Chart) -> dict[str, Any]:
    """Return the Vega-Lite specification, checked against its schema, in the house's style."""
    found: dict[str, Any] = chart.configure(**_LOOK["style"], view={"stroke": None}).to_dict()
    return found


def _chart(columns: str, rows: Iterable[tuple[object, ...]]) -> alt.Chart:
    """Return a chart of a table; ``columns`` are names with blanks between."""
    names = columns.split()
    # In a tuple, which altair hands on, not a list, of which it makes a deep copy in every layer.
    shown = ([plain(one) if isinstance(one, str) else one for one in row] for row in rows)
    values = tuple(dict(zip(names, row, strict=True)) for row in shown)
    return alt.Chart(alt.Data(values=values))  # type: ignore[no-untyped-call]  # altair leaves its core untyped


def _layered(layers: Sequence[Chart], height: int) -> Chart:
    return alt.layer(*layers).properties(width=_WIDTH, height=height)


def _limits(limits: Limits, unit: MemoryUnit) -> alt.Chart:
    return _chart("size text", ((unit.scaled(size), name) for name, size in limits))


def stacked_memory(stacks: Sequence[MemoryBreakdown], limits: Limits, unit: MemoryUnit) -> Chart:
    """Draw the parts of each peak side by side on one bar, and each limit as a line."""
    colours = {
        name: colour
        for name, colour in _LOOK["parts"].items()
        if any(name in stack.parts_bytes for stack in stacks)
    }
    names = list(colours)
    parts = _chart(
        "cell part size order",
        (
            (stack.cell, name, unit.scaled(size), names.index(name))
            for stack in stacks
            for name, size in stack.parts_bytes.items()
        ),
    )
    totals = _chart(
        "cell size text",
        ((one.cell, unit.scaled(one.total_bytes), unit.figure(one.total_bytes)) for one in stacks),
    )
    bars = parts.mark_bar().encode(
        y=_CELLS,
        x=alt.X("size:Q", stack="zero", axis=_axis(title=f"at the peak, {unit.name}")),
        color=alt.Color("part:N", scale=_scale(colours), legend=_legend(columns=4, columnPadding=32)),
        order="order:Q",
    )
    numbers = totals.mark_text(align="left", dx=4, color=INK)
    layers = [bars, numbers.encode(y=alt.Y("cell:N", sort=None), x="size:Q", text="text:N")]
    if limits:
        lines = _limits(limits, unit).encode(x="size:Q")
        label = lines.mark_text(color=LIMIT, align="center", dy=-3, baseline="bottom", y=0)
        layers.append(lines.mark_rule(color=LIMIT, strokeDash=[5, 3], strokeWidth=1.5))
        layers.append(label.encode(text="text:N"))
    return _layered(layers, _BAR * len(stacks))


def _scale(colours: Mapping[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def memory_over_step(courses: Sequence[MemoryTimeline], unit: MemoryUnit) -> Chart:
    """Draw each cell's live bytes, the phases shaded, the peak labelled with its operator and module."""
    return alt.vconcat(*(_course(course, unit) for course in courses)).resolve_scale(color="shared")


def _course(course: MemoryTimeline, unit: MemoryUnit) -> Chart:
    line, highest = course.timeline, unit.scaled(course.peak_bytes)
    phases = _chart("phase start end", ((words(name), start, end) for name, start, end in course.spans))
    legend = _legend(symbolOpacity=0.7)  # the shades are too faint for a swatch
    shade = phases.mark_rect(opacity=0.18).encode(
        x=alt.X("start:Q", scale=alt.Scale(nice=False), axis=_axis(title=None, tickCount=8)),
        x2="end:Q",
        color=alt.Color("phase:N", scale=_scale(_LOOK["phases"]), legend=legend),
    )
    points = _chart("entry size", zip(line.entries, map(unit.scaled, line.live_bytes), strict=True))
    room = alt.Scale(domainMax=highest * 1.18)  # for the label
    area = points.mark_line(color=INK, strokeWidth=1).encode(
        x="entry:Q", y=alt.Y("size:Q", scale=room, axis=_axis(title=f"alive, {unit.name}"))
    )
    where = f"{course.op} in {course.module}" if course.module else course.op
    told = f"{unit.show(course.peak_bytes)}: {where}"
    peak = _chart("entry size text", [(course.peak_entry, highest, told)]).encode(x="entry:Q", y="size:Q")
    dot = peak.mark_point(color=LIMIT, filled=True, size=50)
    late = course.peak_entry > line.last_entry // 2
    label = peak.mark_text(color=INK, align="right" if late else "left", dy=-11).encode(text="text:N")
    return alt.layer(shade, area, dot, label).properties(width=_WIDTH, height=150, title=plain(course.cell))


def predicted_and_read(pairs: Sequence[tuple[str, Predicted]], unit: MemoryUnit) -> Chart:
    """Draw each prediction, a point or a band, beside the reading of its instrument."""
    sizes = ((name, one.low_bytes, one.high_bytes, one.measured_bytes) for name, one in pairs)
    rows = ((name, *map(unit.scaled, each)) for name, *each in sizes)
    base = _chart("cell low high read", rows).encode(y=_CELLS)
    x = alt.X("low:Q", scale=alt.Scale(zero=False), axis=_axis(title=f"peak, {unit.name}"))
    colour = alt.Color("kind:N", scale=_scale({"predicted": BLUE, "read": RED}), legend=_legend())
    band = base.mark_rule(strokeWidth=7, color=BLUE, opacity=0.5).encode(x=x, x2="high:Q")
    predicted = base.transform_calculate(kind="'predicted'").mark_tick(thickness=3, size=18)
    read = base.transform_calculate(kind="'read'").mark_point(filled=True, size=60, shape="diamond")
    layers = [band, predicted.encode(x="high:Q", color=colour), read.encode(x="read:Q", color=colour)]
    return _layered(layers, _BAR * len(pairs))


def speeds(read: Sequence[tuple[str, Throughput]]) -> Chart:
    rows = ((name, speed.tokens_per_second, speed.low, speed.high) for name, speed in read)
    base = _chart("cell speed low high", rows).encode(y=_CELLS)
    x = alt.X("low:Q", axis=_axis(title="tokens/s"), scale=alt.Scale(zero=True))
    span = base.mark_rule(strokeWidth=3, color=BLUE).encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=60, color=BLUE, opacity=1).encode(x="speed:Q")
    return _layered([span, dot], _BAR * len(read))


def frontier(one: Frontier, unit: MemoryUnit, instrument: str, *, label: bool) -> Chart:
    """Draw memory against speed, accuracy as colour; what another cell dominates is grey."""
    several = len({row.window for row in one.rows}) > 1
    shares = [accuracy.after if (accuracy := row.accuracy(one.task)) else None for row in one.rows]
    rows = (
        (
            f"{row.method} {row.window}" if several else row.method,
            unit.scaled(peak.peak_bytes),
            speed.tokens_per_second,
            share,
            row.key in one.dominated_by,
        )
        for row, share in zip(one.rows, shares, strict=True)
        if (peak := row.peak(one.instrument)) and (speed := row.throughput)
    )
    size = _axis(title=f"peak, {instrument}, {unit.name}")
    base = _chart("name size speed accuracy grey", rows).encode(
        x=alt.X("size:Q", scale=alt.Scale(zero=False, padding=90), axis=size),
        y=alt.Y("speed:Q", scale=alt.Scale(zero=False, padding=24), axis=_axis(title="tokens/s")),
    )
    colour: Chart = alt.value(BLUE)
    if one.task is not None:
        known = [share for share in shares if share is not None]
        digits = 0 if max(known) - min(known) > _WIDE_RANGE else 1  # or its ends would read the same
        legend = _legend(title=f"accuracy, {one.task}", format=f".{digits}%", gradientLength=200)
        colour = alt.Color("accuracy:Q", scale=alt.Scale(scheme="plasma"), legend=legend)
    grey = base.transform_filter("datum.grey").mark_point(filled=True, size=70, color=FAINT, opacity=1)
    best = base.transform_filter("!datum.grey").mark_point(filled=True, size=130, opacity=1, stroke=INK)
    names = [base.mark_text(dy=-14, color=INK, limit=260).encode(text="name:N")] if label else []
    return _layered([grey, best.encode(color=colour), *names], _HEIGHT)


def cards(choices: Sequence[Choice]) -> Chart:
    """Draw what a job costs over the hours that it takes, by card; lines are the ranges of both."""
    rows = ((one.cell, one.fit.card, *one.hours, *one.cost) for one in choices)
    base = _chart("series name fast hours slow cheap cost dear", rows).encode(color=_SERIES)
    x, y = (alt.X("hours:Q", axis=_axis(title="hours")), alt.Y("cost:Q", axis=_axis(title="cost")))
    points = base.mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y)
    ranges = base.mark_rule(opacity=0.5).encode(
        x=alt.X("fast:Q"), x2="slow:Q", y=alt.Y("cheap:Q"), y2="dear:Q"
    )
    return _layered([ranges, points, points.mark_text(dy=-14, color=INK).encode(text="name:N")], _HEIGHT)


def accuracies(points: Sequence[AccuracyPoint], lever: str) -> Chart:
    """Draw accuracy after training over one lever, and how far it may be off to each side."""
    rows = (
        (f"{point.task}: {point.series}", point.value, point.accuracy, point.low, point.high)
        for point in points
    )
    numbers = sorted({point.value for point in points if isinstance(point.value, int)})
    order: Chart = numbers or list(dict.fromkeys(point.value for point in points))
    x = alt.X("value:O", sort=order, axis=alt.Axis(title=lever, labelAngle=0))
    y = alt.Y("low:Q", axis=alt.Axis(title="accuracy after training", format=".0%"))
    base = _chart("series value accuracy low high", rows).encode(x=x, color=_SERIES, xOffset="series:N")
    error = base.mark_rule().encode(y=y, y2="high:Q")
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(y="accuracy:Q")
    return _layered([error, dot], _HEIGHT)


def scaling(points: Sequence[ScalingPoint], lever: str, unit: MemoryUnit, limits: Limits) -> Chart:
    """Draw memory, and speed where it was measured, over a lever; both axes of memory are logarithmic."""
    rows = (
        (point.series, point.value, unit.scaled(point.memory_bytes), point.tokens_per_second)
        for point in points
    )
    measured = any(point.tokens_per_second for point in points)
    axis = _axis(title=lever, values=sorted({point.value for point in points}))
    x = alt.X("value:Q", scale=alt.Scale(type="log", base=2), axis=axis)
    base = _chart("series value size speed", rows).encode(x=x, color=_SERIES)
    size = _axis(title=f"{'peak' if measured else 'needed'}, {unit.name}")
    y = alt.Y("size:Q", scale=alt.Scale(type="log", nice=False), axis=size)
    layers = [base.mark_line(point=True).encode(y=y)]
    if limits:
        lines = _limits(limits, unit).encode(y="size:Q")
        name = lines.mark_text(color=LIMIT, align="left", dx=4, dy=-6, x=0).encode(text="text:N")
        layers += [lines.mark_rule(color=LIMIT, strokeDash=[5, 3]), name]
    if not measured:
        return _layered(layers, _HEIGHT)
    speed = base.transform_filter("isValid(datum.speed)").mark_line(point=True)
    right = speed.encode(y=alt.Y("speed:Q", axis=_axis(title="tokens/s")))
    half = {"width": _WIDTH // 2 - 30, "height": _HEIGHT}
    return alt.hconcat(alt.layer(*layers).properties(**half), right.properties(**half))
