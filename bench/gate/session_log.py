"""A session on disk: begun or resumed, what its sides turned out to be, and each run written down as it ends.

A *repeat* is one run of each side; every other repeat begins with the other side, so that a cell's runs go
A B B A A B B A. A drift that is linear in time then adds to both sides alike after every second repeat.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench.errors import UsageError
from bench.gate.process import SideProcess, open_sides, run_together
from bench.gate.protocol import Opening, Ready
from bench.gate.sides import Side
from bench.gate.touched import Touched, imports
from bench.io import write_json
from bench.metrics import METRICS
from bench.records.derived_metrics import read_metrics
from bench.records.readings import Caveat
from bench.records.records import NS_PER_SECOND, Record
from bench.records.sessions import (
    SIDES,
    SITTING_FILE,
    WARM_UP_FOLDER,
    SideName,
    Sitting,
    SittingRun,
    counted_runs,
    load_sitting,
)
from bench.records.store import clear_left_overs, open_folder, record_file_name, write_record
from bench.runner.sweep import MOST_RERUNS
from bench.scenario.cell import Cell
from bench.workers import interrupts

Purpose = Literal["warm-up", "measured", "check"]
Stopped = Literal["decided", "all repeats", "budget"]
Tell = Callable[[str], None]
"""Is told in lines what happens. Must return soon: the session waits for it."""


def ignore(_line: str) -> None:
    """Tell nobody."""


def utc_now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def order_of(repeat: int) -> tuple[SideName, ...]:
    """Return which side runs first in a repeat, counted from 1, and which second."""
    return SIDES if repeat % 2 else SIDES[::-1]


def folder_of_new(sittings: Path) -> Path:
    """Return the folder that a session beginning now is to have, named after the time."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
    return next(sittings / name for name in names if not (sittings / name).exists())


def resumed(sittings: Path, asked: Sitting, cells: Sequence[Cell]) -> tuple[Path, Sitting]:
    """Return the latest session and its folder, to go on with what is asked.

    Raises ``UsageError`` unless it broke off and was asked for alike.
    """
    folders = sorted(path.parent for path in sittings.glob(f"*/{SITTING_FILE}"))
    if not folders:
        raise UsageError(f"there is no session in {sittings} to resume; run it without --resume")
    folder = folders[-1]
    loaded = load_sitting(folder)
    session = loaded.sitting
    if session.ended_at is not None:
        raise UsageError(f"the session in {folder} is complete; run without --resume for another")
    digests = {cell.id: cell.digest for cell in cells}
    made = [record.cell for records in loaded.records.values() for record in records]
    sides = [session.facts(side).model_copy(update={"environment": None}) for side in SIDES]
    changed = {
        "scenario": session.cells != asked.cells or any(cell.digest != digests.get(cell.id) for cell in made),
        "two sides": sides != [asked.base, asked.candidate],
        "bench": session.judge != asked.judge,
        "gate": session.gate != asked.gate,  # or the runs so far could choose their own rule
        "files": bool(loaded.problems),
    }
    if what := next((name for name, different in changed.items() if different), None):
        raise UsageError(
            f"the session in {folder} cannot be resumed: its {what} changed since; run it without --resume"
        )
    message = "The session was broken off and resumed, so runs before and after that are less alike."
    others = [caveat for caveat in session.caveats if caveat.code != "resumed"]
    return folder, session.model_copy(
        update={
            "resumed_at": (*session.resumed_at, utc_now()),
            "budget_s": asked.budget_s,
            "caveats": (*others, Caveat(code="resumed", message=message)),
        }
    )


@dataclass(kw_only=True)
class SessionLog:
    """Has runs made, and writes each down before the next begins.

    ``records`` are all but warm-ups, by side and file.
    """

    folder: Path
    session: Sitting
    processes: Mapping[SideName, SideProcess]
    tell: Tell
    records: dict[tuple[SideName, str], Record] = field(default_factory=dict)
    touched: Touched = field(default_factory=Touched)

    def open(self, opened: Sequence[tuple[SideProcess, Ready]]) -> None:
        """Write down what the sides turned out to be, and read what they have run.

        Raises where they are not what they were asked to be, or not what they were.
        """
        for place in (self.folder / side / inside for side in SIDES for inside in ("", WARM_UP_FOLDER)):
            clear_left_overs(place, self.folder.parent)
        changes: dict[str, object] = {}
        ignore = self.session.gate.ignore if self.session.gate else ()
        self.touched.opened(opened, earlier_runs=bool(self.session.runs), ignore=ignore)
        caveats = list(self.session.caveats)
        for process, ready in opened:
            side = process.side
            before = self.session.facts(side.name)
            if before.environment is not None and before.environment.versions != ready.environment.versions:
                raise UsageError(
                    f"the session in {self.folder} cannot be resumed: versions of the {side.name} changed "
                    "since; run it without --resume"
                )
            changes[side.name] = before.model_copy(update={"environment": ready.environment})
            caveats += [caveat for caveat in imports(side, ready) if caveat not in caveats]
        if self.session.runs:
            for name, records in load_sitting(self.folder).records.items():
                self.records |= {(name, record_file_name(record)): record for record in records}
        self.note(**changes, caveats=tuple(caveats))

    def note(self, **changes: object) -> None:
        """Change the session and write it."""
        self.session = self.session.model_copy(update=changes)
        write_json(self.folder / SITTING_FILE, self.session)

    def end(self, stopped: Stopped) -> None:
        """Say that the session is over, and what that leaves to be known of it."""
        caveats = (*self.session.caveats, *unrepeatable(self.counted()), *self.touched.caveats())
        self.note(ended_at=utc_now(), stopped=stopped, caveats=caveats)

    def left(self, cell_id: str, repeat: int) -> tuple[SideName, ...]:
        """Return which sides have yet to run a cell in a repeat, in order."""
        there = {
            run.side
            for run in self.session.runs
            if (run.cell, run.repeat, run.purpose) == (cell_id, repeat, "measured")
            and run.outcome != "contaminated"
        }
        return tuple(side for side in order_of(repeat) if side not in there)

    def run(self, cell: Cell, sides: Sequence[SideName], repeat: int, purpose: Purpose = "measured") -> None:
        """Have sides run a cell, one after the other; measured ones step by step in turn where asked for.

        A run that others spoilt is kept, and made again at once, twice at most.
        """
        together = self.session.by_steps and purpose == "measured"
        for group in [order_of(repeat)] if together else [(side,) for side in sides]:
            for _ in range(1 + MOST_RERUNS):
                with interrupts.held():  # an interrupt comes before a run's end or after it was written down
                    started_ns = time.monotonic_ns()
                    made = self._make(cell, group, purpose)
                    seen_ns = time.monotonic_ns() - started_ns
                    runs = [self._write(made[side], side, repeat, purpose, seen_ns) for side in made]
                for run, record in zip(runs, made.values(), strict=True):
                    self.tell(_line(run, record))
                if all(run.outcome != "contaminated" for run in runs):
                    break

    def _make(self, cell: Cell, sides: Sequence[SideName], purpose: Purpose) -> Mapping[SideName, Record]:
        earlier = [
            run.side
            for run in self.session.runs
            if run.cell == cell.id and (run.purpose == "warm-up") == (purpose == "warm-up")
        ]
        numbers = {side: earlier.count(side) + 1 for side in sides}
        if len(sides) == 1:
            made = {side: self.processes[side].run(cell, numbers[side]) for side in sides}
        else:
            made = run_together([self.processes[side] for side in sides], cell, numbers)
        for side in sides:
            told = made[side]
            self.touched.ran(side, told.project, told.imported, told.altered)
        return {side: made[side].record for side in sides}

    def _write(
        self, record: Record, side: SideName, repeat: int, purpose: Purpose, seen_ns: int
    ) -> SittingRun:
        """Write a record and its place in the session."""
        folder = self.folder / side / (WARM_UP_FOLDER if purpose == "warm-up" else "")
        write_record(folder, record, under=self.folder.parent)
        run = SittingRun(
            cell=record.cell.id,
            side=side,
            purpose=purpose,
            repeat=repeat,
            started_at=record.started_at,
            total_ns=record.total_ns,
            outcome=record.outcome,
            file=record_file_name(record),
            seen_ns=seen_ns,
            seen_peak_bytes=self.processes[side].seen_peak_bytes,
        )
        if purpose != "warm-up":
            self.records[side, run.file] = record
        self.note(runs=(*self.session.runs, run))
        return run

    def counted(self) -> dict[SideName, tuple[Record, ...]]:
        """Return the records that count so far, by side and in the order run."""
        runs = counted_runs(self.session.runs)
        return {
            side: tuple(self.records[side, run.file] for run in runs if run.side == side) for side in SIDES
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
        took = Counter[tuple[str, int]]()
        for run in self.session.runs:
            if run.cell == cell_id:
                took[run.purpose, run.repeat] += run.total_ns
        return max(took.values(), default=0) / NS_PER_SECOND


@contextmanager
def begun(
    folder: Path,
    session: Sitting,
    sides: Sequence[Side],
    tell: Tell,
    *,
    opening: Opening,
    command: Sequence[str],
) -> Iterator[SessionLog]:
    """Say what the sides are, start them, and give the log of a session of theirs; they end with the block.

    Raises what ``open_sides`` raises.
    """
    for side in sides:
        for sentence in (side.facts.understood, *(caveat.message for caveat in side.caveats)):
            tell(f"{side.name}: {sentence}")
    with open_sides(sides, tell, opening, command) as opened, open_folder(folder):
        processes = {process.side.name: process for process, _ in opened}
        log = SessionLog(folder=folder, session=session, processes=processes, tell=tell)
        log.open(opened)
        yield log


def _line(run: SittingRun, record: Record) -> str:
    what = "warm-up" if run.purpose == "warm-up" else f"repeat {run.repeat}"
    why = f": {record.failure.message}" if record.failure else ""
    took_s = run.total_ns / NS_PER_SECOND
    return f"{run.cell} {what} {run.side}: {run.outcome} after {took_s:.1f} s{why}"


def unrepeatable(records: Mapping[SideName, Sequence[Record]]) -> Iterator[Caveat]:
    """Yield a caveat for each deterministic metric that differs between runs of one cell on one side."""
    exact = {name: metric for name, metric in METRICS.items() if metric.kind == "deterministic"}
    for side, made in records.items():
        by_cell: dict[str, list[dict[str, float | int | None]]] = {}
        for record in made:
            if record.outcome == "ok":
                by_cell.setdefault(record.cell.id, []).append(read_metrics(record))
        for (cell, runs), (name, metric) in itertools.product(by_cell.items(), exact.items()):
            values = {run[name] for run in runs}
            if len(values) > 1:
                shown = ", ".join("none" if each is None else f"{each:,}" for each in sorted(values, key=str))
                message = (
                    f"{name} of {cell} differs between runs of the {side} ({shown} {metric.unit}), so it is "
                    "no exact metric here."
                )
                yield Caveat(code="not-repeatable", message=message)
