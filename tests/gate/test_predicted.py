"""A gate of predictions from two REFs, or a stored plan, to its exit code: real processes, real traces."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers.models.llama.modeling_llama as llama

from bench.io import cache_folder
from bench.records.predictions import Prediction, read_plan
from bench.records.verdicts import Verdicts
from command_lines import CommandLine

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
OTHER_FAMILY = """
[models.other]
random = "gpt2"
overrides = { num_hidden_layers = 2 }
"""
LAYER_ENDS = "        hidden_states = residual + hidden_states\n        return hidden_states\n"
KEEPS = """        if self.self_attn.layer_idx == 0 and not hasattr(self, "kept"):
            self.kept = torch.empty(1 << 20, dtype=torch.uint8, device=hidden_states.device)
"""
FREES = """        one, two = hidden_states * 2, torch.cat([hidden_states, hidden_states])
        del {}
"""


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep everything in the test's folder, but for machine code, which takes ten seconds to make."""
    compiled = cache_folder() / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "compiled").symlink_to(compiled)
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))


def without_network() -> list[str]:
    """Return the command that gives another one a network of its own, which has not even a loopback."""
    isolated = ["unshare", "--map-root-user", "--net"]
    allowed = shutil.which("unshare") and not subprocess.run([*isolated, "true"], check=False).returncode
    return isolated if allowed else []


def gate_of(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a gate from its beginning, without a network where this machine can take it away."""
    command = [*without_network(), sys.executable, "-m", "bench", "gate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=here, timeout=600)


def patched_transformers(folder: Path, lines: str) -> None:
    """Make a project of transformers as it is installed, with lines put in where a Llama's layer ends."""
    source, package = Path(llama.__file__), folder / "src" / "transformers"
    installed = source.parents[2]
    for original in (installed, installed / "models", source.parent):
        copy = package / original.relative_to(installed)
        copy.unlink(missing_ok=True)
        copy.mkdir(parents=True)
        for each in original.iterdir():  # a side is known by where its package's own file lies
            (copy / each.name).symlink_to(each) if each.is_dir() else shutil.copy(each, copy)
    before, layer, after = source.read_text().partition(LAYER_ENDS)
    assert layer
    (package / "models" / "llama" / source.name).write_text(f"{before}{lines}{layer}{after}")
    (folder / "pyproject.toml").write_text('[project]\nname = "transformers"\n')


@pytest.mark.slow
def test_a_stored_plan_is_a_base(tmp_path: Path, bench: CommandLine) -> None:
    """The environment as it is against its own plan: nothing differs; it can be judged again.

    Cells over several GPUs are gated so; a gate that would run them says it.
    """
    (tmp_path / "s.toml").write_text(f'{SCENARIO}[parallel]\nstrategy = "fsdp2"\ngpus = 2\n')
    made = bench(tmp_path, "plan", "s.toml", "--gpu", "rtx4090", "--no-advice", "--json")
    (tmp_path / "before.json").write_text(made.stdout)
    gate = ("s.toml", "--predict", "--base", "before.json", "--results", "out", "-o", "v.json")
    done = gate_of(tmp_path, *gate)
    assert 0 == done.returncode, done.stderr
    verdicts = Verdicts.model_validate_json((tmp_path / "v.json").read_bytes())
    assert ("two plans", "pass") == (verdicts.design, verdicts.verdict)
    assert not any(one.differs for one in verdicts.judgements)
    (folder,) = (tmp_path / "out").iterdir()
    before, now = (read_plan(folder / f"{side}.json").cells[0].answer for side in ("base", "candidate"))
    assert isinstance(before, Prediction)
    assert before.model_copy(update={"speeds": ()}) == now  # of which a gate asks nothing
    assert 0 == bench(tmp_path, "gate", str(folder)).returncode
    other = bench(tmp_path, "gate", *gate, "--gpu", "a100-80gb")
    assert 2 == other.returncode
    assert "the stored plan is for other cards (rtx4090)" in other.stderr
    assert 2 == bench(tmp_path, "gate", *gate, "--repeats", "3").returncode
    measured = bench(tmp_path, "gate", "s.toml", "--base", "peft==0.21.2")
    assert (2, True) == (measured.returncode, "gate it with --predict" in measured.stderr)


@pytest.mark.slow
def test_a_mebibyte_that_a_script_keeps_is_found(tmp_path: Path) -> None:
    """Each side predicts the script of its own folder, without a GPU; the candidate's keeps 1 MiB more."""
    for name, kept in (("one", 1), ("two", 262_145)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT.format(kept=kept))
    done = gate_of(
        tmp_path / "one",
        *("--command", f"{sys.executable} train.py", "--predict", "--gpu", "rtx4090"),
        *("--base", ".", "--candidate", "../two", "--results", str(tmp_path / "out"), "-o", "v.json"),
    )
    assert 1 == done.returncode, done.stderr
    verdicts = Verdicts.model_validate_json((tmp_path / "one" / "v.json").read_bytes())
    worst = verdicts.judgements[0]
    assert ("regression", "cuda_requested_peak_bytes", None) == (worst.verdict, worst.metric, worst.task)
    assert worst.candidate is not None
    assert worst.baseline is not None
    assert 2**20 == worst.candidate - worst.baseline


def test_a_kept_mebibyte_is_found_where_it_is_and_another_order_of_frees_is_not(tmp_path: Path) -> None:
    """The first layer of Llama keeps a buffer in one copy of transformers, and in another frees otherwise."""
    (tmp_path / "s.toml").write_text(SCENARIO.replace("[methods", f"{OTHER_FAMILY}[methods", 1))
    for name, lines in {
        "base": FREES.format("one, two"),
        "reordered": FREES.format("two, one"),
        "kept": FREES.format("one, two") + KEEPS,
    }.items():
        patched_transformers(tmp_path / name, lines)
    found, worse, base = {}, {}, "./base"
    for name in ("reordered", "kept"):
        done = gate_of(
            tmp_path,
            *("s.toml", "--predict", "--gpu", "rtx4090", "--base", base, "--candidate", f"./{name}"),
            *("--results", f"{name}_out", "-o", f"{name}.json"),
        )
        assert done.returncode in {0, 1}, done.stderr
        verdicts = Verdicts.model_validate_json((tmp_path / f"{name}.json").read_bytes())
        gated = [one for one in verdicts.gated if one.metric == "cuda_requested_peak_bytes" and not one.task]
        found[name] = {one.cell: (one.candidate or 0) - (one.baseline or 0) for one in gated}
        worse[name] = {one.cell for one in verdicts.gated if one.verdict != "pass"}
        (folder,) = (tmp_path / f"{name}_out").iterdir()
        base = str(folder / "base.json")
    llamas = {cell for cell in found["kept"] if cell.startswith("m/")}
    assert (1, 1) == (len(llamas), len(found["kept"]) - len(llamas))
    assert found["kept"] == {cell: 2**20 * (cell in llamas) for cell in found["kept"]}
    assert (llamas, set[str]()) == (worse["kept"], worse["reordered"])
    assert {0} == set(found["reordered"].values())
