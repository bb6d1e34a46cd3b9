"""The workflow of this repository and the one to copy: pinned, no strangers' text, options that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from bench.cli import app

HERE = Path(__file__).parents[2]
TO_COPY = HERE / "examples" / "gate_workflow.yml"
WORKFLOWS = sorted([*(HERE / ".github" / "workflows").glob("*.yml"), *(HERE / "examples").glob("*.yml")])


def _steps(workflow: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load(workflow.read_text())
    return [step for job in document["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_scripts_hold_no_expression(workflow: Path) -> None:
    """A tag can be moved and a branch's name can be a command."""
    document = yaml.safe_load(workflow.read_text())
    assert {"contents": "read"} == document["permissions"]
    uses = [step["uses"] for step in _steps(workflow) if "uses" in step]
    assert [] == [name for name in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)]
    assert [] == [step["run"] for step in _steps(workflow) if "${{" in step.get("run", "")]


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
