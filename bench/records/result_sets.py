"""Runs to compare, from wherever they lie: a folder, a file, a side of a sitting, a git revision, a baseline.

A baseline is what was accepted as normal, when, and why; nothing of it is ever removed or rewritten.
``results/baselines/NAME/`` holds ``baseline.json``, the history, and a folder of records for each accepted
sitting. It is meant to be committed. Nothing is judged here.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bench.errors import UsageError
from bench.io import (
    MAX_BYTES,
    locked,
    make_folder,
    read_json,
    read_plain_file,
    remove_left_overs,
    whole_folder,
    write_bytes,
    write_json,
    writing,
)
from bench.records.git import committed_files, said
from bench.records.readings import Positive, Stored
from bench.records.records import decode_record
from bench.records.run_summary import RunSummary, read_step_times, summarise_run
from bench.records.sessions import SIDES, SITTING_FILE, FileName, Sitting, counted_runs
from bench.records.store import collect, json_files
from bench.scenario.types import Name

BASELINE_FILE = "baseline.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """Runs by session, each oldest first or in the order of the sitting, and a line for each file without.

    ``files`` are where the runs lie, in their order. ``sitting`` is the folder of the sitting whose side
    this is, where it is one.
    """

    given: str
    sessions: tuple[tuple[RunSummary, ...], ...]
    files: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    sitting: Path | None = None

    @cached_property
    def runs(self) -> tuple[RunSummary, ...]:
        return tuple(run for session in self.sessions for run in session)


def load_result_set(given: str) -> ResultSet:
    """Read the runs of an existing folder or file, else of ``REV:path``, a path in a git revision.

    Raises ``UsageError`` where there is no run.
    """
    path, sitting = Path(given), None  # the folder of the sitting that this is a side of, where it is one
    if path.exists():
        side = path.resolve()
        if side.name in SIDES and (side.parent / SITTING_FILE).is_file():
            sitting = side.parent
        files = json_files(path) if sitting is None else _counted(path, sitting)
        contents = ((str(file), read_plain_file(file)) for file in files)
    elif ":" in given:
        revision, _, inside = given.partition(":")
        committed = committed_files(revision, inside, most_bytes=MAX_BYTES)
        contents = ((f"{given}/{name}", content) for name, content in committed)
    else:
        raise UsageError(
            f"{given} is no results folder, record or revision; name what bench run has written, or REV:path"
        )
    found = read_files(given, contents)
    if not found.runs:
        why = f" ({found.problems[0]})" if found.problems else ""
        raise UsageError(f"{given}: no run found{why}; run `bench run SCENARIO` first, or name its folder")
    return replace(found, sitting=sitting)


def read_files(given: str, contents: Iterable[tuple[str, bytes | str]]) -> ResultSet:
    """Return the runs in files, given as path and content, or instead of that why it is not read."""
    runs, files, problems = collect(contents, _summaries, lambda run: (run.cell_id, run.key, run.run))
    return ResultSet(given=given, sessions=(runs,), files=files, problems=problems)


def _summaries(content: bytes) -> Sequence[RunSummary]:
    """Return the runs of a file: one of a record, several of another tool's."""
    try:
        return [summarise_run(decode_record(content))]
    except ValueError:
        if runs := read_step_times(content):
            return runs
        raise


def _counted(folder: Path, sitting: Path) -> list[Path]:
    """Return the files of a side's runs that count."""
    runs = read_json(sitting / SITTING_FILE, Sitting, "a sitting", "run bench gate again").runs
    return [folder / run.file for run in counted_runs(runs) if run.side == folder.resolve().name]


class Accepted(Stored):
    """One sitting that was accepted. Those of one ``level`` are days of the same code."""

    number: Positive = Field(le=9999)
    level: Positive
    accepted_at: str = Field(description="UTC, ISO 8601.")
    reason: str = Field(min_length=1, max_length=1000)
    revision: str | None = Field(None, description="The commit checked out when it was accepted.")
    files: dict[FileName, Sha256] = Field(min_length=1, description="Records and what they held.")

    @property
    def folder(self) -> str:
        return f"{self.number:04d}"


class Baseline(Stored):
    """The history of one baseline, oldest first."""

    baseline_version: Literal[1] = 1
    name: Name
    accepted: tuple[Accepted, ...] = ()

    @property
    def level(self) -> int:
        return self.accepted[-1].level if self.accepted else 1

    @property
    def current(self) -> tuple[Accepted, ...]:
        """The sittings that candidates are held against: those of the latest level."""
        return tuple(one for one in self.accepted if one.level == self.level)


def names_of_baselines(root: Path) -> tuple[str, ...]:
    return tuple(sorted(file.parent.name for file in root.glob(f"*/{BASELINE_FILE}")))


@dataclass(frozen=True, kw_only=True)
class BaselineFolder:
    """Where one baseline lies among others."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        """Its folder. Raises ``UsageError`` for a name that is none or leads elsewhere."""
        try:
            TypeAdapter(Name).validate_python(self.name)
        except ValidationError:
            raise UsageError(
                f"{self.name!r} is no name of a baseline; use letters, digits, dots, dashes and underscores"
            ) from None
        path = self.root / self.name
        if path.is_symlink():
            raise UsageError(f"{path} is a link; baselines are plain folders, so remove it")
        return path

    def exists(self) -> bool:
        """Tell whether it has a history, even one that cannot be read."""
        return os.path.lexists(self.path / BASELINE_FILE)

    def read(self) -> Baseline:
        """Return its history. Raises ``UsageError`` where there is none."""
        file = self.path / BASELINE_FILE
        if not self.exists():
            known = ", ".join(names_of_baselines(self.root)) or "none"
            raise UsageError(
                f"there is no baseline {self.name} in {self.root} (there: {known}); "
                f"make one with bench baseline accept RESULTS --name {self.name} --reason TEXT"
            )
        return read_json(file, Baseline, "a baseline", "restore it from git")

    def result_set(self, accepted: Sequence[Accepted]) -> ResultSet:
        """Return the runs of some of its sittings.

        Raises ``UsageError`` where a record is missing or is no longer what was accepted.
        """
        found = [read_files(one.folder, self._contents(one)) for one in accepted]
        return ResultSet(
            given=f"{self.root / self.name} ({', '.join(one.folder for one in accepted)})",
            sessions=tuple(each.runs for each in found),
            problems=tuple(problem for each in found for problem in each.problems),
        )

    def _contents(self, accepted: Accepted) -> Iterator[tuple[str, bytes]]:
        folder = self.path / accepted.folder
        for name, digest in accepted.files.items():
            content = b"" if folder.is_symlink() else read_plain_file(folder / name)
            if isinstance(content, str) or hashlib.sha256(content).hexdigest() != digest:
                raise UsageError(
                    f"{folder / name} is missing or was changed since it was accepted; restore it from git"
                )
            yield str(folder / name), content

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make its folder if need be, and keep everybody else from adding to it meanwhile.

        Raises ``InfrastructureError`` where another does, or the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self._writing():
                make_folder(self.path)
                busy = f"another bench baseline accept is writing to {self.path}; wait for it"
                stack.enter_context(locked(self.path, busy))
                stack.callback(self._remove_if_empty)
                remove_left_overs(self.path)
            yield

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):  # of what has a history, say
            self.path.rmdir()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(str(self.path), "choose another place with --baselines")

    def accept(self, files: Sequence[Path], *, reason: str, new_level: bool) -> Accepted:
        """Add a sitting's records to the baseline, which is made if need be; return the new entry.

        Raises ``UsageError`` without a reason, ``InfrastructureError`` where the records cannot be copied.
        """
        if not reason.strip():
            raise UsageError("a baseline changes for a reason; give it with --reason TEXT")
        baseline = self.read() if self.exists() else Baseline(name=self.name)
        contents: dict[str, bytes] = {}
        for path in files:
            content = read_plain_file(path)
            if isinstance(content, str):
                raise UsageError(f"{path}: {content}")
            contents[path.name] = content
        entry = Accepted(
            number=len(baseline.accepted) + 1,
            level=baseline.level + (new_level and bool(baseline.accepted)),
            accepted_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            reason=reason.strip()[:1000],
            revision=said(Path(), "rev-parse", "HEAD"),
            files={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
        )
        with self._writing(), whole_folder(self.path / entry.folder) as folder:
            for file, content in contents.items():
                write_bytes(folder / file, content)
        # Last, so that what an interrupted attempt leaves behind is no part of the history.
        after = baseline.model_copy(update={"accepted": (*baseline.accepted, entry)})
        write_json(self.path / BASELINE_FILE, after)
        return entry
