"""Paired comparison of two evaluations of the same questions, by the exact McNemar test.

It covers the questions, not training seeds: a claim about a method needs several seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from bench.errors import UsageError
from bench.results.records import EvaluationItem, EvaluationReading


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How the answers to ``items`` common questions changed; the shares are of those questions."""

    items: int
    unmatched: int
    gained: int
    lost: int
    difference_share: float
    p_value: float


def pair_items(first: Sequence[EvaluationItem], second: Sequence[EvaluationItem]) -> Paired:
    """Join two evaluations on ``doc_id`` and test whether one answered more questions than the other.

    ``gained`` counts wrong → right, ``lost`` right → wrong. ``p_value`` is two-sided and exact: under no
    change the gained ones among those that changed follow a binomial distribution with p = 1/2 (McNemar
    1947, Psychometrika 12:153). Raises UsageError when a question's hash differs, when a question is
    there twice, or when the two have none in common.
    """
    before, after = _by_id(first), _by_id(second)
    common = sorted(before.keys() & after.keys())
    if not common:
        raise UsageError("the two evaluations have no question in common; compare the same task and data")
    for doc_id in common:
        if before[doc_id].doc_hash != after[doc_id].doc_hash:
            raise UsageError(
                f"question {doc_id} is not the same in both evaluations (its hash differs); "
                "compare runs of the same task, data and seed"
            )
    gained = sum(after[doc_id].correct and not before[doc_id].correct for doc_id in common)
    lost = sum(before[doc_id].correct and not after[doc_id].correct for doc_id in common)
    changed = gained + lost
    return Paired(
        items=len(common),
        unmatched=len(before.keys() ^ after.keys()),
        gained=gained,
        lost=lost,
        difference_share=(gained - lost) / len(common),
        p_value=float(binomtest(gained, changed, 0.5).pvalue) if changed else 1.0,
    )


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


def _by_id(items: Sequence[EvaluationItem]) -> dict[int, EvaluationItem]:
    """Index the questions by id."""
    found = {item.doc_id: item for item in items}
    if len(found) != len(items):
        raise UsageError(
            "an evaluation holds the same question twice; its record is damaged, run the cell again"
        )
    return found
