"""The [gate] table of a scenario: what it says, every mistake at once, and that it changes no cell."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.errors import ScenarioError
from bench.scenario.gate import GateSpec, MetricGate
from bench.scenario.load import Scenario, load_scenario

SMALL = """\
[models.m]
random = "tiny-llama-test"
[methods.full]
[data]
source = "synthetic"
"""


def load_text(folder: Path, text: str) -> Scenario:
    """Load a scenario given as text."""
    path = folder / "s.toml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path)


def problems_of(folder: Path, text: str) -> list[str]:
    """Return the lines of the error, less the file's name."""
    with pytest.raises(ScenarioError) as caught:
        load_text(folder, text)
    return [line.removeprefix(f"{folder / 's.toml'}:") for line in caught.value.problems]


def test_a_gate_is_read_and_changes_no_cell(tmp_path: Path) -> None:
    """What the table says arrives; ids and digests stay, so records stay those of the same cells."""
    gate = "[gate]\nalpha = 0.05\nmax_repeats = 5\n[gate.metrics.tokens_per_second]\ntolerance = 0.1\n"
    plain, gated = load_text(tmp_path, SMALL), load_text(tmp_path, SMALL + gate)
    metrics = {"tokens_per_second": MetricGate(tolerance=0.1)}
    assert GateSpec(alpha=0.05, max_repeats=5, metrics=metrics) == gated.gate
    assert GateSpec() == plain.gate
    assert [(cell.id, cell.digest) for cell in plain.cells] == [
        (cell.id, cell.digest) for cell in gated.cells
    ]


def test_every_mistake_has_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    """Unknown keys and metrics, values out of range and of the wrong type are told together."""
    gate = (
        "[gate]\nalhpa = 0.05\nrepeats = 1\nalpha = [0.01, 0.05]\n"
        "[gate.metrics.tokens_per_secnd]\ntolerance = 0.1\n"
        '[gate.metrics.op_count]\ndirection = "less"\n'
    )
    assert [
        '7: gate.alhpa: there is no such key here. Perhaps you meant "alpha"?',
        "8: gate.repeats: must be greater than or equal to 2, not 1.",
        "9: gate.alpha: must be a number, not [0.01, 0.05].",
        '10: gate.metrics.tokens_per_secnd: there is no such metric. Perhaps you meant "tokens_per_second"?',
        '13: gate.metrics.op_count.direction: must be "lower", "higher" or "same", not "less".',
    ] == problems_of(tmp_path, SMALL + gate)


def test_keys_at_odds_are_told_at_their_place(tmp_path: Path) -> None:
    """A tolerance that no effect can reach, and what only exact metrics have, are refused."""
    gate = (
        "[gate]\nrepeats = 9\nminimum_effect = 0.05\n"
        '[gate.metrics.tokens_per_second]\ntolerance = 0.05\ndirection = "same"\nrelative_tolerance = 0.1\n'
    )
    assert [
        "6: gate.max_repeats: must be at least repeats (9); raise it.",
        "10: gate.metrics.tokens_per_second.tolerance: must be above minimum_effect (0.05); raise it.",
        (
            "11: gate.metrics.tokens_per_second.direction: "
            'must be "lower" or "higher" for what varies between runs.'
        ),
        "12: gate.metrics.tokens_per_second.relative_tolerance: is for exact metrics; use tolerance.",
    ] == problems_of(tmp_path, SMALL + gate)


@pytest.mark.parametrize("table", ["gate = 3\n", "[gate]\nmetrics = 3\n", "[gate.metrics]\nop_count = 3\n"])
def test_what_is_no_table_is_refused(tmp_path: Path, table: str) -> None:
    """The sentence says that a table is wanted."""
    text = table + SMALL if table.startswith("gate") else SMALL + table
    (line,) = problems_of(tmp_path, text)
    assert "table" in line


def test_a_gate_made_in_python_is_checked_too() -> None:
    """An unknown metric and a tolerance below the minimum drop are refused without a file."""
    metrics = {"nonsense": MetricGate(), "accuracy_after": MetricGate(tolerance=0.01)}
    with pytest.raises(ValidationError, match=r"nonsense is no metric.*above minimum_drop"):
        GateSpec(metrics=metrics)
