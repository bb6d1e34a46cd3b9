"""Where a claim stops being so: the fewest settings that tell the agreeing rows from the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Setting = str | int | float | bool
Labelled = tuple[Mapping[str, Setting], bool]
Conjunction = tuple["Condition", ...]

MOST_CONDITIONS: Final = 3
MOST_ALTERNATIVES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One setting and what it has to be."""

    setting: str
    relation: Literal["at least", "at most", "is", "is not"]
    value: Setting


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Alternatives, each of conditions that have to be met together; all rows that meet one agree.

    ``covered`` is how many of the ``agreeing`` rows meet one of them. Where that is all, the boundary is
    exact; else the others agree as well and few settings do not tell why.
    """

    alternatives: tuple[Conjunction, ...]
    covered: int
    agreeing: int

    @property
    def exact(self) -> bool:
        """Whether the alternatives are met by all agreeing rows, and by no other."""
        return self.covered == self.agreeing


@dataclass(frozen=True)
class _Candidate:
    condition: Condition
    mask: int  # a bit for each row that meets it


def find_boundary(rows: Sequence[Labelled]) -> Boundary:
    """Return conditions under which all rows agree: at most three alternatives of at most three conditions.

    Each alternative is the one that covers most of the rows that are left; one more condition is taken only
    where it covers more. Of two that cover the same, the settings that stand first in the rows win.
    """
    yes = sum(1 << index for index, (_, agrees) in enumerate(rows) if agrees)
    no = sum(1 << index for index, (_, agrees) in enumerate(rows) if not agrees)
    candidates = _candidates(rows, yes)
    left, alternatives = yes, []
    for _ in range(MOST_ALTERNATIVES):
        found = _widest(candidates, left, no) if left else None
        if found is None:
            break
        conditions, mask = found
        alternatives.append(conditions)
        left &= ~mask
    covered = yes.bit_count() - left.bit_count()
    return Boundary(alternatives=tuple(alternatives), covered=covered, agreeing=yes.bit_count())


def _widest(candidates: Sequence[_Candidate], wanted: int, no: int) -> tuple[Conjunction, int] | None:
    """Return the conjunction that most of the wanted rows meet and none of the others."""
    best: tuple[Conjunction, int] | None = None
    best_count = 0
    counted = [(candidate, (candidate.mask & wanted).bit_count()) for candidate in candidates]
    ordered = sorted(counted, key=lambda pair: -pair[1])  # stable: among equals, as they stand in the rows

    def search(chosen: Conjunction, met: int, start: int, size: int) -> None:
        nonlocal best, best_count
        for index in range(start, len(ordered)):
            candidate, alone = ordered[index]
            if alone <= best_count:
                break  # more conditions are met by no more rows, and those after it by no more alone
            both = met & candidate.mask
            count = (both & wanted).bit_count()
            if count <= best_count or both == met:
                continue
            conditions = (*chosen, candidate.condition)
            if not both & no:
                best, best_count = (conditions, both), count
            elif len(conditions) < size:
                search(conditions, both, index + 1, size)

    for size in range(1, MOST_CONDITIONS + 1):
        search((), wanted | no, 0, size)
    return best


def _candidates(rows: Sequence[Labelled], yes: int) -> list[_Candidate]:
    """Return every condition on one setting that some agreeing rows meet and not all rows."""
    names = dict.fromkeys(name for settings, _ in rows for name in settings)
    everything = (1 << len(rows)) - 1
    found: dict[int, Condition] = {}
    for name in names:
        values = [settings.get(name) for settings, _ in rows]
        for condition in _conditions(name, [value for value in values if value is not None]):
            mask = sum(1 << index for index, value in enumerate(values) if _meets(condition, value))
            if mask & yes and mask != everything:
                found.setdefault(mask, condition)  # what says the same of all rows is asked once
    return [_Candidate(condition, mask) for mask, condition in found.items()]


def _conditions(name: str, values: Sequence[Setting]) -> list[Condition]:
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(distinct):
        ordered = sorted(numbers)
        return [
            *(Condition(setting=name, relation="at least", value=value) for value in ordered[1:]),
            *(Condition(setting=name, relation="at most", value=value) for value in ordered[:-1]),
            *(Condition(setting=name, relation="is", value=value) for value in ordered),
        ]
    equal = [Condition(setting=name, relation="is", value=value) for value in distinct]
    if len(distinct) > 2:  # noqa: PLR2004 - of two values, not one is the other
        equal += [Condition(setting=name, relation="is not", value=value) for value in distinct]
    return equal


def _meets(condition: Condition, value: Setting | None) -> bool:
    if value is None:
        return False  # what a row has no setting of, it is not told by
    if condition.relation == "is":
        return value == condition.value
    if condition.relation == "is not":
        return value != condition.value
    assert isinstance(value, int | float)  # noqa: S101 - only asked of numbers
    assert isinstance(condition.value, int | float)  # noqa: S101 - the same
    return value >= condition.value if condition.relation == "at least" else value <= condition.value
