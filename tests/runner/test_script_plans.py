"""Scripts of the user's, predicted by the command: what is kept, and how it meets a measurement."""

import json
import sys
from pathlib import Path

import pytest

from bench.commands.run import watch
from bench.errors import UntraceableError, UsageError
from bench.records.store import load_records

SCRIPT = """
import os, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, vocab_size=128))
model.to("cuda" if torch.cuda.is_available() else "cpu")
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
os.makedirs("out", exist_ok=True); open("out/log", "w").write(open("notes.txt").read())
for at, ids in enumerate(torch.utils.data.DataLoader(torch.ones(120, 16).long(), 3, num_workers=1)):
    ids = ids.to(model.device)
    model(input_ids=ids, labels=ids).loss.backward()
    if at % 2: optimizer.step(); optimizer.zero_grad()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a script that reads a file and writes another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "notes.txt").write_text("read me")
    return tmp_path


def test_prediction_and_measurement_meet_in_one_record(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU they are equal to the byte, and the prediction leaves nothing in the user's folder.

    A worker process hands the batches over, and a step takes two.
    """
    words = [sys.executable, "train.py"]
    watch(words, predict=True, json=True)
    plan = json.loads(capsys.readouterr().out)
    assert not (folder / "out").exists()
    watch(words, steps=1, warmup=0)
    assert (folder / "out" / "log").read_text() == "read me"
    (record,) = load_records(folder / "results" / "watch-train").records
    assert record.cell.training.gradient_accumulation == 2
    assert record.prediction is not None
    assert record.measurement.ledger is not None
    predicted = plan["cells"][0]["answer"]["allocated_peak_bytes"]
    assert record.measurement.ledger.peak_bytes == predicted
    assert record.prediction.model_dump(mode="json") == plan["cells"][0]["answer"]


def test_a_damaged_plan_does_not_cost_the_measurement(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record is written without a prediction, and the reason is told."""
    words = [sys.executable, "train.py"]
    watch(words, predict=True, json=True)
    (plan,) = (folder / "results" / "watch-train" / "predicted").glob("*.json")
    plan.write_text("{}")
    watch(words, steps=1, warmup=0, ledger=False, flops=False)
    (record,) = load_records(folder / "results" / "watch-train").records
    assert record.outcome == "ok"
    assert record.prediction is None
    printed = capsys.readouterr()
    assert "is not a plan" in " ".join((printed.out + printed.err).split())


@pytest.mark.usefixtures("folder")
def test_each_card_gets_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """A plan like any other, with a verdict for each card."""
    watch([sys.executable, "train.py"], predict=True, gpu=["rtx4090", "a100-80gb"], json=True)
    plan = json.loads(capsys.readouterr().out)
    verdicts = [(one["card"], one["answer"]) for cell in plan["cells"] for one in cell["verdicts"]]
    assert verdicts == [("rtx4090", "fits"), ("a100-80gb", "fits")]
    assert {cell["cell"]["device"] for cell in plan["cells"]} == {"cuda"}


def test_a_predicted_script_has_no_network(folder: Path) -> None:
    """It asks for some, and ends in a sentence that says what allows it."""
    text = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)\n" + SCRIPT
    (folder / "train.py").write_text(text)
    with pytest.raises(UntraceableError, match=r"no network.*--online"):
        watch([sys.executable, "train.py"], predict=True)


@pytest.mark.usefixtures("folder")
def test_options_of_a_prediction_need_it() -> None:
    """What would be ignored is refused."""
    with pytest.raises(UsageError, match="are for --predict"):
        watch(["train.py"], gpu=["rtx4090"])
    with pytest.raises(UsageError, match="are for --predict"):
        watch(["train.py"], json=True)
    with pytest.raises(UsageError, match="are for measuring"):
        watch(["train.py"], predict=True, warmup=0)
