"""The workflow of this repository and the one to copy: pinned, no strangers' text, options that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from bench.cli import app

HERE = Path(__file__).parents[2]
TO_COPY = HERE / "examples" / "gate_workflow.yml"
ACTION = HERE / "action.yml"
WORKFLOWS = sorted([*(HERE / ".github" / "workflows").glob("*.yml"), *(HERE / "examples").glob("*.yml")])


def _steps(workflow: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load(workflow.read_text())
    return [step for job in document["jobs"].values() for step in job["steps"]]


def test_workflows_and_the_action_are_sound() -> None:
    """Their keys are GitHub's; zizmor finds no tag that can be moved and no strangers' text in a script."""
    scripts = Path(sys.executable).parent
    for schema, files in (("workflows", WORKFLOWS), ("actions", [ACTION])):
        subprocess.run(
            [scripts / "check-jsonschema", "--builtin-schema", f"vendor.github-{schema}", *files], check=True
        )
    subprocess.run([scripts / "zizmor", "--offline", "--no-progress", ACTION, *WORKFLOWS], check=True)
    for workflow in WORKFLOWS:
        assert {"contents": "read"} == yaml.safe_load(workflow.read_text())["permissions"]


def test_the_step_to_copy_is_one_the_action_takes() -> None:
    """Its inputs are the action's, none that is required is missing, and all is pinned as in the workflow."""
    page = (HERE / "docs" / "gate.md").read_text()
    block = re.search(r"\n\n((?:    .*\n)*    - uses: OWNER/finetune-bench.*\n(?:    .*\n)+)", page)
    assert block
    *others, ours = yaml.safe_load(block[1])
    inputs = yaml.safe_load(ACTION.read_text())["inputs"]
    assert ours["with"].keys() <= inputs.keys()
    assert {name for name, one in inputs.items() if one.get("required")} <= ours["with"].keys()
    pinned = {step["uses"] for step in _steps(TO_COPY) if "uses" in step}
    assert {step["uses"] for step in others if "uses" in step} <= pinned


def test_the_action_calls_the_gate_with_what_was_put_in(tmp_path: Path) -> None:
    """Its script, with a bench that prints its arguments: names with blanks stay whole, options exist."""
    step = yaml.safe_load(ACTION.read_text())["runs"]["steps"][-1]
    (tmp_path / "bench").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bench").chmod(0o755)
    given = dict.fromkeys(step["env"], "") | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "COMMAND": "python my train.py; rm x",
        "BASE": "origin/main",
        "CANDIDATE": ".",
        "EXACT": "true",
    }
    script = ["bash", "-euo", "pipefail", "-c", step["run"]]
    done = subprocess.run(script, cwd=tmp_path, env=given, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert [
        "gate",
        "--command",
        "python my train.py; rm x",
        "--exact-only",
        "--base",
        "origin/main",
    ] == words[:6]
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    known = {name for parameter in command.commands["gate"].params for name in parameter.opts}
    assert set(re.findall(r"(?<=[\s(])--?[a-z][a-z-]+", step["run"].split("mkdir")[1])) - {"-p"} <= known


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_gate_in_a_workflow_is_a_command_of_ours(workflow: Path) -> None:
    """Its options exist."""
    (script,) = [step["run"] for step in _steps(workflow) if "bench gate" in step.get("run", "")]
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    known = {name for parameter in command.commands["gate"].params for name in parameter.opts}
    assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", script.split("bench gate")[1])) <= known


@pytest.mark.parametrize("name", ["bench.yml", TO_COPY.name])
def test_the_gate_in_a_workflow_is_judged_by_the_base(name: str) -> None:
    """Bench is installed from the base or as released; the scenario is that of the base."""
    (workflow,) = [path for path in WORKFLOWS if path.name == name]
    installing, script = [
        step["run"] for step in _steps(workflow) if re.search(r"pip install|bench gate", step.get("run", ""))
    ]
    (folder,) = re.findall(r'git worktree add --detach (\S+) "\$BASE"', installing)
    (installed,) = re.findall(r"pip install (.+)", installing)
    assert folder in installed.split()
    assert not {".", "-e"} & set(installed.split())
    (scenario,) = re.findall(r'bench gate "?(\S+?)"? --base "\$BASE" --candidate \. ', script)
    assert scenario.startswith(f"{folder}/")
    assert "$" in scenario or (HERE / scenario.removeprefix(f"{folder}/")).is_file()
