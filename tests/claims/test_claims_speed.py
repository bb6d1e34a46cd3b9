"""Claims on speed by what is predicted and published: one card each, and beyond the ranges only."""

from itertools import combinations
from math import hypot, log
from pathlib import Path

import pytest

from bench.claims.cases import Case, cases_of_plan, cases_of_published
from bench.claims.judge import judge_claim
from bench.claims.page import sentence
from bench.records.predictions import Plan, PlannedCell, Speed, check_fit
from bench.records.published import shipped_rows
from bench.records.published.score import read_validation
from bench.scenario.catalogue import card
from bench.scenario.platform import Platform
from claims_factory import GIB, make_case, make_claim
from records_factory import make_cell, make_prediction

FULL = {"kind": "full"}
RULE = {
    "kind": "pair",
    "quantity": "speed",
    "subject": {"method.kind": "lora"},
    "reference": {"method.kind": "full"},
    "at_least": 1,
}


@pytest.mark.parametrize(
    ("point", "instrument", "verdict"),
    [
        (150.0, "predicted", "holds"),
        (118.0, "predicted", "holds"),  # both ends at once would be 106 and 110
        (114.0, "predicted", "untestable"),
        (60.0, "predicted", "contradicted"),
        (110.0, "published", "holds"),
        (103.0, "published", "untestable"),
    ],
)
def test_speed_that_is_told_decides_beyond_both_ranges(point: float, instrument: str, verdict: str) -> None:
    """Of predictions on one card beyond their ranges in quadrature, of published runs beyond 5 %."""
    width = 0.1 if instrument == "predicted" else 0.025
    lora, full = (
        make_case(
            method=method,
            instrument=instrument,
            told_speeds={"a100": (rate * (1 - width), rate, rate * (1 + width))},
        )
        for method, rate in ((None, point), (FULL, 100.0))
    )
    assert verdict == judge_claim(make_claim(RULE), (lora, full)).verdict


def test_the_verdict_says_what_was_predicted_and_what_published() -> None:
    """By how many comparisons of each agree; those of one kind are all of it."""

    def pair(instrument: str, *speeds: float) -> list[Case]:
        told = [{"a100": (0.99 * speed, speed, 1.01 * speed)} for speed in speeds]
        methods = (None, FULL)
        return [
            make_case(method=how, instrument=instrument, place=(instrument,), told_speeds=one)
            for how, one in zip(methods, told, strict=True)
        ]

    slower, faster = pair("predicted", 50.0, 100.0), pair("published", 150.0, 100.0)
    (both,) = judge_claim(make_claim(RULE), [*slower, *faster]).findings
    assert sentence(both).startswith(
        "1 of 2 comparisons agrees: speed 0.500 to 1.50 times (predicted: 0 of 1; published: 1 of 1)."
    )
    (unsure,) = judge_claim(make_claim(RULE), [*slower, *pair("published", 100.0, 100.0)]).findings
    assert "(predicted: 0 of 1; published: none conclusive)" in sentence(unsure)
    (one,) = judge_claim(make_claim(RULE), faster).findings
    assert sentence(one) == "1 of 1 comparisons agrees: speed 1.50 times, published."
    (open_,) = judge_claim(make_claim(RULE), pair("published", 100.0, 100.0)).findings
    assert sentence(open_) == "The one comparison is inconclusive: speed 1.00 times, published."


def test_speeds_are_compared_on_one_card_each() -> None:
    """Of three cards the two that both are told of; each row names its card, and the interval its kind."""
    speeds = {"a": (90.0, 100.0, 110.0), "b": (180.0, 200.0, 220.0)}
    lora = make_case(told_speeds=speeds)
    full = make_case(method=FULL, told_speeds=speeds | {"c": (1.0, 2.0, 3.0), "b": (45.0, 50.0, 55.0)})
    rows = judge_claim(make_claim(RULE), [lora, full]).findings[0].deciding
    assert {row.note: (row.figure.value, row.agrees) for row in rows} == {"a": (1.0, None), "b": (4.0, True)}
    assert {row.figure.interval for row in rows} == {"ranges of both"}


def test_the_page_says_how_many_published_ratios_lie_in_such_an_interval() -> None:
    """Of pairs of one source on one GPU, cold runs left out; of 90 % asked no less hold."""
    told: dict[tuple[str, str], list[tuple[float, Speed]]] = {}
    for row in read_validation(Path("results/validation/prediction.json")).rows:
        for one in row.speeds:
            if one.told and one.told.gpus == 1 and one.measured_rate and not one.measured.cold:
                told.setdefault((row.source, one.told.card), []).append((one.measured_rate, one.told))
    held = []
    for (ours, mine), (theirs, its) in (pair for group in told.values() for pair in combinations(group, 2)):
        off = log(ours / theirs * its.point / mine.point)
        above = hypot(log(mine.high / mine.point), log(its.point / its.low))
        below = hypot(log(mine.point / mine.low), log(its.high / its.point))
        held.append(-below <= off <= above)
    said = " ".join(Path("report/claims.md").read_text().split())
    assert f"Of {len(held)} pairs of published runs on one card {sum(held)} (" in said
    assert sum(held) >= 0.9 * len(held)


def test_published_speeds_are_read_with_their_margin() -> None:
    """Tokens of a step over its seconds, as the row says, with half of 5 % either way; not of cold runs."""
    files = shipped_rows()
    cases = {case.cell.id: case for case in cases_of_published(files)}
    row = next(
        row
        for file in files
        for row in file.rows
        if row.cell and row.cell.id == "fms-acceleration/mistral-7b-none-lora-16bit-b4"
    )
    assert row.cell is not None
    ((low, rate, high),) = cases[row.cell.id].told_speeds.values()
    assert rate == pytest.approx(4 * 4096 / row.speeds[0].value)
    assert high / low == pytest.approx(1.05)
    cold = [
        row.cell.id for file in files for row in file.rows if row.cell and row.speeds and row.speeds[0].cold
    ]
    assert cold
    assert not any(cases[name].told_speeds for name in cold)


def test_speeds_of_a_plan_are_by_card() -> None:
    """Those that are refused are left out; a version counts as the same however it is written."""
    told = Speed(card="rtx4090", low=90, point=100, high=110)
    refused = Speed(card="l40s", refused="not timed")
    cards = (card("rtx4090"), card("l40s"))

    def plan(version: str) -> Plan:
        platform = Platform(transformers=version)
        answer = make_prediction(GIB).model_copy(update={"speeds": (told, refused), "platform": platform})
        verdicts = tuple(check_fit(answer, one) for one in cards)
        planned = PlannedCell(cell=make_cell(device="cuda"), answer=answer, verdicts=verdicts)
        return Plan(scenario="s", title="s", cards=cards, cells=(planned,))

    (old,), (new,) = (cases_of_plan(plan(version), "plan") for version in ("5.23", "5.23.0"))
    assert old.told_speeds == {"rtx4090": (90, 100, 110)}
    assert old.place == new.place
