"""Figures as Altair specifications, from rows whose numbers are worked out; nothing is rendered here.

Colours are literal and few; an HTML page puts its own in the place of ``INK``, ``FAINT`` and ``PAPER``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from bench.compare.highlights import Frontier
from bench.compare.readings import Predicted, Throughput
from bench.compare.series import AccuracyPoint, MemoryBreakdown, MemoryTimeline, ScalingPoint
from bench.report.text import MemoryUnit, words

INK, FAINT, PAPER = "#1a1c20", "#b9bdc6", "#fefefe"
# Paul Tol's bright scheme (technical note SRON/EPS/TN/09-002), which stays apart with deficient colour
# vision, and a few more; all have contrast enough on white and on black.
_PARTS = {
    "weights": "#4477aa",
    "quantisation state": "#66ccee",
    "optimizer state": "#ee6677",
    "gradients": "#ccbb44",
    "inputs": "#999933",
    "activations": "#228833",
    "logits": "#aa3377",
    "temporary": "#888888",
    "reserved beyond": "#cc8855",
    "CUDA context": "#777799",
}
_PHASES = {"inputs": "#999933", "forward": "#4477aa", "backward": "#ee6677", "optimizer step": "#228833"}
_LIMIT = "#dd3333"
# All of one width, so that labels are as wide in a browser as they were when they were placed.
_FONT = "Arial, Liberation Sans, Helvetica, sans-serif"
_WIDTH, _HEIGHT, _BAR = 560, 300, 22
_WIDE_RANGE = 0.1  # of accuracies, as shares
Limits = Sequence[tuple[str, int]]
Chart = Any  # altair builds its types at run time
Points = list[dict[str, Any]]


def _data(points: Points) -> Chart:
    # In a tuple, which altair hands on, not a list, of which it makes a deep copy in every layer.
    return alt.Data(values=tuple(points))  # type: ignore[no-untyped-call]  # altair leaves its core untyped


def _bytes_axis(unit: MemoryUnit, title: str) -> Chart:
    return alt.Axis(title=f"{title}, {unit.name}", format=",~f")


def _cells_axis() -> Chart:
    return alt.Axis(title=None, labelLimit=340)


def stacked_memory(stacks: Sequence[MemoryBreakdown], limits: Limits, unit: MemoryUnit) -> Chart:
    """Draw the parts of each peak side by side on one bar, and each limit as a line."""
    names = [name for name in _PARTS if any(name in stack.parts_bytes for stack in stacks)]
    points = [
        {"cell": stack.cell, "part": name, "size": unit.scaled(size), "order": names.index(name)}
        for stack in stacks
        for name, size in stack.parts_bytes.items()
    ]
    scale = alt.Scale(domain=names, range=[_PARTS[name] for name in names])
    bars = (
        alt.Chart(_data(points))
        .mark_bar()
        .encode(
            y=alt.Y("cell:N", sort=None, axis=_cells_axis()),
            x=alt.X("size:Q", stack="zero", axis=_bytes_axis(unit, "at the peak")),
            color=alt.Color(
                "part:N",
                scale=scale,
                legend=alt.Legend(title=None, orient="top", columns=4, columnPadding=32),
            ),
            order=alt.Order("order:Q"),
        )
    )
    totals = [
        {"cell": stack.cell, "size": unit.scaled(stack.total_bytes), "text": unit.figure(stack.total_bytes)}
        for stack in stacks
    ]
    numbers = (
        alt.Chart(_data(totals))
        .mark_text(align="left", dx=4, color=INK)
        .encode(y=alt.Y("cell:N", sort=None), x="size:Q", text="text:N")
    )
    layers = [bars, numbers, *_limit_lines(limits, unit)]
    return _layered(layers, _BAR * len(stacks))


def _layered(layers: Sequence[Any], height: int) -> Chart:
    return alt.layer(*layers).properties(width=_WIDTH, height=height)


def _limit_lines(limits: Limits, unit: MemoryUnit) -> list[alt.Chart]:
    if not limits:
        return []
    data = _data([{"size": unit.scaled(size), "text": name} for name, size in limits])
    rule = alt.Chart(data).mark_rule(color=_LIMIT, strokeDash=[5, 3], strokeWidth=1.5).encode(x="size:Q")
    label = alt.Chart(data).mark_text(color=_LIMIT, align="center", dy=-3, baseline="bottom", y=0)
    return [rule, label.encode(x="size:Q", text="text:N")]


def memory_over_step(courses: Sequence[MemoryTimeline], unit: MemoryUnit) -> Chart:
    """Draw each cell's live bytes, the phases shaded, the peak labelled with its operator and module."""
    return alt.vconcat(*(_course(course, unit) for course in courses)).resolve_scale(color="shared")


def _course(course: MemoryTimeline, unit: MemoryUnit) -> Chart:
    line = course.timeline
    shades = [{"phase": words(phase), "start": start, "end": end} for phase, start, end in course.spans]
    points = [
        {"entry": entry, "size": unit.scaled(size)}
        for entry, size in zip(line.entries, line.live_bytes, strict=True)
    ]
    where = f"{course.op} in {course.module}" if course.module else course.op
    peak = {
        "entry": course.peak_entry,
        "size": unit.scaled(course.peak_bytes),
        "text": f"{unit.show(course.peak_bytes)}: {where}",
    }
    scale = alt.Scale(domain=list(_PHASES), range=list(_PHASES.values()))
    legend = alt.Legend(title=None, orient="top", symbolOpacity=0.7)  # the shades are too faint for a swatch
    shade = (
        alt.Chart(_data(shades))
        .mark_rect(opacity=0.18)
        .encode(
            x=alt.X(
                "start:Q", scale=alt.Scale(nice=False), axis=alt.Axis(title=None, format=",~f", tickCount=8)
            ),
            x2="end:Q",
            color=alt.Color("phase:N", scale=scale, legend=legend),
        )
    )
    top = alt.Scale(domainMax=unit.scaled(course.peak_bytes) * 1.18)  # room for the label
    area = (
        alt.Chart(_data(points))
        .mark_line(color=INK, strokeWidth=1)
        .encode(x="entry:Q", y=alt.Y("size:Q", scale=top, axis=_bytes_axis(unit, "alive")))
    )
    dot = alt.Chart(_data([peak])).mark_point(color=_LIMIT, filled=True, size=50)
    align: Literal["left", "right"] = "right" if course.peak_entry > line.last_entry // 2 else "left"
    label = alt.Chart(_data([peak])).mark_text(color=INK, align=align, dy=-11)
    marked = [mark.encode(x="entry:Q", y="size:Q") for mark in (dot, label.encode(text="text:N"))]
    return alt.layer(shade, area, *marked).properties(width=_WIDTH, height=150, title=course.cell)


def predicted_and_read(pairs: Sequence[tuple[str, Predicted]], unit: MemoryUnit) -> Chart:
    """Draw each prediction, a point or a band, beside the reading of its instrument."""
    points = [
        {
            "cell": name,
            "low": unit.scaled(one.low_bytes),
            "high": unit.scaled(one.high_bytes),
            "read": unit.scaled(one.measured_bytes),
        }
        for name, one in pairs
    ]
    base = alt.Chart(_data(points)).encode(y=alt.Y("cell:N", sort=None, axis=_cells_axis()))
    x = alt.X("low:Q", scale=alt.Scale(zero=False), axis=_bytes_axis(unit, "peak"))
    kinds = alt.Scale(domain=["predicted", "read"], range=["#4477aa", "#ee6677"])
    legend = alt.Legend(title=None, orient="top")
    colour = alt.Color("kind:N", scale=kinds, legend=legend)
    band = base.mark_rule(strokeWidth=7, color="#4477aa", opacity=0.5).encode(x=x, x2="high:Q")
    predicted = base.transform_calculate(kind="'predicted'").mark_tick(thickness=3, size=18)
    read = base.transform_calculate(kind="'read'").mark_point(filled=True, size=60, shape="diamond")
    layers = [band, predicted.encode(x="high:Q", color=colour), read.encode(x="read:Q", color=colour)]
    return _layered(layers, _BAR * len(points))


def speeds(read: Sequence[tuple[str, Throughput]]) -> Chart:
    """Draw tokens/s with its range."""
    points = [
        {"cell": name, "speed": speed.tokens_per_second, "low": speed.low, "high": speed.high}
        for name, speed in read
    ]
    base = alt.Chart(_data(points)).encode(y=alt.Y("cell:N", sort=None, axis=_cells_axis()))
    x = alt.X("low:Q", axis=alt.Axis(title="tokens/s", format=",~f"), scale=alt.Scale(zero=True))
    span = base.mark_rule(strokeWidth=3, color="#4477aa").encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=60, color="#4477aa", opacity=1).encode(x="speed:Q")
    return _layered([span, dot], _BAR * len(points))


def frontier(one: Frontier, unit: MemoryUnit, instrument: str, *, label: bool) -> Chart:
    """Draw memory against speed, accuracy as colour; what another cell dominates is grey."""
    several = len({row.window for row in one.rows}) > 1
    points: list[dict[str, Any]] = [
        {
            "name": f"{row.method} {row.window}" if several else row.method,
            "size": unit.scaled(peak.peak_bytes),
            "speed": speed.tokens_per_second,
            "accuracy": accuracy.after if accuracy else None,
        }
        | {"grey": row.key in one.dominated_by}
        for row in one.rows
        if (peak := row.peak(one.instrument)) and (speed := row.throughput)
        for accuracy in (row.accuracy(one.task),)
    ]
    x = alt.X(
        "size:Q", scale=alt.Scale(zero=False, padding=90), axis=_bytes_axis(unit, f"peak, {instrument}")
    )
    speed_axis = alt.Axis(title="tokens/s", format=",~f")
    y = alt.Y("speed:Q", scale=alt.Scale(zero=False, padding=24), axis=speed_axis)
    base = alt.Chart(_data(points)).encode(x=x, y=y)
    colour: Any = alt.value("#4477aa")
    if one.task is not None:
        shares = [point["accuracy"] for point in points]
        digits = 0 if max(shares) - min(shares) > _WIDE_RANGE else 1  # or its ends would read the same
        form = f".{digits}%"
        legend = alt.Legend(title=f"accuracy, {one.task}", format=form, orient="top", gradientLength=200)
        colour = alt.Color("accuracy:Q", scale=alt.Scale(scheme="plasma"), legend=legend)
    grey = base.transform_filter("datum.grey").mark_point(filled=True, size=70, color=FAINT, opacity=1)
    best = base.transform_filter("!datum.grey").mark_point(filled=True, size=130, opacity=1, stroke=INK)
    layers = [grey, best.encode(color=colour)]
    if label:
        layers.append(base.mark_text(dy=-14, color=INK, limit=260).encode(text="name:N"))
    return _layered(layers, _HEIGHT)


def accuracies(points: Sequence[AccuracyPoint], lever: str) -> Chart:
    """Draw accuracy after training over one lever, with one standard error to each side."""
    data = _data(
        [
            {
                "series": f"{point.task}: {point.series}",
                "value": point.value,
                "accuracy": point.accuracy,
                "low": point.low,
                "high": point.high,
            }
            for point in points
        ]
    )
    numbers = sorted({point.value for point in points if isinstance(point.value, int)})
    order: Any = numbers or list(dict.fromkeys(point.value for point in points))
    x = alt.X("value:O", sort=order, axis=alt.Axis(title=lever, labelAngle=0))
    y = alt.Y("low:Q", axis=alt.Axis(title="accuracy after training", format=".0%"))
    legend = alt.Legend(title=None, orient="top", columns=1, labelLimit=540)
    base = alt.Chart(data).encode(x=x, color=alt.Color("series:N", sort=None, legend=legend))
    shift = alt.XOffset("series:N")
    error = base.mark_rule().encode(y=y, y2="high:Q", xOffset=shift)
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(y="accuracy:Q", xOffset=shift)
    return _layered([error, dot], _HEIGHT)


def scaling(points: Sequence[ScalingPoint], lever: str, unit: MemoryUnit, limits: Limits) -> Chart:
    """Draw memory, and speed where it was measured, over a lever; both axes of memory are logarithmic."""
    data: list[Mapping[str, Any]] = [
        {
            "series": point.series,
            "value": point.value,
            "size": unit.scaled(point.memory_bytes),
            "speed": point.tokens_per_second,
        }
        for point in points
    ]
    values = sorted({point.value for point in points})
    x = alt.X(
        "value:Q",
        scale=alt.Scale(type="log", base=2),
        axis=alt.Axis(title=lever, values=values, format=",~f"),
    )
    legend = alt.Legend(title=None, orient="top", columns=1, labelLimit=540)
    colour = alt.Color("series:N", sort=None, legend=legend)
    base = alt.Chart(_data(list(map(dict, data)))).encode(x=x, color=colour)
    axis = _bytes_axis(unit, "peak" if any(point.tokens_per_second for point in points) else "needed")
    memory = base.mark_line(point=True).encode(
        y=alt.Y("size:Q", scale=alt.Scale(type="log", nice=False), axis=axis)
    )
    marks = [{"size": unit.scaled(size), "text": name} for name, size in limits]
    rule = alt.Chart(_data(marks)).mark_rule(color=_LIMIT, strokeDash=[5, 3]).encode(y="size:Q")
    name = alt.Chart(_data(marks)).mark_text(color=_LIMIT, align="left", dx=4, dy=-6, x=0)
    left = alt.layer(memory, *([rule, name.encode(y="size:Q", text="text:N")] if marks else []))
    if not any(point.tokens_per_second for point in points):
        return left.properties(width=_WIDTH, height=_HEIGHT)
    speed = base.transform_filter("isValid(datum.speed)").mark_line(point=True)
    right = speed.encode(y=alt.Y("speed:Q", axis=alt.Axis(title="tokens/s", format=",~f")))
    size = {"width": _WIDTH // 2 - 30, "height": _HEIGHT}
    return alt.hconcat(left.properties(**size), right.properties(**size))


def specification(chart: Chart) -> dict[str, Any]:
    """Return the Vega-Lite specification, checked against its schema, in the house's style."""
    styled = (
        chart.configure(background=PAPER, font=_FONT, padding=8)
        .configure_axis(
            domainColor=FAINT,
            gridColor=FAINT,
            gridOpacity=0.4,
            labelColor=INK,
            labelFontSize=11,
            tickColor=FAINT,
            titleColor=INK,
            titleFontSize=12,
            titleFontWeight="normal",
        )
        .configure_legend(
            labelColor=INK, titleColor=INK, labelFontSize=11, titleFontWeight="normal", symbolType="square"
        )
        .configure_title(color=INK, fontSize=12, anchor="start", fontWeight="normal")
        .configure_view(stroke=None)
        .configure_text(fontSize=11)
    )
    found: dict[str, Any] = styled.to_dict()
    return found
