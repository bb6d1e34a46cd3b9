"""The comparison itself as plain text cells, for Markdown and the terminal alike; no arithmetic."""

from collections.abc import Callable, Sequence

from bench.compare.measured import Comparison, Instrument, Measured, Throughput
from bench.compare.plausibility import Doubted
from bench.report.layout import Table
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    NOT_MEASURED,
    SMALL_MEBIBYTES,
    MemoryUnit,
    share,
    significant,
    small_share,
)

INSTRUMENT_NAMES: dict[Instrument, str] = {
    "ledger": "live tensors",
    "host_net": "process, net of start-up",
    "host": "process, start-up included",
    "cuda_allocated": "GPU, allocated",
    "cuda_reserved": "GPU, reserved",
    "nvml_process": "GPU, process by NVML",
    "nvml_device_delta": "GPU, device by NVML less idle",
}
# The process with its start-up is below, among the details: it says more about Python than about a method.
_COMPARED: tuple[Instrument, ...] = (
    "ledger",
    "host_net",
    "cuda_allocated",
    "cuda_reserved",
    "nvml_process",
    "nvml_device_delta",
)
_LARGE_BYTES = 16 * GIBIBYTES.size_bytes
_SMALL_BYTES = 100 * MEBIBYTES.size_bytes


Column = tuple[str, Callable[[Measured], str]]


def memory_unit(comparison: Comparison) -> MemoryUnit:
    """Return GiB for GPUs and large models, else MiB: one unit for the whole report."""
    sizes = [peak.peak_bytes for row in comparison.rows for peak in row.peaks]
    on_gpu = any(row.device == "cuda" and row.peaks for row in comparison.rows)
    if on_gpu or max(sizes, default=0) >= _LARGE_BYTES:
        return GIBIBYTES
    return SMALL_MEBIBYTES if min(sizes, default=_SMALL_BYTES) < _SMALL_BYTES else MEBIBYTES


def groups(comparison: Comparison) -> dict[tuple[str, str, str], list[Measured]]:
    """Return the rows to set side by side: one group for each model, window and device."""
    found: dict[tuple[str, str, str], list[Measured]] = {}
    for row in comparison.rows:
        found.setdefault((row.model, row.window, row.device), []).append(row)
    return found


def group_title(rows: Sequence[Measured]) -> str:
    """Return what the rows of one group have in common, with the note on the weights if there is one."""
    notes = dict.fromkeys(row.weights_note for row in rows if row.weights_note)
    model = f"{rows[0].model} ({'; '.join(notes)})" if notes else rows[0].model
    devices = dict.fromkeys(row.device_name for row in rows if row.runs_ok) or {rows[0].device: None}
    return f"{model}, {rows[0].window}, {' and '.join(devices)}"


def comparison_table(rows: Sequence[Measured], unit: MemoryUnit) -> Table:
    """Return the methods side by side; a column that no row has a value for is left out."""
    columns = _leading_columns(rows)
    for instrument in _present(rows):
        columns.append((f"Peak memory: {INSTRUMENT_NAMES[instrument]}", _peak(instrument, unit)))
        columns.append(("Saving", _saving(instrument)))
    if any(row.paged_bytes for row in rows):
        columns.append(("Paged optimizer state", lambda row: unit.show(row.paged_bytes)))
    columns.append(("tokens/s", _speed))
    if any(row.throughput and row.throughput.against_full is not None for row in rows):
        columns.append(("Speed, full = 1", _ratio))
    columns.extend((f"{task}: accuracy before → after", _accuracy(task)) for task in _tasks(rows))
    columns.append(("Trainable", lambda row: small_share(row.trainable_share)))
    columns.append(("Runs", _runs))
    return _filled(columns, rows)


def narrow_table(rows: Sequence[Measured], unit: MemoryUnit) -> Table:
    """Return the same in fewer columns, for a terminal: savings and relative speed in brackets."""
    columns = _leading_columns(rows)
    for instrument in _present(rows):
        columns.append((f"peak: {INSTRUMENT_NAMES[instrument]} (saving)", _peak_and_saving(instrument, unit)))
    columns.append(("tokens/s (full = 1)", _speed_and_ratio))
    columns.extend((f"{task} before → after", _accuracy_only(task)) for task in _tasks(rows))
    columns.append(("trainable", lambda row: small_share(row.trainable_share)))
    return _filled(columns, rows)


def _leading_columns(rows: Sequence[Measured]) -> list[Column]:
    """Return what names a row, and what went differently between rows."""
    columns: list[Column] = [("Method", lambda row: row.method)]
    if len({row.environment for row in rows}) > 1:
        columns.append(("Environment", lambda row: row.environment))
    if any(row.outcome != "ok" for row in rows):
        columns.append(("Outcome", lambda row: row.outcome))
    return columns


def _filled(columns: Sequence[Column], rows: Sequence[Measured]) -> Table:
    return Table(
        header=tuple(name for name, _ in columns),
        rows=tuple(tuple(show(row) for _, show in columns) for row in rows),
    )


def _present(rows: Sequence[Measured]) -> list[Instrument]:
    """Return the instruments to compare by that at least one row has a peak by."""
    return [instrument for instrument in _COMPARED if any(row.peak(instrument) for row in rows)]


def _tasks(rows: Sequence[Measured]) -> list[str]:
    """Return the evaluated tasks, each once, in order."""
    return list(dict.fromkeys(accuracy.task for row in rows for accuracy in row.accuracies))


def _peak(instrument: Instrument, unit: MemoryUnit) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        peak = row.peak(instrument)
        return _flagged(unit.show(peak.peak_bytes), row, "memory") if peak else NOT_MEASURED

    return show


def _saving(instrument: Instrument) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        peak = row.peak(instrument)
        if row.kind == "full":
            return NOT_APPLICABLE
        return share(peak.saving_share if peak else None, 0)

    return show


def _speed(row: Measured) -> str:
    if row.throughput is None:
        return NOT_MEASURED
    speed = row.throughput
    text = f"{significant(speed.tokens_per_second)} ({significant(speed.low)} to {significant(speed.high)})"
    return _flagged_speed(text, row, speed)


def _flagged_speed(text: str, row: Measured, speed: Throughput) -> str:
    """Mark a speed that had not settled, or that is not the card's own."""
    text = f"{text}, not steady" if speed.trend.verdict == "not steady" else text
    text = f"{text}, throttled" if speed.throttled else text
    return _flagged(text, row, "speed")


def _flagged(text: str, row: Measured, kind: Doubted) -> str:
    """Mark a number that a lint found to be wrong; the caveat says why."""
    return f"{text}, implausible" if kind in row.doubts else text


def _ratio(row: Measured) -> str:
    if row.kind == "full" and row.throughput:
        return "1"
    ratio = row.throughput.against_full if row.throughput else None
    return NOT_MEASURED if ratio is None else f"{ratio:.2f}"


def _accuracy(task: str) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        result = row.accuracy(task)
        if result is None:
            return NOT_MEASURED
        after = share(result.after)
        if result.after_error is not None:
            after += f" ± {result.after_error * 100:.1f}"
        return f"{share(result.before)} → {after} (n = {result.items})"

    return show


def _peak_and_saving(instrument: Instrument, unit: MemoryUnit) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        peak = row.peak(instrument)
        text = unit.show(peak.peak_bytes if peak else None)
        if peak is not None and peak.saving_share is not None:
            text = f"{text} ({share(peak.saving_share, 0)})"
        return _flagged(text, row, "memory") if peak else text

    return show


def _speed_and_ratio(row: Measured) -> str:
    if row.throughput is None:
        return NOT_MEASURED
    text = significant(row.throughput.tokens_per_second)
    ratio = row.throughput.against_full
    text = text if ratio is None else f"{text} ({ratio:.2f})"
    return _flagged_speed(text, row, row.throughput)


def _accuracy_only(task: str) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        result = row.accuracy(task)
        return NOT_MEASURED if result is None else f"{share(result.before)} → {share(result.after)}"

    return show


def _runs(row: Measured) -> str:
    return str(row.runs) if row.runs == row.runs_ok else f"{row.runs_ok} ok of {row.runs}"
