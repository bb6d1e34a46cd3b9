"""What a reader asks first, answered from the rows: least memory, fastest, most accurate, QLoRA or LoRA.

Only cells of one model, window and place are set against each other. Nothing here is a sentence yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.compare.measured import Accuracy, Comparison, Instrument, Measured
from bench.records.derived_metrics import evaluation
from bench.records.records import EvaluationReading, Record
from bench.scenario.types import Cell
from bench.stats.paired import Paired, try_pair

# What each method may have its own value of: it changes what is learned, not what a step costs.
_OWN = {"learning_rate", "weight_decay", "schedule", "schedule_warmup_steps"}
# Capacity first: what a user has to have room for. The ledger is exact, but sees tensors only.
HEADLINES: dict[str, tuple[Instrument, ...]] = {
    "cuda": ("cuda_reserved", "cuda_allocated"),
    "cpu": ("ledger", "host_net"),
}


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """The fastest cell, and those whose range of tokens/s meets its own: which is faster is not known."""

    row: Measured
    level: tuple[Measured, ...]


@dataclass(frozen=True, kw_only=True)
class MostAccurate:
    """The most accurate cell on one task, and each other cell paired with it question by question.

    A pair is None where the questions were not the same.
    """

    task: str
    row: Measured
    accuracy: Accuracy
    others: tuple[tuple[Measured, Paired | None], ...]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """QLoRA against LoRA of the same rank: shares are QLoRA's over LoRA's, less 1; None is not measured."""

    qlora: Measured
    lora: Measured
    memory_shares: Mapping[Instrument, float]
    speed_share: float | None
    speed_overlaps: bool
    task: str | None
    accuracy: Paired | None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers for one model, window and place.

    ``against_full`` are the rows whose speed is set against full fine-tuning's.
    """

    rows: tuple[Measured, ...]
    least_memory: Mapping[Instrument, Measured] = field(default_factory=dict)
    fastest: Fastest | None = None
    most_accurate: tuple[MostAccurate, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    against_full: tuple[Measured, ...] = ()

    @property
    def device_name(self) -> str:
        """Return the device as a run that ended ok found it."""
        return next((row.device_name for row in self.rows if row.runs_ok), self.rows[0].device_name)


def answers(comparison: Comparison, records: Sequence[Record]) -> tuple[Answers, ...]:
    """Return the answers for each group of rows, in the order of the rows."""
    first_ok: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.run):
        if record.outcome == "ok":
            first_ok.setdefault(record.key, []).append(record)
    return tuple(_answers(rows, first_ok) for rows in _groups(comparison.rows))


def _groups(rows: Sequence[Measured]) -> list[list[Measured]]:
    """Return the rows of one model, window and device together.

    A run that ended before it knew its device's name is put with those on the same kind of device.
    """
    names = {_place(row): row.device_name for row in reversed(rows) if row.runs_ok}
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for row in rows:
        name = row.device_name if row.runs_ok else names.get(_place(row), row.device_name)
        groups.setdefault((*_place(row), name), []).append(row)
    return list(groups.values())


def _place(row: Measured) -> tuple[str, ...]:
    return row.model, row.window, row.device, row.environment


def _answers(rows: Sequence[Measured], runs: Mapping[str, Sequence[Record]]) -> Answers:
    measured = [row for row in rows if row.outcome == "ok"]
    if not measured:
        return Answers(rows=tuple(rows))
    return Answers(
        rows=tuple(rows),
        least_memory=_least_memory(measured),
        fastest=_fastest(measured),
        most_accurate=tuple(_most_accurate(measured, runs)),
        exchanges=tuple(_exchanges(measured, runs)),
        against_full=tuple(_comparable(measured)),
    )


def _least_memory(rows: Sequence[Measured]) -> dict[Instrument, Measured]:
    """Return the row with the lowest peak by each headline instrument that read all rows."""
    found: dict[Instrument, Measured] = {}
    for instrument in HEADLINES[rows[0].device]:
        peaks = [(peak.peak_bytes, index) for index, row in enumerate(rows) if (peak := row.peak(instrument))]
        if len(peaks) == len(rows) and "memory" not in {doubt for row in rows for doubt in row.doubts}:
            found[instrument] = rows[min(peaks)[1]]
    return found


def _fastest(rows: Sequence[Measured]) -> Fastest | None:
    timed = [(row.throughput, row) for row in rows if row.throughput and "speed" not in row.doubts]
    if len(timed) < len(rows):
        return None
    speed, best = max(timed, key=lambda pair: pair[0].tokens_per_second)
    level = [row for other, row in timed if row is not best and other.high >= speed.low]
    return Fastest(row=best, level=tuple(level))


def _comparable(rows: Sequence[Measured]) -> Iterator[Measured]:
    """Yield the rows whose speed was set against full fine-tuning's, unless one of the two is doubted."""
    if any(row.kind == "full" and "speed" in row.doubts for row in rows):
        return
    for row in rows:
        if row.throughput and row.throughput.against_full is not None and "speed" not in row.doubts:
            yield row


def _most_accurate(rows: Sequence[Measured], runs: Mapping[str, Sequence[Record]]) -> Iterator[MostAccurate]:
    for task in dict.fromkeys(one.task for row in rows for one in row.accuracies):
        evaluated = [(one.after, row, one) for row in rows if (one := row.accuracy(task))]
        after = [(share, row, one) for share, row, one in evaluated if share is not None]
        if not after:
            continue
        _, best, accuracy = max(after, key=lambda each: each[0])
        reading = _reading(runs, best, task)
        others = [
            (row, try_pair(reading, _reading(runs, row, task))[0]) for _, row, _ in after if row is not best
        ]
        yield MostAccurate(task=task, row=best, accuracy=accuracy, others=tuple(others))


def _exchanges(rows: Sequence[Measured], runs: Mapping[str, Sequence[Record]]) -> Iterator[Exchange]:
    """Yield each QLoRA cell beside a LoRA cell that differs in how the base is stored only."""
    loras = {_adapter(runs[row.key][0].cell): row for row in rows if _is_lora(runs[row.key][0].cell)}
    for row in rows:
        lora = loras.get(_adapter(runs[row.key][0].cell)) if row.kind == "qlora" else None
        if lora is None:
            continue
        task = next((one.task for one in row.accuracies if lora.accuracy(one.task)), None)
        pair = try_pair(_reading(runs, lora, task), _reading(runs, row, task))[0] if task else None
        shares = {
            name: mine.peak_bytes / theirs.peak_bytes - 1
            for name in HEADLINES[row.device]
            if (mine := row.peak(name)) and (theirs := lora.peak(name)) and theirs.peak_bytes
        }
        speed, overlaps = None, False
        if row.throughput and lora.throughput:
            speed = row.throughput.tokens_per_second / lora.throughput.tokens_per_second - 1
            overlaps = row.throughput.overlaps(lora.throughput)
        yield Exchange(
            qlora=row,
            lora=lora,
            memory_shares=shares,
            speed_share=speed,
            speed_overlaps=overlaps,
            task=task,
            accuracy=pair,
        )


def _is_lora(cell: Cell) -> bool:
    return cell.method.kind == "lora" and cell.method.base == "as-trained"


def _adapter(cell: Cell) -> tuple[object, ...]:
    """Return what a cell of LoRA and one of QLoRA have to have in common."""
    names = ("rank", "alpha", "dropout", "target_modules", "bias", "adapter_dtype")
    rest = cell.training.model_dump_json(exclude=_OWN), cell.data.model_dump_json()
    return (*(getattr(cell.method, name, None) for name in names), *rest)


def _reading(runs: Mapping[str, Sequence[Record]], row: Measured, task: str) -> EvaluationReading | None:
    found = (evaluation(record, task, "after") for record in runs[row.key])
    return next((reading for reading in found if reading), None)
