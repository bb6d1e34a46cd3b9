"""One side as its gate sees it, and versions marked of what it imports from sources."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BenchError, InfrastructureError, UsageError
from bench.gate.process import SERVE, SideProcess, open_sides
from bench.gate.protocol import Opening
from bench.gate.serve import stamped
from bench.gate.session import SessionOptions, run_session
from bench.gate.sides import prepared_sides, side_as_is
from bench.metrics import MIB
from bench.records.records import SCHEMA_VERSION
from bench.records.sessions import SideName, SittingRecords
from gate_projects import git, make_repository, make_venv, make_wheel, write_project
from records_factory import make_record
from replay_worker import make_cell

COMMAND = (str(Path(__file__).parents[1] / "support" / "replay_serve.py"),)


FORKING = """
import multiprocessing, os, sys

def work(pipe):
    held = bytearray(b"x") * (60 * 2**20)
    pipe.send(len(held))
    pipe.recv()

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["heavy"])
    ours, theirs = context.Pipe()
    context.Process(target=work, args=(theirs,), daemon=True).start()
    ours.recv()
    os.write(int(sys.argv[1]), b"a")
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep everything in the test's folder, and pip from the network."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REPLAY_IMPORT", "gated_package")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def compare(tmp_path: Path, base: str, candidate: str | None, here: Path) -> SittingRecords:
    """Run one cell on two sides, once each and once to check."""
    options = SessionOptions(folder=tmp_path / "sittings", command=COMMAND, exact_only=True)
    with prepared_sides(base, candidate, here=here) as sides:
        return run_session([make_cell("ok")], sides, lambda _records, _repeats: (), options)


def imported(result: SittingRecords, side: SideName) -> tuple[str, Path]:
    """Return the version and the place of the package that a side's worker imported."""
    told = {caveat.code: caveat.message for caveat in result.records[side][0].measurement.caveats}
    return told["version"], Path(told["place"])


def test_package_versions_against_a_folder(tmp_path: Path) -> None:
    """Each side imports its own; a pair and a check are all that exact metrics need."""
    make_wheel(tmp_path / "wheels", "gated-package", "1.5")
    write_project(tmp_path / "mine", "3.0")
    result = compare(tmp_path, "gated-package==1.5", "./mine", tmp_path)
    assert ("1.5", "3.0") == (imported(result, "base")[0], imported(result, "candidate")[0])
    assert imported(result, "candidate")[1].is_relative_to(tmp_path / "mine" / "src")
    assert [("base", "measured"), ("candidate", "measured"), ("candidate", "check")] == [
        (run.side, run.purpose) for run in result.sitting.runs
    ]
    assert ((1,), "decided") == (result.sitting.looks, result.sitting.stopped)
    sources = "gated_package imported from its sources, of which nothing is built"
    assert result.sitting.base.understood == "the environment as it is, with gated-package 1.5 laid over it"
    assert result.sitting.candidate.understood == f"the folder ./mine as it lies there: {sources}"


def test_a_revision_against_a_virtual_environment(tmp_path: Path) -> None:
    """The revision comes from a worktree that is gone afterwards, even where it is the current folder's."""
    repository = make_repository(tmp_path / "project", ["1.0", "2.0"])
    (repository / "pyproject.toml").write_text("changed")
    environment = make_venv(tmp_path / "environment", all_packages=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "gated_package.py").write_text("__version__ = '7.0'\n")
    result = compare(tmp_path, "v1.0", str(environment), repository)
    version, place = imported(result, "base")
    assert ("1.0", True, False) == (version, "worktrees" in place.parts, place.exists())
    assert ("7.0", packages / "gated_package.py") == imported(result, "candidate")
    sitting = result.sitting
    commit = git(repository, "rev-parse", "v1.0")
    assert commit == sitting.base.commit
    assert ("revision", "python") == (sitting.base.kind, sitting.candidate.kind)
    codes = [caveat.code for caveat in sitting.caveats]
    assert ["dirty-repository", "as-installed"] == codes


def refused(given: str, here: Path, *, command: tuple[str, ...] = SERVE) -> BenchError:
    """Return why such a side cannot be opened."""
    with (
        prepared_sides(given, here=here) as (side, _),
        pytest.raises(BenchError) as caught,
        open_sides([side], print, Opening(), command),
    ):
        pass
    return caught.value


def test_an_environment_without_what_bench_needs_is_named(tmp_path: Path) -> None:
    """It is lent bench itself, and no library."""
    make_venv(tmp_path / "empty", all_packages=False)
    error = refused("./empty", tmp_path)
    assert isinstance(error, UsageError)
    assert re.search(r"has no \w+, which bench needs there to measure; install it there", str(error))


def test_a_package_called_bench_of_another_kind_is_hidden(tmp_path: Path) -> None:
    """It cannot serve, and nothing else is there to be tested."""
    old = tmp_path / "old"
    (old / "bench").mkdir(parents=True)
    (old / "bench" / "__init__.py").touch()
    (old / "setup.py").touch()
    with pytest.raises(UsageError, match=r"nothing of \./old but its bench could be under test"):
        refused("./old", tmp_path)


ANSWER = (
    "import os, sys; os.write(int(sys.argv[1]), {line!r}.encode() + b'\\n');print('so long'); sys.exit(3)"
)


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        (
            f'{{"type": "greeting", "protocol": 2, "record_schema": {SCHEMA_VERSION + 1}, "python": "3"}}',
            UsageError,
            f"writes records of version {SCHEMA_VERSION + 1} instead of {SCHEMA_VERSION}",
        ),
        ('{"type": "greeting", "python": ', InfrastructureError, "answered what cannot be understood"),
        ('{"type": "note", "text": "hm"}', InfrastructureError, r"ended with exit code 3 (so long)"),
        ('{"type": "broken", "message": "No disk."}', InfrastructureError, "cannot go on: No disk."),
    ],
)
def test_answers_that_are_not_the_protocols_are_named(
    line: str, kind: type[BenchError], said: str, tmp_path: Path
) -> None:
    """Another schema, garbage, an end without an answer, a failure in a sentence."""
    error = refused(sys.executable, tmp_path, command=("-c", ANSWER.format(line=line)))
    assert type(error) is kind
    assert said in str(error)


def test_a_python_that_does_not_run_is_a_usage_error(tmp_path: Path) -> None:
    """Such as a script that is no program."""
    (tmp_path / "python").write_text("\0")
    (tmp_path / "python").chmod(0o755)
    assert "does not run (Exec format error)" in str(refused("./python", tmp_path))


def test_what_the_server_of_workers_needed_to_import_is_no_run_s(tmp_path: Path) -> None:
    """The gate sees the 60 MiB that a forked worker holds, not the 300 that importing took before."""
    (tmp_path / "heavy.py").write_text('bytearray(b"x") * (300 * 2**20)\n')
    (tmp_path / "forking.py").write_text(FORKING)
    side = side_as_is("base")
    side = replace(side, variables={**os.environ, "PYTHONPATH": str(tmp_path)})
    process = SideProcess(side, print, command=(str(tmp_path / "forking.py"),))
    try:
        os.read(process.answers, 1)
        process.look()
    finally:
        process.end()
    assert process.seen_peak_bytes is not None
    assert 60 * MIB < process.seen_peak_bytes < 200 * MIB


def test_versions_of_what_comes_from_sources_are_marked() -> None:
    """By import name, once each; other versions and the machine stay; a version may have a label already."""
    environment = make_record().environment
    versions = {"peft": "0.21.2", "finetune-bench": "0.1.0+local", "torch": "2.13.0"}
    environment = environment.replace(versions=versions)
    opening = Opening(stamped=("peft", "bench", "flash_attn", "mine"), label="git.1a2b3c")
    expected = {
        "peft": "0.21.2+git.1a2b3c",
        "finetune-bench": "0.1.0+local.git.1a2b3c",
        "flash-attn": "0+git.1a2b3c",
        "torch": "2.13.0",
    }
    assert environment.replace(versions=expected) == stamped(environment, opening)
    assert environment == stamped(environment, Opening())
