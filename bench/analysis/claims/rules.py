"""Claims judged: each kind of test is a function from cases to rows of evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.analysis.claims import rules_accuracy, rules_cards, rules_pairs, rules_values
from bench.analysis.claims.cases import Case
from bench.analysis.claims.catalogue import Claim
from bench.analysis.claims.findings import Evidence, Finding, Verdict, conclude, overall

_NOTHING = "no record and no prediction given here has such cells"

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
    """A claim, the verdict on it, and the findings on each of its parts."""

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...]


def judge_claims(claims: Sequence[Claim], cases: Sequence[Case]) -> tuple[Judged, ...]:
    """Judge every claim, in order."""
    return tuple(judge_claim(claim, cases) for claim in claims)


def judge_claim(claim: Claim, cases: Sequence[Case]) -> Judged:
    """Judge one claim by the cases of models that it is about; others are put beside and decide nothing.

    Where the same comparison was both measured and predicted, only the measured one decides.
    """
    findings = []
    for rule in claim.tests:
        rows = measured_first(_RULES[rule.kind](rule, cases))
        about = [row for row in rows if claim.is_about(row.parameters)]
        beside = [row for row in rows if not claim.is_about(row.parameters)]
        findings.append(conclude(rule.part, about, beside, rule.needs or _NOTHING))
    return Judged(claim=claim, verdict=overall(findings, claim.combine), findings=tuple(findings))


def measured_first(rows: Sequence[Evidence]) -> list[Evidence]:
    """Leave out what was only predicted where the same settings of the same model were measured on a GPU."""
    measured = [(row.model, row.settings) for row in rows if row.instrument == "measured GPU"]
    return [row for row in rows if row.instrument != "predicted" or (row.model, row.settings) not in measured]
