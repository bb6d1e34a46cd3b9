"""The sitting on disk, kept in step with what is run: each record, and who ran when in which order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench.gate.observe import GateObserver
from bench.gate.process import SideProcess
from bench.gate.schedule import Turn, order_of
from bench.gate.together import run_together
from bench.io import write_json
from bench.records.records import Record
from bench.records.sittings import (
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
from bench.scenario.types import Cell
from bench.workers import interrupts

Purpose = Literal["warm-up", "measured", "check"]
NS_PER_SECOND = 1e9


def utc_now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(kw_only=True)
class Logbook:
    """Has runs made, and writes each down before the next begins; ``records`` holds all, by side and file."""

    folder: Path
    sitting: Sitting
    processes: Mapping[SideName, SideProcess]
    observer: GateObserver
    records: dict[SideName, dict[str, Record]] = field(default_factory=lambda: {side: {} for side in SIDES})

    def run(self, turn: Turn, purpose: Purpose) -> None:
        """Make one run. One that others spoilt is kept, and made again at once, twice at most."""
        for _ in range(1 + MOST_RERUNS):
            self.observer.run_started(turn.cell, turn.side, turn.repeat)
            with interrupts.held():  # an interrupt comes before a run's end or after it was written down
                record, run = self._run_once(turn, purpose)
            self.observer.run_ended(run, record)
            if record.outcome != "contaminated":
                return

    def run_together(self, cell: Cell, repeat: int) -> None:
        """Make a run of each side, step by step in turn. On a CPU nobody else is taken to spoil one."""
        sides = order_of(repeat)
        for side in sides:
            self.observer.run_started(cell, side, repeat)
        numbers = {side: self._earlier(cell, side, warm_up=False) + 1 for side in sides}
        with interrupts.held():
            records = run_together(self.processes, cell, repeat, numbers)
            runs = [
                self._written(Turn(cell=cell, side=side, repeat=repeat), "measured", records[side])
                for side in sides
            ]
        for side, run in zip(sides, runs, strict=True):
            self.observer.run_ended(run, records[side])

    def _run_once(self, turn: Turn, purpose: Purpose) -> tuple[Record, SittingRun]:
        earlier = self._earlier(turn.cell, turn.side, warm_up=purpose == "warm-up")
        record = self.processes[turn.side].run(turn.cell, earlier + 1)
        return record, self._written(turn, purpose, record)

    def _earlier(self, cell: Cell, side: SideName, *, warm_up: bool) -> int:
        """Return how many runs of a cell a side has made."""
        return sum(
            (run.cell, run.side, run.purpose == "warm-up") == (cell.id, side, warm_up)
            for run in self.sitting.runs
        )

    def _written(self, turn: Turn, purpose: Purpose, record: Record) -> SittingRun:
        """Write a record and its place in the sitting."""
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
        self.note(runs=(*self.sitting.runs, run))
        return run

    def note(self, **changes: object) -> None:
        """Change the sitting and write it."""
        self.sitting = self.sitting.model_copy(update=changes)
        write_json(self.folder / SITTING_FILE, self.sitting)

    def counted(self) -> dict[SideName, tuple[Record, ...]]:
        """Return the records that count so far, by side and in the order run."""
        runs = counted_runs(self.sitting.runs)
        return {
            side: tuple(self.records[side][run.file] for run in runs if run.side == side) for side in SIDES
        }

    def all_ran(self, cell_id: str) -> bool:
        """Tell whether every run of a cell that counts so far ended well, or was spoilt by others.

        A warm-up that failed does not count: how the cell ends has yet to be measured.
        """
        return all(
            run.outcome in {"ok", "contaminated"}
            for run in self.sitting.runs
            if run.cell == cell_id and run.purpose != "warm-up"
        )

    def longest_repeat_s(self, cell_id: str) -> float:
        """Return how long a repeat of a cell took at most so far, warm-ups included; 0 if none was made.

        Runs step by step in turn each take as long as both, so a repeat of such is taken for twice as long.
        """
        took: dict[tuple[str, int], int] = {}
        for run in self.sitting.runs:
            if run.cell == cell_id:
                part = (run.purpose, run.repeat)
                took[part] = took.get(part, 0) + run.total_ns
        return max(took.values(), default=0) / NS_PER_SECOND
