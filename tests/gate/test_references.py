"""What a REF stands for, and the git repository of the project."""

import sys
from pathlib import Path

import pytest

from bench.errors import InfrastructureError, UsageError
from bench.gate.references import Reference, commit_of, is_dirty, parse_ref, repository_around, worktree
from gate_projects import git, make_repository, make_venv, write_project


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the tags v1.0 and v2.0, at v2.0."""
    return make_repository(tmp_path_factory.mktemp("git") / "project", ["1.0", "2.0"])


def test_each_kind_is_told_from_the_others(repository: Path, tmp_path: Path) -> None:
    """Nothing, an environment, a python, package versions, a revision, a folder."""
    environment = make_venv(tmp_path / "env", all_packages=False)
    python = environment / "bin" / "python"
    write_project(tmp_path / "mine", "3.0")
    found = Reference(kind="python", path=python)
    assert Reference(kind="environment") == parse_ref(None, tmp_path)
    assert found == parse_ref("env", tmp_path) == parse_ref("env/bin/python", tmp_path)
    assert Reference(kind="python", path=Path(sys.executable)) == parse_ref(sys.executable, tmp_path)
    assert Reference(kind="checkout", path=tmp_path / "mine") == parse_ref("./mine", tmp_path)
    pins = (("peft", "0.21.2"), ("transformers", "5.2"))
    assert Reference(kind="packages", pins=pins) == parse_ref("Transformers==5.2, peft==0.21.2", tmp_path)
    found = parse_ref("v1.0", repository / "src")
    commit = git(repository, "rev-parse", "v1.0")
    assert (
        Reference(kind="revision", here=Path("src"), repository=repository.resolve(), commit=commit) == found
    )


def test_a_project_in_a_part_of_the_repository_is_that_part(tmp_path: Path) -> None:
    """The nearest folder with a pyproject.toml, from the current one up."""
    repository = make_repository(tmp_path / "all", ["1.0"])
    write_project(repository / "part", "1.0")
    found = parse_ref("main", repository / "part" / "src")
    assert ("revision", Path("part")) == (found.kind, found.path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "'' is no reference"),
        ("-rf", "'-rf' is no reference"),
        ("--upload-pack=x", "is no reference"),
        ("./missing", "./missing does not exist"),
        ("src/", "src/ has neither bin/python nor a pyproject.toml"),
        ("no-such-branch", "no-such-branch is neither a path nor a revision"),
        ("peft==1.0,peft==2.0", "asks for two versions of peft"),
        ("peft==1.*", "is not name==version"),
        ("peft==1.0,--index-url=x", "is not name==version"),
        ("peft[all]==1.0", "is not name==version"),
        ("peft==1.0; python_version > '3'", "is not name==version"),
        ("v1.0\nv2.0", "is no reference"),
    ],
)
def test_a_mistake_is_one_sentence(repository: Path, given: str, said: str) -> None:
    """What was wrong, and what can be given instead."""
    with pytest.raises(UsageError) as caught:
        parse_ref(given, repository)
    assert said in str(caught.value)


def test_what_is_both_a_path_and_a_revision_is_asked_about(tmp_path: Path) -> None:
    """A folder that is called as a branch is; ./ or the commit tells."""
    repository = make_repository(tmp_path / "git", ["1.0"])
    write_project(repository / "main", "1.0")
    with pytest.raises(UsageError, match=r"main is both a path and a git revision; write \./main"):
        parse_ref("main", repository)
    assert "checkout" == parse_ref("./main", repository).kind


def test_a_shallow_clone_and_no_repository_are_named(repository: Path, tmp_path: Path) -> None:
    """A revision that is missing because of how the clone was made is told so."""
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    with pytest.raises(UsageError, match="it is a shallow clone: fetch the revision"):
        parse_ref("v1.0", tmp_path / "shallow")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    with pytest.raises(UsageError, match="is in no git repository"):
        parse_ref("v1.0", lonely)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with two versions, which has a cache of its own."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    found = repository_around(make_repository(tmp_path / "project", ["1.0", "2.0"]))
    assert found is not None
    return found


def known(cached: Path, revision: str) -> str:
    """Return the commit's id."""
    found = commit_of(cached, revision)
    assert found is not None
    return found


def left(cached: Path) -> tuple[int, list[str]]:
    """Return how many worktrees git knows besides its own, and what lies in the cache."""
    cache = cached.parent / "cache" / "worktrees"
    listed = git(cached, "worktree", "list").splitlines()
    return len(listed) - 1, [path.name for path in cache.iterdir() if path.is_dir()]


def test_a_worktree_holds_the_commit_and_is_gone_afterwards(cached: Path) -> None:
    """Also when what is done with it fails; the working tree itself stays as it is."""
    with (
        pytest.raises(ZeroDivisionError),
        worktree(cached, known(cached, "v1.0")) as tree,
    ):
        assert 1 / ("2.0" in (tree / "pyproject.toml").read_text())
    assert (0, []) == left(cached)
    assert not is_dirty(cached)


def test_no_hook_of_the_repository_runs(cached: Path) -> None:
    """A checkout would run post-checkout."""
    hook = cached / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {cached.parent / 'hooked'}\n")
    hook.chmod(0o755)
    with worktree(cached, known(cached, "v1.0")):
        pass
    assert not (cached.parent / "hooked").exists()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(
    cached: Path,
) -> None:
    """Whether the lock of a worktree is held tells the two apart."""
    abandoned = cached.parent / "cache" / "worktrees" / "abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "hold").touch()
    git(cached, "worktree", "add", "--detach", str(abandoned / "tree"), "v1.0")
    with (
        worktree(cached, known(cached, "v1.0")) as first,
        worktree(cached, known(cached, "v2.0")),
    ):
        assert not abandoned.exists()
        assert (first / "pyproject.toml").is_file()
        assert 2 == left(cached)[0]
    assert (0, []) == left(cached)


def test_git_that_fails_is_quoted(cached: Path) -> None:
    """A commit that is not there."""
    with (
        pytest.raises(InfrastructureError, match="git cannot check 0000000"),
        worktree(cached, "0" * 40),
    ):
        pass
    assert (0, []) == left(cached)


def test_changes_and_strange_variables_are_seen_through(
    cached: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run as a hook of another repository, git is still asked about this one."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert not is_dirty(cached)
    (cached / "pyproject.toml").write_text("")
    assert is_dirty(cached)
    assert commit_of(cached, "v9.9") is None
