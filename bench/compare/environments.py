"""Where the records were made: each distinct place gets a letter, and what differs between them is named."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from msgspec.structs import asdict

from bench.records.records import Environment, Record

# What changes the code under measurement only; two records that differ in nothing else are comparable.
_NOT_THE_MACHINE = "git"
COMMIT = "git.commit"
_COMMIT_DIGITS = 12  # enough to find it; the whole hash is among the facts of each place


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvironmentGroup:
    """The environment that some of the records were made in, under a letter that rows refer to."""

    label: str
    records: int
    facts: Mapping[str, str]

    @cached_property
    def place(self) -> tuple[tuple[str, str], ...]:
        """What two comparable records share: machine, versions and threads, but not the commit."""
        return tuple(item for item in self.facts.items() if not item[0].startswith(_NOT_THE_MACHINE))


def environments_of(records: Sequence[Record]) -> tuple[EnvironmentGroup, ...]:
    """Return the environment of each record, lettered in the order in which they appear."""
    found = [tuple(facts(record.environment).items()) for record in records]
    counts = Counter(found)
    groups = {
        own: EnvironmentGroup(label=_letter(index), records=count, facts=dict(own))
        for index, (own, count) in enumerate(counts.items())
    }
    return tuple(groups[own] for own in found)


def differences(places: Sequence[EnvironmentGroup]) -> tuple[str, ...]:
    """Return one line for each fact that is not the same everywhere."""
    names = dict.fromkeys(name for where in places for name in where.facts)
    lines = []
    for name in names:
        values = {where.label: where.facts.get(name, "not recorded") for where in places}
        if len(set(values.values())) > 1:
            digits = _COMMIT_DIGITS if name == COMMIT else None
            lines.append(
                f"{name}: " + ", ".join(f"{value[:digits]} in {label}" for label, value in values.items())
            )
    return tuple(lines)


def facts(environment: Environment) -> Mapping[str, str]:
    """Return an environment as ``group.name`` and text; what was not found is left out."""
    return {
        f"{group}.{name}": str(value)
        for group, values in asdict(environment).items()
        for name, value in sorted(values.items())
        if value is not None
    }


def _letter(index: int) -> str:
    """Return A to Z, then A2 to Z2, and so on."""
    turn, place_in_turn = divmod(index, 26)
    return chr(ord("A") + place_in_turn) + (str(turn + 1) if turn else "")
