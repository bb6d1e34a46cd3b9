"""What a REF on the command line stands for: an interpreter, package versions, a git revision, a folder.

``parse_ref`` only looks; nothing is installed, checked out or started. ``Repository`` is that of the user's
project: its commits, and worktrees of them that do not outlive this process.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from bench.errors import InfrastructureError, UsageError
from bench.io import cache_folder
from bench.records import git
from bench.workers import interrupts

GIT_TIMEOUT_S = 600  # a worktree of a large project on a slow disk
_HOLD = "hold"
_said = partial(git.said, timeout_s=GIT_TIMEOUT_S, lazy_fetch=True)
_run_git = partial(git.run_git, timeout_s=GIT_TIMEOUT_S, lazy_fetch=True)
_WORKTREE = ("-c", "core.hooksPath=/dev/null", "worktree")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A git repository with a working tree; ``root`` is that, links resolved."""

    root: Path

    def commit_of(self, revision: str) -> str | None:
        """Return the full id of a commit; None where there is no such revision."""
        return _said(self.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")

    @property
    def shallow(self) -> bool:
        """Whether older commits are missing."""
        return _said(self.root, "rev-parse", "--is-shallow-repository") == "true"

    @property
    def dirty(self) -> bool:
        """Whether tracked files have changes that are not committed."""
        return bool(_said(self.root, "status", "--porcelain", "--untracked-files=no"))

    @contextlib.contextmanager
    def worktree(self, commit: str) -> Iterator[Path]:
        """Check a commit out into a folder of its own, which is removed afterwards, however that comes.

        What a killed process left is removed by the next: while a folder is in use, its process holds a lock,
        which the kernel frees. No hook is run; submodules stay empty. Raises ``InfrastructureError`` where
        git cannot do it.
        """
        home = cache_folder() / "worktrees"
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with FileLock(home / ".lock"):
                for left_over in home.iterdir():
                    with contextlib.suppress(OSError), (left_over / _HOLD).open("rb") as hold:
                        fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _remove(left_over)
                folder = Path(tempfile.mkdtemp(dir=home))
                fcntl.flock(stack.enter_context((folder / _HOLD).open("wb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.callback(_remove, folder)
            with interrupts.held():  # git killed halfway would leave its notes of this tree behind
                done = _run_git(self.root, *_WORKTREE, "add", "--detach", str(folder / "tree"), commit)
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                why = said.removeprefix("fatal: ") or "it says nothing"
                raise InfrastructureError(f"git cannot check {commit[:12]} out ({why}); see git worktree add")
            yield folder / "tree"


def around(folder: Path) -> Repository | None:
    """Return the repository that a folder lies in; None where git finds none, or is not installed."""
    root = _said(folder, "rev-parse", "--show-toplevel")
    return Repository(root=Path(root).resolve()) if root else None


def _remove(folder: Path) -> None:
    """Remove a worktree and the repository's notes of it."""
    tree = folder / "tree"
    if (tree / ".git").is_file():
        with contextlib.suppress(InfrastructureError):
            _run_git(tree, *_WORKTREE, "remove", "--force", str(tree))
    shutil.rmtree(folder, ignore_errors=True)


PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
_FORMS = (
    "give a virtual environment, a python, package versions (peft==0.21.2,transformers==5.2), a revision of "
    "the git repository around the current folder, or a folder with a pyproject.toml"
)


@dataclass(frozen=True)
class Installed:
    """The environment that this process runs in, as it is."""


@dataclass(frozen=True)
class Interpreter:
    """Another python, with whatever it has installed."""

    python: Path


@dataclass(frozen=True)
class Packages:
    """Exact versions to lay over the environment as it is, sorted by name: ``(("peft", "0.21.2"),)``."""

    pins: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Revision:
    """A commit of the user's project; ``project`` is its folder inside the repository."""

    repository: Repository
    commit: str
    project: Path


@dataclass(frozen=True)
class Checkout:
    """A folder with a Python project, as it lies there."""

    folder: Path


Reference = Installed | Interpreter | Packages | Revision | Checkout


def parse_ref(given: str | None, here: Path | None = None) -> Reference:
    """Return what a REF stands for; ``here`` is the current folder.

    Raises ``UsageError`` where it stands for nothing, or for both a path and a revision.
    """
    here = Path.cwd() if here is None else here
    if given is None:
        return Installed()
    if not given or given.startswith("-") or "\0" in given or "\n" in given:
        raise UsageError(f"{given!r} is no reference; {_FORMS}")
    if "==" in given:
        return _packages(given)
    path = Path(os.path.abspath(here / Path(given).expanduser()))  # noqa: PTH100 - links stay: a venv's python is one
    found = _at_path(path)
    if given.startswith((".", "~", "/")) or given.endswith("/"):
        if found is None:
            what = "has neither bin/python nor a pyproject.toml" if path.exists() else "does not exist"
            raise UsageError(f"{given} {what}; {_FORMS}")
        return found
    revision = _revision(given, here)
    if isinstance(revision, str):
        if found is None:
            raise UsageError(f"{given} {revision}; {_FORMS}")
        return found
    if found is not None:
        raise UsageError(
            f"{given} is both a path and a git revision; write ./{given} for the path or "
            f"{revision.commit[:12]} for the revision"
        )
    return revision


def _packages(given: str) -> Packages:
    pins: dict[str, str] = {}
    for item in given.split(","):
        try:
            requirement = Requirement(item)
            (specifier,) = requirement.specifier
            version = str(Version(specifier.version))
            exact = str(requirement) == f"{requirement.name}=={specifier.version}"  # no extra, marker or URL
        except (InvalidRequirement, InvalidVersion, ValueError):
            exact = False
        if not exact:
            raise UsageError(
                f"{item.strip()!r} in {given} is not name==version; write for example peft==0.21.2"
            )
        name = canonicalize_name(requirement.name)
        if pins.setdefault(name, version) != version:
            raise UsageError(f"{given} asks for two versions of {name}; keep one of them")
    return Packages(tuple(sorted(pins.items())))


def _at_path(path: Path) -> Interpreter | Checkout | None:
    if path.is_file() and os.access(path, os.X_OK):
        return Interpreter(path)
    if (path / "bin" / "python").is_file():
        return Interpreter(path / "bin" / "python")
    return Checkout(path) if _is_project(path) else None


def _is_project(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROJECT_FILES)


def _revision(given: str, here: Path) -> Revision | str:
    """Return the revision of the nearest project from ``here`` up, or in one clause why there is none."""
    repository = around(here)
    if repository is None:
        nowhere = f"since {here} is in no git repository that can be read"
        return f"is no path, and no git revision can be meant, {nowhere}"
    commit = repository.commit_of(given)
    if commit is None:
        cut_off = " (it is a shallow clone: fetch the revision, or check out with fetch-depth: 0)"
        shallow = cut_off if repository.shallow else ""
        return f"is neither a path nor a revision of {repository.root}{shallow}"
    root, here = repository.root, here.resolve()
    inside = (folder for folder in (here, *here.parents) if folder != root and folder.is_relative_to(root))
    project = next((folder.relative_to(root) for folder in inside if _is_project(folder)), Path())
    return Revision(repository=repository, commit=commit, project=project)
