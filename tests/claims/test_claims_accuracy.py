"""Claims on accuracy over seeds: by the studies' own intervals, and what was shown told from what was not."""

from collections.abc import Sequence
from typing import Any

import pytest

from bench.claims.cases import cases_of_records
from bench.claims.evidence import Figure
from bench.claims.judge import Finding, judge_claim
from bench.claims.page import sentence
from bench.claims.rules import AccuracyRule
from bench.compare.comparison import studies
from bench.records.readings import Caveat
from bench.records.records import Record
from claims_factory import RULE, make_claim
from records_factory import make_cell, make_evaluation, make_measurement, make_record, make_steps

RANKS = {"subject": {"method.rank": [2, 4]}, "reference": {"method.rank": 1}, "free": ["method.rank"]}
SPEED = {
    "kind": "pair",
    "quantity": "speed",
    "subject": {"method.kind": "qlora"},
    "reference": {"method.kind": "lora"},
    "at_least": 1,
}
BUSY, THROTTLED = (
    Caveat(code=code, message="the speed is not its own") for code in ("busy-machine", "throttled")
)


def make_study(*counts: Sequence[int], items: int = 100, **cell: Any) -> list[Record]:
    """Return a run for each rank, 1 and its doubles, and seed, with so many questions right."""
    return [
        make_record(
            cell=make_cell(
                id=f"tiny/lora-r{2**power}/b4-s256-seed={seed}",
                method={"kind": "lora", "name": "lora", "rank": 2**power},
                training={"sequence_length": 256, "micro_batch": 4, "seed": seed},
                **cell,
            ),
            measurement=make_measurement(
                evaluations=(make_evaluation("after", [index < count for index in range(items)]),)
            ),
        )
        for power, rights in enumerate(counts)
        for seed, count in enumerate(rights)
    ]


def judge(rule: dict[str, Any], records: Sequence[Record], **claim: Any) -> Finding:
    """Return the only finding on a claim with this test, by the records of one folder."""
    return judge_claim(make_claim(rule, **claim), cases_of_records(records, "here")).findings[0]


@pytest.mark.parametrize(
    "counts",
    [
        ((80, 82, 84), (70, 73, 73), (81, 82, 86)),
        ((80, 82, 84), (79, 82, 85), (60, 90, 70)),
        ((50, 50), (56, 57), (50, 51)),
        ((80, 82, 84), (70, 73, 73, 99), (81, 82)),
        ((80, 82, 84), (70, 72, 74), (81, 83, 85)),
    ],
)
def test_claims_and_studies_never_contradict(counts: Sequence[Sequence[int]]) -> None:
    """The same difference, interval and finding on both pages, whichever of the two is the reference."""
    records = make_study(*counts)
    rows = judge({"kind": "accuracy", "asks": "different", "margin": 0.05, **RANKS}, records).deciding
    assert 2 == len(rows)
    for row in rows:
        names = [cell.split("/")[1] for cell in row.cells]
        for (method, reference), sign in ((names, 1), (names[::-1], -1)):
            (study,) = studies(records, reference)
            one = next(one for level, one in study.differences if level.method == method)
            found = one.difference
            assert row.outcome is not None
            assert pytest.approx(sign * row.figure.value) == found.mean
            assert found.excludes_zero == (row.outcome.direction is not None) == (row.agrees is True)
            if row.figure.low is not None and row.figure.high is not None:
                ends = sorted((sign * row.figure.low, sign * row.figure.high))
                assert pytest.approx(ends) == [found.low, found.high]
            else:
                assert found.p_value is None


@pytest.mark.parametrize(
    ("asks", "low", "high", "direction", "within"),
    [
        ("different", -0.04, 0.04, None, True),
        ("different", -0.04, 0.06, None, False),
        ("different", 0.01, 0.04, "higher", True),
        ("no worse", -0.04, 0.30, None, True),
        ("no worse", -0.06, 0.01, None, False),
        ("worse", -0.20, -0.01, "lower", False),
        ("worse", None, None, None, False),
    ],
)
def test_not_shown_to_differ_is_not_shown_to_be_alike(
    asks: str,
    low: float | None,
    high: float | None,
    direction: str | None,
    within: bool,  # noqa: FBT001 - a column
) -> None:
    """Alike takes a whole interval within the margin; below only, where the claim is about losses."""
    rule = RULE.validate_python({"kind": "accuracy", "asks": asks, "margin": 0.05, **RANKS})
    assert isinstance(rule, AccuracyRule)
    found = rule.outcome(Figure(name="it", unit="points", value=0, low=low, high=high), "a skill")
    assert (direction, within) == (found.direction, found.within)


def test_what_was_found_is_told_for_each_task() -> None:
    """Two tasks, of which one shows a difference of 20.5 points and the other one of less than 5."""
    tasks = {"longest-word": ((60, 61), (80, 82)), "first-in-alphabet": ((60, 61), (61, 61))}
    records = [
        record
        for task, counts in tasks.items()
        for record in make_study(*counts, data={"source": "task", "task": task})
    ]
    finding = judge({"kind": "accuracy", "asks": "different", "margin": 0.15, **RANKS}, records)
    told = sentence(finding)
    alike = "1 not significantly different, and shown to be within 15.0 points (0.5 points)."
    assert f"On first-in-alphabet: {alike}" in told
    assert "On longest-word:" in told
    assert "holds conditionally" == finding.verdict


def speed_runs(kind: str, speeds: Sequence[float], *caveats: Caveat) -> list[Record]:
    """Return a run for each speed, all with these caveats."""
    cell = make_cell(
        id=f"tiny/{kind}-r8/b4-s256",
        method={"kind": kind, "name": kind, "rank": 8},
        training={"sequence_length": 256, "micro_batch": 4},
    )
    return [
        make_record(
            cell=cell, run=run, measurement=make_measurement(steps=make_steps((speed,) * 3), caveats=caveats)
        )
        for run, speed in enumerate(speeds, start=1)
    ]


@pytest.mark.parametrize("caveat", [BUSY, THROTTLED])
def test_a_disturbed_speed_decides_nothing(caveat: Caveat) -> None:
    """At rest twice the speed holds; runs that others slowed are left out and counted."""
    lora = speed_runs("lora", (100.0, 101.0, 102.0))
    at_rest = speed_runs("qlora", (200.0, 201.0, 202.0))
    slowed = speed_runs("qlora", (10.0, 11.0), caveat)
    assert ("holds", 0) == ((found := judge(SPEED, [*lora, *at_rest])).verdict, found.disturbed_runs)
    assert found.deciding[0].figure == (mixed := judge(SPEED, [*lora, *at_rest, *slowed])).deciding[0].figure
    assert 2 == mixed.disturbed_runs
    assert "The speeds of 2 runs are left out: the machine was busy or the GPU throttled." in sentence(mixed)
    alone = judge(SPEED, [*lora, *slowed])
    assert ("untestable", 2) == (alone.verdict, alone.disturbed_runs)


def test_each_setting_has_a_verdict_of_its_own() -> None:
    """What was measured at rest, what was measured beside other work, and what nobody has measured."""
    wanted = {
        "name": "a 7B model on a GPU",
        "instrument": "measured GPU",
        "billions_from": 6,
        "needs": "a GPU",
    }
    claim = make_claim(SPEED, settings_wanted=(wanted,))
    lora, qlora = speed_runs("lora", (100.0, 101.0, 102.0)), speed_runs("qlora", (200.0, 201.0, 202.0))
    slowed = [*speed_runs("lora", (9.0, 9.0), BUSY), *speed_runs("qlora", (10.0, 11.0), BUSY)]
    cases = [*cases_of_records([*lora, *qlora], "rest"), *cases_of_records(slowed, "busy")]
    found = judge_claim(claim, cases).by_setting
    assert [
        ("rest", "holds", 0),
        ("busy", "untestable", 4),
        ("a 7B model on a GPU", "untestable", 0),
    ] == [(one.part.rpartition("(")[2].rstrip(")"), one.verdict, one.disturbed_runs) for one in found]
    assert sentence(found[1]).startswith("Not tested: it needs several runs of both on an idle machine. The")
