"""What a reader asks first: least memory, fastest, most accurate, QLoRA or LoRA, and which no other beats.

Numbers and structure only; ``bench.report.highlights`` makes sentences of them. Only cells of one model,
window, environment and device are set against each other.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import ge, itemgetter
from typing import Generic, TypeVar

from bench.compare import LOOP_ALONE, grouped, loop_pairs
from bench.compare.accuracy import CONFIDENCE, AccuracyDifference, SeedMean, from_best, losses_above
from bench.compare.measured import Contrast, Measured
from bench.metrics import HEADLINES, Instrument
from bench.records.records import Record
from bench.scenario.cell import EXTRA_READINGS, HOW_IT_LEARNS
from bench.scenario.types import SHARED_BY_ADAPTERS, DataSpec, LoraMethod, QloraMethod

_IN_WORDS = 2  # of the headline instruments that have a reading
HOW_BASE_IS_STORED = frozenset(
    f"method.{name}" for name in {*LoraMethod.model_fields, *QloraMethod.model_fields} - SHARED_BY_ADAPTERS
)
"""For ``Cell.comparison_key``: what may differ between adapters that are alike but for their frozen base."""


Apart = TypeVar("Apart", AccuracyDifference, SeedMean)


@dataclass(frozen=True, kw_only=True)
class Best(Generic[Apart]):
    """The cell that came out best, and how far others lie from it, with p-values that hold for any pair.

    ``level`` are those whose distance chance may have made; ``untested`` ones cannot be compared.
    """

    row: Measured
    apart: Sequence[tuple[Measured, Apart]]
    level: Sequence[tuple[Measured, Apart]]
    untested: Sequence[Measured]

    @property
    def compared(self) -> int:
        """How many cells were compared with each other, the best among them."""
        return 1 + len(self.apart) + len(self.level)


def _best(row: Measured, rows: Iterable[Measured], distances: Mapping[str, Apart]) -> Best[Apart]:
    others = [one for one in rows if one is not row]
    tested = [(one, distances[one.key]) for one in others if one.key in distances]
    apart = [pair for pair in tested if pair[1].p_value is not None and pair[1].p_value < 1 - CONFIDENCE]
    return Best(
        row=row,
        apart=apart,
        level=[pair for pair in tested if pair not in apart],
        untested=[one for one in others if one.key not in distances],
    )


@dataclass(frozen=True, eq=False)
class Highlights:
    """What is worth saying of cells of one model, window, environment and device."""

    rows: tuple[Measured, ...]

    @cached_property
    def ok(self) -> tuple[Measured, ...]:
        return tuple(row for row in self.rows if row.ok)

    @cached_property
    def by_memory(self) -> Mapping[Instrument, tuple[Measured, ...]]:
        """The cells by the peak of each headline instrument that read all of them, least first."""
        found: dict[Instrument, tuple[Measured, ...]] = {}
        if any("memory" in row.doubts for row in self.ok):
            return found
        for instrument in HEADLINES[self.rows[0].device][:_IN_WORDS]:
            peaks = [(peak.peak_bytes, row) for row in self.ok if (peak := row.peak(instrument))]
            if peaks and len(peaks) == len(self.ok):
                found[instrument] = tuple(row for _, row in sorted(peaks, key=itemgetter(0)))
        return found

    @cached_property
    def fastest(self) -> tuple[Measured, list[Measured]] | None:
        """The fastest cell, where all of them have a speed that can be right, and those not clearly slower.

        Their range of tokens/s meets its own, so that which is faster is not known.
        """
        sound = (row for row in self.ok if "speed" not in row.doubts and not row.disturbed_runs)
        timed = [(row.throughput, row) for row in sound if row.throughput]
        if not timed or len(timed) < len(self.ok):
            return None
        speed, best = max(timed, key=lambda pair: pair[0].tokens_per_second)
        return best, [row for other, row in timed if row is not best and other.high >= speed.low]

    @cached_property
    def speeds(self) -> tuple[Contrast, ...]:
        right = (row.against_full for row in self.ok if row.against_full and "speed" not in row.doubts)
        own = (one for one in right if not one.disturbed and "speed" not in one.base.doubts)
        return tuple(one for one in own if one.speed_ratio is not None)

    @cached_property
    def most_accurate(self) -> dict[str, Best[AccuracyDifference]]:
        found = {}
        for task in dict.fromkeys(one.task for row in self.ok for one in row.accuracies):
            evaluated = ((one.after, row) for row in self.ok if (one := row.accuracy(task)))
            after = [(share, row) for share, row in evaluated if share is not None]
            if after:
                _, best = max(after, key=itemgetter(0))
                answers = {row.key: row.answers(task) for _, row in after}
                apart = from_best(answers, best.key, task)
                found[task] = _best(best, (row for _, row in after), apart)
        return found

    @cached_property
    def lowest_loss(self) -> Best[SeedMean] | None:
        """The cell with the least loss on a text after training, where all of them read the same one."""
        losses = {row.key: row.text_losses for row in self.ok if row.text_losses}
        if not losses or len(losses) < len(self.ok) or len({row.cell.evaluation.text for row in self.ok}) > 1:
            return None
        _, best = min(((row.text_loss.mean, row) for row in self.ok if row.text_loss), key=itemgetter(0))
        return _best(best, self.ok, losses_above(losses, best.key))

    @cached_property
    def qlora_vs_lora(self) -> tuple[Contrast, ...]:
        """QLoRA cells against a LoRA cell that differs in how the base is stored only."""
        ignored = {*HOW_BASE_IS_STORED, *HOW_IT_LEARNS, *EXTRA_READINGS, "training.seed", "evaluation"}
        loras = {
            row.cell.comparison_key(ignored): row
            for row in self.ok
            if row.cell.method.kind == "lora" and row.cell.method.base == "as-trained"
        }
        quantised = (row for row in self.ok if row.kind == "qlora")
        pairs = ((row, loras.get(row.cell.comparison_key(ignored))) for row in quantised)
        return tuple(Contrast(row, lora) for row, lora in pairs if lora)

    @cached_property
    def loops(self) -> tuple[Contrast, ...]:
        pairs = loop_pairs(self.ok, lambda row: row.cell, lambda row: row.alike_but_for(LOOP_ALONE))
        return tuple(Contrast(row, other) for row, other in pairs)

    @property
    def settings(self) -> dict[str, dict[str, list[str]]]:
        """What the cells were trained with: each setting, and by its value the methods that had it."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            for name, value in _recipe((row.ok or row.records)[-1]):
                methods = found.setdefault(name, {}).setdefault(value, [])
                methods += [row.method] if row.method not in methods else []
        return found


def groups(
    rows: Sequence[Measured], key: Callable[[Measured], Hashable] = lambda row: (row.model, row.window)
) -> list[list[Measured]]:
    """Return the rows that may be set side by side: of one environment and device, and alike in ``key``.

    A cell whose runs all ended before its device was known is put with those on the same kind of device.
    """
    names = {(row.environment, row.device): row.device_name for row in reversed(rows) if row.ok}

    def place(row: Measured) -> Hashable:
        own = row.environment, row.device
        return key(row), own, row.device_name if row.ok else names.get(own, row.device_name)

    return list(grouped(rows, place).values())


def _recipe(record: Record) -> Iterator[tuple[str, str]]:
    cell = record.cell
    training, window, facts = cell.training, cell.window, record.measurement.model
    yield "data", _data(cell.data)
    yield (
        "optimizer",
        facts.optimizer_class if training.optimizer == "unlisted" and facts else training.optimizer,
    )
    yield "dtype", training.dtype if training.autocast == "off" else f"{training.dtype}, autocast"
    yield "learning rate", f"{training.learning_rate:g}"
    yield "measured steps", f"{window.measured_steps:,} after {window.warmup_steps:,} of warm-up"
    yield "attention", facts.attention if facts else training.attention
    if training.gradient_checkpointing != "off":
        yield "gradient checkpointing", training.gradient_checkpointing
    targets = getattr(cell.method, "target_modules", None)
    if targets:
        yield "LoRA targets", targets if isinstance(targets, str) else " and ".join(targets)


def _data(data: DataSpec) -> str:
    if data.source == "task":
        return f"{data.task} ({data.difficulty}, {data.train_items:,} items to train on)"
    if data.source == "jsonl":
        return data.path
    if data.source == "script":
        return "the script's own"
    return f"{data.dataset}, {data.split}" if data.source == "hub" else "random tokens"


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Cells of one model, data and place by memory, speed and accuracy.

    ``task`` is None where they share none: accuracy is left out then. ``dominated_by`` names by key a cell
    that is as good in all and better in one. Readings are taken as they are: cells whose spreads overlap may
    change places in another run.
    """

    instrument: Instrument
    task: str | None
    rows: tuple[Measured, ...]
    dominated_by: Mapping[str, Measured]
    left_out: int


Point = tuple[float, float, float]
"""Less memory, speed, accuracy: more is better in all three."""


def frontiers(rows: Sequence[Measured]) -> tuple[Frontier, ...]:
    """Return a frontier for each model, data and place with two cells or more that have memory and speed."""
    alike = groups([row for row in rows if row.ok], lambda row: (row.model, row.cell.data.model_dump_json()))
    return tuple(one for own in alike if (one := _frontier(own)))


def _frontier(rows: Sequence[Measured]) -> Frontier | None:
    headlines = HEADLINES[rows[0].device]
    instrument = next(
        (one for enough in (all, any) for one in headlines if enough(row.peak(one) for row in rows)), None
    )
    usable = [
        (row, peak.peak_bytes, row.throughput.tokens_per_second)
        for row in rows
        if (peak := row.peak(instrument)) and row.throughput
    ]
    if instrument is None or len(usable) < 2:  # noqa: PLR2004 - a comparison takes two
        return None
    tasks = [{one.task for one in row.accuracies if one.after is not None} for row, _, _ in usable]
    shared = set.intersection(*tasks)
    task = next((one.task for row, _, _ in usable for one in row.accuracies if one.task in shared), None)
    points = {}
    for row, size, speed in usable:
        accuracy = row.accuracy(task)
        points[row.key] = -size, speed, (accuracy.after if accuracy else None) or 0.0
    by_key = {row.key: row for row, _, _ in usable}
    return Frontier(
        instrument=instrument,
        task=task,
        rows=tuple(by_key.values()),
        dominated_by={key: by_key[better] for key, better in dominators(points).items()},
        left_out=len(rows) - len(usable),
    )


def dominators(points: Mapping[str, Point]) -> dict[str, str]:
    """Return, for each dominated point, an undominated one that is as good in all and better in one.

    From the best on, so that a point can be dominated by an earlier one only, and one that is dominated is
    dominated by one that is not.
    """
    best: list[str] = []
    found: dict[str, str] = {}
    for name in sorted(points, key=points.__getitem__, reverse=True):
        own = points[name]
        better = (other for other in best if points[other] != own and all(map(ge, points[other], own)))
        if (above := next(better, None)) is None:
            best.append(name)
        else:
            found[name] = above
    return found
