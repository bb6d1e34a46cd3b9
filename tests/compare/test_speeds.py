"""Predicted speeds set against each other: which setting is the fastest, and which cannot be told from it."""

from bench.compare.plans import plan_rows
from bench.compare.predictions import Ranked, card_choices, rank_settings
from bench.records.predictions import Plan, PlannedCell, Setting, Speed, check_fit
from bench.scenario.catalogue import card
from records_factory import make_cell, make_prediction


def setting(method: str, checkpointing: str, batch: int, point: float, length: int = 512) -> Setting:
    """Return a setting with a range of ten per cent on either side."""
    speed = Speed(card="rtx4090", low=point / 1.1, point=point, high=point * 1.1)
    fields = {"method": method, "gradient_checkpointing": checkpointing, "micro_batch": batch}
    return Setting.model_validate(fields | {"sequence_length": length, "speed": speed})


def shown(one: Ranked) -> tuple[str, str, int, str, int]:
    """Return what a line says of a setting."""
    own = one.setting
    return own.method, own.gradient_checkpointing, own.micro_batch, one.standing, one.from_batch


def test_fastest_setting_of_each_kind_is_ranked_by_its_range() -> None:
    """Not the largest batch but the fastest counts; where ranges overlap, neither is called faster."""
    tried = [
        setting("lora", "off", 1, 500.0),
        setting("lora", "off", 2, 1000.0),
        setting("lora", "non-reentrant", 1, 600.0),
        setting("lora", "non-reentrant", 4, 900.0),
        setting("lora", "non-reentrant", 8, 890.0),
        setting("qlora", "off", 8, 700.0),
        setting("full", "off", 8, 400.0, length=2048),
    ]
    overlapping = "not distinguishable (ranges overlap)"
    assert [shown(one) for one in rank_settings(tried)] == [
        ("lora", "off", 2, "fastest", 2),
        ("lora", "non-reentrant", 4, overlapping, 4),
        ("qlora", "off", 8, "slower", 8),
        ("full", "off", 8, "fastest", 8),
    ]


def test_smallest_batch_that_is_as_fast_is_told() -> None:
    """It takes less memory; a setting whose speed is refused is left out."""
    tried = [setting("lora", "off", batch, point) for batch, point in ((1, 500.0), (2, 950.0), (4, 1000.0))]
    refused = tried[0].model_copy(
        update={"method": "boft", "speed": Speed(card="rtx4090", refused="no time")}
    )
    assert [shown(one) for one in rank_settings([*tried, refused])] == [("lora", "off", 4, "fastest", 2)]


def test_cards_are_ordered_by_what_the_job_costs_and_dominated_ones_left_out() -> None:
    """The L40S is dearer and slower than the A100, the H100 fastest; it does not fit the RTX 3060."""
    points = {
        "rtx3060-12gb": 9000.0,
        "rtx4090": 1000.0,
        "l40s": 1500.0,
        "a100-40gb": 2000.0,
        "h100-80gb": 5000.0,
    }
    prices = {"rtx3060-12gb": 0.1, "rtx4090": 0.5, "l40s": 1.9, "a100-40gb": 1.2, "h100-80gb": 12.0}
    judged = [card(name) for name in points]
    speeds = tuple(
        Speed(card=name, low=point / 1.2, point=point, high=point * 1.2) for name, point in points.items()
    )
    answer = make_prediction(18 * 1024**3).model_copy(update={"speeds": speeds})
    verdicts = tuple(check_fit(answer, one) for one in judged)
    planned = PlannedCell(cell=make_cell(device="cuda"), answer=answer, verdicts=verdicts)
    plan = Plan(scenario="s", title="s", cards=tuple(judged), cells=(planned,), tokens=36_000_000)
    priced = plan.model_copy(update={"prices_an_hour": prices})
    found = card_choices(priced, plan_rows(priced))
    assert [(one.fit.card, round(one.hours[1], 2), round(one.cost[1], 2), one.standing) for one in found] == [
        ("rtx4090", 10.0, 5.0, "cheapest"),
        ("a100-40gb", 5.0, 6.0, "not distinguishable (ranges overlap)"),
        ("h100-80gb", 2.0, 24.0, "dearer"),
    ]
    pairs = answer.model_copy(update={"speeds": tuple(one.model_copy(update={"gpus": 2}) for one in speeds)})
    doubled = planned.model_copy(update={"verdicts": tuple(check_fit(pairs, one) for one in judged)})
    of_two = priced.model_copy(update={"cells": (doubled,)})
    dearer = card_choices(of_two, plan_rows(of_two))
    assert [2 * one.cost[1] for one in found] == [one.cost[1] for one in dearer]
    assert card_choices(plan, plan_rows(plan)) == []
