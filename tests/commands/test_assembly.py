"""How the command line is put together: its names, version, completion and options in groups."""

import inspect
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.cli import app
from bench.commands.options import command
from bench.errors import BenchError, UsageError


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


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_first_page_is_laid_out_as_typer_would(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written without rich, which takes long to import; at 80 columns no line tells."""
    monkeypatch.setenv("COLUMNS", "80")
    ours = CliRunner().invoke(app, arguments)
    monkeypatch.delattr("bench.cli._Front.format_help")
    theirs = CliRunner().invoke(app, arguments)
    assert [line.rstrip() for line in theirs.output.splitlines()] == ours.output.splitlines()
    assert theirs.exit_code == ours.exit_code


@dataclass(frozen=True, kw_only=True)
class _Group:
    much: Sequence[int] = ()
    loud: bool = False


def test_a_group_of_options_is_as_its_options_one_by_one() -> None:
    """A command sees one object, the command line each of its fields with type and default."""
    seen = []
    small = typer.Typer()

    @small.command()
    @command
    def tell(what: str, *, group: _Group, times: int = 1) -> None:
        """Note what came."""
        seen.append((what, group, times))

    assert ["what", "much", "loud", "times"] == list(inspect.signature(tell).parameters)
    assert (
        CliRunner().invoke(small, ["it", "--much", "1", "--much", "2", "--loud", "--times", "3"]).exit_code
        == 0
    )
    assert CliRunner().invoke(small, ["it"]).exit_code == 0
    assert seen == [("it", _Group(much=(1, 2), loud=True), 3), ("it", _Group(much=()), 1)]


@pytest.mark.parametrize("command", [("report",), ("table",), ("claims",)])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.toml", "is a scenario file; bench run, plan and cells take it"),
        ("page.md", "is a page or table"),
    ],
)
def test_a_file_that_holds_no_results_is_named_for_what_it_is(
    tmp_path: Path, command: tuple[str, ...], name: str, said: str
) -> None:
    """The sentence names the commands that take it, and never says to delete what may not be ours."""
    (tmp_path / name).write_text("title = 'mine'")
    result = CliRunner().invoke(app, [*command, str(tmp_path / name)])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert "delete" not in str(result.exception)


SCENARIO = """
[models.tiny]
random = "tiny-llama-test"
[methods.full]
[data]
source = "jsonl"
path = "{path}"
"""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "Cannot read the data file"),
        ("", "holds no rows"),
        ("not json", "line 1: not JSON"),
        (json.dumps({"asked": "Q", "told": "A"}), "are of no layout known here; rename them"),
        (json.dumps({"instruction": "Q", "output": "A"}), None),
    ],
)
@pytest.mark.parametrize("command", [("cells", "--check"), ("run",)])
def test_data_is_checked_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    content: str | None,
    said: str | None,
) -> None:
    """A file that is not there, is empty or of another format ends a command at once; no run is begun."""
    data = tmp_path / "rows.jsonl"
    if content is not None:
        data.write_text(content)
    scenario = tmp_path / "mine.toml"
    scenario.write_text(SCENARIO.format(path=data))
    begun = []
    monkeypatch.setattr("bench.runner.sweep.run_sweep", lambda *_, **__: begun.append(1))
    result = CliRunner().invoke(app, [command[0], str(scenario), *command[1:]])
    error = result.exception
    if said is None:
        assert f"{data}: read as alpaca: 1 row" in result.stderr
        assert not isinstance(error, BenchError)
        assert bool(begun) is (command[0] == "run")
        return
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert begun == []


def test_cells_are_listed_without_their_data(tmp_path: Path) -> None:
    """Without --check nothing but the scenario is read."""
    scenario = tmp_path / "mine.toml"
    scenario.write_text(SCENARIO.format(path="nowhere.jsonl"))
    result = CliRunner().invoke(app, ["cells", str(scenario)])
    assert (0, "tiny/full/b1-s512\n") == (result.exit_code, result.stdout)


def test_listing_cells_says_what_their_data_is_read_as_and_needs_none(tmp_path: Path) -> None:
    """What is wrong with it is said beside the list, which is the same."""
    data, scenario = tmp_path / "rows.jsonl", tmp_path / "mine.toml"
    scenario.write_text(SCENARIO.format(path=data))
    for content, said in (("[{}]", "of no layout known here"), ('[{"text": "a"}]', "read as text: 1 row")):
        data.write_text(content)
        result = CliRunner().invoke(app, ["cells", str(scenario)])
        assert (0, "tiny/full/b1-s512\n") == (result.exit_code, result.stdout)
        assert said in result.stderr
