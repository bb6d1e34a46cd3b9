"""The two sides of a gate made ready: interpreter, path, variables, and how each REF was understood.

Both measure with the bench that was started, which is first on their path; what is under test comes next.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UsageError
from bench.gate import SOURCES_VARIABLE
from bench.gate.judge import PACKAGE, holds_bench, only_bench
from bench.gate.references import (
    Reference,
    commit_of,
    is_dirty,
    is_shallow,
    overlay,
    parse_ref,
    repository_around,
    told_of,
    worktree,
)
from bench.records.readings import Caveat
from bench.records.sessions import JUDGED_BY_ITSELF, SideFacts, SideName

HASH_SEED = "0"
_AS_IT_IS = "the environment as it is"
_BESIDE = frozenset(
    {
        "tests",
        "test",
        "docs",
        "doc",
        "examples",
        "scripts",
        "benchmarks",
        "tools",
        "setup",
        "conftest",
        "noxfile",
    }
)
"""Packages and modules of a project's folder that are no part of what it installs."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """How to start one side; ``variables`` are all of its environment.

    ``first`` is the folder with what is under test, ``under_test`` the packages and modules in it that can be
    imported, ``judge`` the folder of the bench that measures, and ``code`` that which a loop of the user's is
    imported from; empty is the current one. ``label`` marks versions of what is imported from its sources, as
    in 1.0+LABEL; empty where nothing is.
    """

    name: SideName
    facts: SideFacts
    python: Path
    variables: Mapping[str, str]
    first: Path | None = None
    under_test: tuple[str, ...] = ()
    judge: Path = PACKAGE.parent
    label: str = ""
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
        first = _prepared("base", base, references[0], stack, has_loop=bool(code))
        second = _prepared("candidate", candidate, references[1], stack, has_loop=bool(code))
        by_itself = holds_bench(first.first) and holds_bench(second.first)
        yield _judged(first, by_itself=by_itself), _judged(second, by_itself=by_itself)


def side_as_is(name: SideName) -> Side:
    """Return the environment as it is."""
    return _judged(_prepared(name, None, parse_ref(None), contextlib.ExitStack()), by_itself=False)


def _prepared(
    name: SideName,
    given: str | None,
    reference: Reference,
    stack: contextlib.ExitStack,
    *,
    has_loop: bool = False,
) -> Side:
    understood, python, code = _AS_IT_IS, Path(sys.executable), Path()
    first: Path | None = None
    under_test: tuple[str, ...] = ()
    label = ""
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
        under_test = tuple(sorted(_importable(first)))
        caveats = [*told_of(first, dict(reference.pins))]
    elif reference.kind == "revision":
        root = stack.enter_context(worktree(reference.repository, reference.commit))
        folder, code = root / reference.path, root / reference.here
        caveats = [*_left_out(reference, folder, given)]
        label = f"git.{reference.commit[:12]}"
        first, under_test = _source_tree(folder, given, needed=not has_loop)
        understood = f"revision {given} of this repository, commit {reference.commit[:12]}"
    elif reference.kind == "checkout":
        code = reference.path
        commit, label, at = _state(code)
        first, under_test = _source_tree(code, given, needed=not has_loop)
        understood = f"the folder {given} as it lies there{at}"
    if label:
        imported = ", ".join([*under_test, *(["the loop"] if has_loop else [])])
        understood += f": {imported} imported from its sources, of which nothing is built"
    return Side(
        name=name,
        facts=SideFacts(given=given, kind=reference.kind, understood=understood, commit=commit),
        python=python,
        variables={},
        first=first,
        under_test=under_test,
        label=label,
        code=str(code) if has_loop and label else "",
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


def _source_tree(folder: Path, given: str | None, *, needed: bool) -> tuple[Path, tuple[str, ...]]:
    """Return src/ or else the folder itself, and what can be imported of it; ``UsageError`` without any."""
    found = {"src": _importable(folder / "src"), ".": _packages(folder) - _BESIDE}
    if needed and not any(found.values()):
        found["."] = {path.stem for path in folder.glob("*.py")} - _BESIDE
    for inside, names in found.items():
        if names or (inside == "." and not needed):
            return folder / inside, tuple(sorted(names))
    raise UsageError(
        f"{given} has no Python package in its folder or in src/; install it into a virtual environment and "
        "give that"
    )


def _packages(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/__init__.py")}


def _importable(folder: Path) -> set[str]:
    """Return the packages, namespace packages and modules in a folder that holds nothing else."""
    paths = [*folder.iterdir()] if folder.is_dir() else []
    modules = {path.name.partition(".")[0] for path in paths if path.suffix in {".py", ".so"}}
    namespaces = {path.name for path in paths if path.is_dir() and any(path.rglob("*.py"))}
    found = _packages(folder) | modules | namespaces
    return {name for name in found - {"bin", "__pycache__"} if name.isidentifier()}


def _judged(side: Side, *, by_itself: bool) -> Side:
    """Return a side with its variables, by which it measures with this bench, or with its own.

    A bench that only one side has is not under test: whoever brings their own would judge themselves.
    """
    caveats = side.caveats
    if by_itself:
        message = (
            f"bench judged by itself: the {side.name} is a finetune-bench and was measured by its own "
            "runner, probes and clock. Only the order of runs, the gate's own look at each process and the "
            "verdicts are those of the bench that was started."
        )
        caveats = (*caveats, Caveat(JUDGED_BY_ITSELF, message))
        return replace(
            side, caveats=caveats, judge=side.first or PACKAGE.parent, variables=_variables(side, [])
        )
    packages = tuple(name for name in side.under_test if name != "bench")
    if packages != side.under_test:
        if not packages and not side.code:
            raise UsageError(
                f"nothing of {side.facts.given} but its bench could be under test, and the other side has "
                "none of its own; to gate finetune-bench, give two revisions or folders of it"
            )
        message = (
            f"The bench of the {side.name} is not used: the other side has none of its own, so both are "
            "measured by the one that was started."
        )
        caveats = (*caveats, Caveat("other-bench", message))
    side = replace(side, caveats=caveats, under_test=packages)
    return replace(side, variables=_variables(side, [str(only_bench())]))


def _variables(side: Side, judge: Sequence[str]) -> dict[str, str]:
    """Return the variables of a side: ours, with the judge and what is under test first on the path.

    No current folder on the path: it is often the very project that the other side has another version of.
    One seed of str's hash for both, as the order of sets can change what is measured.
    """
    path = [*judge, *([str(side.first)] if side.first else [])]
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    variables = {"PYTHONHASHSEED": HASH_SEED} | os.environ
    variables |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    if own := [*(["bench"] if judge else []), *(side.under_test if side.label else [])]:
        variables[SOURCES_VARIABLE] = ",".join(own)
    variables.pop("__PYVENV_LAUNCHER__", None)
    if side.facts.kind == "packages" and not side.code:  # of bench's own cache, to be compiled once
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables
