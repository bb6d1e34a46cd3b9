"""From records to measured cells: grouped by cell and environment, each set against full fine-tuning.

Studies set methods over several seeds against one of them; levers are pulled one at a time on a plain method.
Nothing is shown here. A number that cannot be had is None, and a caveat or ``no_reference`` says why.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from bench.compare import grouped
from bench.compare.accuracy import AccuracyDifference
from bench.compare.accuracy import differences as accuracy_differences
from bench.compare.caveats import EnvironmentGroup, differences, environments_of, told_together
from bench.compare.highlights import Frontier, Highlights, frontiers, groups
from bench.compare.measured import Contrast, Measured
from bench.errors import UsageError
from bench.metrics import TENSORS
from bench.records.readings import Caveat
from bench.records.records import Outcome, Record
from bench.scenario.parallel import ParallelSpec

_PLAIN = {"full": "full", "lora": "lora", "qlora": "lora"}
_ALWAYS_SAID = {"quantisation", "double_quantisation"}
IDLE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything a report shows. ``problems`` names what could not be read, and is left out."""

    scenarios: tuple[str, ...]
    records: int
    first_started_at: str
    outcomes: Mapping[Outcome, int]
    rows: tuple[Measured, ...]
    environments: tuple[EnvironmentGroup, ...]
    differences: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> tuple[Highlights, ...]:
        """The rows that may be set side by side, with their highlights, in the order of the rows."""
        return tuple(Highlights(tuple(rows)) for rows in groups(self.rows))

    @cached_property
    def caveats_told(self) -> Mapping[Caveat, str]:
        """What is told in the place of caveats that differ in a run's number alone."""
        return told_together([record for row in self.rows for record in row.ok])

    @cached_property
    def caveats(self) -> Mapping[str, Mapping[str, Measured]]:
        """Each caveat, as it is told, with the cells that it holds for, by key."""
        told, found = self.caveats_told, dict[str, dict[str, Measured]]()
        for row in self.rows:
            for one in row.caveats:
                found.setdefault(told.get(one, one.message), {})[row.key] = row
        return found

    @cached_property
    def caveats_of_all(self) -> frozenset[str]:
        """The caveats that hold for all of several measured cells, so that no cell needs a mark."""
        measured = [row.key for row in self.rows if row.outcome == "ok"]
        several = len(measured) > 1
        return frozenset(told for told, rows in self.caveats.items() if several and [*rows] == measured)

    @cached_property
    def frontiers(self) -> tuple[Frontier, ...]:
        return frontiers(self.rows)


def compare(records: Sequence[Record], problems: Sequence[str] = ()) -> Comparison:
    """Return the cells measured, each over its runs and seeds.

    Raises UsageError when there is no record at all.
    """
    if not records:
        raise UsageError(
            "there is no record to report on; run `bench run SCENARIO` first, or name its folder"
        )
    rows = measure(records)
    environments = tuple(dict.fromkeys(environments_of(records)))
    return Comparison(
        scenarios=tuple(dict.fromkeys(record.cell.scenario for record in records)),
        records=len(records),
        first_started_at=min(record.started_at for record in records),
        outcomes=Counter(row.outcome for row in rows),
        rows=tuple(rows),
        environments=environments,
        differences=differences(environments),
        problems=tuple(problems),
    )


def measure(records: Sequence[Record]) -> list[Measured]:
    """Return one Measured for each cell and environment: runs of one key, and those of other seeds alike.

    Ordered as the records, but full fine-tuning first of each model and window.
    """
    where = {id(record): own for record, own in zip(records, environments_of(records), strict=True)}
    by_key = grouped(records, lambda record: record.key).values()
    runs = (tuple(sorted(alike, key=lambda record: record.run)) for alike in by_key)
    cells = _beside_fewer(_over_seeds(Measured(records=own, where=where[id(own[-1])]) for own in runs))
    fulls = grouped((one for one in cells if one.kind == "full"), lambda one: one.setting)
    rows = [one if one.kind == "full" else _against(one, fulls.get(one.setting, ())) for one in cells]
    places = {
        names: place for place, names in enumerate(dict.fromkeys((row.model, row.window) for row in rows))
    }
    return sorted(rows, key=lambda row: (places[row.model, row.window], row.kind != "full"))


def _over_seeds(cells: Iterable[Measured]) -> list[Measured]:
    """Join the runs of cells that differ in the seed alone, on one device as far as that is known."""
    found: dict[tuple[Hashable, ...], list[Measured]] = {}
    for one in cells:
        same = found.setdefault(one.alike_but_for({"training.seed"}), [])
        for place, other in enumerate(same):
            devices = {one.known_device, other.known_device} - {None}
            if len(devices) < 2 and one.cell.training.seed not in other.seeds:  # noqa: PLR2004 - one device
                same[place] = replace(one, records=(*other.records, *one.records))
                break
        else:
            same.append(one)
    return [one for same in found.values() for one in same]


def _beside_fewer(cells: Sequence[Measured]) -> list[Measured]:
    """Give each cell over several GPUs the same one on the fewest that ended well, of its environment."""
    if not any(one.cell.parallel.several for one in cells):
        return [*cells]
    alike = grouped((one for one in cells if one.ok), lambda one: one.alike_but_for({"parallel"}))

    def fewest(one: Measured) -> Measured | None:
        spread, device = one.cell.parallel, one.known_device if one.device == "cuda" else None
        others = [
            other
            for other in (alike.get(one.alike_but_for({"parallel"}), ()) if spread.several else ())
            if other.gpus < one.gpus
            and (device is None or device == other.known_device)
            and other.cell.parallel in (ParallelSpec(), spread.model_copy(update={"gpus": other.gpus}))
        ]
        return min(others, key=lambda other: other.gpus, default=None)

    return [replace(one, fewer=fewest(one)) for one in cells]


def _against(one: Measured, fulls: Sequence[Measured]) -> Measured:
    if full := next((full for full in fulls if full.ok), None):
        return replace(one, reference=full)
    ended = f"full fine-tuning ended as {fulls[0].outcome}" if fulls else None
    return replace(one, no_reference=ended or "full fine-tuning was not run alike")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One evaluation task of one setting; ``environment`` is a letter where records come from several.

    ``against`` holds by key each method's difference from the reference, where seeds can be paired.
    """

    environment: str | None
    task: str
    reference: Measured
    levels: tuple[Measured, ...]
    against: Mapping[str, AccuracyDifference]

    @property
    def differences(self) -> tuple[tuple[Measured, AccuracyDifference], ...]:
        return tuple((level, self.against[level.key]) for level in self.levels if level.key in self.against)

    @property
    def design(self) -> AccuracyDifference | None:
        """A difference that has an interval, for what all of them share: one variance, and so one width."""
        return next((one for one in self.against.values() if one.difference.half_width is not None), None)


def studies(records: Sequence[Record], reference: str) -> tuple[Study, ...]:
    """Return a study for each setting and task; ``reference`` is the method the others are set against.

    Raises UsageError where a setting lacks that method, or where its runs were asked different questions.
    """
    rows = measure(records)
    several = len({row.environment for row in rows}) > 1
    found: list[Study] = []
    for levels in grouped(rows, lambda row: row.setting).values():
        base = next((row for row in levels if row.method == reference), None)
        if base is None:
            methods = ", ".join(dict.fromkeys(row.method for row in levels))
            raise UsageError(f"{levels[0].id}: no method {reference} there; choose one of {methods}")
        found += [
            Study(
                environment=base.environment if several else None,
                task=task,
                reference=base,
                levels=tuple(levels),
                against=differences_over_seeds(levels, base, task),
            )
            for task in dict.fromkeys(one.task for row in levels for one in row.accuracies)
        ]
    return tuple(found)


def differences_over_seeds(
    rows: Sequence[Measured], reference: Measured, task: str
) -> dict[str, AccuracyDifference]:
    """Return every other cell's difference from the reference over seeds, by key.

    Raises UsageError where they were asked different questions, or are not of one setting.
    """
    for row in rows:
        if row.setting != reference.setting:
            raise UsageError(
                f"{row.id} and {reference.id} differ in more than the method (model, data, training or "
                "machine); set methods of one setting against each other"
            )
    everyone = {row.key: row for row in (reference, *rows)}
    names = ", ".join(row.id for row in everyone.values())
    answers = {key: row.answers(task) for key, row in everyone.items()}
    return accuracy_differences(answers, reference.key, task, names)


def _moving(asked: Callable[[float], bool]) -> "cached_property[tuple[Contrast, ...]]":
    """Return, as a property, the levers that move the peak of tensors as asked, from least to most."""

    def effects(found: "Levers") -> tuple[Contrast, ...]:
        tensors = TENSORS[found.baseline.device]
        shares = [(share, one) for one in found.effects if (share := one.memory_share(tensors)) is not None]
        return tuple(one for share, one in sorted(shares, key=itemgetter(0)) if asked(share))

    return cached_property(effects)


@dataclass(frozen=True, kw_only=True)
class Levers:
    """A plain method and every lever pulled on it: cells set against the method named after their kind.

    The plain methods are ``full`` and ``lora``; adapters over any base are set against ``lora``.
    """

    baseline: Measured
    effects: tuple[Contrast, ...]

    saving = _moving(lambda share: share < -IDLE_SHARE)
    costing = _moving(lambda share: share > IDLE_SHARE)
    idle = _moving(lambda share: abs(share) <= IDLE_SHARE)

    @property
    def misses(self) -> tuple[float, ...]:
        """How far each predicted change is from the one read, in shares of the baseline's peak."""
        tensors = TENSORS[self.baseline.device]
        shares = ((one.predicted_share(tensors), one.memory_share(tensors)) for one in self.effects)
        return tuple(abs(said - read) for said, read in shares if said is not None and read is not None)


def levers(comparison: Comparison) -> tuple[Levers, ...]:
    """Return the levers of each plain method that ended well, by model and environment.

    Raises UsageError when there is no plain method at all.
    """
    found = []
    pulled = [row for row in comparison.rows if row.kind in _PLAIN]
    for rows in groups(pulled, lambda row: (row.cell.model.name, _PLAIN[row.kind])):
        plain = _PLAIN[rows[0].kind]
        base = next((row for row in rows if row.cell.method.name == plain and row.ok), None)
        if base is not None:
            effects = tuple(Contrast(row, base) for row in rows if row is not base)
            found.append(Levers(baseline=base, effects=effects))
    if not found:
        names = " or ".join(dict.fromkeys(_PLAIN.values()))
        raise UsageError(f"no good run of a method named {names}; run the plain method beside the levers")
    return tuple(found)


class Change(NamedTuple):
    """One field that a lever changes; ``before`` is None where the plain method has no such field."""

    field: str
    before: object
    after: object


def changes(one: Contrast) -> Iterator[Change]:
    """Yield every field of method, data and training that is not as in the baseline."""
    for part in ("method", "data", "training"):
        holder, plain = getattr(one.measured.cell, part), getattr(one.base.cell, part)
        for name, field in type(holder).model_fields.items():
            value, before = getattr(holder, name), getattr(plain, name, None)
            known = name in type(plain).model_fields
            differs = value != before if known else value != field.default or name in _ALWAYS_SAID
            if differs and name != "name":
                yield Change(name, before, value)
