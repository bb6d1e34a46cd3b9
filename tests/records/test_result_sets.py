"""Runs to compare: from folders, files, sittings and git revisions."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.records.records import encode_record
from bench.records.result_sets import load_result_set
from bench.records.store import write_record
from records_factory import make_record
from sittings_factory import make_runs, write_sitting

GIT = shutil.which("git") or "git"


def _git(folder: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run([GIT, *settings, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository whose commit v1 has one record in results/, and whose work tree has none."""
    monkeypatch.chdir(tmp_path)
    _git(tmp_path, "init", "-q")
    (tmp_path / "results").mkdir()
    write_record(tmp_path / "results", make_record())
    (tmp_path / "results" / "link.json").symlink_to("/etc/hostname")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "one")
    _git(tmp_path, "tag", "v1")
    _git(tmp_path, "rm", "-rq", "results")
    _git(tmp_path, "commit", "-q", "-m", "two")
    return tmp_path


def test_committed_results_are_read_without_the_work_tree(repository: Path) -> None:
    """A folder and a file of a revision; a link is named and not followed, and nothing is checked out."""
    found = load_result_set("v1:results")
    assert ["tiny/lora-r8/b4-s256"] == [run.cell_id for run in found.runs]
    assert ["v1:results/link.json: is a link or not a plain file; only plain files are read"] == [
        *found.problems
    ]
    assert found.runs == load_result_set(f"v1:results/{found.files[0]}").runs
    assert found.runs == load_result_set("HEAD~1:./results/").runs
    assert [".git"] == [path.name for path in repository.iterdir()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--output=x:results", "git finds no revision '--output=x'"),
        ("v2:results", "git finds no revision 'v2'"),
        ("v1:../etc", "v1 has no folder or file '../etc'"),
        ("HEAD:results", "HEAD has no folder or file 'results'"),
        ("nowhere", "nowhere is no results folder"),
    ],
)
def test_what_is_not_there_is_said(repository: Path, given: str, said: str) -> None:
    """A name never becomes an option of git."""
    with pytest.raises(UsageError, match=said):
        load_result_set(given)
    assert not (repository / "x").exists()


def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    """As for reports."""
    write_record(tmp_path, make_record())
    (tmp_path / "cut.json").write_text('{"schema_version": 1, ')
    (tmp_path / "newer.json").write_text('{"schema_version": 99}')
    (tmp_path / "wrong.json").write_text(encode_record(make_record(run=2)).decode().replace('"ok"', '"fine"'))
    found = load_result_set(str(tmp_path))
    assert (1, 3) == (len(found.runs), len(found.problems))
    cut, newer, wrong = found.problems
    assert "cut off or not JSON" in cut
    assert "written by a newer finetune-bench" in newer
    assert "at `$.outcome`" in wrong


def test_of_a_sitting_only_the_runs_that_count_are_read(tmp_path: Path) -> None:
    """A record that the sitting does not list, such as a spoilt one that was made again, is left out."""
    folder = write_sitting(tmp_path / "sitting", make_runs(), make_runs())
    write_record(folder / "base", make_record(run=9))
    found = load_result_set(str(folder / "base"))
    assert (5, folder) == (len(found.runs), found.sitting)
