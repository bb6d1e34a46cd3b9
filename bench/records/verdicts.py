"""The outcome of a comparison or a gate as stored: every verdict with its figures, and what has to be known.

Everything that is shown of a gate is made from this document alone. It holds results of statistics, so it is
never judged again: the records are.

History of the format (``verdicts_version``):
- 1 (2026-11-22): first.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from bench.records.readings import Caveat, Count, Stored

VerdictName = Literal["pass", "regression", "inconclusive", "not comparable"]
Kind = Literal["outcome", "deterministic", "bounded", "statistical", "paired"]
Interval = Literal["runs", "sittings", "questions"]
Design = Literal["one sitting", "one sitting by steps", "stored baseline", "two result sets", "two plans"]

EXIT_PASS, EXIT_REGRESSION, EXIT_INCONCLUSIVE, EXIT_INFRASTRUCTURE = 0, 1, 3, 4
WORST_FIRST: tuple[VerdictName, ...] = ("regression", "inconclusive", "not comparable", "pass")


VOID: Final = frozenset({"nothing-tested", "judge-altered"})
"""Codes of caveats that stand above all verdicts: whatever was measured says nothing."""

OUTCOME = "outcome"
"""Stands for a metric in the verdict on how a cell's runs ended."""

EVERY_RUN_FINISHED = "every run finished on both sides"
"""Of an outcome: needed for a pass, but by itself no measurement was compared."""


@dataclass(frozen=True, kw_only=True)
class MetricVerdict:
    """The verdict on one metric of one cell; values are in ``unit``.

    ``ratio`` is candidate / baseline with its interval, each bound missed with the gate's error rate; None
    where there is none. For accuracy ``difference`` and its interval hold the change instead, as a share of
    the questions. ``p_value`` is adjusted for the family and the looks. ``improved`` says that a pass is a
    proven change for the better, ``interval`` what the interval covers. ``repeats`` are the runs of each side
    that decided. ``median_disagrees`` says that the median step tells another story than all steps do.
    Checked when a document is read, and not when one is made: there are tens of thousands.
    """

    __pydantic_config__: ClassVar[ConfigDict] = Stored.model_config

    cell: str
    metric: str
    task: Annotated[
        str | None, Field(description="For accuracy the evaluation task, for predicted peaks the phase.")
    ] = None
    unit: str = ""
    instrument: str = ""
    kind: Kind
    verdict: VerdictName
    gated: bool
    improved: bool = False
    reason: str
    baseline: float | None = None
    candidate: float | None = None
    ratio: Annotated[float | None, Field(description="Candidate / baseline.")] = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: Annotated[
        float | None, Field(description="Accuracy: candidate less baseline, in shares.")
    ] = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    repeats: Count | None = None
    interval: Interval | None = None
    median_ratio: Annotated[
        float | None, Field(description="Candidate / baseline of the median step, where the ratio is of all.")
    ] = None
    median_disagrees: bool = False

    @property
    def size(self) -> float:
        """How large the change is, as a share."""
        return abs(self.difference or 0.0) if self.ratio is None else abs(self.ratio - 1)

    @property
    def differs(self) -> bool:
        """Whether a change was found: significant where the metric varies, any where it is exact."""
        if self.kind == "deterministic" and self.verdict != "not comparable":
            return self.baseline != self.candidate
        return self.verdict == "regression" or self.improved


def outcome_verdict(
    cell: str, verdict: VerdictName, reason: str, *, gated: bool = True, improved: bool = False
) -> MetricVerdict:
    return MetricVerdict(
        cell=cell,
        metric=OUTCOME,
        kind="outcome",
        verdict=verdict,
        gated=gated,
        reason=reason,
        improved=improved,
    )


def overall(verdicts: Iterable[MetricVerdict]) -> VerdictName:
    """Return what the gated ones come to: one regression is enough, what is not comparable has not passed.

    Runs that merely finished have not passed either: without any gated metric compared the whole is
    inconclusive.
    """
    gated = [one for one in verdicts if one.gated]
    found = {one.verdict for one in gated}
    if "regression" in found:
        return "regression"
    compared = any(one.reason != EVERY_RUN_FINISHED for one in gated)
    return "pass" if found == {"pass"} and compared else "inconclusive"


class ComparedSide(Stored):
    """What one side is made of."""

    given: str = Field(description="As the user named it.")
    runs: Count
    sittings: Count = 1
    understood: str | None = Field(None, description="What that was taken for, in words.")
    environment: dict[str, str] = Field(description="Facts all its runs share; others read 'several'.")


class Verdicts(Stored):
    """Everything a comparison came to. ``judgements`` stand worst first, gated before not gated."""

    verdicts_version: Literal[1] = 1
    design: Design
    scenarios: tuple[str, ...]
    verdict: VerdictName
    alpha: float = Field(
        description="Probability of a false alarm over all gated cells and metrics; 0 where all are exact."
    )
    baseline: ComparedSide
    candidate: ComparedSide
    differences: tuple[str, ...] = Field((), description="What differs between where the two were made.")
    failed_cells: tuple[str, ...] = Field((), description="Cells a run of which ended neither ok nor oom.")
    judgements: tuple[MetricVerdict, ...]
    judge: str | None = Field(None, description="The bench that measured, by version and digest.")
    unseen: tuple[str, ...] = Field((), description="By gated metric, what would not have been found.")
    caveats: tuple[Caveat, ...] = ()
    problems: tuple[str, ...] = Field((), description="Files that could not be read, and why.")

    @property
    def void(self) -> Caveat | None:
        """The caveat that says why nothing counts, if there is one."""
        return next((caveat for caveat in self.caveats if caveat.code in VOID), None)

    @property
    def gated(self) -> tuple[MetricVerdict, ...]:
        """Those that the verdict rests on."""
        return tuple(one for one in self.judgements if one.gated)

    @property
    def gated_counts(self) -> Counter[VerdictName]:
        """How many gated metrics have each verdict."""
        return Counter(one.verdict for one in self.judgements if one.gated)

    @property
    def not_gated_counts(self) -> tuple[int, int]:
        """How many metrics that are not gated differ, and of how many that could not be decided."""
        rest = [one for one in self.judgements if not one.gated]
        differ = sum(one.differs for one in rest)
        return differ, sum(one.verdict == "inconclusive" and not one.differs for one in rest)

    def exit_code(self, inconclusive: Literal["pass", "fail"] | None = None) -> int:
        """Return 0 pass, 1 regression, 3 inconclusive, 4 where a run failed and nothing regressed, or void.

        ``inconclusive`` makes of the third a pass or a regression; a failed run stays one.
        """
        if self.void is None and self.verdict == "regression":
            return EXIT_REGRESSION
        if self.failed_cells or self.void is not None:
            return EXIT_INFRASTRUCTURE
        if self.verdict == "pass":
            return EXIT_PASS
        return {None: EXIT_INCONCLUSIVE, "pass": EXIT_PASS, "fail": EXIT_REGRESSION}[inconclusive]
