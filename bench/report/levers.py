"""Memory levers one at a time, as a block of a page: sentences and a table, no arithmetic."""

from collections.abc import Iterator, Mapping, Sequence

from bench.compare.levers import IDLE_SHARE, TENSORS, Change, Effect, Levers, levers
from bench.compare.measured import Instrument
from bench.compare.studies import PROCESS
from bench.compare.summary import compare
from bench.records.derived_metrics import BUSY_MACHINE, THROTTLED
from bench.records.records import Record
from bench.report.comparison_columns import INSTRUMENT_NAMES, memory_unit
from bench.report.layout import Table, bullets, markdown_table
from bench.report.text import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    MemoryUnit,
    markdown,
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
    return f"Against {one.baseline.row.id}, {one.baseline.row.device_name}"


def _sentences(one: Levers, unit: MemoryUnit) -> Iterator[str]:
    """Say what saves, what costs, what does nothing, and how far predictions were from the readings."""
    base = one.baseline.row
    peak = base.peak(TENSORS[base.device])
    if peak:
        name = INSTRUMENT_NAMES[peak.instrument]
        yield f"{base.method} peaks at {unit.show(peak.peak_bytes)} ({name})."
    for told, effects in (("Less", one.saving), ("More", one.costing)):
        if effects:
            listed = ", ".join(f"{each.row.method} ({_change(each.peak_share)})" for each in effects)
            yield f"{told} with {listed}."
    if one.idle:
        yield f"Within {share(IDLE_SHARE, 0)}: {', '.join(each.row.method for each in one.idle)}."
    if one.misses:
        farthest = share(max(one.misses)).removesuffix(" %")
        yield (
            f"Of {len(one.misses)} changes predicted before the runs, the farthest from its reading is "
            f"{farthest} points of the baseline's peak off."
        )


def _table(one: Levers, unit: MemoryUnit) -> Table:
    device = one.baseline.row.device
    tensors, process = INSTRUMENT_NAMES[TENSORS[device]], INSTRUMENT_NAMES[PROCESS[device]]
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
        rows=tuple(
            _line(each, unit, is_baseline=each is one.baseline) for each in (one.baseline, *one.effects)
        ),
        left=2,
    )


def _line(effect: Effect, unit: MemoryUnit, *, is_baseline: bool) -> tuple[str, ...]:
    row = effect.row

    def change(value: float | None) -> str:
        return NOT_APPLICABLE if is_baseline else _change(value)

    return (
        row.method,
        "; ".join(map(_told, effect.changes)) or NOT_APPLICABLE,
        _peak(effect, TENSORS, unit),
        change(effect.peak_share),
        change(effect.predicted_share),
        _peak(effect, PROCESS, unit),
        change(effect.process_share),
        operations(row.flops_per_token),
        change(effect.flops_share),
        significant(row.throughput.tokens_per_second)
        if row.throughput and not effect.disturbed
        else NOT_MEASURED,
        change(effect.speed_share),
    )


def _change(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    text = share(round(value, 3) + 0.0)  # no minus before a nought
    return text if value < 0 or text == share(0) else f"+{text}"


def _peak(effect: Effect, instruments: Mapping[str, Instrument], unit: MemoryUnit) -> str:
    """Write a peak; where a cell did not end well, how it ended."""
    if effect.row.outcome != "ok":
        return effect.row.outcome
    peak = effect.row.peak(instruments[effect.row.device])
    return unit.show(peak.peak_bytes if peak else None)


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
    effects = [each for one in found for each in (one.baseline, *one.effects)]
    yield from _on_speed(effects)
    yield from _warnings(effects)


def _on_speed(effects: Sequence[Effect]) -> Iterator[str]:
    disturbed = sum(each.disturbed for each in effects)
    if disturbed:
        yield (
            "Speed is left out where, during the measured steps of the cell or of the plain method, others "
            f"used the CPUs or the GPU was throttled: {disturbed} of {len(effects)} rows. Bytes and "
            "operations do not depend on it."
        )
    steps = [each.row.throughput.steps for each in effects if each.row.throughput]
    if steps and disturbed < len(effects):
        yield f"A cell has {min(steps)} measured steps: speed tells large differences only."


def _warnings(effects: Sequence[Effect]) -> Iterator[str]:
    """Yield what the records warn of, beyond what this page says of every cell."""
    gathered: dict[str, list[str]] = {}
    for each in effects:
        for caveat in each.row.caveats:
            if caveat.code not in _SAID:
                gathered.setdefault(caveat.message, []).append(each.row.method)
    for message, methods in gathered.items():
        listed = "all" if len(methods) == len(effects) else ", ".join(methods)
        yield f"{message} ({listed})"


def _names(found: Sequence[Levers], instruments: Mapping[str, Instrument]) -> str:
    return " or ".join(dict.fromkeys(INSTRUMENT_NAMES[instruments[one.baseline.row.device]] for one in found))
