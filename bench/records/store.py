"""Records on disk: one JSON file per run, written whole or not at all, read one by one.

A results folder may come from a stranger: nothing outside it is read or written, and a file that is
damaged is named while the others are still read.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.errors import InfrastructureError, UsageError
from bench.io import (
    locked,
    make_folder,
    parse_json,
    read_plain_file,
    remove_left_overs,
    whole_file,
    writing,
)
from bench.records.predictions import Plan, is_plan, read_plan
from bench.records.records import SCHEMA_VERSION, Record, decode_record, encode_record
from bench.records.run_summary import RunSummary

LOCK_NAME = ".lock"
MIN_FREE_BYTES = 16 * 1024**2
Run = TypeVar("Run", Record, RunSummary)
_RECORD_NAME = re.compile(r"--r\d+\.json$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class LoadedRecords:
    """What a folder held: the readable records, oldest first, and one line per file that is not one."""

    records: tuple[Record, ...]
    problems: tuple[str, ...]


def record_file_name(record: Record) -> str:
    """Return ``<cell id>--<8 digits of the key>--r<run>.json`` with every unusual character replaced."""
    return f"{_file_stem(record.cell.id, record.key, record.run)}.json"


def snapshot_file_name(cell_id: str, key: str, run: int) -> str:
    """Return the name of the allocator snapshot that lies beside the record of a run."""
    return f"{_file_stem(cell_id, key, run)}.snapshot.pickle"


def _file_stem(cell_id: str, key: str, run: int) -> str:
    slug = _UNSAFE.sub("-", cell_id).strip(".-")[:150] or "cell"
    return f"{slug}--{_UNSAFE.sub('-', key)[:8]}--r{run}"


@dataclass(frozen=True, kw_only=True)
class OpenFolder:
    """A results folder that no other ``bench run`` writes to meanwhile; ``lock`` is an open descriptor."""

    path: Path
    lock: int

    def write(self, record: Record) -> Path:
        """Write one record as ``write_record`` does, or else keep it where temporary files are.

        Raises ``InfrastructureError``, which says where it was kept, when the folder cannot be written or is
        no longer the one that was opened: removed, moved, or replaced by a link.
        """
        try:
            self._require_the_same()
            return write_record(self.path, record)
        except InfrastructureError as error:
            raise InfrastructureError(f"{error}; {_keep_elsewhere(record)}") from error

    def _require_the_same(self) -> None:
        """Refuse where the lock that lies in the folder is not the one that is held."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self.path / LOCK_NAME), os.fstat(self.lock)):
                return
        raise InfrastructureError(f"the results folder {self.path} was removed or replaced meanwhile")


def _keep_elsewhere(record: Record) -> str:
    """Write a record to a new temporary folder; return in words where it is and what to do with it."""
    try:
        kept = write_record(Path(tempfile.mkdtemp(prefix="bench-kept-")), record)
    except (InfrastructureError, OSError):
        return (
            f"the finished run of {record.cell.id} could not be kept elsewhere either and has to be repeated"
        )
    return f"the finished run was kept: move {kept} into the folder, then run the same command again"


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[OpenFolder]:
    """Make a results folder ready for writing and keep every other ``bench run`` out of it meanwhile.

    A small file is written and removed, so that a full disk is found before hours of measuring. Raises
    ``InfrastructureError`` when the folder cannot be written, its disk is full, or another run holds it.
    """
    with contextlib.ExitStack() as stack:
        with _writing_to(folder):
            make_folder(folder)
            busy = f"another bench run is writing to {folder}; wait for it, or choose another with --results"
            lock = stack.enter_context(locked(folder / LOCK_NAME, busy))
            remove_left_overs(folder)
            free_bytes = shutil.disk_usage(folder).free
            if free_bytes < MIN_FREE_BYTES:
                raise InfrastructureError(
                    f"only {free_bytes} bytes are free on the disk of {folder}; "
                    f"free at least {MIN_FREE_BYTES}, or choose another folder with --results"
                )
            with whole_file(folder / ".write-check.json") as file:
                file.write(b"{}")
            (folder / ".write-check.json").unlink(missing_ok=True)
        yield OpenFolder(path=folder, lock=lock)


def clear_left_overs(folder: Path, under: Path) -> None:
    """Remove what killed writers left in a folder, if it is there; refuse one below ``under`` by a link."""
    if folder.is_dir():
        with _writing_to(folder):
            make_folder(folder, under)
            remove_left_overs(folder)


def _writing_to(folder: Path) -> contextlib.AbstractContextManager[None]:
    return writing(f"to the results folder {folder}", "choose a folder you may write to with --results")


def write_record(folder: Path, record: Record, under: Path = Path()) -> Path:
    """Write one record so that after a crash or a power cut it is there whole or not at all.

    The folder is made if need be; none of its parts below ``under`` may be a link.

    A file of its name that was there before (damaged, say, or of a newer version) is kept as ``NAME.old``.
    Raises ``InfrastructureError`` when the disk is full or the folder cannot be written.
    """
    path = folder / record_file_name(record)
    with _writing_to(folder):
        make_folder(folder, under)
        with whole_file(path, keep_old=True) as file:
            file.write(encode_record(record))
    return path


def load_records(path: Path) -> LoadedRecords:
    """Read the records of a folder (not of its subfolders), or the one record of a file.

    Raises ``UsageError`` when there is neither.
    """
    if not path.is_dir() and not path.is_file():
        raise UsageError(
            f"{path} is neither a results folder nor a record; give one that bench run has written"
        )
    contents = ((str(file), read_plain_file(file)) for file in json_files(path))
    records, _, problems = collect(
        contents, lambda content: [decode_record(content)], lambda record: (record.key, record.run)
    )
    return LoadedRecords(records=records, problems=problems)


def json_files(path: Path) -> list[Path]:
    """Return the files of a folder that could hold records, by name, or the one file."""
    if not path.is_dir():
        return [path]
    # Names are sorted faster than paths.
    names = sorted(entry.name for entry in os.scandir(path))
    return [path / name for name in names if name.endswith(".json") and not name.startswith(".")]


def collect(
    contents: Iterable[tuple[str, bytes | str]],
    read: Callable[[bytes], Sequence[Run]],
    identity: Callable[[Run], object],
) -> tuple[tuple[Run, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the runs in files, oldest first and each once, the name of each one's file, and problems.

    ``contents`` are paths and what lies there, or in a clause why it is not read; ``read`` raises
    ``ValueError`` where that is no run.
    """
    found: list[tuple[Run, str]] = []
    problems: list[str] = []
    seen: dict[object, str] = {}
    for path, content in contents:
        if isinstance(content, str):
            problems.append(f"{path}: {content}")
            continue
        try:
            runs = read(content)
        except ValueError as error:
            problems.append(f"{path}: {diagnose(content, path, error)}")
            continue
        name = path.rpartition("/")[2]
        for run in runs:
            if (first := seen.setdefault(identity(run), name)) == name:
                found.append((run, name))
            else:
                problems.append(f"{path}: holds the same run as {first}; delete one of them")
    found.sort(key=lambda item: item[0].started_at)
    runs, files = zip(*found, strict=True) if found else ((), ())
    return runs, files, tuple(problems)


def diagnose(content: bytes, path: str, error: ValueError) -> str:
    """Say in one clause why the content of a file is not a record of this version; ``error`` is decoding's.

    Only a file of a record's name is said to be deleted: any other may be no file of ours.
    """
    advice = "give files that bench run has written"
    if _RECORD_NAME.search(path):
        advice = "delete it and run the same command again"
    if not content.strip():
        return f"is empty; {advice}"
    try:
        document = parse_json(content.decode())
    except UnicodeDecodeError:
        return f"is not UTF-8 text; {advice}"
    except ValueError as wrong:
        cut = isinstance(wrong, json.JSONDecodeError)
        return f"is {'cut off or not JSON' if cut else f'not a valid record ({wrong})'}; {advice}"
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version is None:
        return "is not a record (it has no schema_version); move it out of the results folder"
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return (
            f"was written by a newer finetune-bench (record version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade finetune-bench"
        )
    return f"is not a valid record ({error}); {advice}"


def gather(paths: Sequence[Path]) -> LoadedRecords:
    """Return the records of all folders and files in the order given, and what could not be read.

    The same run in two places (copied, or named twice) counts once. Raises UsageError when a path is
    neither a folder nor a record, or when no record is found at all.
    """
    if not paths:
        raise UsageError("name at least one results folder or record file, such as results/smollm2_cpu")
    loaded = [load_records(path) for path in paths]
    problems = tuple(problem for each in loaded for problem in each.problems)
    found: dict[tuple[str, int, str], Record] = {}
    for record in (record for each in loaded for record in each.records):
        found.setdefault((record.key, record.run, record.started_at), record)
    if not found:
        why = f" ({problems[0]})" if problems else ""
        places = ", ".join(str(path) for path in paths)
        raise UsageError(
            f"{places}: no record found{why}; run `bench run SCENARIO` first, or name its folder"
        )
    return LoadedRecords(records=tuple(found.values()), problems=problems)


def read_results(paths: Sequence[Path]) -> tuple[LoadedRecords | None, tuple[Plan, ...]]:
    """Return the records and the plans of results folders, record files and plans.

    Raises UsageError where one of them is none of these.
    """
    plans = [path for path in paths if is_plan(path)]
    records = [path for path in paths if path not in plans]
    return gather(records) if records or not plans else None, tuple(read_plan(path) for path in plans)
