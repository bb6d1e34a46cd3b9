"""Exclusions: which cells they take away, and what is wrong with them."""

from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.scenario.load import load_scenario

_MATRIX = """
[models.one]
hub = "a/one"
[models.two]
hub = "a/two"
[methods.full]
[methods.lora]
rank = [8, 64]
[methods.qlora]
rank = 8
quantisation = ["nf4", "fp4"]
[data]
source = "synthetic"
[training]
sequence_length = [512, 2048]
"""


def _left(folder: Path, exclusion: str) -> list[str]:
    path = folder / "s.toml"
    path.write_text(f"{_MATRIX}\n{exclusion}\n", encoding="utf-8")
    scenario = load_scenario(path)
    assert len(scenario.cells) + scenario.excluded == 20
    return [cell.id for cell in scenario.cells]


@pytest.mark.parametrize(
    ("exclusion", "left"),
    [
        ('[[exclude]]\nmodel = "one"', 10),
        ('[[exclude]]\nmodel = "t*"\nmethod = "full"', 18),
        ('[[exclude]]\nmethod = ["full", "lora"]\nsequence_length = 2048', 14),
        ('[[exclude]]\n"training.sequence_length" = 2048', 10),
        ("[[exclude]]\ntraining.sequence_length = 2048", 10),
        ('[[exclude]]\nmethod = "qlora"\nquantisation = "fp?"', 16),
        ("[[exclude]]\nrank = 8", 8),
        ('[[exclude]]\nmethod.kind = "qlora"', 12),
        ('[[exclude]]\nmodel = "one"\n[[exclude]]\nmethod = "full"', 8),
        ('[[exclude]]\nmodel.hub = "a/*"\nrank = 64', 16),
        ("[[exclude]]\ndouble_quantisation = true", 12),
        ('[[exclude]]\ndevice = "cpu"\nmodel = "two"', 10),
    ],
)
def test_exclusion_leaves(tmp_path: Path, exclusion: str, left: int) -> None:
    """All conditions of a table must hold, any of a list's values will do, absent fields match none."""
    ids = _left(tmp_path, exclusion)
    assert left == len(ids)


def test_impossible_cells_may_be_excluded(tmp_path: Path) -> None:
    """A combination that no machine can run is no mistake once it is excluded."""
    text = 'device = "cuda"\n' + _MATRIX + 'attention = "flash_attention_2"\ndtype = ["bf16", "fp32"]\n'
    path = tmp_path / "s.toml"
    path.write_text(text + '[[exclude]]\ndtype = "fp32"\n', encoding="utf-8")
    assert len(load_scenario(path).cells) == 20
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match="flash_attention_2 needs 16-bit activations"):
        load_scenario(path)


@pytest.mark.parametrize(
    ("exclusion", "expected"),
    [
        ("[[exclude]]\nrank = 16", ":17: exclude[0]: matches no cell; correct its conditions, or remove it."),
        ("[[exclude]]\nmicro_batch = true", ":17: exclude[0]: matches no cell; correct its conditions"),
        ("[[exclude]]", ":17: exclude[0]: excludes nothing; give at least one condition, or remove it."),
        ('[[exclude]]\nmodel = "*"', ":17: exclude: no cell is left; remove an exclusion."),
        (
            "[[exclude]]\nranks = 8",
            ':18: exclude[0].ranks: no cell has such a field. Perhaps you meant "rank"?',
        ),
        (
            "[[exclude]]\nrevision = 8",
            ":18: exclude[0].revision: could be several fields; write model.revision or",
        ),
        ("[[exclude]]\nrank = []", ":18: exclude[0].rank: must be a value or a list of values, not []."),
        ("[[exclude]]\nrank = { a = 1 }", ":18: exclude[0].rank: must be a value or a list of values, not {"),
    ],
)
def test_mistaken_exclusion_is_told(tmp_path: Path, exclusion: str, expected: str) -> None:
    """An exclusion that cannot do anything, or does too much, is pointed out."""
    with pytest.raises(ScenarioError) as refused:
        _left(tmp_path, exclusion)
    (problem,) = refused.value.problems
    assert expected in problem
