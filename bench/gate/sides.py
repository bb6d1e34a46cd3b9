"""The two sides of a gate made ready: interpreter, path, variables, and how each REF was understood.

Package versions are laid over the environment as it is, installed once into a folder of their own. Their
dependencies are not resolved, so that nothing else changes; requirements that are then unmet are named.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bench.errors import InfrastructureError, UsageError
from bench.gate import SOURCES_VARIABLE
from bench.gate.references import (
    Checkout,
    Installed,
    Interpreter,
    Packages,
    Reference,
    Revision,
    around,
    parse_ref,
)
from bench.io import cache_folder
from bench.records.readings import Caveat
from bench.records.sessions import Kind, SideFacts, SideName
from bench.workers import interrupts

MOST_UNMET = 5  # named; more say little more
HASH_SEED = "0"
_COMPLETE = ".complete"
_AS_IT_IS = "the environment as it is"
_BESIDE = frozenset({"tests", "test", "docs", "doc", "examples", "scripts", "benchmarks", "tools"})
"""Folders with an __init__.py that are no part of what a project installs."""


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """Python packages imported from where they lie; ``label`` marks their version, as in 1.0+LABEL."""

    root: Path
    packages: tuple[str, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class Side:
    """How to start one side; ``variables`` are all of its environment."""

    name: SideName
    facts: SideFacts
    python: Path
    variables: Mapping[str, str]
    tree: SourceTree | None = None
    caveats: tuple[Caveat, ...] = ()


@contextlib.contextmanager
def prepared_sides(
    base: str, candidate: str | None = None, *, here: Path | None = None
) -> Iterator[tuple[Side, Side]]:
    """Make both sides ready: overlays installed, worktrees checked out, and removed afterwards.

    Raises ``UsageError`` for a REF that stands for nothing, before anything is made, and
    ``InfrastructureError`` where pip or git fails.
    """
    understood = (parse_ref(base, here), parse_ref(candidate, here))
    with contextlib.ExitStack() as stack:
        yield (
            _prepared("base", base, understood[0], stack),
            _prepared("candidate", candidate, understood[1], stack),
        )


def side_as_is(name: SideName) -> Side:
    """Return the environment as it is."""
    return _prepared(name, None, Installed(), contextlib.ExitStack())


def _prepared(name: SideName, given: str | None, reference: Reference, stack: contextlib.ExitStack) -> Side:
    python, first, tree = Path(sys.executable), None, None
    commit: str | None = None
    notes: Sequence[tuple[str, str]] = ()
    kind: Kind
    match reference:
        case Installed():
            kind, understood = "environment", _AS_IT_IS
        case Interpreter(python=python):
            what = "python" if Path(str(given)).name == python.name else "virtual environment"
            kind, understood = "python", f"the {what} {given}"
        case Packages(pins=pins):
            first = overlay(reference)
            laid = " and ".join(f"{package} {version}" for package, version in pins)
            kind, understood = "packages", f"{_AS_IT_IS}, with {laid} laid over it"
            notes = [("unmet-requirement", sentence) for sentence in _most_telling(unmet(first))]
        case Revision():
            commit = reference.commit
            folder = stack.enter_context(reference.repository.worktree(commit)) / reference.project
            notes = [*_left_out(reference, folder, given)]
            tree = _source_tree(folder, given, f"git.{commit[:12]}")
            kind, understood = "revision", f"revision {given} of this repository, commit {commit[:12]}"
        case Checkout(folder=folder):
            commit, label, at = _state(folder)
            tree = _source_tree(folder, given, label)
            kind, understood = "checkout", f"the folder {given} as it lies there{at}"
    if tree:
        first = tree.root
        imported = ", ".join(tree.packages)
        understood += f": {imported} imported from its sources, of which nothing is built"
    return Side(
        name=name,
        facts=SideFacts(given=given, kind=kind, understood=understood, commit=commit),
        python=python,
        variables=_variables(first, tree, own_python=kind != "python"),
        tree=tree,
        caveats=tuple(Caveat(code=code, message=message) for code, message in notes),
    )


def _most_telling(sentences: Sequence[str]) -> tuple[str, ...]:
    more = len(sentences) - MOST_UNMET
    return (*sentences[:MOST_UNMET], *([f"{more} more requirements are unmet."] if more > 0 else []))


def _left_out(revision: Revision, folder: Path, given: str | None) -> Iterator[tuple[str, str]]:
    """Yield code and sentence of what is no part of a revision. Raises ``UsageError`` where all is not."""
    if not folder.is_dir():
        raise UsageError(
            f"{given} has no folder {revision.project}, which is the project here; run bench elsewhere"
        )
    if revision.repository.dirty:
        yield "dirty-repository", f"Changes that are not committed are no part of {given}."
    if revision.repository.shallow:
        yield "shallow-repository", "The repository is a shallow clone: some revisions are missing."
    if (folder / ".gitmodules").is_file():
        yield "no-submodules", f"Submodules are empty at {given}."


def _state(folder: Path) -> tuple[str | None, str, str]:
    """Return a folder's commit, the label of what lies there, and how it is told."""
    repository = around(folder)
    commit = repository.commit_of("HEAD") if repository else None
    if repository is None or commit is None:
        return None, "folder", ""
    label, told = (".dirty", " with changes that are not committed") if repository.dirty else ("", "")
    return commit, f"git.{commit[:12]}{label}", f", commit {commit[:12]}{told}"


def _source_tree(folder: Path, given: str | None, label: str) -> SourceTree:
    """Return the packages in src/, or else in the folder itself. Raises ``UsageError`` without any."""
    for root in (folder / "src", folder):
        packages = tuple(sorted({path.parent.name for path in root.glob("*/__init__.py")} - _BESIDE))
        if packages:
            return SourceTree(root=root, packages=packages, label=label)
    raise UsageError(
        f"{given} has no Python package in its folder or in src/; install it into a virtual environment and "
        "give that"
    )


def _variables(first: Path | None, tree: SourceTree | None, *, own_python: bool) -> dict[str, str]:
    """Return the variables of a side: ours, with one folder first on the path.

    No current folder on the path: it is often the very project that the other side has another version of.
    One seed of str's hash for both, as the order of sets can change what is measured.
    """
    path = [str(first)] if first else []
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    home = Path(__file__).resolve().parents[2]
    if own_python and str(home) not in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
        path.append(str(home))  # a checkout, which may have been found through the current folder
    variables = {"PYTHONHASHSEED": HASH_SEED} | os.environ
    variables |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    if tree:
        variables[SOURCES_VARIABLE] = ",".join(tree.packages)
    variables.pop("__PYVENV_LAUNCHER__", None)
    return variables


def overlay(packages: Packages) -> Path:
    """Return the folder that holds the packages, installing them first if need be.

    Its name says what is installed, and for which python and platform. Raises ``InfrastructureError`` with
    pip's last line where they cannot be had.
    """
    content = repr((packages.pins, sys.implementation.cache_tag, sysconfig.get_platform()))
    names = "-".join(f"{name}-{version}" for name, version in packages.pins)[:80]
    folder = cache_folder() / "overlays" / f"{names}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / _COMPLETE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
                target = Path(temporary) / "target"
                _install([f"{name}=={version}" for name, version in packages.pins], target)
                (target / _COMPLETE).touch()
                target.rename(folder)
    return folder


def _install(pins: Sequence[str], target: Path) -> None:
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--quiet", "--target", str(target)]
    process = subprocess.Popen(  # noqa: S603 - no shell; every pin was checked to be name==version
        [sys.executable, "-m", "pip", "install", *options, *pins],
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
        errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
        last = errors[-1].removeprefix("ERROR: ").strip() if errors else "it said nothing"
        raise InfrastructureError(
            f"pip cannot install {', '.join(pins)} ({last.rstrip('.')}); check the versions, or give "
            "a virtual environment that has them"
        )


def unmet(folder: Path, beneath: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a sentence for each requirement of or on the overlay's packages that is left unmet.

    Metadata only, as ``pip check`` does it. ``beneath`` is the path it lies over, this process's by default.
    """
    over = _by_name([str(folder)])
    everything = _by_name(sys.path if beneath is None else beneath) | over
    sentences = []
    for name, distribution in sorted(everything.items()):
        for requirement in _requirements(distribution):
            needed = canonicalize_name(requirement.name)
            found = everything.get(needed)
            met = found is not None and requirement.specifier.contains(found.version, prereleases=True)
            if met or (name not in over and needed not in over):
                continue
            there = f"{needed} {found.version} is there" if found is not None else "it is not installed"
            sentences.append(
                f"{name} {distribution.version} needs {requirement.name}{requirement.specifier}, "
                f"and {there}; dependencies of laid-over packages are not resolved."
            )
    return tuple(sentences)


def _by_name(path: Sequence[str]) -> dict[str, Distribution]:
    """Return distributions by canonical name; the first on the path wins, as it does in an import."""
    found = [(each.metadata["Name"], each) for each in distributions(path=[*path])]
    return {canonicalize_name(name): each for name, each in reversed(found) if name}


def _requirements(distribution: Distribution) -> Iterator[Requirement]:
    """Yield what a distribution needs here, extras left out."""
    for text in distribution.requires or ():
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield requirement
