"""What claims are judged by, read from disk: folders of records, plans, and published measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.claims.cases import Case, cases_of_plan, cases_of_published, cases_of_records
from bench.errors import UsageError
from bench.records.predictions import read_plan
from bench.records.published.rows import shipped_rows
from bench.records.store import load_records

_MEASURED = ("reference", "studies")
_PREDICTED = "predicted"


@dataclass(frozen=True, kw_only=True)
class Material:
    """The cases to judge by, each once, and a line for each file that could not be read."""

    cases: tuple[Case, ...]
    problems: tuple[str, ...]


def committed_paths(results: Path) -> tuple[Path, ...]:
    """Return the folders of records and the plans that a repository keeps below its results folder.

    Raises UsageError where there are none.
    """
    folders = [path for name in _MEASURED for path in sorted((results / name).glob("*")) if path.is_dir()]
    found = (*folders, *sorted((results / _PREDICTED).glob("*.json")))
    if not found:
        raise UsageError(f"{results} holds no reference, studies or predicted results; name folders or plans")
    return found


def read_material(paths: Sequence[Path]) -> Material:
    """Read records of folders or files, plans of ``bench plan --json``, and what ships as published.

    Raises UsageError where a path is neither.
    """
    found: dict[tuple[object, ...], Case] = {}
    problems: list[str] = []
    for path in paths:
        cases, unread = _read(path)
        problems += unread
        for case in cases:
            found.setdefault((case.cell.digest, case.place, case.instrument), case)
    published = cases_of_published(shipped_rows())
    return Material(cases=(*found.values(), *published), problems=tuple(problems))


def _read(path: Path) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    if is_plan(path):
        return cases_of_plan(read_plan(path), path.stem), ()
    loaded = load_records(path)
    return cases_of_records(loaded.records, path.resolve().name), loaded.problems


def is_plan(path: Path) -> bool:
    """Tell whether the first bytes of a plain file are those of a plan; a record has no such member."""
    if path.suffix != ".json" or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return b'"plan_version"' in file.read(200)
