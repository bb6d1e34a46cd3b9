"""What judging a claim gives: verdicts, and the evidence behind each, as plain typed rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.claims.boundary import Boundary, find_boundary
from bench.claims.cases import Instrument

Verdict = Literal["holds", "holds only when", "does not hold", "not testable here"]
Unit = Literal["share", "fold", "bytes", "count", "tokens/s", "bits", "points", "times the tolerance"]
Setting = str | int | float | bool

# A statement of several parts is as good as its worst part; what was not tested is worse than what holds.
_ORDER: tuple[Verdict, ...] = ("does not hold", "holds only when", "not testable here", "holds")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number with its name and unit; an interval where there is one."""

    name: str
    unit: Unit
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a comparison of accuracies showed, on questions about ``topic``.

    ``direction`` is where the whole interval lies, None where it holds nought. ``within`` is that it lies
    within ``margin`` of nought: not below by more where ``one_sided``, else on both sides.
    """

    topic: str
    direction: Literal["higher", "lower"] | None
    within: bool
    margin: float
    one_sided: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One cell, or one pair of cells, and what it says of the claim; None where it cannot decide.

    ``figure`` is what the claim is about, ``basis`` what it was worked out from. ``settings`` is what a
    boundary can be drawn by.
    """

    cells: tuple[str, ...]
    instrument: Instrument
    source: str
    model: str
    parameters: int | None
    figure: Figure
    basis: tuple[Figure, ...]
    agrees: bool | None
    settings: Mapping[str, Setting]
    note: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict on one part of a claim. ``beside`` are models that the claim is not about.

    ``disturbed_runs`` counts the runs whose speed was left out.
    """

    part: str
    verdict: Verdict
    deciding: tuple[Evidence, ...]
    beside: tuple[Evidence, ...] = ()
    boundary: Boundary | None = None
    needs: str = ""
    disturbed_runs: int = 0

    @property
    def agreeing(self) -> int:
        """How many deciding rows agree."""
        return sum(row.agrees is True for row in self.deciding)

    @property
    def disagreeing(self) -> int:
        """How many deciding rows disagree."""
        return sum(row.agrees is False for row in self.deciding)


def conclude(part: str, deciding: Sequence[Evidence], beside: Sequence[Evidence], needs: str) -> Finding:
    """Return the verdict that rows of evidence come to, with the boundary where they are divided."""
    told = [row for row in deciding if row.agrees is not None]
    agreeing = sum(bool(row.agrees) for row in told)
    verdict: Verdict = "holds only when"
    if not told:
        verdict = "not testable here"
    elif agreeing == len(told):
        verdict = "holds"
    elif agreeing == 0:
        verdict = "does not hold"
    divided = verdict == "holds only when"
    return Finding(
        part=part,
        verdict=verdict,
        deciding=tuple(deciding),
        beside=tuple(beside),
        boundary=find_boundary([(row.settings, bool(row.agrees)) for row in told]) if divided else None,
        needs=needs,
    )


def overall(findings: Sequence[Finding], combine: Literal["all", "any"] = "all") -> Verdict:
    """Return the verdict on a claim from those on its parts.

    Of parts that all have to hold the worst counts. Of readings of which any may be meant, those that could
    be tested count; where they differ, the claim holds only when the right one is meant.
    """
    verdicts = {finding.verdict for finding in findings}
    if combine == "any":
        told = verdicts - {"not testable here"} or verdicts
        return told.pop() if len(told) == 1 else "holds only when"
    return min(verdicts, key=_ORDER.index)
