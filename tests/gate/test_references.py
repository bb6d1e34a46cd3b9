"""What a REF is taken for, and every mistake in one in a sentence."""

import sys
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.gate.references import Checkout, Installed, Interpreter, Packages, Revision, understand
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
    assert Installed() == understand(None, tmp_path)
    assert Interpreter(python=python) == understand("env", tmp_path) == understand("env/bin/python", tmp_path)
    assert Interpreter(python=Path(sys.executable)) == understand(sys.executable, tmp_path)
    assert Checkout(folder=tmp_path / "mine") == understand("./mine", tmp_path)
    pins = (("peft", "0.21.2"), ("transformers", "5.2"))
    assert Packages(pins=pins) == understand("Transformers==5.2, peft==0.21.2", tmp_path)
    found = understand("v1.0", repository / "src")
    assert isinstance(found, Revision)
    assert (git(repository, "rev-parse", "v1.0"), Path()) == (found.commit, found.project)


def test_a_project_in_a_part_of_the_repository_is_that_part(tmp_path: Path) -> None:
    """The nearest folder with a pyproject.toml, from the current one up."""
    repository = make_repository(tmp_path / "all", ["1.0"])
    write_project(repository / "part", "1.0")
    found = understand("main", repository / "part" / "src")
    assert isinstance(found, Revision)
    assert Path("part") == found.project


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
        understand(given, repository)
    assert said in str(caught.value)


def test_what_is_both_a_path_and_a_revision_is_asked_about(tmp_path: Path) -> None:
    """A folder that is called as a branch is; ./ or the commit tells."""
    repository = make_repository(tmp_path / "git", ["1.0"])
    write_project(repository / "main", "1.0")
    with pytest.raises(UsageError, match=r"main is both a path and a git revision; write \./main"):
        understand("main", repository)
    assert isinstance(understand("./main", repository), Checkout)


def test_a_shallow_clone_and_no_repository_are_named(repository: Path, tmp_path: Path) -> None:
    """A revision that is missing because of how the clone was made is told so."""
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    with pytest.raises(UsageError, match="it is a shallow clone: fetch the revision"):
        understand("v1.0", tmp_path / "shallow")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    with pytest.raises(UsageError, match="is in no git repository"):
        understand("v1.0", lonely)
