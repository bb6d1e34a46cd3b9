"""What a REF on the command line stands for: an interpreter, package versions, a git revision, a folder.

Only looks; nothing is installed, checked out or started.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from bench.errors import UsageError
from bench.gate.repository import Repository, around

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


def understand(given: str | None, here: Path | None = None) -> Reference:
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
