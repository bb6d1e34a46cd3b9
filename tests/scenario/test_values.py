"""Single values against their fields."""

from datetime import date

import pytest

from bench.scenario.diagnostics import axis_of, complaint_about
from bench.scenario.layout import NAME, fields_of


@pytest.mark.parametrize(
    ("table", "key", "value", "expected"),
    [
        ("training", "micro_batch", 8, None),
        ("training", "learning_rate", 1, None),
        ("training", "micro_batch", "8", 'must be an integer, not "8"'),
        ("training", "micro_batch", 2.0, "must be an integer, not 2.0"),
        ("training", "micro_batch", True, "must be an integer, not true"),
        ("training", "micro_batch", 0, "must be greater than or equal to 1, not 0"),
        ("training", "seed", 2**31, "must be less than 2147483648, not 2147483648"),
        ("training", "seed", 2**63, "must be an integer of at most 64 bits"),
        ("training", "learning_rate", float("nan"), "must be a finite number"),
        ("training", "learning_rate", float("-inf"), "must be a finite number"),
        ("training", "dtype", "bf61", 'must be "fp32", "bf16" or "fp16", not "bf61"'),
        ("training", "dtype", {}, 'must be "fp32", "bf16" or "fp16", not {}'),
        ("window", "ledger", 1, "must be true or false, not 1"),
        ("limits", "timeout_s", 0, "must be greater than 0, not 0"),
        ("limits", "host_memory_gib", "1", 'must be a number, not "1"'),
        ("evaluation", "tasks", ["a"], None),
        ("evaluation", "tasks", "a", 'must be a list, not "a"'),
        ("method", "target_modules", "all-linear", None),
        ("method", "target_modules", ["q_proj", "v_proj"], None),
        ("method", "target_modules", 3, "must be a string or a list, not 3"),
        ("method", "peft", {"use_dora": True, "layers": [1, 2]}, None),
        ("method", "peft", {"a": [float("inf")]}, "must be a finite number"),
        ("method", "peft", {"a": date(2026, 1, 1)}, "dates and times have no meaning here; remove it"),
        ("model", "hub", "a\x1bb", "must not hold control characters"),
        ("model", "hub", ["a"], 'must be a string, not ["a"]'),
    ],
)
def test_value_fits_or_is_told_why_not(table: str, key: str, value: object, expected: str | None) -> None:
    """Types are taken as TOML has them, ranges as the types say, and each mistake is one sentence."""
    complaint = complaint_about(fields_of(table)[key], value)
    assert expected == (complaint.message if complaint else None)


@pytest.mark.parametrize("name", ["../up", ".hidden", "", "a/b", "a b", "x" * 81, "é"])
def test_names_that_are_no_part_of_a_path_are_refused(name: str) -> None:
    """A name becomes part of a file name, so nothing that could leave a folder passes."""
    assert complaint_about(NAME, name) is not None


def test_known_values_are_offered() -> None:
    """The values that would have been right come with the complaint."""
    complaint = complaint_about(fields_of("training")["gradient_checkpointing"], "on")
    assert complaint is not None
    assert complaint.known == ("off", "reentrant", "non-reentrant")


def test_lists_are_axes_except_where_a_field_is_a_list() -> None:
    """A list of ranks is an axis; one of module names is a value, and a list of such lists an axis."""
    rank, modules = fields_of("method")["rank"], fields_of("method")["target_modules"]
    assert axis_of(rank, 8) is None
    assert axis_of(rank, [8]) == [8]
    assert axis_of(modules, ["q", "v"]) is None
    assert axis_of(modules, [["q"], ["q", "v"]]) == [["q"], ["q", "v"]]
    assert axis_of(modules, ["all-linear", ["q"]]) == ["all-linear", ["q"]]
