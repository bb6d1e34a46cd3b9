"""A sitting as stored: two sides run in turn, in which order, when, and why it ended.

A folder holds ``sitting.json`` and two results folders, ``base`` and ``candidate``, each with the discarded
warm-up runs in a subfolder. Nothing here is a verdict: it can be computed again from the records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from bench.io import read_json
from bench.records.readings import Caveat, Count, Positive, Stored
from bench.records.records import Environment, Outcome, Record
from bench.records.store import load_records, record_file_name
from bench.scenario.gate import GateSpec

SITTING_VERSION: Final = 1
SITTING_FILE = "sitting.json"
WARM_UP_FOLDER = "warm-up"

SideName = Literal["base", "candidate"]
SIDES: tuple[SideName, SideName] = ("base", "candidate")
Kind = Literal["environment", "python", "packages", "revision", "checkout"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.json$", max_length=255)]


class SideFacts(Stored):
    """What one side is: how its REF was understood, and what it turned out to have installed."""

    given: str | None = Field(None, description="As given; None for the environment as it is.")
    kind: Kind
    understood: str = Field(description="What that was taken for, in words.")
    commit: str | None = None
    environment: Environment | None = Field(None, description="None until the side was opened.")


class SittingRun(Stored):
    """One run in its place. ``repeat`` counts pairs of runs from 1; a discarded warm-up has 0.

    A *check* says whether exact metrics repeat; a run that others spoilt (*contaminated*) is followed by
    another of the same repeat.
    """

    cell: str
    side: SideName
    purpose: Literal["warm-up", "measured", "check"]
    repeat: Count
    started_at: str = Field(description="UTC, ISO 8601.")
    total_ns: Count
    outcome: Outcome
    file: FileName


class Sitting(Stored):
    """Who was compared and how the sitting went; ``runs`` are in the order in which they were made."""

    sitting_version: Literal[1] = SITTING_VERSION
    scenario: str
    cells: tuple[str, ...] = Field(description="Ids, in the order of the scenario.")
    base: SideFacts
    candidate: SideFacts
    looks: tuple[Positive, ...] = Field(description="Repeats after which the sitting could end.")
    exact_only: bool = Field(default=False, description="Only metrics without noise were of interest.")
    gate: GateSpec | None = Field(None, description="What it was judged by, so that it can be again.")
    budget_s: float | None = None
    started_at: str
    resumed_at: tuple[str, ...] = ()
    ended_at: str | None = None
    stopped: Literal["decided", "all repeats", "budget"] | None = None
    runs: tuple[SittingRun, ...] = ()
    caveats: tuple[Caveat, ...] = ()

    @property
    def by_steps(self) -> bool:
        """Whether the sides took turns at steps, not at runs."""
        return self.gate is not None and self.gate.interleave == "steps" and not self.exact_only

    def facts(self, side: SideName) -> SideFacts:
        """Return what a side is."""
        return self.base if side == "base" else self.candidate


@dataclass(frozen=True, kw_only=True)
class SittingRecords:
    """A sitting with the records that count, by side, in the order run: no warm-up, none that was redone."""

    folder: Path
    sitting: Sitting
    records: Mapping[SideName, tuple[Record, ...]]
    problems: tuple[str, ...] = ()


def counted_runs(runs: Sequence[SittingRun]) -> tuple[SittingRun, ...]:
    """Return the runs that count: of each cell, side and repeat the last, without warm-ups."""
    last = {(run.cell, run.side, run.repeat, run.purpose): run for run in runs if run.purpose != "warm-up"}
    return tuple(last.values())


def load_sitting(folder: Path) -> SittingRecords:
    """Read a sitting and its records; a record that is missing or damaged is named in ``problems``.

    Raises ``UsageError`` where there is no sitting.
    """
    sitting = read_json(folder / SITTING_FILE, Sitting, "a sitting", "run bench gate again")
    records: dict[SideName, tuple[Record, ...]] = {}
    problems: list[str] = []
    for side in SIDES:
        loaded = load_records(folder / side)
        problems += loaded.problems
        by_file = {record_file_name(record): record for record in loaded.records}
        wanted = [run.file for run in counted_runs(sitting.runs) if run.side == side]
        problems += [f"{folder / side / file}: is missing" for file in wanted if file not in by_file]
        records[side] = tuple(by_file[file] for file in wanted if file in by_file)
    return SittingRecords(folder=folder, sitting=sitting, records=records, problems=tuple(problems))
