"""Each kind of test of a claim, with cases on either side of its bound."""

from math import e, exp
from typing import Any

import pytest
from pydantic import ValidationError

from bench.claims.cases import Case, cases_of_plan, cases_of_records
from bench.claims.evidence import Evidence, Figure, evidence_of, ratio_interval
from bench.claims.judge import conclude, judge_claim, overall, shipped_claims
from bench.metrics import MERGE_TOLERANCES
from bench.records.predictions import Plan, PlannedCell
from bench.records.records import Measurement, MergeCheck
from claims_factory import GIB, RULE, make_case, make_claim, on_card
from records_factory import (
    make_cell,
    make_evaluation,
    make_measurement,
    make_prediction,
    make_record,
    make_steps,
)

FULL, LORA, QLORA = ({"kind": kind} for kind in ("full", "lora", "qlora"))
LORA_AGAINST_FULL = {"subject": {"method.kind": "lora"}, "reference": {"method.kind": "full"}}
IDS = (
    "lora-params-100x",
    "lora-params-thousands",
    "lora-params-millions",
    "lora-params-1-5pct",
    "full-100gb",
    "lora-8-16gb",
    "qlora-6-24gb",
    "lora-mem-50pct",
    "qlora-mem-75pct",
    "qlora-mem-96pct",
    "qlora-8x-weights",
    "qlora-4-8x",
    "qlora-33b-24gb",
    "qlora-65b-48gb",
    "qlora-70b-1gpu",
    "qlora-very-fast",
    "qlora-slower",
    "qlora-33mem-39time",
    "lora-faster-than-full",
    "accuracy-similar-lora",
    "accuracy-similar-qlora",
    "adapters-16bit",
    "compute-32bit",
    "double-quant-saves",
    "paged-optimizer-spike",
    "merge-easily",
    "lever-accumulation",
    "lever-mixed-precision",
    "lever-batch",
    "lever-sequence",
    "rank-memory",
    "rank-accuracy",
    "quant-tradeoff",
)


def judge(rule: dict[str, Any], *cases: Case, **claim: Any) -> str:
    """Return the verdict on a claim with this one test."""
    return judge_claim(make_claim(rule, **claim), cases).verdict


def test_every_claim_of_the_list_is_there_once() -> None:
    """The catalogue holds the 33 statements, each once and each with a test."""
    assert sorted(IDS) == sorted(claim.id for claim in shipped_claims())
    assert 33 == len(IDS)


def test_an_unknown_kind_of_test_is_refused() -> None:
    """What a catalogue cannot mean is a mistake, never code that runs."""
    with pytest.raises(ValidationError):
        RULE.validate_python({"kind": "eval", "code": "1"})


@pytest.mark.parametrize(("trainable", "verdict"), [(70_000_000, "holds"), (70_000_001, "contradicted")])
def test_a_value_agrees_up_to_its_bound(trainable: int, verdict: str) -> None:
    """A hundredth of 7 billion parameters is 70 million, and not one more."""
    rule = {"kind": "value", "quantity": "times fewer parameters trained", "where": {"method.kind": "lora"}}
    assert verdict == judge(rule | {"at_least": 100}, make_case(trainable=trainable))


@pytest.mark.parametrize(("peak_gib", "verdict"), [(10, "holds"), (11, "contradicted")])
def test_a_saving_agrees_from_its_bound(peak_gib: int, verdict: str) -> None:
    """10 of 20 GiB is half less; 11 is not."""
    rule = {"kind": "pair", "quantity": "less peak memory", **LORA_AGAINST_FULL, "at_least": 0.5}
    full = make_case(method=FULL, peak_bytes=20 * GIB)
    assert verdict == judge(rule, make_case(peak_bytes=peak_gib * GIB), full)


@pytest.mark.parametrize(
    "unlike",
    [
        {"place": ("elsewhere",)},
        {"model": "other"},
        {"training": {"micro_batch": 2}},
        {"training": {"optimizer": "sgd"}},
    ],
)
def test_only_what_is_alike_is_compared(unlike: dict[str, Any]) -> None:
    """Another place, model, batch or optimizer is no comparison, so that nothing can be told."""
    rule = {"kind": "pair", "quantity": "less peak memory", **LORA_AGAINST_FULL, "at_least": 0.5}
    assert "untestable" == judge(rule, make_case(), make_case(method=FULL, peak_bytes=20 * GIB, **unlike))


def test_what_is_freed_may_differ() -> None:
    """A field that the test frees is allowed to be another one; learning rates always are."""
    rule = {"kind": "pair", "quantity": "less peak memory", **LORA_AGAINST_FULL, "at_least": 0.5}
    training = {"optimizer": "sgd", "learning_rate": 1e-3}
    full = make_case(method=FULL, training=training, peak_bytes=20 * GIB)
    assert "holds" == judge(rule | {"free": ["training.optimizer"]}, make_case(), full)


def test_adapters_are_compared_at_one_rank() -> None:
    """QLoRA of rank 8 is not set against LoRA of rank 16."""
    sides = {"subject": {"method.kind": "qlora"}, "reference": {"method.kind": "lora"}}
    rule = {"kind": "pair", "quantity": "less peak memory", **sides, "at_least": 0.5}
    qlora = make_case(method=QLORA, peak_bytes=5 * GIB)
    assert "holds" == judge(rule, qlora, make_case())
    assert "untestable" == judge(rule, qlora, make_case(method=LORA | {"rank": 16}))


@pytest.mark.parametrize(("low", "verdict"), [(99, "holds"), (100, "contradicted")])
def test_a_lever_has_to_free_its_share(low: int, verdict: str) -> None:
    """From 100 to 99 is one per cent; unchanged is nothing."""
    cases = [
        make_case(training={"micro_batch": batch}, peak_bytes=peak) for batch, peak in ((1, low), (4, 100))
    ]
    assert verdict == judge({"kind": "lever", "lever": "training.micro_batch", "at_least": 0.01}, *cases)


def test_a_lever_is_looked_at_step_by_step() -> None:
    """Of three batches, each is set against the next larger one only."""
    cases = [make_case(training={"micro_batch": size}, peak_bytes=size) for size in (4, 1, 2)]
    rule = {"kind": "lever", "lever": "training.micro_batch", "at_least": 0.01}
    found = judge_claim(make_claim(rule), cases).findings[0]
    assert [(4, 2), (2, 1)] == [(row.basis[1].value, row.basis[0].value) for row in found.deciding][::-1]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("fits", "holds"), ("does not fit", "contradicted"), ("too close to call", "untestable")],
)
def test_whether_it_fits_is_what_the_plan_said(answer: str, verdict: str) -> None:
    """A fit agrees, too close to call decides nothing, and a card of another size is not asked."""
    case = make_case(cards=(on_card(answer), on_card("does not fit", memory_gib=12)))
    assert verdict == judge({"kind": "fits", "where": {"method.kind": "lora"}, "card_gib": [24]}, case)


@pytest.mark.parametrize(
    ("without", "with_paging", "verdict"),
    [
        ("does not fit", "fits", "holds"),
        ("too close to call", "does not fit", "contradicted"),
        ("fits", "fits", "untestable"),
    ],
)
def test_a_rescue_needs_something_to_rescue(without: str, with_paging: str, verdict: str) -> None:
    """Only a card that it did not surely fit on can show that paging helps."""
    paged = {"optimizer": "paged-adamw-32bit"}
    rule = {
        "kind": "rescue",
        "subject": {"training.optimizer": "paged-adamw-32bit"},
        "reference": {"training.optimizer": "adamw-fused"},
        "free": ["training.optimizer"],
    }
    rescued = make_case(training=paged, cards=(on_card(with_paging),))
    assert verdict == judge(rule, rescued, make_case(cards=(on_card(without),)))


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "holds"), (1.001, "contradicted")])
def test_a_merge_may_change_what_rounding_may(share: float, verdict: str) -> None:
    """The worst of several runs counts, against the tolerance of its dtype."""
    runs = [
        make_measurement(
            merge=MergeCheck(max_abs_difference=changed * MERGE_TOLERANCES["bf16"], reference_max_abs=1.0)
        )
        for changed in (0.0, share)
    ]
    rule = {"kind": "value", "quantity": "change of the largest logit", "where": {}, "at_most": 1}
    assert verdict == judge(rule, make_case(measurements=runs))


@pytest.mark.parametrize(("state_bytes", "verdict"), [(1_000, "holds"), (1_100, "contradicted")])
def test_bits_of_state_are_reckoned_a_parameter(state_bytes: int, verdict: str) -> None:
    """4,000 bytes less 1,000 are 24,000 bits, which for 64,000 parameters are 0.375 each."""
    sides = {
        "subject": {"method.kind": "qlora", "method.double_quantisation": True},
        "reference": {"method.kind": "qlora", "method.double_quantisation": False},
        "free": ["method.double_quantisation"],
    }
    rule = {"kind": "pair", "quantity": "bits of quantisation state saved", **sides, "at_least": 0.37}
    once, twice = (
        make_case(
            method=QLORA | {"double_quantisation": double},
            parameters=64_000,
            quantisation_state_bytes=size,
        )
        for double, size in ((False, 4_000), (True, state_bytes))
    )
    assert verdict == judge(rule, once, twice)


@pytest.mark.parametrize(
    ("speeds", "verdict"),
    [
        ((120.0, 121.0, 122.0), "holds"),
        ((80.0, 81.0, 82.0), "contradicted"),
        ((99.0, 101.0, 102.0), "untestable"),
        ((120.0,), "untestable"),
    ],
)
def test_speed_is_told_by_a_whole_interval(speeds: tuple[float, ...], verdict: str) -> None:
    """Faster or slower beyond the spread of runs decides; within it, or from one run, nothing does."""
    rule = {"kind": "pair", "quantity": "speed", **LORA_AGAINST_FULL, "at_least": 1}
    full = make_case(method=FULL, measurements=timed(99.0, 100.0, 101.0))
    assert verdict == judge(rule, make_case(measurements=timed(*speeds)), full)


def timed(*speeds: float) -> list[Measurement]:
    """Return a run at each speed."""
    return [make_measurement(steps=make_steps((speed,) * 3)) for speed in speeds]


def test_the_interval_of_a_ratio_is_welchs() -> None:
    """Of logs 0, 1 against 0, 1: difference 0, error 1/√2 with 2 degrees of freedom, t = 4.303."""
    half = 4.302653 * 0.5**0.5
    assert ratio_interval((1.0, e), (1.0, e)) == pytest.approx((exp(-half), exp(half)))


RIGHT = [True] * 90 + [False] * 10


def answered(*lost: int) -> list[Measurement]:
    """Return a run for each number of right answers in RIGHT that it has wrong."""
    rights = [[index >= count and right for index, right in enumerate(RIGHT)] for count in lost]
    return [make_measurement(evaluations=(make_evaluation("after", right),)) for right in rights]


@pytest.mark.parametrize(
    ("asks", "lost", "verdict"),
    [
        ("no worse", 0, "holds"),
        ("no worse", 4, "untestable"),
        ("no worse", 20, "contradicted"),
        ("worse", 20, "holds"),
        ("worse", 0, "contradicted"),
        ("different", 20, "holds"),
        ("different", 0, "contradicted"),
    ],
)
def test_one_runs_accuracy_is_told_by_its_questions(asks: str, lost: int, verdict: str) -> None:
    """Of a hundred questions none lost is alike, twenty lost is worse, four could be either."""
    rule = {"kind": "accuracy", "asks": asks, "margin": 0.05, **LORA_AGAINST_FULL}
    full = make_case(method=FULL, measurements=answered(0))
    assert verdict == judge(rule, make_case(measurements=answered(lost)), full)


def test_over_seeds_the_spread_of_seeds_counts() -> None:
    """Losses of 9, 10 and 11 are worse for sure, losses of 0, 10 and 20 are not."""
    rule = {"kind": "accuracy", "asks": "worse", **LORA_AGAINST_FULL}
    full = make_case(method=FULL, measurements=answered(0, 0, 0))
    for losses, verdict in (((9, 10, 11), "holds"), ((0, 10, 20), "untestable")):
        assert verdict == judge(rule, make_case(measurements=answered(*losses)), full)


def test_models_that_a_claim_is_not_about_stand_beside() -> None:
    """A measured small model does not decide about large ones, and the predicted large one does."""
    rule = {"kind": "pair", "quantity": "less peak memory", **LORA_AGAINST_FULL, "at_least": 0.5}
    small: dict[str, Any] = {"parameters": 135_000_000, "model": "small", "instrument": "measured CPU"}
    cases = (
        make_case(peak_bytes=20 * GIB, **small),
        make_case(method=FULL, peak_bytes=20 * GIB, **small),
        make_case(),
        make_case(method=FULL, peak_bytes=20 * GIB),
    )
    found = judge_claim(make_claim(rule, billions_from=6), cases)
    assert ("holds", ["big"], ["small"]) == (
        found.verdict,
        [row.model for row in found.findings[0].deciding],
        [row.model for row in found.findings[0].beside],
    )


def test_measured_on_a_gpu_beats_predicted() -> None:
    """Where the same setting was measured, what was predicted of it does not count."""
    rule = {"kind": "value", "quantity": "parameters trained", "where": {}, "at_most": 10}
    measured = make_case(trainable=11, instrument="measured GPU")
    assert "holds" == judge(rule, make_case(trainable=10))
    assert "contradicted" == judge(rule, make_case(trainable=10), measured)


def test_parts_and_readings_are_put_together() -> None:
    """The worst part counts; of readings that differ, the claim holds only when the right one is meant."""
    yes, no, unknown = (conclude("", rows, (), "") for rows in ([row(agrees=True)], [row(agrees=False)], []))
    assert ["contradicted", "untestable", "holds"] == [
        overall(parts) for parts in ([yes, no], [yes, unknown], [yes, yes])
    ]
    assert ["holds conditionally", "holds"] == [
        overall(parts, "any") for parts in ([yes, no], [yes, unknown])
    ]


def row(*, agrees: bool) -> Evidence:
    """Return evidence that says so."""
    return evidence_of([make_case()], Figure(name="it", unit="count", value=1), agrees=agrees)


def test_runs_of_several_seeds_are_one_case() -> None:
    """Two seeds of a cell give one case with both speeds and both runs' answers; a failed run gives none."""
    cells = [make_cell(training={"sequence_length": 256, "seed": seed}) for seed in (0, 1)]
    records = [
        make_record(cell=cell, measurement=make_measurement(steps=make_steps((speed,) * 3)))
        for cell, speed in zip(cells, (100.0, 200.0), strict=True)
    ]
    failed = make_record(outcome="oom", measurement={}, failure={"message": "out of memory"})
    found = cases_of_records([*records, failed], "results")
    (case,) = found
    assert case.measured is not None
    assert ((100.0, 200.0), [0, 1]) == (case.speeds, [*case.measured.answers("held-out")])


def test_what_attaching_adapters_added_is_what_is_trained() -> None:
    """4,000 bytes of fp32 adapters are 1,000 parameters; over a quantised base it is not known."""
    ends = {"load": 10_000, "adapt": 14_000}
    planned = tuple(
        PlannedCell(
            cell=make_cell(device="cuda", method={"kind": kind, "rank": 8}),
            answer=make_prediction(phase_ends_bytes=ends),
        )
        for kind in ("lora", "qlora")
    )
    plan = Plan(scenario="s", title="t", cards=(), cells=planned)
    assert [1_000, None] == [case.trainable for case in cases_of_plan(plan, "plan")]
