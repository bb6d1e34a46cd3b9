"""The outcome of a comparison or a gate as stored: every verdict with its figures, and what has to be known.

Everything that is shown of a gate is made from this document alone. It holds results of statistics, so it is
never judged again: the records are.

History of the format (``VERDICTS_VERSION``):
- 1 (2026-11-22): first.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from bench.records.stored import Caveat, Count, Stored

VERDICTS_VERSION: Final = 1

VerdictName = Literal["pass", "regression", "inconclusive", "not comparable"]
Kind = Literal["outcome", "deterministic", "statistical", "paired"]
Interval = Literal["runs", "sittings", "questions"]
Design = Literal["one sitting", "one sitting by steps", "stored baseline", "two result sets"]

EXIT_PASS, EXIT_REGRESSION, EXIT_INCONCLUSIVE, EXIT_INFRASTRUCTURE = 0, 1, 3, 4
WORST_FIRST: tuple[VerdictName, ...] = ("regression", "inconclusive", "not comparable", "pass")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One metric of one cell. Values are in ``unit``, intervals and shares as in ``analysis.verdicts``.

    ``metric`` is *outcome* where it is about how the runs ended. ``improved`` is a proven change for the
    better. ``interval`` says what the interval covers. Checked when a document is read, and not when one is
    made: there are tens of thousands.
    """

    __pydantic_config__: ClassVar[ConfigDict] = Stored.model_config

    cell: str
    metric: str
    task: Annotated[str | None, Field(description="The evaluation task, for accuracy.")] = None
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


class ComparedSide(Stored):
    """What one side is made of."""

    given: str = Field(description="As the user named it.")
    runs: Count
    sittings: Count = 1
    environment: dict[str, str] = Field(description="Facts all its runs share; others read 'several'.")


class Verdicts(Stored):
    """Everything a comparison came to. ``judgements`` stand worst first, gated before not gated."""

    verdicts_version: Literal[1] = VERDICTS_VERSION
    design: Design
    scenarios: tuple[str, ...]
    verdict: VerdictName
    alpha: float = Field(description="Probability of a false alarm over all gated cells and metrics.")
    baseline: ComparedSide
    candidate: ComparedSide
    differences: tuple[str, ...] = Field((), description="What differs between where the two were made.")
    failed_cells: tuple[str, ...] = Field((), description="Cells a run of which ended neither ok nor oom.")
    judgements: tuple[Judged, ...]
    caveats: tuple[Caveat, ...] = ()
    problems: tuple[str, ...] = Field((), description="Files that could not be read, and why.")

    @property
    def gated(self) -> tuple[Judged, ...]:
        """Those that the verdict rests on."""
        return tuple(judged for judged in self.judgements if judged.gated)

    @property
    def gated_counts(self) -> Counter[VerdictName]:
        """How many gated metrics have each verdict."""
        return Counter(judged.verdict for judged in self.judgements if judged.gated)

    def exit_code(self, inconclusive: Literal["pass", "fail"] | None = None) -> int:
        """Return 0 pass, 1 regression, 3 inconclusive, 4 where a run failed and nothing regressed.

        ``inconclusive`` makes of the third a pass or a regression; a failed run stays one.
        """
        if self.verdict == "regression":
            return EXIT_REGRESSION
        if self.failed_cells:
            return EXIT_INFRASTRUCTURE
        if self.verdict == "pass":
            return EXIT_PASS
        return {None: EXIT_INCONCLUSIVE, "pass": EXIT_PASS, "fail": EXIT_REGRESSION}[inconclusive]
