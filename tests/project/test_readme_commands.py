"""Every command in README.md, docs/ and examples/ is one that bench takes; those of both READMEs are run."""

import re
import shlex
import shutil
from itertools import chain
from pathlib import Path

import pytest
from typer.main import get_command

from bench.cli import app
from command_lines import CommandLine

ROOT = Path(__file__).parents[2]
RUN = [ROOT / "README.md", ROOT / "examples" / "README.md"]
PAGES = [*RUN, *sorted((ROOT / "docs").glob("*.md"))]
TINY = """
device = "cpu"
models.tiny.random = "tiny-llama-test"
methods.lora.rank = 4
data = {source = "synthetic"}
training = {sequence_length = 32, micro_batch = 1}
window = {warmup_steps = 1, measured_steps = 2}
"""
PLAN_MODEL = (
    "bench plan qwen3-8b --method qlora --sequence 4096 --gpu rtx4090 --examples 50000 --epochs 3 --price 0.5"
)
PRICES = (
    "bench plan qwen3-8b --method qlora --sequence 4096 --examples 50000 --epochs 3 "
    "--prices examples/prices.toml"
)
SEEDS = (
    "bench run smollm2-135m --device cpu --method lora,dora --rank 8,64 --seed 0,1,2 "
    "--data examples/rows.jsonl"
)
HELD_OUT = f"{SEEDS} --held-out examples/held_out.jsonl"
ON_SLURM = "--slurm slurm_partition=gpu --slurm gpus_per_node=1"
# What narrows a command so that it takes seconds; the scenario of `run` is a tiny one, as is its model.
# Commands that need no results of one another are apart.
NARROWED: dict[str, dict[str, str]] = {
    "fit": {"bench fit llama-2-7b --gpu rtx4090": "--method full --sequence 512 --data full"},
    "plan": {
        PLAN_MODEL: "",
        PRICES: "",
        "bench plan llama-3.1-8b --method full --driver trl-sft --gpus 8 --gpu h100-80gb": "--sequence 64",
        "bench plan scenarios/33b_24gb.toml --gpu rtx4090 --details": "--only '*/qlora*dq-r16/*' --no-advice",
    },
    "watch": {
        "bench watch -- python examples/train.py": "",
        "bench watch --predict --gpu rtx4090 -- python examples/train.py": "",
        "bench report results/watch-train": "",
    },
    "run": {
        SEEDS: "--only '*/lora-r8/*seed=0'",
        HELD_OUT: "--only '*/lora-r8/*seed=[01]'",
        "bench report results/smollm2-135m -o table.tex --figures figures": "",
        "bench run scenarios/smollm2_cpu.toml --repeats 3": "",
        "bench report results/smollm2_cpu -o smollm2.html": "",
        "bench gate results/mine --baseline nightly": "",
    },
}
# They make environments, check out revisions or need a cluster; tests/gate and tests/runner run such.
ONLY_PARSED = {
    'bench gate --command "python train.py" --base origin/main --candidate .',
    "bench gate mine.toml --base origin/main --candidate . --allow-code mypackage.train:loop",
    "bench run scenarios/7b_single_gpu.toml --executor ray --address 10.0.0.1:6379",
    f"bench run scenarios/7b_single_gpu.toml --executor slurm {ON_SLURM}",
    "bench gate gate.toml --base HEAD --candidate . --exact-only --allow-code gated:loop",
    "bench gate scenarios/gate_tiny.toml --base peft==0.20.0",
    "bench gate scenarios/gate_gpu_memory.toml --predict --base peft==0.20.0",
}


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page's indented blocks, without their comments."""
    lines = re.findall(r"^    (bench .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]


@pytest.mark.parametrize("command", dict.fromkeys(command for page in PAGES for command in commands_of(page)))
def test_a_command_of_a_page_parses(command: str) -> None:
    """Its options and arguments are those of the command line."""
    _, name, *arguments = shlex.split(command)
    group = get_command(app)
    found = getattr(group, "commands")[name]  # noqa: B009 - typer's type does not show it
    while hasattr(found, "commands"):
        found = found.commands[arguments.pop(0)]
    found.make_context(name, arguments)


def test_the_commands_of_the_readme_are_run_or_named() -> None:
    """None is added without a way to try it."""
    assert {*chain(*NARROWED.values()), *ONLY_PARSED} == {*chain(*map(commands_of, RUN))}


@pytest.mark.parametrize("use", NARROWED)
def test_the_commands_of_the_readme_run(use: str, bench: CommandLine, tmp_path: Path) -> None:
    """One after the other, in a folder with the shipped scenarios, SmolLM2's being a tiny one."""

    def run(command: str) -> None:
        for model in ("smollm2-135m", "llama-3.1-8b"):
            command = command.replace(model, "tiny-llama-test")
        done = bench(tmp_path, *shlex.split(command)[1:])
        allowed = {0, 3} if command.startswith("bench gate") else {0}  # 3 where a gate cannot tell
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr

    for folder in ("scenarios", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "scenarios" / "smollm2_cpu.toml").write_text(TINY, encoding="utf-8")
    for command, narrowing in NARROWED[use].items():
        if command.endswith("--baseline nightly"):
            shutil.copytree(tmp_path / "results" / "smollm2_cpu", tmp_path / "results" / "mine")
            run("bench baseline accept results/mine --name nightly --reason 'as released'")
        run(f"{command} {narrowing}")
    for written in ("smollm2.html", "table.tex", "figures"):
        assert (tmp_path / written).exists() is (use == "run")
    if use == "run":
        table = (tmp_path / "table.tex").read_text(encoding="utf-8")
        assert "\\begin{tabular}{@{}lrr" in table
        assert " & 2 (2 seeds) \\\\\n" in table
        assert "n/a" not in table
