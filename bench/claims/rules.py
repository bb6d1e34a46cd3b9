"""Claims judged: each kind of test is a function from cases to rows of evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.claims import rules_accuracy, rules_cards, rules_pairs, rules_values
from bench.claims.cases import Case
from bench.claims.catalogue import Claim, PairRule, Rule
from bench.claims.findings import Evidence, Finding, Verdict, conclude, overall
from bench.claims.settings import like_pairs, matches

_NOTHING = "no record and no prediction given here has such cells"
_AT_REST = "several runs of both on a machine at rest"

_RULES: dict[str, Callable[[Any, Sequence[Case]], list[Evidence]]] = {
    "value": rules_values.value_evidence,
    "pair": rules_pairs.pair_evidence,
    "lever": rules_pairs.lever_evidence,
    "fits": rules_cards.fits_evidence,
    "rescue": rules_cards.rescue_evidence,
    "accuracy": rules_accuracy.accuracy_evidence,
    "untestable": lambda _rule, _cases: [],
}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim, the verdict on it, and the findings on each of its parts.

    ``by_setting`` has a finding for each model and source of measurements, its ``part`` naming them, where
    the claim wants settings told apart; those of which nothing is known say what they need.
    """

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...]
    by_setting: tuple[Finding, ...] = ()


def judge_claims(claims: Sequence[Claim], cases: Sequence[Case]) -> tuple[Judged, ...]:
    """Judge every claim, in order."""
    return tuple(judge_claim(claim, cases) for claim in claims)


def judge_claim(claim: Claim, cases: Sequence[Case]) -> Judged:
    """Judge one claim by the cases of models that it is about; others are put beside and decide nothing.

    Where the same comparison was both measured and predicted, only the measured one decides.
    """
    findings: list[Finding] = []
    disturbed: list[Case] = []
    for rule in claim.tests:
        rows = measured_first(_RULES[rule.kind](rule, cases))
        about = [row for row in rows if claim.is_about(row.parameters)]
        beside = [row for row in rows if not claim.is_about(row.parameters)]
        finding = conclude(rule.part, about, beside, rule.needs or _NOTHING)
        disturbed += (left_out := _disturbed(claim, rule, cases))
        findings.append(replace(finding, disturbed_runs=sum(case.disturbed_runs for case in left_out)))
    return Judged(
        claim=claim,
        verdict=overall(findings, claim.combine),
        findings=tuple(findings),
        by_setting=_by_setting(claim, findings, disturbed) if claim.settings_wanted else (),
    )


def _disturbed(claim: Claim, rule: Rule, cases: Sequence[Case]) -> list[Case]:
    """Return the cases, each once, that a comparison of speeds had to do without some runs of."""
    if not isinstance(rule, PairRule) or rule.quantity != "speed":
        return []
    subjects = [case for case in cases if matches(case, rule.subject)]
    references = [case for case in cases if matches(case, rule.reference)]
    pairs = like_pairs(subjects, references, rule.freed)
    paired = {id(case): case for pair in pairs for case in pair}
    return [case for case in paired.values() if case.disturbed_runs and claim.is_about(case.parameters)]


def _by_setting(claim: Claim, findings: Sequence[Finding], disturbed: Sequence[Case]) -> tuple[Finding, ...]:
    rows = [row for finding in findings for row in finding.deciding]
    settings: dict[str, list[Evidence]] = {}
    for row in rows:
        settings.setdefault(f"{row.model}, {row.instrument} ({row.source})", []).append(row)
    runs: dict[str, int] = {}
    for case in disturbed:
        name = f"{case.model}, {case.instrument} ({case.source})"
        runs[name] = runs.get(name, 0) + case.disturbed_runs
    told = [
        replace(conclude(name, settings.get(name, ()), (), _AT_REST), disturbed_runs=runs.get(name, 0))
        for name in dict.fromkeys([*settings, *runs])
    ]
    lacking = [
        conclude(wanted.name, (), (), wanted.needs)
        for wanted in claim.settings_wanted
        if not any(wanted.is_met(row.instrument, row.parameters) for row in rows)
    ]
    return (*told, *lacking)


def measured_first(rows: Sequence[Evidence]) -> list[Evidence]:
    """Leave out what was only predicted where the same settings of the same model were measured on a GPU."""
    measured = [(row.model, row.settings) for row in rows if row.instrument == "measured GPU"]
    return [row for row in rows if row.instrument != "predicted" or (row.model, row.settings) not in measured]
