"""What a REF on the command line stands for: an interpreter, package versions, a git revision, a folder.

``parse_ref`` only looks; nothing is installed, checked out or started. ``Repository`` is that of the user's
project: its commits, and worktrees of them that do not outlive this process.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from bench.errors import InfrastructureError, UsageError
from bench.io import cache_folder
from bench.workers import interrupts

GIT_TIMEOUT_S = 600  # a worktree of a large project on a slow disk
_HOLD = "hold"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A git repository with a working tree; ``root`` is that, links resolved."""

    root: Path

    def commit_of(self, revision: str) -> str | None:
        """Return the full id of a commit; None where there is no such revision."""
        return _ask(self.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")

    @property
    def shallow(self) -> bool:
        """Whether older commits are missing."""
        return _ask(self.root, "rev-parse", "--is-shallow-repository") == "true"

    @property
    def dirty(self) -> bool:
        """Whether tracked files have changes that are not committed."""
        return bool(_ask(self.root, "status", "--porcelain", "--untracked-files=no"))

    @contextlib.contextmanager
    def worktree(self, commit: str) -> Iterator[Path]:
        """Check a commit out into a folder of its own, which is removed afterwards, however that comes.

        What a killed process left is removed by the next. No hook is run; submodules stay empty. Raises
        ``InfrastructureError`` where git cannot do it.
        """
        home = cache_folder() / "worktrees"
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with FileLock(home / ".lock"):
                _remove_left_over(home)
                folder = Path(tempfile.mkdtemp(dir=home))
                stack.enter_context(_held_open(folder / _HOLD))
            tree = folder / "tree"
            stack.callback(_remove, folder)
            with interrupts.held():  # git killed halfway would leave its notes of this tree behind
                done = _git(self.root, "worktree", "add", "--detach", str(tree), commit)
            if done.returncode != 0:
                raise InfrastructureError(
                    f"git cannot check {commit[:12]} out ({_last_line(done.stderr)}); see git worktree add"
                )
            yield tree


def around(folder: Path) -> Repository | None:
    """Return the repository that a folder lies in; None where git finds none, or is not installed."""
    root = _ask(folder, "rev-parse", "--show-toplevel")
    return None if not root else Repository(root=Path(root).resolve())


def _ask(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None where it fails."""
    try:
        done = _git(folder, *arguments)
    except InfrastructureError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run git without hooks, questions, or the variables of a git command that we may be a hook of."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(  # noqa: S603 - no shell, and no argument that could be an option
            ["git", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *arguments],  # noqa: S607 - the user's git
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for us, and we wait for git
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"git could not be run ({error}); install git, or try again") from error


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].removeprefix("fatal: ") or "it says nothing"


@contextlib.contextmanager
def _held_open(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel frees with this process, so that others see that the folder is in use."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_left_over(home: Path) -> None:
    for folder in home.iterdir():
        with contextlib.suppress(OSError), (folder / _HOLD).open("rb") as hold:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a worktree and the repository's notes of it."""
    tree = folder / "tree"
    if (tree / ".git").is_file():
        with contextlib.suppress(InfrastructureError):
            _git(tree, "worktree", "remove", "--force", str(tree))
    shutil.rmtree(folder, ignore_errors=True)


PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
_FORMS = (
    "give a virtual environment, a python, package versions (peft==0.21.2,transformers==5.2), a revision of "
    "the git repository around the current folder, or a folder with a pyproject.toml"
)


@dataclass(frozen=True, kw_only=True)
class Installed:
    """The environment that this process runs in, as it is."""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """Another python, with whatever it has installed."""

    python: Path


@dataclass(frozen=True, kw_only=True)
class Packages:
    """Exact versions to lay over the environment as it is, sorted by name: ``(("peft", "0.21.2"),)``."""

    pins: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A commit of the user's project; ``project`` is its folder inside the repository."""

    repository: Repository
    commit: str
    project: Path


@dataclass(frozen=True, kw_only=True)
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
    looks_like_path = given.startswith((".", "~", "/")) or given.endswith("/")
    if looks_like_path:
        if found is None:
            what = "has neither bin/python nor a pyproject.toml" if path.exists() else "does not exist"
            raise UsageError(f"{given} {what}; {_FORMS}")
        return found
    revision = _revision(given, here, required=found is None)
    if found is not None and revision is not None:
        raise UsageError(
            f"{given} is both a path and a git revision; write ./{given} for the path or "
            f"{revision.commit[:12]} for the revision"
        )
    reference = found or revision
    if reference is None:
        raise AssertionError("a revision that is required is there")
    return reference


def _packages(given: str) -> Packages:
    pins: dict[str, str] = {}
    for item in given.split(","):
        try:
            requirement = Requirement(item)
            (specifier,) = requirement.specifier
            version = str(Version(specifier.version))
            exact = specifier.operator == "==" and not (
                requirement.extras or requirement.marker or requirement.url
            )
        except (InvalidRequirement, InvalidVersion, ValueError):
            exact = False
        if not exact:
            raise UsageError(
                f"{item.strip()!r} in {given} is not name==version; write for example peft==0.21.2"
            )
        name = canonicalize_name(requirement.name)
        if pins.setdefault(name, version) != version:
            raise UsageError(f"{given} asks for two versions of {name}; keep one of them")
    return Packages(pins=tuple(sorted(pins.items())))


def _at_path(path: Path) -> Interpreter | Checkout | None:
    if path.is_file() and os.access(path, os.X_OK):
        return Interpreter(python=path)
    if (path / "bin" / "python").is_file():
        return Interpreter(python=path / "bin" / "python")
    if any((path / name).is_file() for name in PROJECT_FILES):
        return Checkout(folder=path)
    return None


def _revision(given: str, here: Path, *, required: bool) -> Revision | None:
    repository = around(here)
    if repository is None:
        if not required:
            return None
        raise UsageError(
            f"{given} is no path, and no git revision can be meant, since {here} is in no git repository "
            "that can "
            f"be read; {_FORMS}"
        )
    commit = repository.commit_of(given)
    if commit is None:
        if not required:
            return None
        shallow = (
            " (it is a shallow clone: fetch the revision, or check out with fetch-depth: 0)"
            if repository.shallow
            else ""
        )
        raise UsageError(f"{given} is neither a path nor a revision of {repository.root}{shallow}; {_FORMS}")
    return Revision(repository=repository, commit=commit, project=_project(repository.root, here))


def _project(root: Path, here: Path) -> Path:
    """Return the nearest folder from here up that is a Python project, relative to the repository's root."""
    here = here.resolve()
    for folder in (here, *here.parents):
        if folder == root or not folder.is_relative_to(root):
            break
        if any((folder / name).is_file() for name in PROJECT_FILES):
            return folder.relative_to(root)
    return Path()
