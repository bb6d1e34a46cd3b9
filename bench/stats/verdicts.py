"""The verdict on one metric of one cell, and what several come to together."""

from collections.abc import Iterable

import msgspec

from bench.records.verdicts import Judged
from bench.records.verdicts import VerdictName as Verdict

__all__ = ["Judgement", "Verdict", "overall"]


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one cell, in the metric's unit.

    ``ratio`` is candidate / baseline with its interval, each bound missed with the gate's error rate; None
    where there is none. For accuracy ``difference`` and its interval hold the change instead, as a share of
    the questions. ``p_value`` is adjusted for the family and the looks. ``improved`` says that a pass is a
    proven change for the better. ``repeats`` are the runs of each side that decided, and
    ``task`` is the evaluation's, for accuracy.
    """

    cell: str
    metric: str
    verdict: Verdict
    gated: bool
    reason: str
    improved: bool = False
    baseline: float | None = None
    candidate: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    repeats: int | None = None
    task: str | None = None


def overall(judgements: Iterable[Judgement | Judged]) -> Verdict:
    """Return what the gated ones come to: one regression is enough; without any decided, nothing passed.

    What is not comparable has not passed, so it makes the whole inconclusive.
    """
    found = {judgement.verdict for judgement in judgements if judgement.gated}
    if "regression" in found:
        return "regression"
    return "pass" if found == {"pass"} else "inconclusive"
