"""A session as it goes: the order of its runs, what is told of them, and the files that keep step with both.

A *repeat* is one run of each side; every other repeat begins with the other side, so that a cell's runs go
A B B A A B B A. A drift that is linear in time then adds to both sides alike after every second repeat.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench.errors import InfrastructureError
from bench.gate.process import BEYOND_LIMITS_S, SideProcess, wait_for_any
from bench.gate.sides import Side
from bench.io import write_json
from bench.records.messages import ALONE, StepTurns
from bench.records.records import Record
from bench.records.sessions import (
    SIDES,
    SITTING_FILE,
    WARM_UP_FOLDER,
    SideName,
    Sitting,
    SittingRun,
    counted_runs,
)
from bench.records.store import record_file_name, write_record
from bench.runner.sweep import MOST_RERUNS
from bench.scenario.cell import Cell
from bench.workers import interrupts

Purpose = Literal["warm-up", "measured", "check"]
NS_PER_SECOND = 1e9


def utc_now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A side is ready; its facts say what its REF was taken for."""

    side: Side


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A side begins a run; ``repeat`` 0 is a warm-up, which does not count."""

    cell: Cell
    side: SideName
    repeat: int


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """A record was written."""

    run: SittingRun
    record: Record


@dataclass(frozen=True, kw_only=True)
class Looked:
    """The evidence was looked at after so many repeats; these cells go on."""

    repeats: int
    undecided: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something the user has to know, in one sentence."""

    text: str


Event = Prepared | RunStarted | RunEnded | Looked | Noted
Tell = Callable[[Event], None]
"""Is told of each event. Must return soon: the session waits for it."""


def ignore(_event: Event) -> None:
    """Watch nothing."""


def lines_of(event: Event) -> Iterator[str]:
    """Yield an event as plain lines; a run that starts has none, as its end is near enough."""
    match event:
        case Prepared(side=side):
            yield f"{side.name}: {side.facts.understood}"
            for caveat in side.caveats:
                yield f"{side.name}: {caveat.message}"
        case RunEnded(run=run, record=record):
            what = "warm-up" if run.purpose == "warm-up" else f"repeat {run.repeat}"
            why = f": {record.failure.message}" if record.failure else ""
            took_s = run.total_ns / NS_PER_SECOND
            yield f"{run.cell} {what} {run.side}: {run.outcome} after {took_s:.1f} s{why}"
        case Looked(repeats=repeats, undecided=undecided) if undecided:
            yield f"undecided after repeat {repeats}: {', '.join(sorted(undecided))}"
        case Noted(text=text):
            yield text
        case _:
            pass


_FORTH: tuple[SideName, SideName] = ("base", "candidate")
_BACK: tuple[SideName, SideName] = ("candidate", "base")


def order_of(repeat: int) -> tuple[SideName, SideName]:
    """Return which side runs first in a repeat, counted from 1, and which second."""
    return _FORTH if repeat % 2 else _BACK


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One run to make: which cell, which side, as part of which repeat."""

    cell: Cell
    side: SideName
    repeat: int


def turns(cell: Cell, repeats: Iterable[int], made: Sequence[SittingRun]) -> Iterator[tuple[Turn, ...]]:
    """Yield what is left to run of each repeat of a cell, in order; ``made`` are the runs so far."""
    there = {
        (run.side, run.repeat)
        for run in made
        if run.cell == cell.id and run.purpose == "measured" and run.outcome != "contaminated"
    }
    for repeat in repeats:
        left = [side for side in order_of(repeat) if (side, repeat) not in there]
        if left:
            yield tuple(Turn(cell=cell, side=side, repeat=repeat) for side in left)


def warm_ups(cells: Sequence[Cell]) -> tuple[Turn, ...]:
    """Return one run of each side for the first cell of each model and device, to be discarded.

    The first run after a start reads libraries and weights from the disk that later ones find in memory.
    """
    first = {(cell.device, cell.model.model_dump_json()): cell for cell in reversed(cells)}
    return tuple(
        Turn(cell=cell, side=side, repeat=0)
        for cell in sorted(first.values(), key=cells.index)
        for side in _FORTH
    )


@dataclass(kw_only=True)
class SessionLog:
    """Has runs made, and writes each down before the next begins; ``records`` holds all, by side and file."""

    folder: Path
    session: Sitting
    processes: Mapping[SideName, SideProcess]
    tell: Tell
    records: dict[SideName, dict[str, Record]] = field(default_factory=lambda: {side: {} for side in SIDES})

    def run(self, turn: Turn, purpose: Purpose) -> None:
        """Make one run. One that others spoilt is kept, and made again at once, twice at most."""
        for _ in range(1 + MOST_RERUNS):
            self.tell(RunStarted(cell=turn.cell, side=turn.side, repeat=turn.repeat))
            with interrupts.held():  # an interrupt comes before a run's end or after it was written down
                record, run = self._run_once(turn, purpose)
            self.tell(RunEnded(run=run, record=record))
            if record.outcome != "contaminated":
                return

    def run_together(self, cell: Cell, repeat: int) -> None:
        """Make a run of each side, step by step in turn. On a CPU nobody else is taken to spoil one."""
        sides = order_of(repeat)
        for side in sides:
            self.tell(RunStarted(cell=cell, side=side, repeat=repeat))
        numbers = {side: self._earlier(cell, side, warm_up=False) + 1 for side in sides}
        with interrupts.held():
            records = run_together(self.processes, cell, repeat, numbers)
            runs = [
                self._written(Turn(cell=cell, side=side, repeat=repeat), "measured", records[side])
                for side in sides
            ]
        for side, run in zip(sides, runs, strict=True):
            self.tell(RunEnded(run=run, record=records[side]))

    def _run_once(self, turn: Turn, purpose: Purpose) -> tuple[Record, SittingRun]:
        earlier = self._earlier(turn.cell, turn.side, warm_up=purpose == "warm-up")
        record = self.processes[turn.side].run(turn.cell, earlier + 1)
        return record, self._written(turn, purpose, record)

    def _earlier(self, cell: Cell, side: SideName, *, warm_up: bool) -> int:
        return sum(
            (run.cell, run.side, run.purpose == "warm-up") == (cell.id, side, warm_up)
            for run in self.session.runs
        )

    def _written(self, turn: Turn, purpose: Purpose, record: Record) -> SittingRun:
        """Write a record and its place in the session."""
        warm_up = purpose == "warm-up"
        folder = self.folder / turn.side
        folder = folder / WARM_UP_FOLDER if warm_up else folder
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, record)
        run = SittingRun(
            cell=turn.cell.id,
            side=turn.side,
            purpose=purpose,
            repeat=turn.repeat,
            started_at=record.started_at,
            total_ns=record.total_ns,
            outcome=record.outcome,
            file=record_file_name(record),
        )
        if not warm_up:
            self.records[turn.side][run.file] = record
        self.note(runs=(*self.session.runs, run))
        return run

    def note(self, **changes: object) -> None:
        """Change the session and write it."""
        self.session = self.session.model_copy(update=changes)
        write_json(self.folder / SITTING_FILE, self.session)

    def counted(self) -> dict[SideName, tuple[Record, ...]]:
        """Return the records that count so far, by side and in the order run."""
        runs = counted_runs(self.session.runs)
        return {
            side: tuple(self.records[side][run.file] for run in runs if run.side == side) for side in SIDES
        }

    def all_ran(self, cell_id: str) -> bool:
        """Tell whether every run of a cell that counts so far ended well, or was spoilt by others.

        A warm-up that failed does not count: how the cell ends has yet to be measured.
        """
        return all(
            run.outcome in {"ok", "contaminated"}
            for run in self.session.runs
            if run.cell == cell_id and run.purpose != "warm-up"
        )

    def longest_repeat_s(self, cell_id: str) -> float:
        """Return how long a repeat of a cell took at most so far, warm-ups included; 0 if none was made.

        Runs step by step in turn each take as long as both, so a repeat of such is taken for twice as long.
        """
        took: dict[tuple[str, int], int] = {}
        for run in self.session.runs:
            if run.cell == cell_id:
                part = (run.purpose, run.repeat)
                took[part] = took.get(part, 0) + run.total_ns
        return max(took.values(), default=0) / NS_PER_SECOND


def run_together(
    processes: Mapping[SideName, SideProcess], cell: Cell, repeat: int, numbers: Mapping[SideName, int]
) -> dict[SideName, Record]:
    """Run a cell once on each side, taking turns at steps, and return both records.

    ``numbers`` are those of the runs. A side whose run is over, however it went, leaves the rest to the
    other. Raises ``InfrastructureError`` when a side breaks down, or no pipes can be made.
    """
    first, second = order_of(repeat)
    records: dict[SideName, Record] = {}
    with _pipes() as (paths, ends):
        pipes = dict(zip((first, second), zip(paths, ends, strict=True), strict=True))
        for name, other in ((first, second), (second, first)):
            turns = StepTurns(own_pipe=pipes[name][0], other_pipe=pipes[other][0], first=name == first)
            processes[name].begin(cell, numbers[name], turns)
        deadline_s = time.monotonic() + 2 * cell.limits.timeout_s + BEYOND_LIMITS_S
        while len(records) < len(processes):
            waiting = [process for name, process in processes.items() if name not in records]
            for process in wait_for_any(waiting, deadline_s):
                if (record := process.made()) is not None:
                    records[process.side.name] = record
                    other = second if process.side.name == first else first
                    os.write(pipes[other][1], ALONE)
    return records


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """Give two named pipes that only this user can open, and a descriptor for each.

    Opened here for both reading and writing, so that no worker waits for the other to open its end (fifo(7)).
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-turns-"))
            paths = (str(Path(folder) / "first"), str(Path(folder) / "second"))
            ends = []
            for path in paths:
                os.mkfifo(path, mode=0o600)
                ends.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                stack.callback(os.close, ends[-1])
        except OSError as error:
            raise InfrastructureError(
                f"no named pipes could be made in {tempfile.gettempdir()} for the sides to take turns by "
                f"({error.strerror}); set TMPDIR to a local folder with room"
            ) from error
        yield paths, (ends[0], ends[1])
