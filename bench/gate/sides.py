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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bench.errors import InfrastructureError, UsageError
from bench.gate.own_sources import VARIABLE
from bench.gate.references import (
    Checkout,
    Installed,
    Interpreter,
    Packages,
    Reference,
    Repository,
    Revision,
    around,
    parse_ref,
)
from bench.io import cache_folder
from bench.records.readings import Caveat
from bench.records.sessions import SideFacts, SideName
from bench.workers import interrupts

MOST_UNMET = 5  # named; more say little more
HASH_SEED = "0"
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
            _prepare("base", base, understood[0], stack),
            _prepare("candidate", candidate, understood[1], stack),
        )


def side_as_is(name: SideName) -> Side:
    """Return the environment as it is."""
    return Side(
        name=name,
        facts=SideFacts(kind="environment", understood="the environment as it is"),
        python=Path(sys.executable),
        variables=_variables(),
    )


def _prepare(name: SideName, given: str | None, reference: Reference, stack: contextlib.ExitStack) -> Side:
    match reference:
        case Installed():
            return side_as_is(name)
        case Interpreter(python=python):
            return _interpreter(name, given, python)
        case Packages():
            return _laid_over(name, given, reference)
        case Revision(repository=repository):
            folder = stack.enter_context(repository.worktree(reference.commit)) / reference.project
            return _at_revision(name, given, reference, folder)
        case Checkout(folder=folder):
            return _checkout(name, given, folder)


def _interpreter(name: SideName, given: str | None, python: Path) -> Side:
    understood = (
        f"the python {given}"
        if given and Path(given).name == python.name
        else f"the virtual environment {given}"
    )
    return Side(
        name=name,
        facts=SideFacts(given=given, kind="python", understood=understood),
        python=python,
        variables=_variables(own_python=False),
    )


def _laid_over(name: SideName, given: str | None, packages: Packages) -> Side:
    folder = overlay(packages)
    pins = " and ".join(f"{package} {version}" for package, version in packages.pins)
    sentences = unmet(folder)
    shown = [Caveat(code="unmet-requirement", message=sentence) for sentence in sentences[:MOST_UNMET]]
    if len(sentences) > MOST_UNMET:
        more = f"{len(sentences) - MOST_UNMET} more requirements are unmet."
        shown.append(Caveat(code="unmet-requirement", message=more))
    return Side(
        name=name,
        facts=SideFacts(
            given=given, kind="packages", understood=f"the environment as it is, with {pins} laid over it"
        ),
        python=Path(sys.executable),
        variables=_variables(folder),
        caveats=tuple(shown),
    )


def _at_revision(name: SideName, given: str | None, revision: Revision, folder: Path) -> Side:
    commit = revision.commit
    if not folder.is_dir():
        raise UsageError(
            f"{given} has no folder {revision.project}, which is the project here; run bench elsewhere"
        )
    caveats = []
    if revision.repository.dirty:
        message = f"Changes that are not committed are no part of {given}."
        caveats.append(Caveat(code="dirty-repository", message=message))
    if revision.repository.shallow:
        message = "The repository is a shallow clone: some revisions are missing."
        caveats.append(Caveat(code="shallow-repository", message=message))
    if (folder / ".gitmodules").is_file():
        caveats.append(Caveat(code="no-submodules", message=f"Submodules are empty at {given}."))
    tree = _source_tree(folder, str(given), label=f"git.{commit[:12]}")
    facts = SideFacts(
        given=given,
        kind="revision",
        understood=f"revision {given} of this repository, commit {commit[:12]}: {_imported(tree)}",
        commit=commit,
    )
    return Side(
        name=name,
        facts=facts,
        python=Path(sys.executable),
        variables=_variables(tree.root) | {VARIABLE: ",".join(tree.packages)},
        tree=tree,
        caveats=tuple(caveats),
    )


def _checkout(name: SideName, given: str | None, folder: Path) -> Side:
    repository: Repository | None = around(folder)
    commit = repository.commit_of("HEAD") if repository else None
    label = f"git.{commit[:12]}" if commit else "folder"
    at = f", commit {commit[:12]}" if commit else ""
    if repository is not None and commit and repository.dirty:
        label, at = f"{label}.dirty", f"{at} with changes that are not committed"
    tree = _source_tree(folder, str(given), label=label)
    return Side(
        name=name,
        facts=SideFacts(
            given=given,
            kind="checkout",
            understood=f"the folder {given} as it lies there{at}: {_imported(tree)}",
            commit=commit,
        ),
        python=Path(sys.executable),
        variables=_variables(tree.root) | {VARIABLE: ",".join(tree.packages)},
        tree=tree,
    )


def _imported(tree: SourceTree) -> str:
    return f"{', '.join(tree.packages)} imported from its sources, of which nothing is built"


def _source_tree(folder: Path, given: str, *, label: str) -> SourceTree:
    """Return the packages in src/, or else in the folder itself. Raises ``UsageError`` without any."""
    for root in (folder / "src", folder):
        packages = tuple(sorted({path.parent.name for path in root.glob("*/__init__.py")} - _BESIDE))
        if packages:
            return SourceTree(root=root, packages=packages, label=label)
    raise UsageError(
        f"{given} has no Python package in its folder or in src/; install it into a virtual environment and "
        "give that"
    )


def _variables(first: Path | None = None, *, own_python: bool = True) -> dict[str, str]:
    """Return the variables of a side: ours, with one folder first on the path.

    No current folder on the path: it is often the very project that the other side has another version of.
    One seed of str's hash for both, as the order of sets can change what is measured.
    """
    path = [str(first)] if first else []
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    home = Path(__file__).resolve().parents[2]
    if own_python and str(home) not in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
        path.append(str(home))  # a checkout, which may have been found through the current folder
    variables = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    variables.setdefault("PYTHONHASHSEED", HASH_SEED)
    variables.pop("__PYVENV_LAUNCHER__", None)
    return variables


_COMPLETE = ".complete"


def overlay(packages: Packages) -> Path:
    """Return the folder that holds the packages, installing them first if need be.

    Raises ``InfrastructureError`` with pip's last line where they cannot be had.
    """
    folder = cache_folder() / "overlays" / _key(packages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / _COMPLETE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
                target = Path(temporary) / "target"
                _install(packages, target)
                (target / _COMPLETE).touch()
                target.rename(folder)
    return folder


def _key(packages: Packages) -> str:
    """Return a name for what is installed: the versions, and the python and platform it is for."""
    names = "-".join(f"{name}-{version}" for name, version in packages.pins)[:80]
    content = repr((packages.pins, sys.implementation.cache_tag, sysconfig.get_platform()))
    return f"{names}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _install(packages: Packages, target: Path) -> None:
    pins = [f"{name}=={version}" for name, version in packages.pins]
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
    over = _by_name(distributions(path=[str(folder)]))
    all_ = _by_name(distributions(path=[*(sys.path if beneath is None else beneath)])) | over
    sentences = []
    for name, distribution in sorted(all_.items()):
        for requirement in _requirements(distribution):
            needed = canonicalize_name(requirement.name)
            if name not in over and needed not in over:
                continue
            found = all_.get(needed)
            if found is not None and requirement.specifier.contains(found.version, prereleases=True):
                continue
            there = f"{needed} {found.version} is there" if found is not None else "it is not installed"
            sentences.append(
                f"{name} {distribution.version} needs {requirement.name}{requirement.specifier}, and "
                f"{there}; "
                "dependencies of laid-over packages are not resolved."
            )
    return tuple(sentences)


def _by_name(found: Iterable[Distribution]) -> dict[str, Distribution]:
    """Return distributions by canonical name; the first on the path wins, as it does in an import."""
    named: dict[str, Distribution] = {}
    for distribution in found:
        name = distribution.metadata["Name"]
        if name:
            named.setdefault(canonicalize_name(name), distribution)
    return named


def _requirements(distribution: Distribution) -> list[Requirement]:
    """Return what a distribution needs here, extras left out."""
    found = []
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(requirement)
    return found
