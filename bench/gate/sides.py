"""The two sides of a gate made ready: interpreter, path, variables, and how each REF was understood."""

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.gate.overlays import overlay, unmet
from bench.gate.own_sources import VARIABLE
from bench.gate.references import Checkout, Installed, Interpreter, Packages, Reference, Revision, understand
from bench.gate.repository import Repository, around
from bench.records.readings import Caveat
from bench.records.sittings import SideFacts, SideName

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
    understood = (understand(base, here), understand(candidate, here))
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
