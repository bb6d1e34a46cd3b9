"""Boundaries between cells that agree with a claim and cells that do not."""

from typing import Any

from bench.claims.judge import Boundary, Condition, find_boundary


def condition(setting: str, relation: Any, value: float | str) -> Condition:
    """Return a condition, written short."""
    return Condition(setting, relation, value)


def test_one_threshold_is_named() -> None:
    """Agreeing from 2,048 tokens on is a bound on the length, at the first value that agrees."""
    rows = [({"length": length, "batch": 1}, length >= 2048) for length in (512, 1024, 2048, 4096)]
    expected = ((condition("length", "at least", 2048),),)
    assert Boundary(expected, covered=2, agreeing=2) == find_boundary(rows)


def test_two_settings_are_joined_only_where_one_does_not_do() -> None:
    """Agreeing with long sequences under LoRA takes both settings."""
    rows = [
        ({"length": length, "method": method}, length == 2 and method == "LoRA")
        for length in (1, 2)
        for method in ("LoRA", "full")
    ]
    (found,) = find_boundary(rows).alternatives
    assert {condition("length", "at least", 2), condition("method", "is", "LoRA")} == set(found)


def test_what_agrees_for_another_reason_is_an_alternative() -> None:
    """Agreeing at either end of a setting takes two alternatives, the wider one first."""
    rows = [({"rank": rank}, rank != 4) for rank in (1, 2, 4, 8)]
    expected = ((condition("rank", "at most", 2),), (condition("rank", "at least", 8),))
    assert Boundary(expected, covered=3, agreeing=3) == find_boundary(rows)


def test_what_no_setting_tells_apart_is_said() -> None:
    """Two rows alike in all settings, one of which agrees, have no boundary."""
    found = find_boundary([({"rank": 1}, True), ({"rank": 1}, False)])
    assert ((), 0, False) == (found.alternatives, found.covered, found.exact)


def test_a_row_without_a_setting_does_not_meet_it() -> None:
    """Full fine-tuning has no rank, so that a bound on the rank says nothing of it."""
    found = find_boundary([({"rank": 1}, True), ({"rank": 8}, True), ({}, False)])
    assert found.covered == 2
    assert {"rank"} == {one.setting for alternative in found.alternatives for one in alternative}
