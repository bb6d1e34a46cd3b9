"""Runs to compare, from wherever they lie: a folder, a file, one side of a sitting, or a git revision."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UsageError
from bench.io import MAX_BYTES, read_json, read_plain_file
from bench.records.git import committed_files
from bench.records.records import decode_record
from bench.records.run_summary import RunSummary, summarise_run
from bench.records.sessions import SIDES, SITTING_FILE, Sitting, counted_runs
from bench.records.step_times import read_step_times
from bench.records.store import diagnose

ReadFile = Callable[[Path], bytes | str]


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """Runs, oldest first or in the order of their sitting, and one line for each file that holds none.

    ``files`` are where the runs lie, in their order. ``sitting`` is the folder of the sitting whose side
    this is, where it is one.
    """

    given: str
    runs: tuple[RunSummary, ...]
    files: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    sitting: Path | None = None


def load_result_set(given: str) -> ResultSet:
    """Read the runs of an existing folder or file, else of ``REV:path``, a path in a git revision.

    Raises ``UsageError`` where there is no run.
    """
    path, sitting = Path(given), None
    if path.is_dir():
        sitting = _sitting_around(path)
        files = _json_files(path) if sitting is None else _counted(path, sitting)
        found = load_files(files, str(path))
    elif path.exists():
        found = load_files([path], str(path.parent))
    elif ":" in given:
        revision, _, inside = given.partition(":")
        contents = committed_files(revision, inside, most_bytes=MAX_BYTES)
        found = _gathered(((name, _read(content, name)) for name, content in contents), given)
    else:
        raise UsageError(
            f"{given} is no results folder, record or revision; name what bench run has written, or REV:path"
        )
    if not found.runs:
        why = f" ({found.problems[0]})" if found.problems else ""
        raise UsageError(f"{given}: no run found{why}; run `bench run SCENARIO` first, or name its folder")
    return replace(found, given=given, sitting=sitting)


def _json_files(folder: Path) -> list[Path]:
    """Return the files that could hold records, sorted by name; names are sorted faster than paths."""
    names = sorted(entry.name for entry in os.scandir(folder))
    return [folder / name for name in names if name.endswith(".json") and not name.startswith(".")]


def load_files(files: Iterable[Path], place: str, read: ReadFile = read_plain_file) -> ResultSet:
    """Read the runs of the files of one folder; ``read`` returns what one holds, or why it is not read."""
    return _gathered(((file.name, _read(read(file), file.name)) for file in files), place)


def _gathered(contents: Iterable[tuple[str, Sequence[RunSummary] | str]], place: str) -> ResultSet:
    """Return the runs of some files, by name, each run once."""
    runs: list[tuple[RunSummary, str]] = []
    problems: list[str] = []
    seen: dict[tuple[str, str, int], str] = {}
    for name, found in contents:
        if isinstance(found, str):
            problems.append(f"{place}/{name}: {found}")
            continue
        for run in found:
            first = seen.setdefault((run.cell_id, run.key, run.run), name)
            if first == name:
                runs.append((run, name))
            else:
                problems.append(f"{place}/{name}: holds the same run as {first}; delete one of them")
    runs.sort(key=lambda found: found[0].started_at)
    return ResultSet(
        given=place,
        runs=tuple(run for run, _ in runs),
        files=tuple(name for _, name in runs),
        problems=tuple(problems),
    )


def _read(content: bytes | str, name: str) -> Sequence[RunSummary] | str:
    """Return the runs of a file: one of a record, several of another tool's; or in one sentence why none."""
    if isinstance(content, str):
        return content
    try:
        return [summarise_run(decode_record(content))]
    except ValueError:
        return read_step_times(content) or diagnose(content, name)


def _sitting_around(folder: Path) -> Path | None:
    """Return the folder of the sitting that this folder is a side of."""
    parent = folder.resolve().parent
    return parent if folder.resolve().name in SIDES and (parent / SITTING_FILE).is_file() else None


def _counted(folder: Path, sitting: Path) -> list[Path]:
    """Return the files of a side's runs that count."""
    runs = read_json(sitting / SITTING_FILE, Sitting, "a sitting", "run bench gate again").runs
    return [folder / run.file for run in counted_runs(runs) if run.side == folder.resolve().name]
