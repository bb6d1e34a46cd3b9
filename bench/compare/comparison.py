"""From records to measured cells: grouped by cell and environment, each set against full fine-tuning.

Nothing is shown here. A number that cannot be had is None, and a caveat or ``no_reference`` says why.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bench.compare import grouped
from bench.compare.caveats import EnvironmentGroup, differences, environments_of
from bench.compare.highlights import Frontier, Highlights, frontiers, groups
from bench.compare.measured import Measured
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


def measure(records: Sequence[Record]) -> list[Measured]:
    """Return one Measured for each cell and environment: runs of one key, and those of other seeds alike.

    Ordered as the records, but full fine-tuning first of each model and window.
    """
    where = {id(record): own for record, own in zip(records, environments_of(records), strict=True)}
    by_key = grouped(records, lambda record: record.key).values()
    runs = (tuple(sorted(alike, key=lambda record: record.run)) for alike in by_key)
    cells = _over_seeds(Measured(records=own, where=where[id(own[-1])]) for own in runs)
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


def _against(one: Measured, fulls: Sequence[Measured]) -> Measured:
    """Set a cell against the first full fine-tuning alike that ended well, or say why there is none."""
    if full := next((full for full in fulls if full.ok), None):
        return replace(one, reference=full)
    ended = f"full fine-tuning ended as {fulls[0].outcome}" if fulls else None
    return replace(one, no_reference=ended or "full fine-tuning was not run alike")
