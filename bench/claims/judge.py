"""Claims judged: records, plans and published measurements are read, and weighed claim by claim.

A verdict has its evidence, and the boundary where evidence is divided.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations
from operator import and_, eq, ge, le, ne
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from bench.claims.cases import Case, Scalar, cases_of_plan, cases_of_published, cases_of_records
from bench.claims.evidence import Evidence
from bench.claims.rules import PairRule, Rule
from bench.compare import grouped
from bench.errors import UsageError
from bench.io import own_toml
from bench.records.predictions import is_plan, read_plan
from bench.records.published import shipped_rows
from bench.records.store import load_records
from bench.scenario.types import Frozen

Verdict = Literal["holds", "holds conditionally", "contradicted", "untestable"]
Relation = Literal["at least", "at most", "is", "is not"]
Labelled = tuple[Mapping[str, Scalar], bool]
Conjunction = tuple["Condition", ...]

MOST_CONDITIONS: Final = 3
MOST_ALTERNATIVES: Final = 3
# A statement of several parts is as good as its worst part; what was not tested is worse than what holds.
_WORST_FIRST: tuple[Verdict, ...] = ("contradicted", "holds conditionally", "untestable", "holds")
_RELATIONS = {"at least": ge, "at most": le, "is": eq, "is not": ne}
_NOTHING = "no record and no prediction given here has such cells"
_AT_REST = "several runs of both on an idle machine"


class _ModelSize(Frozen):
    billions_from: float = Field(0.0, ge=0)
    billions_to: float = Field(1e6, gt=0)

    def is_about(self, parameters: int | None) -> bool:
        """Tell whether models with so many parameters are meant; of an unknown number they are not."""
        return parameters is not None and self.billions_from <= parameters / 1e9 <= self.billions_to


class WantedSetting(_ModelSize):
    """A setting that a claim is asked about as well; ``needs`` is what tests it, where nothing has yet."""

    name: str
    instrument: Literal["measured CPU", "measured GPU"]
    needs: str


class Claim(_ModelSize):
    """One statement, who makes it, which models it is about, and its tests.

    The tests are parts that ``all`` have to pass, or readings of which ``any`` may be meant.
    ``about`` is for readers; the bounds on ``billions`` of parameters are what decides which cells count.
    """

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    theme: str = "Other"
    statement: str
    source: str
    about: str
    tests: tuple[Rule, ...] = Field(min_length=1)
    combine: Literal["all", "any"] = "all"
    settings_wanted: tuple[WantedSetting, ...] = Field(
        (), description="Where given, each model on each machine has a verdict of its own beside these."
    )
    reading: str = Field("", description="How the statement was made testable, and what to know of it.")


class _Catalogue(Frozen):
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _unique(self) -> "_Catalogue":
        ids = [claim.id for claim in self.claims]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: there twice; rename one")
        return self


@cache
def shipped_claims() -> tuple[Claim, ...]:
    return _Catalogue.model_validate(own_toml("bench.claims", "claims.toml")).claims


def committed_paths(results: Path) -> tuple[Path, ...]:
    """Return the folders of records and the plans that a repository keeps below its results folder.

    Raises UsageError where there are none.
    """
    folders = [*sorted((results / "reference").glob("*")), *sorted((results / "studies").glob("*"))]
    found = (*filter(Path.is_dir, folders), *sorted((results / "predicted").glob("*.json")))
    if not found:
        raise UsageError(f"{results} holds no reference, studies or predicted results; name folders or plans")
    return found


def read_cases(paths: Sequence[Path]) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Return the cases of records, of plans and of what ships as published, and why a file was not read.

    A case that is there twice counts once. Raises UsageError where a path is neither.
    """
    found: dict[tuple[Hashable, ...], Case] = {}
    problems: list[str] = []
    for path in paths:
        if is_plan(path):
            cases = cases_of_plan(read_plan(path), path.stem)
        else:
            loaded = load_records(path)
            cases = cases_of_records(loaded.records, path.resolve().name)
            problems += loaded.problems
        for case in cases:
            found.setdefault((case.cell.digest, case.place, case.instrument), case)
    return (*found.values(), *cases_of_published(shipped_rows())), tuple(problems)


@dataclass(frozen=True)
class Condition:
    """One setting and what it has to be."""

    setting: str
    relation: Relation
    value: Scalar

    def is_met(self, settings: Mapping[str, Scalar]) -> bool:
        """Tell whether settings meet it; those that lack this one do not."""
        value = settings.get(self.setting)
        return value is not None and bool(_RELATIONS[self.relation](value, self.value))


@dataclass(frozen=True)
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


def conclude(
    part: str, deciding: Sequence[Evidence], beside: Sequence[Evidence], needs: str, disturbed_runs: int = 0
) -> Finding:
    """Return the verdict that rows of evidence come to, with the boundary where they are divided."""
    told = [(row.settings, row.agrees) for row in deciding if row.agrees is not None]
    yes, no = ({agrees for _, agrees in told} >= {wanted} for wanted in (True, False))
    undivided: Verdict = "holds" if yes else "contradicted" if no else "untestable"
    verdict: Verdict = "holds conditionally" if yes and no else undivided
    boundary = find_boundary(told) if yes and no else None
    return Finding(part, verdict, tuple(deciding), tuple(beside), boundary, needs, disturbed_runs)


def overall(findings: Sequence[Finding], combine: Literal["all", "any"] = "all") -> Verdict:
    """Return the verdict on a claim from those on its parts.

    Of parts that all have to hold the worst counts. Of readings of which any may be meant, those that could
    be tested count; where they differ, the claim holds only if the right one is meant.
    """
    verdicts = {finding.verdict for finding in findings}
    if combine == "any":
        told = verdicts - {"untestable"} or verdicts
        return told.pop() if len(told) == 1 else "holds conditionally"
    return min(verdicts, key=_WORST_FIRST.index)


def find_boundary(rows: Sequence[Labelled]) -> Boundary:
    """Return conditions under which all rows agree: at most three alternatives of at most three conditions.

    Each alternative is the one that covers most of the rows that are left; one more condition is taken only
    where it covers more. Of two that cover the same, the settings that stand first in the rows win.
    """
    yes, no = (
        sum(1 << index for index, (_, agrees) in enumerate(rows) if agrees is wanted)
        for wanted in (True, False)
    )
    masks = _candidates([settings for settings, _ in rows], yes)
    left, alternatives = yes, list[Conjunction]()
    while left and len(alternatives) < MOST_ALTERNATIVES and (found := _widest(masks, left, no)):
        alternatives.append(found[0])
        left &= ~found[1]
    agreeing = yes.bit_count()
    return Boundary(tuple(alternatives), covered=agreeing - left.bit_count(), agreeing=agreeing)


def _widest(masks: Mapping[int, Condition], wanted: int, no: int) -> tuple[Conjunction, int] | None:
    """Return the conjunction that most of the wanted rows meet and none of the others, and who meets it."""
    best, best_count = None, 0
    # Stable: among equals, as they stand in the rows.
    ordered = sorted(masks.items(), key=lambda one: -(one[0] & wanted).bit_count())
    for size in range(1, MOST_CONDITIONS + 1):
        # More conditions are met by no more rows than the last of them alone.
        enough = [one for one in ordered if (one[0] & wanted).bit_count() > best_count]
        for chosen in combinations(enough, size):
            met = reduce(and_, (mask for mask, _ in chosen))
            count = (met & wanted).bit_count()
            if count > best_count and not met & no:
                best, best_count = (tuple(condition for _, condition in chosen), met), count
    return best


def _candidates(rows: Sequence[Mapping[str, Scalar]], yes: int) -> dict[int, Condition]:
    """Return each condition on one setting that some agreeing rows meet and not all; a bit is a row."""
    found: dict[int, Condition] = {}
    for name in dict.fromkeys(name for settings in rows for name in settings):
        values = list(dict.fromkeys(settings[name] for settings in rows if name in settings))
        for relation, value in _relations(values):
            condition = Condition(name, relation, value)
            mask = sum(1 << index for index, settings in enumerate(rows) if condition.is_met(settings))
            if mask & yes and mask != (1 << len(rows)) - 1:
                found.setdefault(mask, condition)  # what says the same of all rows is asked once
    return found


def _relations(values: Sequence[Scalar]) -> Iterator[tuple[Relation, Scalar]]:
    numbers = sorted(one for one in values if isinstance(one, int | float) and not isinstance(one, bool))
    if numeric := len(numbers) == len(values):
        yield from (("at least", value) for value in numbers[1:])
        yield from (("at most", value) for value in numbers[:-1])
    yield from (("is", value) for value in (numbers if numeric else values))
    if len(values) > 2 and not numeric:  # noqa: PLR2004 - of two values, not one is the other
        yield from (("is not", value) for value in values)


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """A claim, the verdict on it, and the findings on each of its parts.

    ``by_setting`` has a finding for each model and source of measurements, its ``part`` naming them, where
    the claim wants settings kept apart; those of which nothing is known say what they need.
    """

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...]
    by_setting: tuple[Finding, ...] = ()


def judge_claims(claims: Sequence[Claim], cases: Sequence[Case]) -> tuple[ClaimVerdict, ...]:
    return tuple(judge_claim(claim, cases) for claim in claims)


def judge_claim(claim: Claim, cases: Sequence[Case]) -> ClaimVerdict:
    """Judge one claim by the cases of models that it is about; others are put beside and decide nothing.

    Where the same comparison was both measured and predicted, only the measured one decides.
    """
    findings: list[Finding] = []
    disturbed: list[Case] = []
    for rule in claim.tests:
        rows = measured_first(rule.judge(cases))
        about = [row for row in rows if claim.is_about(row.parameters)]
        beside = [row for row in rows if not claim.is_about(row.parameters)]
        left_out = _disturbed(claim, rule, cases)
        runs = sum(case.disturbed_runs for case in left_out)
        findings.append(conclude(rule.part, about, beside, rule.needs or _NOTHING, runs))
        disturbed += left_out
    return ClaimVerdict(
        claim=claim,
        verdict=overall(findings, claim.combine),
        findings=tuple(findings),
        by_setting=_by_setting(claim, findings, disturbed) if claim.settings_wanted else (),
    )


def measured_first(rows: Sequence[Evidence]) -> list[Evidence]:
    """Leave out what was only predicted where the same settings of the same model were measured on a GPU."""
    measured = [(row.model, row.settings) for row in rows if row.instrument == "measured GPU"]
    return [row for row in rows if row.instrument != "predicted" or (row.model, row.settings) not in measured]


def _disturbed(claim: Claim, rule: Rule, cases: Sequence[Case]) -> list[Case]:
    """Return the cells, each once, that a comparison of speeds had to do without some runs of."""
    if not isinstance(rule, PairRule) or rule.quantity != "speed":
        return []
    paired = dict.fromkeys(case for pair in rule.chosen(cases) for case in pair)
    return [case for case in paired if case.disturbed_runs and claim.is_about(case.parameters)]


def _by_setting(claim: Claim, findings: Sequence[Finding], disturbed: Sequence[Case]) -> tuple[Finding, ...]:
    rows = [row for finding in findings for row in finding.deciding]
    settings, slowed = grouped(rows, _setting), grouped(disturbed, _setting)
    runs = {name: sum(case.disturbed_runs for case in cases) for name, cases in slowed.items()}
    told = [
        conclude(name, settings.get(name, ()), (), _AT_REST, runs.get(name, 0)) for name in settings | runs
    ]
    lacking = [
        conclude(wanted.name, (), (), wanted.needs)
        for wanted in claim.settings_wanted
        if not any(row.instrument == wanted.instrument and wanted.is_about(row.parameters) for row in rows)
    ]
    return (*told, *lacking)


def _setting(one: Evidence | Case) -> str:
    return f"{one.model}, {one.instrument} ({one.source})"
