"""Paired comparison of two evaluations of the same questions, by the exact McNemar test.

It covers the questions, not training seeds: a claim about a method needs several seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import betainc, ndtri

from bench.errors import UsageError
from bench.records.records import EvaluationReading
from bench.stats.sequential import PASS, REGRESSION, UNDECIDED
from bench.stats.settling import Floats

# Below it a paired difference is called significant; not corrected for the number of methods, hence not 0.05.
SIGNIFICANT_P = 0.01


class Item(Protocol):
    """One question and whether it was answered correctly; see ``records.EvaluationItem``."""

    @property
    def doc_id(self) -> int:
        """Its place in the task."""

    @property
    def doc_hash(self) -> str:
        """What tells whether two questions are the same."""

    @property
    def correct(self) -> bool:
        """Whether the answer was right."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How the answers to ``items`` common questions changed: ``gained`` wrong → right, ``lost`` the reverse.

    ``unmatched`` questions were asked on one side only.
    """

    items: int
    unmatched: int
    gained: int
    lost: int

    @property
    def difference_share(self) -> float:
        """The change in accuracy, as a share of the common questions."""
        return (self.gained - self.lost) / self.items

    @property
    def p_value(self) -> float:
        """Two-sided and exact.

        Under no change the gained ones among those that changed follow a binomial distribution with p = 1/2
        (McNemar 1947, Psychometrika 12:153), which is symmetric, so it is twice the smaller tail.
        """
        more, fewer = np.sort(np.array([self.gained, self.lost], dtype=np.float64))[::-1]
        return min(1.0, 2 * float(drop_p_value(more, fewer)))


def pair_items(first: Sequence[Item], second: Sequence[Item]) -> Paired:
    """Join two evaluations on ``doc_id`` and test whether one answered more questions than the other.

    Raises UsageError when a question's hash differs, when a question is there twice, or when the two have
    none in common.
    """
    before, after = _by_id(first), _by_id(second)
    common = sorted(before.keys() & after.keys())
    if not common:
        raise UsageError("the two evaluations have no question in common; compare the same task and data")
    gained = lost = 0
    for doc_id in common:
        old, new = before[doc_id], after[doc_id]
        if old.doc_hash != new.doc_hash:
            raise UsageError(
                f"question {doc_id} is not the same in both evaluations (its hash differs); "
                "compare runs of the same task, data and seed"
            )
        if new.correct != old.correct:
            gained, lost = gained + new.correct, lost + old.correct
    return Paired(items=len(common), unmatched=len(before.keys() ^ after.keys()), gained=gained, lost=lost)


def try_pair(
    first: EvaluationReading | None, second: EvaluationReading | None
) -> tuple[Paired | None, str | None]:
    """Return the pairing, or None and the sentence that says why there is none.

    A reading that is not there needs no sentence: the table shows that it is missing.
    """
    if first is None or second is None:
        return None, None
    try:
        return pair_items(first.items, second.items), None
    except UsageError as error:
        return None, str(error)


def drop_p_value(lost: Floats, gained: Floats) -> Floats:
    """Return the one-sided exact p-value of no drop: so many lost or more among those that changed.

    McNemar's test as in ``Paired.p_value``, for arrays of counts; 1 where none was lost. The tail of the
    binomial distribution at 1/2 is an incomplete beta function (Abramowitz and Stegun 26.5.24).
    """
    p_value: Floats = np.where(lost > 0, betainc(np.maximum(lost, 1), gained + 1, 0.5), 1.0)
    return p_value


def drop_bounds(lost: Floats, gained: Floats, items: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Return one-sided bounds of the drop as a share of the questions, each missed with about ``alpha``.

    The adjusted Wald interval of Bonett and Price 2012 (J. Educ. Behav. Stat. 37:479), which stays honest
    with few questions and where none changed.
    """
    fall, rise = (lost + 1) / (items + 2), (gained + 1) / (items + 2)
    width = ndtri(1 - alpha) * np.sqrt((fall + rise - (fall - rise) ** 2) / (items + 2))
    return fall - rise - width, fall - rise + width


def decide_drop(  # noqa: PLR0913 - three counts and three promises, all of them numbers
    lost: Floats,
    gained: Floats,
    items: Floats,
    *,
    family_p_values: Floats,
    alpha: float,
    minimum_drop: float,
    tolerance: Floats | float,
) -> Floats:
    """Return the place in ``sequential.DECISIONS`` of each pair of evaluations.

    A *regression* needs an adjusted p-value of at most alpha and a drop of at least ``minimum_drop``, a
    *pass* an upper bound below ``tolerance``: too few questions are undecided, not passed.
    """
    _, upper = drop_bounds(lost, gained, items, alpha)
    worse = (family_p_values <= alpha) & (lost - gained >= minimum_drop * items)
    return np.select([worse, upper < tolerance], [REGRESSION, PASS], UNDECIDED)


def _by_id(items: Sequence[Item]) -> dict[int, Item]:
    """Index the questions by id."""
    found = {item.doc_id: item for item in items}
    if len(found) != len(items):
        raise UsageError(
            "an evaluation holds the same question twice; its record is damaged, run the cell again"
        )
    return found
