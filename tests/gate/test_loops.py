"""A loop of the user's in a gate: each side trains with its own, real processes and real training."""

import shutil
import sys
from pathlib import Path

import pytest

from bench.records.sessions import load_sitting
from bench.records.store import load_records
from command_lines import CommandLine
from gate_projects import git

LIBRARY = Path(__file__).parents[2] / "examples" / "library"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_side_of_a_gate_imports_its_own_loop(tmp_path: Path, bench: CommandLine) -> None:
    """The example's library with SGD in the revision and AdamW in the folder: its state is more memory."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    shutil.copytree(LIBRARY, tmp_path, dirs_exist_ok=True)
    training = tmp_path / "mylibrary" / "training.py"
    with_adamw = training.read_text(encoding="utf-8")
    training.write_text(with_adamw.replace("torch.optim.AdamW", "torch.optim.SGD"), encoding="utf-8")
    git(tmp_path, "add", "gate.toml", "gated.py", "mylibrary")
    git(tmp_path, "commit", "--quiet", "-m", "sgd")
    training.write_text(with_adamw, encoding="utf-8")
    command = "gate gate.toml --base HEAD --candidate . --exact-only --allow-code gated:loop --results out"
    result = bench(tmp_path, *command.split())
    assert (1, "") == (result.returncode, result.stderr.partition("Traceback")[1]), result.stderr
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("sitting.json")}
    assert "the loop imported from its sources" in load_sitting(folder).sitting.base.understood
    names = {}
    for side in ("base", "candidate"):
        record = load_records(folder / side).records[0]
        assert record.outcome == "ok", record.failure
        assert record.measurement.model is not None
        names[side] = record.measurement.model.optimizer_class.rpartition(".")[2]
    assert names == {"base": "SGD", "candidate": "AdamW"}
    assert "ledger_peak_bytes" in result.stdout
    assert "regression: of 10 gated metrics" in result.stdout


SCRIPT = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, vocab_size=8192))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(20):
    ids = torch.randint(0, 8192, ({rows}, 32))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.timeout(300)
def test_a_script_is_gated_each_side_its_own(tmp_path: Path, bench: CommandLine) -> None:
    """The same command in a revision and in the working folder, whose script takes larger batches."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "train.py").write_text(SCRIPT.format(rows=4))
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "--quiet", "-m", "small batch")
    (tmp_path / "train.py").write_text(SCRIPT.format(rows=8))
    options = ["gate", "--base", "HEAD", "--exact-only", "--results", "out", "--command"]
    result = bench(tmp_path, *options, f"{sys.executable} train.py")
    assert (1, "") == (result.returncode, result.stderr.partition("Traceback")[1]), result.stderr
    assert "peak" in result.stdout
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("sitting.json")}
    base, candidate = (load_records(folder / side).records[0] for side in ("base", "candidate"))
    assert (base.outcome, candidate.outcome) == ("ok", "ok")
    assert base.measurement.ledger is not None
    assert candidate.measurement.ledger is not None
    assert base.measurement.ledger.peak_bytes < candidate.measurement.ledger.peak_bytes
    assert "micro_batch 4, not 8" in str(base.measurement.caveats)
    assert "script-changed" not in str(candidate.measurement.caveats)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ("lib/unused.py", 4, "base and candidate differ in lib/unused.py, which no worker loaded"),
        ("lib/rows.txt", 0, "no regression found in what was gated"),
    ],
)
def test_a_change_that_no_worker_loads_is_not_passed(
    changed: str, code: int, said: str, tmp_path: Path, bench: CommandLine
) -> None:
    """A file that the script opens is tested; a module of its library that it never imports is not."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    script = "from pathlib import Path\nimport lib.used\nPath('lib/rows.txt').read_text()\n"
    (tmp_path / "lib").mkdir()
    (tmp_path / "train.py").write_text(script + SCRIPT.format(rows=4))
    for name in ("lib/__init__.py", "lib/used.py", "lib/unused.py", "lib/rows.txt"):
        (tmp_path / name).touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    (tmp_path / changed).write_text("# changed\n")
    options = ["gate", "--base", "HEAD", "--candidate", ".", "--exact-only", "--results", "out", "--command"]
    result = bench(tmp_path, *options, f"{sys.executable} train.py")
    assert result.returncode == code, result.stderr
    assert said in " ".join((result.stdout + result.stderr).split())
