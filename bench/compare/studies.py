"""Studies: methods over several seeds, each set against one of them; and memory levers, one at a time."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from bench.compare.accuracy import AccuracyDifference, differences
from bench.compare.comparison import Comparison, measure
from bench.compare.highlights import groups
from bench.compare.measured import Contrast, Measured
from bench.errors import UsageError
from bench.metrics import TENSORS, Instrument
from bench.records.records import Record

_PLAIN = {"full": "full", "lora": "lora", "qlora": "lora"}
_ALWAYS_SAID = {"quantisation", "double_quantisation"}
IDLE_SHARE = 0.01


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
        """Every level with its difference from the reference, where there is one."""
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
    settings: dict[tuple[Hashable, ...], list[Measured]] = {}
    for row in rows:
        settings.setdefault(row.setting, []).append(row)
    several = len({row.environment for row in rows}) > 1
    found: list[Study] = []
    for levels in settings.values():
        base = next((row for row in levels if row.method == reference), None)
        if base is None:
            methods = ", ".join(dict.fromkeys(row.method for row in levels))
            raise UsageError(f"{levels[0].id}: no method {reference} there; choose one of {methods}")
        for task in dict.fromkeys(one.task for row in levels for one in row.accuracies):
            one = Study(
                environment=base.environment if several else None,
                task=task,
                reference=base,
                levels=tuple(levels),
                against=differences_over_seeds(levels, base, task),
            )
            found.append(one)
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
    return differences(answers, reference.key, task, names)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that a lever changes; ``before`` is None where the plain method has no such field."""

    field: str
    before: object
    after: object


@dataclass(frozen=True, kw_only=True)
class Levers:
    """A plain method and every lever pulled on it: cells set against the method named after their kind.

    The plain methods are ``full`` and ``lora``; adapters over any base are set against ``lora``.
    """

    baseline: Measured
    effects: tuple[Contrast, ...]

    @property
    def saving(self) -> tuple[Contrast, ...]:
        """What lowers the peak of tensors, most first."""
        return self._moving(lambda share: share < -IDLE_SHARE)

    @property
    def costing(self) -> tuple[Contrast, ...]:
        """What raises the peak of tensors, least first."""
        return self._moving(lambda share: share > IDLE_SHARE)

    @property
    def idle(self) -> tuple[Contrast, ...]:
        """What leaves the peak of tensors as it is."""
        return self._moving(lambda share: abs(share) <= IDLE_SHARE)

    @property
    def misses(self) -> tuple[float, ...]:
        """How far each predicted change is from the one read, in shares of the baseline's peak."""
        shares = (
            (one.predicted_share(self._tensors), one.memory_share(self._tensors)) for one in self.effects
        )
        return tuple(abs(said - read) for said, read in shares if said is not None and read is not None)

    @property
    def _tensors(self) -> Instrument:
        return TENSORS[self.baseline.device]

    def _moving(self, asked: Callable[[float], bool]) -> tuple[Contrast, ...]:
        found = [
            (share, one) for one in self.effects if (share := one.memory_share(self._tensors)) is not None
        ]
        return tuple(one for share, one in sorted(found, key=itemgetter(0)) if asked(share))


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


def changes(one: Contrast) -> Iterator[Change]:
    """Yield every field of method, data and training that is not as in the baseline."""
    for part in ("method", "data", "training"):
        holder, plain = getattr(one.measured.cell, part), getattr(one.base.cell, part)
        for name, field in type(holder).model_fields.items():
            value = getattr(holder, name)
            if name == "name" or (name in type(plain).model_fields and getattr(plain, name) == value):
                continue
            if name in type(plain).model_fields:
                yield Change(field=name, before=getattr(plain, name), after=value)
            elif value != field.default or name in _ALWAYS_SAID:
                yield Change(field=name, before=None, after=value)
