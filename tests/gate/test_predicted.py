"""A gate of predictions from two REFs, or a stored plan, to its exit code: real processes, real traces."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records.predictions import read_plan
from bench.records.verdicts import Verdicts

SCENARIO = """
title = "t"
description = "d"
device = "cuda"
[models.m]
random = "tiny-llama-test"
[methods.lora]
rank = 4
[data]
source = "synthetic"
[training]
sequence_length = 32
"""
SCRIPT = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=4)
config = AutoConfig.for_model("llama", **sizes, num_hidden_layers=2, vocab_size=512)
model = AutoModelForCausalLM.from_config(config).to("cuda")
kept = torch.empty({kept}, device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(4):
    ids = torch.randint(0, 512, (2, 32), device="cuda")
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep everything in the test's folder, away from a network."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def bench(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command from its beginning."""
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=here, timeout=600)


def test_a_stored_plan_is_a_base(tmp_path: Path) -> None:
    """The environment as it is against its own plan: nothing differs; it can be judged again."""
    (tmp_path / "s.toml").write_text(SCENARIO)
    made = bench(tmp_path, "plan", "s.toml", "--gpu", "rtx4090", "--no-advice", "--json")
    (tmp_path / "before.json").write_text(made.stdout)
    gate = ("gate", "s.toml", "--predict", "--base", "before.json", "--results", "out", "-o", "v.json")
    done = bench(tmp_path, *gate)
    assert 0 == done.returncode, done.stderr
    verdicts = Verdicts.model_validate_json((tmp_path / "v.json").read_bytes())
    assert ("two plans", "pass") == (verdicts.design, verdicts.verdict)
    assert not any(one.differs for one in verdicts.judgements)
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads(made.stdout) == json.loads((folder / "candidate.json").read_text())
    assert (
        read_plan(folder / "base.json").cells[0].answer
        == read_plan(folder / "candidate.json").cells[0].answer
    )
    assert 0 == bench(tmp_path, "gate", str(folder)).returncode
    other = bench(tmp_path, *gate, "--gpu", "a100-80gb")
    assert 2 == other.returncode
    assert "the stored plan is for other cards (rtx4090)" in other.stderr
    assert 2 == bench(tmp_path, *gate, "--repeats", "3").returncode


def test_a_mebibyte_that_a_script_keeps_is_found(tmp_path: Path) -> None:
    """Each side predicts the script of its own folder, without a GPU; the candidate's keeps 1 MiB more."""
    for name, kept in (("one", 1), ("two", 262_145)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT.format(kept=kept))
    done = bench(
        tmp_path / "one",
        *("gate", "--command", f"{sys.executable} train.py", "--predict", "--gpu", "rtx4090"),
        *("--base", ".", "--candidate", "../two", "--results", str(tmp_path / "out"), "-o", "v.json"),
    )
    assert 1 == done.returncode, done.stderr
    verdicts = Verdicts.model_validate_json((tmp_path / "one" / "v.json").read_bytes())
    worst = verdicts.judgements[0]
    assert ("regression", "cuda_requested_peak_bytes", None) == (worst.verdict, worst.metric, worst.task)
    assert worst.candidate is not None
    assert worst.baseline is not None
    assert 2**20 == worst.candidate - worst.baseline
