"""Scripts of the user's, run unchanged in a real worker: what is read of them, and how odd ones end."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec import UnsetType

from bench.commands.run import watch
from bench.compare.comparison import compare
from bench.errors import InfrastructureError, UsageError
from bench.records.messages import ScriptJob
from bench.records.records import Record
from bench.records.store import load_records
from bench.report.pages import render_markdown
from bench.runner.scripts import script_of, watch_script
from bench.scenario.cell import Cell
from bench.training.scripts.seen import SeenCell
from bench.workers.launch import Launcher

MODEL = """
import sys, threading, subprocess, os, torch
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, vocab_size=128))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.1)
def step(rows=3, positions=16):
    for _ in range(2):
        ids = torch.randint(0, 128, (rows, positions))
        mask = torch.ones_like(ids); mask[0, positions // 2:] = 0
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    optimizer.step(); optimizer.zero_grad()
def train(steps):
    for _ in range(steps): step()
"""
Watched = Callable[..., Record]


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    """Return one server of workers for all scripts."""
    return Launcher()


@pytest.fixture
def watched(tmp_path: Path, launcher: Launcher) -> Watched:
    """Return what writes a script, watches it, and returns its record."""

    def run(text: str, **settings: object) -> Record:
        script = tmp_path / "train.py"
        script.write_text(MODEL + text)
        fields = {"warmup_steps": 1, "steps": 2, "timeout_s": 100, **settings}
        job = ScriptJob.model_validate({"command": (str(script),), **fields})
        return watch_script(job, tmp_path / "results", lambda _event: None, launcher)

    return run


def test_what_a_script_keeps_is_named_and_what_it_leaks_is_counted(watched: Watched) -> None:
    """Its table of data, beside the peak, and the losses whose graphs it does not let go."""
    keeping = "DATA = torch.ones(2**20, dtype=torch.uint8)\nKEPT = []\n"
    leaking = "for _ in range(20): step(); KEPT.append(torch.ones(65_536, dtype=torch.uint8))\n"
    ledger = watched(keeping + leaking, steps=4).measurement.ledger
    assert ledger is not None
    assert not isinstance(ledger.retained, UnsetType)
    assert 2**20 == ledger.retained.by_holder_bytes["__main__.DATA"]
    assert 65_536 == ledger.retained.leaked_bytes_per_step
    plain = watched("train(20)", steps=4).measurement.ledger
    assert plain is not None
    assert not isinstance(plain.retained, UnsetType)
    assert 0 == plain.retained.leaked_bytes_per_step


def test_a_plain_script_is_measured_unchanged(watched: Watched, tmp_path: Path) -> None:
    """Steps, tokens, phases, ledger and FLOPs are read, and the cell says what was trained."""
    record = watched("train(20); open('went on', 'w')")
    cell, read = record.cell, record.measurement
    assert record.outcome == "ok"
    assert not Path("went on").exists()
    assert (cell.training.micro_batch, cell.training.sequence_length) == (3, 16)
    assert cell.training.gradient_accumulation == 2
    assert (cell.training.learning_rate, cell.training.weight_decay) == (2e-4, 0.1)
    assert (cell.loop.driver, cell.method.kind, cell.training.dtype) == ("script", "full", "fp32")
    assert [step.stage for step in read.steps] == ["first", "warmup", "measured", "measured"]
    assert {step.tokens.computed for step in read.steps} == {96}
    assert {step.tokens.non_padding for step in read.steps} == {96 - 2 * 8}
    assert {step.tokens.loss_bearing for step in read.steps} == {2 * 3 * 15}
    assert [phase.name for phase in read.phases][:2] == ["start", "load"]
    assert read.flops is not None
    assert read.flops.step_flops > 0
    parameters = 2 * 128 * 32 + 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32  # embeddings, attention, MLP, norms
    tensors = 2 + 4 + 3 + 3
    assert read.model is not None
    assert read.model.parameters_total == parameters
    assert read.ledger is not None
    at_peak = read.ledger.categories_at_peak_bytes
    rotary = 4 * 2 * 8  # two buffers of half a head's 16
    assert at_peak["weights"] == 4 * parameters + rotary
    assert at_peak["optimizer_state"] == 8 * parameters + 4 * tensors  # two moments, and a count for each
    assert at_peak["gradients"] <= 4 * parameters
    assert load_records(tmp_path / "results").records == (record,)
    assert "data the script's own; optimizer adamw-foreach" in render_markdown(compare([record]))


def test_a_second_run_is_a_repeat_and_a_changed_script_is_not(watched: Watched) -> None:
    """The script's text is part of the key, and so are its arguments."""
    first, second, changed = watched("train(9)"), watched("train(9)"), watched("train(10)")
    assert (first.key, first.run, second.run) == (second.key, 1, 2)
    assert changed.key != first.key
    assert changed.run == 1


def test_an_evaluation_between_steps_is_told(watched: Watched) -> None:
    """Its time is in the steps, which the record says."""
    record = watched(
        "\nfor _ in range(9):\n    step()\n    with torch.no_grad(): model(torch.zeros(1, 8).long())"
    )
    assert "evaluates-between-steps" in {caveat.code for caveat in record.measurement.caveats}


def test_training_in_a_thread_is_measured(watched: Watched) -> None:
    """The script is stopped from there, though its main thread waits for ever."""
    record = watched("threading.Thread(target=train, args=(20,)).start(); threading.Event().wait()")
    assert record.outcome == "ok"
    assert len(record.measurement.step_times_ns) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train(3)", "ended by itself after 3 of 7 optimizer steps; let it train for longer"),
        ("train(4); sys.exit('no disk')", "exited with 'no disk' after 4 of 7 optimizer steps"),
        ("train(4); raise KeyError('loss')", "KeyError"),
        pytest.param("train(4); threading.Event().wait()", "took longer than 12 s", marks=pytest.mark.slow),
        ("train(4); os._exit(3)", "exit"),
    ],
)
def test_a_script_that_ends_early_keeps_what_was_read(watched: Watched, text: str, said: str) -> None:
    """The record holds the steps that were made, and the reason."""
    record = watched(text, timeout_s=12 if "wait" in text else 100)
    assert record.failure is not None
    assert said in record.failure.message
    assert len(record.measurement.steps) >= 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model(torch.zeros(1, 8).long())", "ended by itself after 0 of 7 optimizer steps"),
        ("subprocess.run([sys.executable, '-c', 'pass'])", "if the script starts another one that trains"),
        ("os.fork() or train(9); os.wait()", "after 0 of 7 optimizer steps"),
        ("raise ValueError('no such column')", "no such column"),
        ("input('which model? ')", "EOFError"),
    ],
)
def test_a_script_that_trains_nothing_here_ends_in_a_sentence(watched: Watched, text: str, said: str) -> None:
    """There is nothing to record, and the error says why."""
    with pytest.raises(InfrastructureError, match="nothing was measured") as raised:
        watched(text)
    assert said in str(raised.value)


def test_the_command_is_read_as_a_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own name may stand before the script, which is no option of bench."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    assert script_of([sys.executable, "-u", "train.py", "--lr", "1"]) == ("train.py", "--lr", "1")
    assert script_of(["train.py"]) == ("train.py",)
    assert script_of([sys.executable, "-m", "pkg.train", "-x"]) == ("-m", "pkg.train", "-x")


def test_weights_of_a_dtype_that_no_record_has_end_in_a_sentence() -> None:
    """float64 is no dtype of a scenario."""
    seen = SeenCell(ScriptJob(command=("train.py",)))
    seen.found(torch.nn.Linear(2, 2).double())
    with pytest.raises(UsageError, match=r"weights in torch\.float64 and none in .*; cast it"):
        seen.cell()


@pytest.mark.parametrize(
    ("command", "scenario"),
    [
        (("-m", "pkg.train"), "watch-pkg.train"),
        (("-m", "pkg.tune"), "watch-pkg.tune"),
        (("a/train.py",), "watch-train"),
    ],
)
def test_two_modules_of_a_package_are_two_scenarios(command: tuple[str, ...], scenario: str) -> None:
    """Records of one are never taken for the other's."""
    seen = SeenCell(ScriptJob(command=command))
    seen.found(torch.nn.Linear(2, 2))
    seen.given({"0": torch.empty(2, 2)})
    assert seen.cell().scenario == scenario


def test_what_no_cell_can_say_ends_in_a_sentence() -> None:
    """More rows than a micro-batch may have."""
    seen = SeenCell(ScriptJob(command=("train.py",)))
    seen.found(torch.nn.Linear(2, 2))
    seen.given({"0": torch.empty(70_000, 2)})
    with pytest.raises(UsageError, match=r"training\.micro_batch: .* 65536.*; change that"):
        seen.cell()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["accelerate", "launch", "train.py"], "accelerate is none"),
        ([sys.executable, "-c", "pass"], "-c is none"),
        ([sys.executable], "nothing is none"),
        (["absent.py"], "absent.py does not exist"),
        (["/usr/bin/python3", "train.py"], "another Python than bench's own"),
    ],
)
def test_what_is_no_script_is_refused(words: list[str], said: str) -> None:
    """One sentence says what to write."""
    with pytest.raises(UsageError, match=said):
        script_of(words)


def test_the_command_shows_and_keeps_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bench watch` prints the comparison's table, and a script cut short ends in exit code 4."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(MODEL + "train(int(sys.argv[1]))")
    watch([sys.executable, "train.py", "20"], steps=1, warmup=0)
    printed = capsys.readouterr().out
    assert "peak: tensors" in printed
    assert "b3-s16-train" in printed
    with pytest.raises(InfrastructureError, match="after 1 of 8"):
        watch([sys.executable, "train.py", "1"], steps=1, warmup=3)


def test_no_scenario_can_say_that_it_was_watched() -> None:
    """What bench watch writes into a cell is refused where the data is a scenario's."""
    cell = {"id": "a/b/c", "scenario": "s", "model": {"name": "m", "random": "llama-2-7b"}}
    cell |= {
        "method": {"kind": "full"},
        "data": {"source": "synthetic"},
        "window": {},
        "evaluation": {},
        "limits": {},
    }
    with pytest.raises(ValueError, match="script stands in what bench watch records"):
        Cell.model_validate(cell | {"training": {}, "loop": {"driver": "script"}})
    with pytest.raises(ValueError, match="unlisted stands in what bench watch records"):
        Cell.model_validate(cell | {"training": {"optimizer": "unlisted"}})
