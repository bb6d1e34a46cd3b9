"""Files made to waste time: all are refused, none hangs (the test timeout would tell)."""

from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.scenario.load import load_scenario

_SIZE = 2**18


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{n} = 1\n" for n in range(_SIZE // 12)),
        "".join(f"[models.m{n}]\n" for n in range(_SIZE // 14)),
        "[[exclude]]\nmodel = '*a*a*a*a*b'\n" * 150
        + "[models."
        + "a" * 80
        + "]\nhub = 'x'\n[methods.full]\n",
        "[[exclude]]\nrank = 1\n" * (_SIZE // 22),
        "[methods.lora]\nrank = [" + "1," * (_SIZE // 2) + "]\n",
        "[methods.lora]\nrank = [" + ",".join(map(str, range(1, 1001))) + "]\ndropout = 2\n",
        f"[methods.lora]\n{'k' * _SIZE} = 1\n",
        f"title = '''{'x' * _SIZE}'''\nmodels = '{'y' * _SIZE}'\n",
        "[models.m]\nhub = 'x'\n[methods.lora]\nrank = 0x"
        + "f" * 5000
        + "\n[data]\nsource = 0x"
        + "f" * 5000,
        "models = 0x" + "f" * 5000,
    ],
)
def test_wasteful_file_is_refused(tmp_path: Path, text: str) -> None:
    """Thousands of keys, tables, exclusions or digits end in a list of mistakes of bounded length."""
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as refused:
        load_scenario(path)
    assert len(refused.value.problems) <= 51
    assert max(map(len, refused.value.problems)) < 1000


def test_lists_have_a_longest_length(tmp_path: Path) -> None:
    """A list of more than a thousand values is named as such."""
    path = tmp_path / "s.toml"
    path.write_text(f"[methods.lora]\nrank = {list(range(1, 1002))}\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"rank: has 1,001 values, more than 1,000; shorten the list\."):
        load_scenario(path)
