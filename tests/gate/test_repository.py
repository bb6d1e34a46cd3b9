"""Worktrees: at their commit, without hooks, and gone afterwards, even those of a process that was killed."""

from pathlib import Path

import pytest

from bench.errors import InfrastructureError
from bench.gate.repository import Repository, around
from gate_projects import git, make_repository


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Return a repository with two versions, which has a cache of its own."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    found = around(make_repository(tmp_path / "project", ["1.0", "2.0"]))
    assert found is not None
    return found


def commit(repository: Repository, revision: str) -> str:
    """Return the commit's id."""
    found = repository.commit_of(revision)
    assert found is not None
    return found


def left(repository: Repository) -> tuple[int, list[str]]:
    """Return how many worktrees git knows besides its own, and what lies in the cache."""
    cache = repository.root.parent / "cache" / "worktrees"
    listed = git(repository.root, "worktree", "list").splitlines()
    return len(listed) - 1, [path.name for path in cache.iterdir() if path.is_dir()]


def test_a_worktree_holds_the_commit_and_is_gone_afterwards(repository: Repository) -> None:
    """Also when what is done with it fails; the working tree itself stays as it is."""
    with pytest.raises(ZeroDivisionError), repository.worktree(commit(repository, "v1.0")) as tree:
        assert 1 / ("2.0" in (tree / "pyproject.toml").read_text())
    assert (0, []) == left(repository)
    assert not repository.dirty


def test_no_hook_of_the_repository_runs(repository: Repository) -> None:
    """A checkout would run post-checkout."""
    hook = repository.root / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository.root.parent / 'hooked'}\n")
    hook.chmod(0o755)
    with repository.worktree(commit(repository, "v1.0")):
        pass
    assert not (repository.root.parent / "hooked").exists()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(repository: Repository) -> None:
    """Whether the lock of a worktree is held tells the two apart."""
    abandoned = repository.root.parent / "cache" / "worktrees" / "abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "hold").touch()
    git(repository.root, "worktree", "add", "--detach", str(abandoned / "tree"), "v1.0")
    with (
        repository.worktree(commit(repository, "v1.0")) as first,
        repository.worktree(commit(repository, "v2.0")),
    ):
        assert not abandoned.exists()
        assert (first / "pyproject.toml").is_file()
        assert 2 == left(repository)[0]
    assert (0, []) == left(repository)


def test_git_that_fails_is_quoted(repository: Repository) -> None:
    """A commit that is not there."""
    with pytest.raises(InfrastructureError, match="git cannot check 0000000"), repository.worktree("0" * 40):
        pass
    assert (0, []) == left(repository)


def test_changes_and_strange_variables_are_seen_through(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run as a hook of another repository, git is still asked about this one."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert not repository.dirty
    (repository.root / "pyproject.toml").write_text("")
    assert repository.dirty
    assert repository.commit_of("v9.9") is None
