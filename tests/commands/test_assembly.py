"""How the command line is put together: its names, version, completion and options in groups."""

import inspect
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from bench.cli import app
from bench.commands.options import grouped


def test_the_version_is_that_of_the_package() -> None:
    """``bench --version`` prints the name and the version of pyproject.toml, and asks for no command."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    result = CliRunner().invoke(app, ["--version"])
    assert (0, f"finetune-bench {project['version']}\n") == (result.exit_code, result.output)


def test_the_command_has_a_second_name() -> None:
    """``finetune-bench`` is the same command, for whom another program is called bench."""
    scripts = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"bench": "bench.cli:main", "finetune-bench": "bench.cli:main"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands(shell: str) -> None:
    """A shell that asks what may follow is answered with the commands that begin so."""
    asked = {"_BENCH_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "bench ca"}
    asked |= {"COMP_WORDS": "bench ca", "COMP_CWORD": "1", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    answered = CliRunner().invoke(app, [], prog_name="bench", env=asked)
    assert "calibrate" in answered.output
    assert "report" not in answered.output


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_help_names_completion(option: str) -> None:
    """Whoever reads ``bench --help`` finds how to have commands completed."""
    assert option in CliRunner().invoke(app, ["--help"]).output


@dataclass(frozen=True, kw_only=True)
class _Group:
    much: Annotated[list[int], typer.Option("--much")] = field(default_factory=list)
    loud: bool = False


def test_a_group_of_options_is_as_its_options_one_by_one() -> None:
    """A command sees one object, the command line each of its fields with type and default."""
    seen = []
    small = typer.Typer()

    @small.command()
    @grouped
    def tell(what: str, *, group: _Group, times: int = 1) -> None:
        """Note what came."""
        seen.append((what, group, times))

    assert ["what", "much", "loud", "times"] == list(inspect.signature(tell).parameters)
    assert (
        CliRunner().invoke(small, ["it", "--much", "1", "--much", "2", "--loud", "--times", "3"]).exit_code
        == 0
    )
    assert CliRunner().invoke(small, ["it"]).exit_code == 0
    assert seen == [("it", _Group(much=[1, 2], loud=True), 3), ("it", _Group(), 1)]
