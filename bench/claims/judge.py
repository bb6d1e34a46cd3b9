"""Claims judged: records, plans and published measurements are read, and weighed claim by claim."""

import tomllib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bench.claims.cases import Case, cases_of_plan, cases_of_published, cases_of_records
from bench.claims.findings import Evidence, Finding, Verdict, conclude, overall
from bench.claims.rules import PairRule, Rule
from bench.errors import UsageError
from bench.records.predictions import is_plan, read_plan
from bench.records.published import shipped_rows
from bench.records.store import load_records
from bench.scenario.types import Frozen

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
    """Return the claims that come with the package, in the order of their file."""
    text = files("bench.claims").joinpath("claims.toml").read_text(encoding="utf-8")
    return _Catalogue.model_validate(tomllib.loads(text)).claims


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
    """Judge every claim, in order."""
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
    settings: dict[str, list[Evidence]] = {}
    for row in rows:
        settings.setdefault(_setting(row), []).append(row)
    runs = Counter[str]()
    for case in disturbed:
        runs[_setting(case)] += case.disturbed_runs
    told = [
        conclude(name, settings.get(name, ()), (), _AT_REST, runs[name])
        for name in dict.fromkeys([*settings, *runs])
    ]
    lacking = [
        conclude(wanted.name, (), (), wanted.needs)
        for wanted in claim.settings_wanted
        if not any(row.instrument == wanted.instrument and wanted.is_about(row.parameters) for row in rows)
    ]
    return (*told, *lacking)


def _setting(one: Evidence | Case) -> str:
    return f"{one.model}, {one.instrument} ({one.source})"
