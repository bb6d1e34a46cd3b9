"""Records from several folders and files as one set, each run once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UsageError
from bench.records.store import LoadedRecords, load_records

if TYPE_CHECKING:
    from bench.records.records import Record


def gather(paths: Sequence[Path]) -> LoadedRecords:
    """Return the records of all folders and files in the order given, and what could not be read.

    The same run in two places (copied, or named twice) counts once. Raises UsageError when a path is
    neither a folder nor a record, or when no record is found at all.
    """
    if not paths:
        raise UsageError("name at least one results folder or record file, such as results/smollm2_cpu")
    found: dict[tuple[str, int, str], Record] = {}
    problems: list[str] = []
    for path in paths:
        loaded = load_records(path)
        problems.extend(loaded.problems)
        for record in loaded.records:
            found.setdefault((record.key, record.run, record.started_at), record)
    if not found:
        why = f" ({problems[0]})" if problems else ""
        places = ", ".join(str(path) for path in paths)
        raise UsageError(
            f"{places}: no record found{why}; run `bench run SCENARIO` first, or name its folder"
        )
    return LoadedRecords(records=tuple(found.values()), problems=tuple(problems))
