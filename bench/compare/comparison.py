"""From records to measured cells: grouped by cell and environment, each set against full fine-tuning.

Nothing is shown here. A number that cannot be had is None, and a caveat or ``no_reference`` says why.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.compare.environments import EnvironmentGroup, differences, environments_of
from bench.compare.highlights import Frontier, Highlights, frontiers, groups
from bench.compare.measured import Measured, setting_of
from bench.errors import UsageError
from bench.records.records import Outcome, Record


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
    def frontiers(self) -> tuple[Frontier, ...]:
        """A frontier for each model, data and place with two cells or more that have memory and speed."""
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


@dataclass(frozen=True)
class _Runs:
    """The runs of one cell before it is set against another; ``alike`` is what its other seeds share."""

    records: tuple[Record, ...]
    where: EnvironmentGroup
    device_name: str | None
    alike: tuple[Hashable, ...]


def measure(records: Sequence[Record]) -> list[Measured]:
    """Return one Measured for each cell and environment: runs of one key, and those of other seeds alike.

    Ordered as the records, but full fine-tuning first of each model and window.
    """
    found = _over_seeds(_by_key(records))
    settings = [setting_of(runs.records[-1], runs.where) for runs in found]
    fulls: dict[tuple[Hashable, ...], list[Measured]] = {}
    for runs, setting in zip(found, settings, strict=True):
        if runs.records[-1].cell.method.kind == "full":
            fulls.setdefault(setting, []).append(_measured(runs, setting, None))
    full_ones = {one.key: one for alike in fulls.values() for one in alike}
    rows = [
        full_ones.get(runs.records[-1].key) or _measured(runs, setting, fulls.get(setting, []))
        for runs, setting in zip(found, settings, strict=True)
    ]
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        first.setdefault((row.model, row.window), len(first))
    return sorted(rows, key=lambda row: (first[row.model, row.window], row.kind != "full"))


def _measured(runs: _Runs, setting: tuple[Hashable, ...], fulls: Sequence[Measured] | None) -> Measured:
    """Return one cell; ``fulls`` are those of full fine-tuning alike, None for full fine-tuning itself."""
    full = next((one for one in fulls or () if one.ok), None)
    why_not = None
    if fulls is not None and full is None:
        ended = f"full fine-tuning ended as {fulls[0].outcome}" if fulls else None
        why_not = ended or "full fine-tuning was not run alike"
    return Measured(
        records=runs.records,
        where=runs.where,
        device_name=runs.device_name or runs.records[-1].cell.device,
        setting=setting,
        reference=full,
        no_reference=why_not,
    )


def _by_key(records: Sequence[Record]) -> Iterator[_Runs]:
    """Yield the runs of each key by number; a cell may have another id in a later one."""
    groups: dict[str, list[tuple[Record, EnvironmentGroup]]] = {}
    for pair in zip(records, environments_of(records), strict=True):
        groups.setdefault(pair[0].key, []).append(pair)
    for pairs in groups.values():
        runs = tuple(sorted((record for record, _ in pairs), key=lambda record: record.run))
        where = next(where for record, where in pairs if record is runs[-1])
        names = (_device_name(record) for record in reversed(runs))
        alike = (*runs[-1].cell.comparison_key({"training.seed"}), where.place, runs[-1].inputs_digest)
        yield _Runs(runs, where, next((name for name in names if name), None), alike)


def _over_seeds(groups: Iterable[_Runs]) -> list[_Runs]:
    """Join the runs of cells that differ in the seed alone, on one device as far as that is known."""
    found: dict[tuple[Hashable, ...], list[_Runs]] = {}
    for group in groups:
        same = found.setdefault(group.alike, [])
        seed = group.records[-1].cell.training.seed
        for index, other in enumerate(same):
            on_one_device = None in {group.device_name, other.device_name} or (
                group.device_name == other.device_name
            )
            if on_one_device and all(record.cell.training.seed != seed for record in other.records):
                joined = (*other.records, *group.records)
                name = other.device_name or group.device_name
                same[index] = _Runs(joined, group.where, name, group.alike)
                break
        else:
            same.append(group)
    return [group for same in found.values() for group in same]


def _device_name(record: Record) -> str | None:
    """Return the card's name or the CPU threads, as the worker found them; None where it did not look."""
    facts = record.measurement.device
    if facts is None:
        return None
    if record.cell.device == "cuda":
        return facts.cuda_name or "cuda"
    return "cpu, 1 thread" if facts.cpu_threads == 1 else f"cpu, {facts.cpu_threads} threads"
