"""Memory levers one at a time, as a block of a page: sentences and a table, no arithmetic."""

from collections.abc import Iterator, Mapping, Sequence

from bench.compare.comparison import compare
from bench.compare.measured import Contrast, Measured
from bench.compare.studies import IDLE_SHARE, Change, Levers, changes, levers
from bench.metrics import CAPACITY, INSTRUMENT_NAMES, TENSORS, Instrument
from bench.records.derived_metrics import BUSY_MACHINE, THROTTLED, speed_disturbed
from bench.records.records import Record
from bench.report.comparison_columns import memory_unit
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    MemoryUnit,
    Table,
    bullets,
    markdown,
    markdown_table,
    operations,
    share,
    significant,
    words,
)

# Caveats that this page states for all its cells.
_SAID = {"few-steps", "one-run", BUSY_MACHINE, THROTTLED, "synthetic-data"}


def render_levers(records: Sequence[Record]) -> str:
    """Return, for each plain method, what every lever does to its memory, operations and speed.

    Raises UsageError where no plain method ended well.
    """
    comparison = compare(records)
    found = levers(comparison)
    unit = memory_unit(comparison.rows)
    parts = []
    for one in found:
        parts.append(f"**{markdown(_title(one))}**")
        parts.append(markdown(" ".join(_sentences(one, unit))))
        parts.append(markdown_table(_table(one, unit)))
    parts.append(bullets(markdown(line) for line in _how_read(found)))
    return "\n\n".join(parts)


def _title(one: Levers) -> str:
    return f"Against {one.baseline.id}, {one.baseline.device_name}"


def _sentences(one: Levers, unit: MemoryUnit) -> Iterator[str]:
    """Say what saves, what costs, what does nothing, and how far predictions were from the readings."""
    base, tensors = one.baseline, TENSORS[one.baseline.device]
    peak = base.peak(tensors)
    if peak:
        name = INSTRUMENT_NAMES[peak.instrument]
        yield f"{base.method} peaks at {unit.show(peak.peak_bytes)} ({name})."
    for told, effects in (("Less", one.saving), ("More", one.costing)):
        if effects:
            listed = ", ".join(
                f"{each.measured.method} ({_change(each.memory_share(tensors))})" for each in effects
            )
            yield f"{told} with {listed}."
    if one.idle:
        yield f"Within {share(IDLE_SHARE, 0)}: {', '.join(each.measured.method for each in one.idle)}."
    if one.misses:
        farthest = share(max(one.misses)).removesuffix(" %")
        yield (
            f"Of {len(one.misses)} changes predicted before the runs, the farthest from its reading is "
            f"{farthest} points of the baseline's peak off."
        )


def _table(one: Levers, unit: MemoryUnit) -> Table:
    device = one.baseline.device
    tensors, process = INSTRUMENT_NAMES[TENSORS[device]], INSTRUMENT_NAMES[CAPACITY[device]]
    return Table(
        header=(
            "Method",
            "What changes",
            f"Peak: {tensors}",
            "Change",
            "Predicted",
            f"Peak: {process}",
            "Change",
            "FLOPs per token",
            "Change",
            "tokens/s",
            "Change",
        ),
        rows=(_line(one.baseline, None, unit), *(_line(each.measured, each, unit) for each in one.effects)),
        left=2,
    )


def _line(row: Measured, effect: Contrast | None, unit: MemoryUnit) -> tuple[str, ...]:
    """Return one row of the table; without an effect that of the plain method."""
    tensors, capacity = TENSORS[row.device], CAPACITY[row.device]

    def change(value: float | None) -> str:
        return NOT_APPLICABLE if effect is None else _change(value)

    disturbed = effect.disturbed if effect else speed_disturbed(row.caveats)
    told = row.throughput.tokens_per_second if row.throughput and not disturbed else None
    speed = effect.speed_ratio if effect and not disturbed else None
    return (
        row.method,
        "; ".join(map(_told, changes(effect) if effect else ())) or NOT_APPLICABLE,
        _peak(row, tensors, unit),
        change(effect.memory_share(tensors) if effect else None),
        change(effect.predicted_share(tensors) if effect else None),
        _peak(row, capacity, unit),
        change(effect.memory_share(capacity) if effect else None),
        operations(row.flops_per_token),
        change(effect.flops_share if effect else None),
        significant(told),
        change(None if speed is None else speed - 1),
    )


def _change(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    text = share(round(value, 3) + 0.0)  # no minus before a nought
    return text if value < 0 or text == share(0) else f"+{text}"


def _peak(row: Measured, instrument: Instrument, unit: MemoryUnit) -> str:
    """Write a peak; where a cell did not end well, how it ended."""
    peak = row.peak(instrument)
    return unit.show(peak.peak_bytes if peak else None) if row.ok else row.outcome


def _told(change: Change) -> str:
    name = words(change.field)
    if change.before is None:
        return f"{name} {_value(change.after)}"
    return f"{name} {_value(change.before)} → {_value(change.after)}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _how_read(found: Sequence[Levers]) -> Iterator[str]:
    """Say what each column means, what was left out, and what the records themselves warn of."""
    yield (
        "Change: against the plain method above, by the same instrument. Predicted: the change of the "
        f"peak of {_names(found, TENSORS)}, as predicted before the runs."
    )
    yield (
        "FLOPs per token: operations of one step as executed, recomputation included, for each token that "
        "is not padding."
    )
    rows = [row for one in found for row in (one.baseline, *(each.measured for each in one.effects))]
    yield from _on_speed(found, rows)
    yield from _warnings(rows)


def _on_speed(found: Sequence[Levers], rows: Sequence[Measured]) -> Iterator[str]:
    disturbed = sum(
        speed_disturbed(one.baseline.caveats) + sum(each.disturbed for each in one.effects) for one in found
    )
    if disturbed:
        yield (
            "Speed is left out where, during the measured steps of the cell or of the plain method, others "
            f"used the CPUs or the GPU was throttled: {disturbed} of {len(rows)} rows. Bytes and "
            "operations do not depend on it."
        )
    steps = [row.throughput.steps for row in rows if row.throughput]
    if steps and disturbed < len(rows):
        yield f"A cell has {min(steps)} measured steps: only large differences in speed are distinguishable."


def _warnings(rows: Sequence[Measured]) -> Iterator[str]:
    """Yield what the records warn of, beyond what this page says of every cell."""
    gathered: dict[str, list[str]] = {}
    for row in rows:
        for caveat in row.caveats:
            if caveat.code not in _SAID:
                gathered.setdefault(caveat.message, []).append(row.method)
    for message, methods in gathered.items():
        yield f"{message} ({'all' if len(methods) == len(rows) else ', '.join(methods)})"


def _names(found: Sequence[Levers], instruments: Mapping[str, Instrument]) -> str:
    return " or ".join(dict.fromkeys(INSTRUMENT_NAMES[instruments[one.baseline.device]] for one in found))
