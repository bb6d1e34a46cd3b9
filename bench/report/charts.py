"""Figures as Altair specifications, from rows whose numbers are worked out; nothing is rendered here.

Colours are literal and few, since an HTML page puts its own in the place of some (``templates/charts.toml``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import altair as alt

from bench.compare.highlights import Frontier
from bench.compare.predictions import Choice
from bench.compare.readings import Predicted, Throughput
from bench.compare.series import AccuracyPoint, MemoryBreakdown, MemoryTimeline, ScalingPoint
from bench.report.text import MemoryUnit, load_toml, plain, share, significant, words

INK, PAPER, FAINT, LIMIT, BLUE, RED = "#1a1c20", "#fdfdfd", "#b9bdc6", "#dd3333", "#4477aa", "#ee6677"
_LOOK = load_toml("charts.toml")
WIDE, NARROW = 664, 350  # pixels: half of a wide page, and a telephone
_HEIGHT, _BAR = 300, 26
_BESIDE, _SWATCH = 84, 30  # what the axis beside one of several charts takes, and a legend's symbol
_PART = 145  # a legend's symbol with the name of what memory is for
_LETTER, _LINE = 6.8, 15  # a label's letters and lines, at most
_USUAL_LETTER = 6  # of a legend's
_PLACES = ((0, -14), (1, 4), (-1, 4), (0, 24), (1, -14), (-1, -14), (1, 22), (-1, 22), (0, -30), (0, 40))
_WIDE_RANGE = 0.1  # of accuracies, as shares
Limits = Sequence[tuple[str, int]]
Chart = Any  # altair builds its types at run time
_axis = partial(alt.Axis, format=",~f", tickCount=5)
_legend = partial(alt.Legend, title=None, orient="top")
_CELLS = alt.Y("cell:N", sort=None, axis=alt.Axis(title=None, labelLimit=340))
_SERIES = alt.Color("series:N", sort=None, legend=_legend(columns=4, labelLimit=540))
_TIP = alt.Description("tip:N")


def specification(drawn: dict[str, Any], width: int = WIDE) -> dict[str, Any]:
    """Return what altair checked against its schema as a specification so many pixels wide, and styled."""
    found: dict[str, Any] = _fitted(drawn, width, _columns(drawn, width))
    parts = found.pop("hconcat", ()) or found.get("vconcat", ())
    if "vconcat" in found or (parts and width < WIDE):
        found["vconcat"] = [{**part, "width": width - _BESIDE} for part in parts]
    elif parts:
        found["hconcat"] = [{**part, "width": width // len(parts) - _BESIDE} for part in parts]
    else:
        found |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    style = {**_LOOK["style"], "title": {**_LOOK["style"]["title"], "limit": width - _BESIDE}}
    return {**found, "config": {**style, "view": {"stroke": None}}}


def _columns(drawn: dict[str, Any], width: int) -> int:
    """Return in how many columns a legend goes: by the longest series, else by the bars' labels."""
    rows = list(_rows(drawn))
    cell, series = (max((len(row.get(name, "")) for row in rows), default=0) for name in ("cell", "series"))
    if series:
        return max(1, width // (series * _USUAL_LETTER + _SWATCH))
    return max(1, int(width - min(cell * _LETTER, width / 2)) // _PART)


def _rows(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield from part.get("data", {}).get("values", ())
        part = [one for name, one in part.items() if name != "data"]
    for one in part if isinstance(part, list | tuple) else ():
        yield from _rows(one)


def _fitted(part: Any, width: int, columns: int) -> Any:
    """Return a part of a specification whose labels and legends leave room for the marks."""
    if isinstance(part, list | tuple):
        return [_fitted(one, width, columns) for one in part]
    if not isinstance(part, dict) or "values" in part:
        return part
    limit = width // columns - _SWATCH if "columns" in part else width // 2
    most = {"labelLimit": limit, "columns": columns}
    return {
        name: min(one, most[name]) if name in most else _fitted(one, width, columns)
        for name, one in part.items()
    }


def _chart(columns: str, rows: Iterable[tuple[object, ...]]) -> alt.Chart:
    """Return a chart of a table; ``columns`` are names with blanks between, ``tip`` what is at a pointer."""
    names = columns.split()
    # In a tuple, which altair hands on, not a list, of which it makes a deep copy in every layer.
    shown = ([plain(one) if isinstance(one, str) else one for one in row] for row in rows)
    values = tuple(dict(zip(names, row, strict=True)) for row in shown)
    base = alt.Chart(alt.Data(values=values))  # type: ignore[no-untyped-call]  # altair leaves its core untyped
    return base.encode(description=_TIP) if "tip" in names else base


def _layered(layers: Sequence[Chart], height: int) -> Chart:
    return alt.layer(*layers).properties(height=height)


def _limits(limits: Limits, unit: MemoryUnit) -> alt.Chart:
    """Return limits from the highest, each with its ``row``, so that no name is written over another."""
    ordered = enumerate(sorted(limits, key=lambda limit: -limit[1]))
    rows = ((unit.scaled(size), name, at, f"{name}: {unit.show(size)}") for at, (name, size) in ordered)
    return _chart("size text row tip", rows)


def stacked_memory(stacks: Sequence[MemoryBreakdown], limits: Limits, unit: MemoryUnit) -> Chart:
    """Draw the parts of each peak side by side on one bar, and each limit as a line."""
    colours = {
        name: colour
        for name, colour in _LOOK["parts"].items()
        if any(name in stack.parts_bytes for stack in stacks)
    }
    names = list(colours)
    parts = _chart(
        "cell part size order tip",
        (
            (
                stack.cell,
                name,
                unit.scaled(size),
                names.index(name),
                f"{stack.cell}: {name} {unit.show(size)}",
            )
            for stack in stacks
            for name, size in stack.parts_bytes.items()
        ),
    )
    totals = _chart(
        "cell size text",
        ((one.cell, unit.scaled(one.total_bytes), unit.figure(one.total_bytes)) for one in stacks),
    )
    most = max(
        unit.scaled(size) for size in (*(s.total_bytes for s in stacks), *(size for _, size in limits))
    )
    room = alt.Scale(domain=[0, most * 1.12], nice=False)  # for the last number
    bars = parts.mark_bar().encode(
        y=_CELLS,
        x=alt.X("size:Q", stack="zero", scale=room, axis=_axis(title=f"live at the peak, {unit.name}")),
        color=alt.Color("part:N", scale=_scale(colours), legend=_legend(columns=5, orient="bottom")),
        order="order:Q",
    )
    layers = [bars]
    if limits:
        lines = _limits(limits, unit).encode(x="size:Q")
        top = {"expr": f"{-_LINE} * datum.row - {_LINE}"}
        side = {"expr": "datum.row ? 'left' : 'right'"}
        label = lines.mark_text(color=LIMIT, align=side, dx={"expr": "datum.row ? 4 : 0"}, y=top, aria=False)
        rule = lines.mark_rule(color=LIMIT, strokeDash=[5, 3], strokeWidth=1.5, y=top, y2={"expr": "height"})
        layers += [rule, label.encode(text="text:N")]
    numbers = totals.encode(y=alt.Y("cell:N", sort=None), x="size:Q", text="text:N")
    layers += _over_lines(numbers, align="left", dx=4, color=INK)
    return _layered(layers, _BAR * len(stacks))


def _over_lines(named: Chart, **mark: Any) -> list[Chart]:
    """Write each text over a rim of the paper's colour, where lines would cross it."""
    return [
        named.mark_text(**mark, aria=False, **rim)
        for rim in ({"stroke": PAPER, "strokeWidth": 4, "strokeJoin": "round"}, {})
    ]


def _scale(colours: Mapping[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def memory_over_step(courses: Sequence[MemoryTimeline], unit: MemoryUnit) -> Chart:
    """Draw each cell's live bytes, the phases shaded, the peak told with its operator and module above."""
    return alt.vconcat(*(_course(course, unit) for course in courses)).resolve_scale(color="shared")


def _course(course: MemoryTimeline, unit: MemoryUnit) -> Chart:
    line, highest = course.timeline, unit.scaled(course.peak_bytes)
    phases = _chart(
        "phase start end tip", ((words(name), start, end, words(name)) for name, start, end in course.spans)
    )
    legend = _legend(columns=4, symbolOpacity=0.7)  # the shades are too faint for a swatch
    entries = _axis(title="allocations and frees, in order")
    shade = phases.mark_rect(opacity=0.18).encode(
        x=alt.X("start:Q", scale=alt.Scale(nice=False), axis=entries),
        x2="end:Q",
        color=alt.Color("phase:N", scale=_scale(_LOOK["phases"]), legend=legend),
    )
    points = _chart("entry size", zip(line.entries, map(unit.scaled, line.live_bytes), strict=True))
    area = points.mark_line(color=INK, strokeWidth=1, aria=False).encode(
        x="entry:Q", y=alt.Y("size:Q", axis=_axis(title=f"live, {unit.name}", minExtent=44))
    )
    where = f"{course.op} in {course.module}" if course.module else course.op
    told = f"peak {unit.show(course.peak_bytes)}: {where}"
    peak = _chart("entry size tip", [(course.peak_entry, highest, told)]).encode(x="entry:Q", y="size:Q")
    dot = peak.mark_point(color=LIMIT, filled=True, size=60, opacity=1)
    title = {"text": plain(course.cell), "subtitle": plain(told)}
    return alt.layer(shade, area, dot).properties(height=130, title=title)


def predicted_and_read(pairs: Sequence[tuple[str, Predicted]], unit: MemoryUnit) -> Chart:
    """Draw each prediction, a point or a band, beside the reading of its instrument."""
    rows = (
        (
            name,
            *map(unit.scaled, (one.low_bytes, one.high_bytes, one.measured_bytes)),
            f"{name}: {unit.span(one.low_bytes, one.high_bytes)}, read {unit.show(one.measured_bytes)}",
        )
        for name, one in pairs
    )
    base = _chart("cell low high read tip", rows).encode(y=_CELLS)
    x = alt.X("low:Q", scale=alt.Scale(zero=False), axis=_axis(title=f"peak, {unit.name}"))
    colour = alt.Color("kind:N", scale=_scale({"predicted": BLUE, "read": RED}), legend=_legend())
    band = base.mark_rule(strokeWidth=7, color=BLUE, opacity=0.5).encode(x=x, x2="high:Q")
    predicted = base.transform_calculate(kind="'predicted'").mark_tick(thickness=3, size=18)
    read = base.transform_calculate(kind="'read'").mark_point(filled=True, size=60, shape="diamond")
    layers = [band, predicted.encode(x="high:Q", color=colour), read.encode(x="read:Q", color=colour)]
    return _layered(layers, _BAR * len(pairs))


def speeds(read: Sequence[tuple[str, Throughput]]) -> Chart:
    rows = (
        (name, one.tokens_per_second, one.low, one.high, f"{name}: {_range(one.tokens_per_second, one)}")
        for name, one in read
    )
    base = _chart("cell speed low high tip", rows).encode(y=_CELLS)
    x = alt.X("low:Q", axis=_axis(title="tokens/s"), scale=alt.Scale(zero=True))
    span = base.mark_rule(strokeWidth=3, color=BLUE).encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=60, color=BLUE, opacity=1).encode(x="speed:Q")
    return _layered([span, dot], _BAR * len(read))


def _range(speed: float, one: Throughput) -> str:
    return f"{significant(speed)} tokens/s ({significant(one.low)} to {significant(one.high)})"


def frontier(one: Frontier, unit: MemoryUnit, instrument: str, *, label: bool) -> Chart:
    """Draw memory against speed, accuracy as colour; what another cell dominates is grey."""
    several = len({row.window for row in one.rows}) > 1
    shares = [accuracy.after if (accuracy := row.accuracy(one.task)) else None for row in one.rows]
    rows = [
        (
            f"{row.method} {row.window}" if several else row.method,
            unit.scaled(peak.peak_bytes),
            speed.tokens_per_second,
            known,
            row.key in one.dominated_by,
            ", ".join(
                (
                    f"{row.method}: {unit.show(peak.peak_bytes)}",
                    _range(speed.tokens_per_second, speed),
                    *([] if known is None else [f"accuracy {share(known)}"]),
                )
            ),
        )
        for row, known in zip(one.rows, shares, strict=True)
        if (peak := row.peak(one.instrument)) and (speed := row.throughput)
    ]
    axes = [_spread([row[at] for row in rows]) for at in (1, 2)]
    base = _chart("name size speed accuracy grey tip", rows).encode(
        x=alt.X("size:Q", scale=axes[0], axis=_axis(title=f"peak memory: {instrument}, {unit.name}")),
        y=alt.Y("speed:Q", scale=axes[1], axis=_axis(title="tokens/s")),
    )
    colour: Chart = alt.value(BLUE)
    if one.task is not None:
        known = [share for share in shares if share is not None]
        digits = 0 if max(known) - min(known) > _WIDE_RANGE else 1  # or its ends would read the same
        legend = _legend(title=f"accuracy, {one.task}", format=f".{digits}%", gradientLength=200)
        colour = alt.Color("accuracy:Q", scale=alt.Scale(scheme="plasma"), legend=legend)
    grey = base.transform_filter("datum.grey").mark_point(filled=True, size=70, color=FAINT, opacity=1)
    best = base.transform_filter("!datum.grey").mark_point(filled=True, size=130, opacity=1, stroke=INK)
    layers = [grey, best.encode(color=colour)]
    return _layered([*layers, *(_names(rows, axes) if label else ())], _HEIGHT)


def _spread(values: Sequence[Any]) -> alt.Scale:
    """Return an axis with room for names beside its outermost points."""
    room = (max(values) - min(values) or max(values) or 1.0) * 0.2
    return alt.Scale(domain=[min(values) - room, max(values) + room], nice=False)


def _names(rows: Sequence[tuple[Any, ...]], axes: Sequence[alt.Scale]) -> Iterator[Chart]:
    """Yield each point's name where it hides no other name or point, as far as there is such a place."""
    spans = [(NARROW - _BESIDE, axes[0].domain), (-_HEIGHT, axes[1].domain)]

    def pixel(value: Any, at: int) -> Any:
        pixels, (low, high) = spans[at]
        return pixels * (value - low) / (high - low)

    points = [(pixel(row[1], 0), pixel(row[2], 1)) for row in rows]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    for (x, y), (name, size, speed, *_) in zip(points, rows, strict=True):
        wide = _LETTER * len(name)
        boxes = {}
        for side, down in _PLACES:
            left = x + (9 if side > 0 else -9 - wide if side < 0 else -wide / 2)
            boxes[side, down] = (left, y + down - _LINE / 2, left + wide, y + down + _LINE / 2)
        side, down = min(boxes, key=lambda place: sum(_overlap(boxes[place], other) for other in taken))
        taken.append(boxes[side, down])
        align: Any = {1: "left", 0: "center", -1: "right"}[side]
        point = _chart("name size speed", [(name, size, speed)])
        mark = point.mark_text(align=align, dx=9 * side, dy=down, color=INK, limit=260, aria=False)
        yield mark.encode(x="size:Q", y="speed:Q", text="name:N")


_Box = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> float:
    wide, high = (min(one[at + 2], other[at + 2]) - max(one[at], other[at]) for at in (0, 1))
    return max(0.0, wide) * max(0.0, high)


def cards(choices: Sequence[Choice]) -> Chart:
    """Draw what a job costs over the hours that it takes, by card; lines are the ranges of both."""
    rows = (
        (
            *(one.cell, one.fit.card, *one.hours, *one.cost),
            f"{one.cell}, {one.fit.card}: {significant(one.hours[1])} hours, {significant(one.cost[1])}",
        )
        for one in choices
    )
    base = _chart("series name fast hours slow cheap cost dear tip", rows).encode(color=_SERIES)
    x, y = (alt.X("hours:Q", axis=_axis(title="hours")), alt.Y("cost:Q", axis=_axis(title="cost")))
    points = base.mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y)
    ranges = base.mark_rule(opacity=0.5).encode(
        x=alt.X("fast:Q"), x2="slow:Q", y=alt.Y("cheap:Q"), y2="dear:Q"
    )
    return _layered([ranges, points, points.mark_text(dy=-14, color=INK).encode(text="name:N")], _HEIGHT)


def accuracies(points: Sequence[AccuracyPoint], lever: str) -> Chart:
    """Draw accuracy after training over one lever, and how far it may be off to each side."""
    rows = (
        (
            f"{one.task}: {one.series}",
            *(one.value, one.accuracy, one.low, one.high),
            f"{lever} {one.value}: {share(one.accuracy)} ({share(one.low)} to {share(one.high)})",
        )
        for one in points
    )
    numbers = sorted({point.value for point in points if isinstance(point.value, int)})
    order: Chart = numbers or list(dict.fromkeys(point.value for point in points))
    x = alt.X("value:O", sort=order, axis=alt.Axis(title=lever, labelAngle=0))
    y = alt.Y(
        "low:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title="accuracy after training", format=".0%")
    )
    base = _chart("series value accuracy low high tip", rows).encode(x=x, color=_SERIES, xOffset="series:N")
    error = base.mark_rule().encode(y=y, y2="high:Q")
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(y="accuracy:Q")
    return _layered([error, dot], _HEIGHT)


def scaling(points: Sequence[ScalingPoint], lever: str, unit: MemoryUnit, limits: Limits) -> Chart:
    """Draw memory, and speed where it was measured, over a lever; both axes of memory are logarithmic."""
    rows = (
        (
            *(one.series, one.value, unit.scaled(one.memory_bytes), one.tokens_per_second),
            f"{one.series}, {lever} {one.value:,}: {unit.show(one.memory_bytes)}",
        )
        for one in points
    )
    measured = any(point.tokens_per_second for point in points)
    axis = _axis(title=lever, values=sorted({point.value for point in points}))
    x = alt.X("value:Q", scale=alt.Scale(type="log", base=2), axis=axis)
    base = _chart("series value size speed tip", rows).encode(x=x, color=_SERIES)
    size = _axis(title=f"{'peak memory' if measured else 'memory needed'}, {unit.name}")
    y = alt.Y("size:Q", scale=alt.Scale(type="log", nice=False), axis=size)
    layers = _lines(base, y)
    if limits:
        lines = _limits(limits, unit).encode(y="size:Q")
        layers.append(lines.mark_rule(color=LIMIT, strokeDash=[5, 3]))
        place = {"expr": "datum.row % 3 * width / 3"}
        layers += _over_lines(lines.encode(text="text:N"), color=LIMIT, align="left", dx=4, dy=-7, x=place)
    if not measured:
        return _layered(layers, _HEIGHT)
    right = _lines(
        base.transform_filter("isValid(datum.speed)"), alt.Y("speed:Q", axis=_axis(title="tokens/s"))
    )
    return alt.hconcat(*(_layered(each, _HEIGHT) for each in (layers, right)))


def _lines(base: Chart, y: alt.Y) -> list[Chart]:
    return [base.mark_line(aria=False).encode(y=y), base.mark_point(filled=True, opacity=1).encode(y=y)]
