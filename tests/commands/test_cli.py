"""The commands as a user types them: exit codes, what is written, what is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli import main
from bench.compare.plans import plan_rows
from bench.records.predictions import Plan, Prediction, read_plan
from bench.records.store import load_records
from command_lines import CommandLine

SCENARIO = """
device = "cpu"

[models.tiny]
random = "tiny-llama-test"

[methods.full]

[methods.lora]
rank = 4

[methods.qlora]
rank = 4

[data]
source = "task"
task = "largest-number"

[training]
sequence_length = 128
micro_batch = 2

[window]
warmup_steps = 1
measured_steps = 3

[evaluation]
tasks = ["held-out"]
limit = 8
"""

ROWS = """
source = { name = "lab", title = "A laboratory", repository = "example.org", licence = "CC0" }

[[rows]]
name = "gptq+lora"
tier = 1
reference = "page 1"
date = "2025"
gpu = "A100"
software = "torch 2.6"
refused = "A base of another kind."
measured = [{ metric = "allocated", size_bytes = 1000 }]
"""


def test_a_scenario_runs_compares_and_resumes(bench: CommandLine, tmp_path: Path) -> None:
    """One command measures three methods, writes records and a page; the same command again runs nothing."""
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    first = bench(tmp_path, "run", "tiny.toml")
    assert first.returncode == 0, first.stderr
    loaded = load_records(tmp_path / "results" / "tiny")
    assert loaded.problems == ()
    assert ["full", "lora", "qlora"] == sorted(record.cell.method.kind for record in loaded.records)
    assert {record.outcome for record in loaded.records} == {"ok"}
    assert {type(record.prediction) for record in loaded.records} == {Prediction}
    page = (tmp_path / "results" / "tiny" / "report.md").read_text()
    assert "qlora-nf4-dq-r4" in page
    assert "random weights, not trained" in page
    again = bench(tmp_path, "run", "tiny.toml")
    assert again.returncode == 0
    assert "0 runs to do, 3 on disk already" in again.stdout
    assert load_records(tmp_path / "results" / "tiny") == loaded
    table = bench(tmp_path, "table", "results/tiny")
    assert len(table.stdout.splitlines()) == 1 + 3


def test_a_plan_needs_neither_a_gpu_nor_weights(bench: CommandLine, tmp_path: Path) -> None:
    """A cell is predicted for the card that is named, in a process that traces it; the answer is JSON.

    The second time it is read back, which is said beside it.
    """
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    asked = ("plan", "tiny.toml", "--only", "*/lora-*", "--gpu", "rtx4090", "--json", "--no-advice")
    result, again = bench(tmp_path, *asked, "--fresh"), bench(tmp_path, *asked)
    assert again.stdout == result.stdout
    assert again.stderr == "answers kept from earlier: 1 of 1; --fresh predicts anew\n"
    assert "kept" not in result.stderr
    assert result.returncode == 0, result.stderr
    (planned,) = Plan.model_validate_json(result.stdout).cells
    assert isinstance(planned.answer, Prediction)
    assert planned.answer.platform.capability == (8, 9)
    assert planned.verdicts[0].answer == "fits"
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.toml"]


def test_epochs_of_the_scenario_s_own_data_become_hours_and_energy(
    bench: CommandLine, tmp_path: Path
) -> None:
    """2,048 items of a built-in task are counted, and three passes take hours and kWh on the card."""
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    line = ("plan", "tiny.toml", "--only", "*/lora-*", "--gpu", "rtx4090", "--epochs", "3", "--no-advice")
    answer = bench(tmp_path, *line, "--json")
    assert answer.returncode == 0, answer.stderr
    plan = Plan.model_validate_json(answer.stdout)
    (planned,) = plan.cells
    assert plan.epochs == 3
    assert 2048 * 20 < (planned.epoch_tokens or 0) < 2048 * 128
    page = bench(tmp_path, *line, "--markdown").stdout
    assert "| Hours | kWh at most |" in page


def test_a_model_is_planned_without_a_scenario_down_to_what_it_costs(
    bench: CommandLine, tmp_path: Path
) -> None:
    """Examples times epochs, each of the full length, at a price: one command, and no file is written."""
    line = ("plan", "tiny-llama-test", "--method", "qlora", "--sequence", "64", "--gpu", "rtx4090")
    answer = bench(tmp_path, *line, "--examples", "5000", "--epochs", "3", "--price", "2", "--json")
    assert answer.returncode == 0, answer.stderr
    plan = Plan.model_validate_json(answer.stdout)
    (planned,) = plan.cells
    assert (plan.epochs, plan.examples, planned.epoch_tokens) == (3, 5000, 5000 * 64)
    (row,) = plan_rows(plan)
    assert (row.tokens, row.verdicts[0].answer) == (3 * 5000 * 64, "fits")
    page = bench(tmp_path, *line, "--examples", "5000", "--price", "2", "--markdown").stdout
    assert "of 1 epoch of 5,000 examples, each taken to fill the sequence" in page
    assert "| Hours | Cost |" in page
    assert [] == [*tmp_path.iterdir()]


def test_what_this_machine_can_run_is_told_as_json(bench: CommandLine, tmp_path: Path) -> None:
    """Each finding with its subject, and whether it is as wanted."""
    findings = json.loads(bench(tmp_path, "doctor", "--json").stdout)
    assert {"subject", "text", "good", "blocking"} == set(findings[0])
    assert "torch" in " ".join(finding["text"] for finding in findings)


def test_a_table_of_prices_tells_which_card_is_for_the_job(bench: CommandLine, tmp_path: Path) -> None:
    """Its cards are planned for, the cheapest first, with the hours and the cost, and drawn on the page."""
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    (tmp_path / "prices.toml").write_text("rtx4090 = 0.5\nh200 = 100\n")
    line = ("plan", "tiny.toml", "--only", "*/lora-*", "--tokens", "5M", "--prices", "prices.toml")
    answer = bench(tmp_path, *line, "--no-advice")
    assert answer.returncode == 0, answer.stderr
    assert "Which card for the job, the cheapest first" in answer.stdout
    (tmp_path / "plan.json").write_text(bench(tmp_path, *line, "--no-advice", "--json").stdout)
    plan = read_plan(tmp_path / "plan.json")
    assert plan.prices_an_hour == {"rtx4090": 0.5, "h200": 100}
    assert bench(tmp_path, "report", "plan.json", "-o", "page.html").returncode == 0
    assert "Which card for the job: hours and cost" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("plan", "tiny.toml", "--json", "--markdown"), "--json and --markdown"),
        (("plan", "tiny.toml", "--tokens", "many"), "--tokens many is no number of tokens"),
        (("plan", "tiny.toml", "--tokens", "9" * 400), "is no number of tokens from 1 to 1,000,000B"),
        (("plan", "tiny.toml", "--tokens", "99999999B"), "is no number of tokens from 1 to 1,000,000B"),
        (("plan", "tiny.toml", "--epochs", "9" * 20), "are more than any training takes"),
        (("plan", "tiny.toml", "--tokens", "5M", "--price", "inf"), "--price inf is no price of an hour"),
        (("plan", "tiny.toml", "--price", "1.1"), "--price is for --tokens"),
        (
            ("plan", "tiny.toml", "--tokens", "1M", "--prices", "bad.toml"),
            "4090: is no card of the catalogue",
        ),
        (("plan", "tiny.toml", "--tokens", "1M", "--price", "1", "--prices", "x"), "--price and --prices"),
        (("plan", "tiny.toml", "--tokens", "5M", "--epochs", "2"), "--tokens and --epochs exclude"),
        (("plan", "tiny.toml", "--tokens", "5M", "--examples", "2"), "--tokens and --examples exclude"),
        (("plan", "tiny.toml", "--rank", "4"), "--rank is for a model's name, and tiny.toml is a scenario"),
        (("plan", "qwen3-8", "--gpu", "h200"), 'unknown architecture "qwen3-8"'),
        (("plan", "gpt2", "--method", "ia3"), "--method ia3 is not known; choose from full, lora"),
        (("plan", "gpt2", "--rank", "8;9"), "--rank 8;9 is no number"),
        (("plan", "synthetic.toml", "--epochs", "2"), "has data.source = synthetic; give --tokens"),
        (("fit", "llama-2-7b", "--gpu", "rtx4090", "--json", "--markdown"), "--json and --markdown"),
        (("validate", "-o", "page.txt"), "page.txt"),
    ],
)
def test_an_answer_that_could_not_be_given_is_refused_before_predicting(
    bench: CommandLine, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    """Exit code 2 and one sentence, not minutes later or in another format than was asked for."""
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    made_up = SCENARIO.replace('"task"\ntask = "largest-number"', '"synthetic"').partition("[evaluation]")[0]
    (tmp_path / "synthetic.toml").write_text(made_up)
    (tmp_path / "bad.toml").write_text("rtx-4090 = 0.5\n")
    result = bench(tmp_path, *arguments)
    assert result.returncode == 2
    (sentence,) = result.stderr.strip().splitlines()
    assert named in sentence
    assert "predicting" not in result.stderr


def test_a_validation_in_which_nothing_could_be_predicted_says_so(bench: CommandLine, tmp_path: Path) -> None:
    """Exit code 4 after the page with the reasons."""
    (tmp_path / "rows.toml").write_text(ROWS)
    result = bench(tmp_path, "validate", "rows.toml", "-o", "page.md")
    assert result.returncode == 4
    assert result.stderr.strip().splitlines()[-1].startswith("bench: no row could be predicted")
    assert "- A base of another kind. (1: gptq+lora)" in (tmp_path / "page.md").read_text()


def test_a_scenario_for_a_gpu_is_unavailable_without_one(bench: CommandLine, tmp_path: Path) -> None:
    """Every cell is recorded with one sentence before anything is loaded, and the exit code says so."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    (tmp_path / "tiny.toml").write_text(SCENARIO.replace('"cpu"', '"cuda"'))
    result = bench(tmp_path, "run", "tiny.toml")
    assert result.returncode == 4
    assert result.stderr.strip().splitlines()[-1].startswith("bench: nothing could be measured")
    records = load_records(tmp_path / "results" / "tiny").records
    assert {record.outcome for record in records} == {"unavailable"}
    assert {record.measurement.phases for record in records} == {()}
    (sentence,) = {record.failure.message for record in records if record.failure}
    assert "CUDA" in sentence


def test_a_mistake_in_a_scenario_is_one_line_each(tmp_path: Path) -> None:
    """In a process of its own: exit code 2, file and line, the nearest valid name, and no traceback."""
    (tmp_path / "tiny.toml").write_text(SCENARIO.replace("micro_batch", "micro_bach"))
    command = [sys.executable, "-m", "bench", "run", "tiny.toml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("tiny.toml:21: training.micro_bach:")
    assert "micro_batch" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()


def test_a_plan_that_is_interrupted_ends_in_one_sentence() -> None:
    """SIGTERM, as CI sends it, ends a command as Ctrl-C does: exit code 130, a sentence, no traceback."""
    command = [sys.executable, "-m", "bench", "plan", "scenarios/70b_single_gpu.toml", "--gpu", "a100-80gb"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as plan:
        children = Path(f"/proc/{plan.pid}/task/{plan.pid}/children")
        while not children.read_text(encoding="ascii"):  # the server that workers are forked from
            time.sleep(0.05)
        plan.send_signal(signal.SIGTERM)
        _, said = plan.communicate(timeout=120)
    begun, last = "predicting: 0 of", "bench: interrupted before the end; run the same command again"
    assert (130, last) == (plan.returncode, said.splitlines()[-1])
    assert all(line.startswith(begun) for line in said.splitlines()[:-1])


def test_an_error_that_nobody_foresaw_is_not_taken_for_a_regression(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with 70, and in one sentence that says where it came from and how to see more."""

    def fail(*_: object, **__: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("bench.cli.app", fail)
    monkeypatch.setattr(sys, "argv", ["bench", "compare", "a", "b"])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 70
    assert "RecursionError" in said
    assert "test_cli.py:" in said
    assert "bench --debug" in said
    assert said.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["bench", "--debug", "compare", "a", "b"])
    with pytest.raises(RecursionError):
        main()


def test_a_reader_that_has_gone_is_not_taken_for_a_regression() -> None:
    """``bench table … | head`` ends with 141, as a shell shows any program whose pipe was closed."""
    command = [sys.executable, "-m", "bench", "table", "results/reference/smollm2_cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as table:
        assert table.stdout
        table.stdout.close()
        assert table.wait(timeout=120) == 141


def test_a_terminal_that_knows_ascii_only_gets_its_table() -> None:
    """What has no letter there becomes a question mark; the command does not fail."""
    folder = "results/reference/smollm2_cpu"
    for command in (["compare", folder, folder], ["run", "--help"]):
        result = subprocess.run(
            [sys.executable, "-m", "bench", *command],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            check=False,
        )
        assert result.returncode in {0, 3}, result.stderr
        assert result.stdout.isascii()
        assert not result.stderr
