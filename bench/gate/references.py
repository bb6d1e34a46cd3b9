"""What a REF on the command line stands for: an interpreter, package versions, a git revision, a folder.

``parse_ref`` only looks; nothing is installed, checked out or started. A repository is given by the root of
its working tree, links resolved; a worktree of one of its commits does not outlive this process.

Package versions are laid over the environment as it is, from a folder of their own. With them goes what pip
finds them to need besides: what the environment lacks, or has in a version that does not do. That is told,
and so are requirements of the rest on these that are then unmet.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from bench.errors import InfrastructureError, UsageError
from bench.io import cache_folder, made_once, make_folder, parse_json, read_data
from bench.records import git
from bench.records.readings import Caveat
from bench.records.requirements import Installed, installed, unmet
from bench.records.sessions import Kind
from bench.workers import interrupts

GIT_TIMEOUT_S = 600  # a worktree of a large project on a slow disk
PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
_FORMS = (
    "give a virtual environment, a python, package versions (peft==0.21.2,transformers==5.2), a revision of "
    "the git repository around the current folder, or a folder with a pyproject.toml"
)
_HOLD = "hold"
_said = partial(git.said, timeout_s=GIT_TIMEOUT_S, lazy_fetch=True)
_run_git = partial(git.run_git, timeout_s=GIT_TIMEOUT_S, lazy_fetch=True)
_WORKTREE = ("-c", "core.hooksPath=/dev/null", "worktree")


def repository_around(folder: Path) -> Path | None:
    """Return the repository that a folder lies in; None where git finds none, or is not installed."""
    root = _said(folder, "rev-parse", "--show-toplevel")
    return Path(root).resolve() if root else None


def commit_of(repository: Path, revision: str) -> str | None:
    """Return the full id of a commit; None where there is no such revision."""
    return _said(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")


def is_shallow(repository: Path) -> bool:
    """Tell whether older commits are missing."""
    return _said(repository, "rev-parse", "--is-shallow-repository") == "true"


def is_dirty(repository: Path) -> bool:
    """Tell whether tracked files have changes that are not committed."""
    return bool(_said(repository, "status", "--porcelain", "--untracked-files=no"))


@contextlib.contextmanager
def worktree(repository: Path, commit: str) -> Iterator[Path]:
    """Check a commit out into a folder of its own, which is removed afterwards, however that comes.

    What a killed process left is removed by the next: while a folder is in use, its process holds a lock,
    which the kernel frees. No hook is run; submodules stay empty. Raises ``InfrastructureError`` where git
    cannot do it.
    """
    home = cache_folder() / "worktrees"
    make_folder(home)
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
            done = _run_git(repository, *_WORKTREE, "add", "--detach", str(folder / "tree"), commit)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            why = said.removeprefix("fatal: ") or "it says nothing"
            raise InfrastructureError(f"git cannot check {commit[:12]} out ({why}); see git worktree add")
        yield folder / "tree"


def _remove(folder: Path) -> None:
    """Remove a worktree and the repository's notes of it."""
    tree = folder / "tree"
    if (tree / ".git").is_file():
        with contextlib.suppress(InfrastructureError):
            _run_git(tree, *_WORKTREE, "remove", "--force", str(tree))
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a REF stands for; without one it is the environment of this process, as it is.

    ``path`` is the python, the folder as it lies there, or the project's folder inside the ``repository``
    that has the ``commit``, and ``here`` the current one inside it. ``pins`` are exact versions, sorted by
    name: ``(("peft", "0.21.2"),)``.
    """

    kind: Kind
    path: Path = Path()
    here: Path = Path()
    pins: tuple[tuple[str, str], ...] = ()
    repository: Path = Path()
    commit: str = ""


def parse_ref(given: str | None, here: Path | None = None, code: Sequence[str] = ()) -> Reference:
    """Return what a REF stands for; ``here`` is the current folder.

    A folder that holds one of the modules ``code``, which a loop may be imported from, is one like that of a
    project. Raises ``UsageError`` where it stands for nothing, or for both a path and a revision.
    """
    here = Path.cwd() if here is None else here
    if given is None:
        return Reference(kind="environment")
    if not given or given.startswith("-") or "\0" in given or "\n" in given:
        raise UsageError(f"{given!r} is no reference; {_FORMS}")
    if "==" in given:
        return Reference(kind="packages", pins=_pins(given))
    path = Path(os.path.abspath(here / Path(given).expanduser()))  # noqa: PTH100 - links stay: a venv's python is one
    found = _at_path(path, code)
    if given.startswith((".", "~", "/")) or given.endswith("/"):
        no_path = "has neither bin/python nor a pyproject.toml"
        revision: Reference | str = no_path if path.exists() else "does not exist"
    else:
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


def _pins(given: str) -> tuple[tuple[str, str], ...]:
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
    return tuple(sorted(pins.items()))


def _at_path(path: Path, code: Sequence[str]) -> Reference | None:
    if path.is_file() and os.access(path, os.X_OK):
        return Reference(kind="python", path=path)
    if (path / "bin" / "python").is_file():
        return Reference(kind="python", path=path / "bin" / "python")
    own = any((path / f"{name}.py").is_file() or (path / name).is_dir() for name in code)
    return Reference(kind="checkout", path=path) if own or _is_project(path) else None


def _is_project(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROJECT_FILES)


def _revision(given: str, here: Path) -> Reference | str:
    """Return the revision of the nearest project from ``here`` up, or in one clause why there is none."""
    root = repository_around(here)
    if root is None:
        nowhere = f"since {here} is in no git repository that can be read"
        return f"is no path, and no git revision can be meant, {nowhere}"
    commit = commit_of(root, given)
    if commit is None:
        cut_off = " (it is a shallow clone: fetch the revision, or check out with fetch-depth: 0)"
        return f"is neither a path nor a revision of {root}{cut_off if is_shallow(root) else ''}"
    here = here.resolve()
    inside = (folder for folder in (here, *here.parents) if folder != root and folder.is_relative_to(root))
    project = next((folder.relative_to(root) for folder in inside if _is_project(folder)), Path())
    own = here.relative_to(root)
    return Reference(kind="revision", path=project, here=own, repository=root, commit=commit)


MOST_UNMET = 5  # named; more say little more


def overlay(pins: Sequence[tuple[str, str]]) -> Path:
    """Return the folder that holds these versions, installing them first if need be.

    Its name says what is installed, and for which python and platform. Raises ``InfrastructureError`` with
    pip's last line where they cannot be had.
    """
    content = repr((tuple(pins), "resolved", sys.implementation.cache_tag, sysconfig.get_platform()))
    names = "-".join(f"{name}-{version}" for name, version in pins)[:80]
    folder = cache_folder() / "overlays" / f"{names}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return made_once(folder, partial(_install, pins))


def _install(pins: Sequence[tuple[str, str]], target: Path) -> None:
    """Install versions with what they need and the environment has not; the rest stays as it is."""
    asked = [f"{name}=={version}" for name, version in pins]
    report = target / "report.json"
    _pip(asked, "install", "--quiet", "--dry-run", "--report", str(report), *asked)
    made = parse_json(read_data(report))["install"]
    needed = {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in made}
    every = [f"{name}=={version}" for name, version in (needed | dict(pins)).items()]
    _pip(every, "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target), *every)


def released(package: str) -> tuple[str, ...]:
    """Return the releases of a package that pip finds for this python, the oldest first."""
    said = _pip([package], "index", "versions", package)
    found = re.search(r"^Available versions: (.+)$", said, re.MULTILINE)
    return tuple(sorted(found[1].split(", "), key=Version)) if found else ()


def _pip(asked: Sequence[str], *arguments: str) -> str:
    """Run pip and return what it said. Raises ``InfrastructureError`` with its reason where it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    try:
        with interrupts.waiting():
            said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        lines = said.splitlines() or ["it said nothing"]
        errors = [line for line in lines if line.startswith("ERROR") and "ResolutionImpossible" not in line]
        why = [*lines, *errors][-1].removeprefix("ERROR: ").strip().rstrip(".")
        raise InfrastructureError(
            f"pip cannot {arguments[0]} {', '.join(asked)} ({why}); check the versions, or give a virtual "
            "environment that has them"
        )
    return said


def told_of(overlaid: Path, pins: Mapping[str, str]) -> Iterator[Caveat]:
    """Say what differs from the environment besides what was asked for, and what is then unmet."""
    beneath, over = installed(sys.path), installed([str(overlaid)])
    besides = [
        f"{name} {each.version} ({beneath[name].version if name in beneath else 'none'} without)"
        for name, each in sorted(over.items())
        if name not in pins
    ]
    if besides:
        asked = " and ".join(f"{name} {version}" for name, version in pins.items())
        message = f"Laid over besides, as pip finds {asked} to need it: {', '.join(besides)}."
        yield Caveat("companions", message)
    sentences = unmet_by(over, beneath)
    more = len(sentences) - MOST_UNMET
    rest = [f"{more} more requirements are unmet."] if more > 0 else []
    for sentence in (*sentences[:MOST_UNMET], *rest):
        yield Caveat("unmet-requirement", sentence)


def unmet_by(over: Mapping[str, Installed], beneath: Mapping[str, Installed]) -> tuple[str, ...]:
    """Return a sentence for each requirement of or on an overlay's packages that is left unmet."""
    everything = {**beneath, **over}
    return tuple(f"{one.clause}." for one in unmet(everything) if one.name in over or one.needed in over)
