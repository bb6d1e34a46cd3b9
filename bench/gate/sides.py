"""The two sides of a gate made ready: interpreter, path, variables, and how each REF was understood."""

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.gate import SOURCES_VARIABLE
from bench.gate.overlay import overlay, told_of
from bench.gate.references import (
    Reference,
    commit_of,
    is_dirty,
    is_shallow,
    parse_ref,
    repository_around,
    worktree,
)
from bench.records.readings import Caveat
from bench.records.sessions import SideFacts, SideName

HASH_SEED = "0"
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
    """How to start one side; ``variables`` are all of its environment.

    ``code`` is the folder that a loop of the user's is imported from; empty is the current one.
    """

    name: SideName
    facts: SideFacts
    python: Path
    variables: Mapping[str, str]
    tree: SourceTree | None = None
    code: str = ""
    caveats: tuple[Caveat, ...] = ()


@contextlib.contextmanager
def prepared_sides(
    base: str, candidate: str | None = None, *, here: Path | None = None, code: Sequence[str] = ()
) -> Iterator[tuple[Side, Side]]:
    """Make both sides ready: overlays installed, worktrees checked out, and removed afterwards.

    ``code`` are the modules of loops that each side imports from its own folder. Raises ``UsageError`` for a
    REF that stands for nothing, before anything is made, and ``InfrastructureError`` where pip or git fails.
    """
    references = parse_ref(base, here, code), parse_ref(candidate, here, code)
    with contextlib.ExitStack() as stack:
        yield (
            _prepared("base", base, references[0], stack, has_loop=bool(code)),
            _prepared("candidate", candidate, references[1], stack, has_loop=bool(code)),
        )


def side_as_is(name: SideName) -> Side:
    """Return the environment as it is."""
    return _prepared(name, None, parse_ref(None), contextlib.ExitStack())


def _prepared(
    name: SideName,
    given: str | None,
    reference: Reference,
    stack: contextlib.ExitStack,
    *,
    has_loop: bool = False,
) -> Side:
    understood, python, first, tree = _AS_IT_IS, Path(sys.executable), None, None
    code = Path()
    commit: str | None = reference.commit or None
    caveats: list[Caveat] = []
    if reference.kind == "python":
        python = reference.path
        what = "python" if Path(str(given)).name == python.name else "virtual environment"
        understood = f"the {what} {given}"
    elif reference.kind == "packages":
        first = overlay(reference.pins)
        laid = " and ".join(f"{package} {version}" for package, version in reference.pins)
        understood += f", with {laid} laid over it"
        caveats = [*told_of(first, dict(reference.pins))]
    elif reference.kind == "revision":
        root = stack.enter_context(worktree(reference.repository, reference.commit))
        folder, code = root / reference.path, root / reference.here
        caveats = [*_left_out(reference, folder, given)]
        tree = _source_tree(folder, given, f"git.{reference.commit[:12]}", needed=not has_loop)
        understood = f"revision {given} of this repository, commit {reference.commit[:12]}"
    elif reference.kind == "checkout":
        code = reference.path
        commit, label, at = _state(code)
        tree = _source_tree(code, given, label, needed=not has_loop)
        understood = f"the folder {given} as it lies there{at}"
    if tree:
        first = tree.root
        imported = ", ".join([*tree.packages, *(["the loop"] if has_loop else [])])
        understood += f": {imported} imported from its sources, of which nothing is built"
    return Side(
        name=name,
        facts=SideFacts(given=given, kind=reference.kind, understood=understood, commit=commit),
        python=python,
        variables=_variables(first, tree, own_python=reference.kind != "python"),
        tree=tree,
        code=str(code) if has_loop and tree else "",
        caveats=tuple(caveats),
    )


def _state(folder: Path) -> tuple[str | None, str, str]:
    """Return a folder's commit, the label of what lies there, and how it is told."""
    home = repository_around(folder)
    commit = commit_of(home, "HEAD") if home else None
    if home is None or commit is None:
        return None, "folder", ""
    label, told = (".dirty", " with changes that are not committed") if is_dirty(home) else ("", "")
    return commit, f"git.{commit[:12]}{label}", f", commit {commit[:12]}{told}"


def _left_out(revision: Reference, folder: Path, given: str | None) -> Iterator[Caveat]:
    """Yield what is no part of a revision. Raises ``UsageError`` where all of the project is not."""
    if not folder.is_dir():
        raise UsageError(
            f"{given} has no folder {revision.path}, which is the project here; run bench elsewhere"
        )
    if is_dirty(revision.repository):
        yield Caveat("dirty-repository", f"Changes that are not committed are no part of {given}.")
    if is_shallow(revision.repository):
        yield Caveat("shallow-repository", "The repository is a shallow clone: some revisions are missing.")
    if (folder / ".gitmodules").is_file():
        yield Caveat("no-submodules", f"Submodules are empty at {given}.")


def _source_tree(folder: Path, given: str | None, label: str, *, needed: bool) -> SourceTree:
    """Return the packages in src/, or else in the folder itself. Raises ``UsageError`` without any needed."""
    for root in (folder / "src", folder):
        packages = tuple(sorted({path.parent.name for path in root.glob("*/__init__.py")} - _BESIDE))
        if packages:
            return SourceTree(root=root, packages=packages, label=label)
    if not needed:
        return SourceTree(root=folder, packages=(), label=label)
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
