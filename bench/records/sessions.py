"""Sittings and calibrations as stored; nothing here is a verdict: it can be computed again from the samples.

A sitting is two sides run in turn: in which order, when, and why it ended. Its folder holds ``sitting.json``
and two results folders, ``base`` and ``candidate``, each with the discarded warm-up runs in a subfolder. A
calibration holds samples of unchanged code on one machine, from which its noise is learned; it is small
enough to be committed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bench.errors import UsageError
from bench.io import read_json
from bench.records.derived_metrics import Samples, over_window
from bench.records.readings import Caveat, Count, Positive, Stored
from bench.records.records import SAME_MACHINE, Environment, Outcome, Record
from bench.records.store import load_records, record_file_name
from bench.scenario.gate import GateSpec

JUDGED_BY_ITSELF = "judged-by-itself"
"""Code of the caveat that both sides are a bench and measured themselves."""

SITTING_FILE = "sitting.json"
WARM_UP_FOLDER = "warm-up"
CALIBRATION_FILE = "calibration.json"

SideName = Literal["base", "candidate"]
SIDES: tuple[SideName, SideName] = ("base", "candidate")
PLAN_FILES: dict[SideName, str] = {"base": "base.json", "candidate": "candidate.json"}
"""What lies in the folder of a sitting in the place of records, where its sides were predicted."""
Kind = Literal["environment", "python", "packages", "revision", "checkout", "plan"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.json$", max_length=255)]
SampledRuns = tuple[tuple[float, ...], ...]


class SideFacts(Stored):
    """What one side is: how its REF was understood, and what it turned out to have installed."""

    given: str | None = Field(None, description="As given; None for the environment as it is.")
    kind: Kind
    understood: str = Field(description="What that was taken for, in words.")
    commit: str | None = None
    environment: Environment | None = Field(None, description="None until the side was opened.")

    @property
    def name(self) -> str:
        """How it is called in a verdict."""
        return self.given or "the environment as it is"


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
    seen_ns: Count | None = Field(
        None, description="By the gate's own clock, from asking for it to its record."
    )
    seen_peak_bytes: Count | None = Field(
        None, description="Most resident memory of a process of the side, as the gate itself saw it."
    )


class Sitting(Stored):
    """Who was compared and how the sitting went; ``runs`` are in the order in which they were made."""

    sitting_version: Literal[1] = 1
    scenario: str
    judge: str | None = Field(None, description="The bench that measured and judged, by version and digest.")
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

    @property
    def by_itself(self) -> bool:
        """Whether both sides are a bench and measured themselves."""
        return any(caveat.code == JUDGED_BY_ITSELF for caveat in self.caveats)

    def facts(self, side: SideName) -> SideFacts:
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
        by_file = {}
        if (folder / side).exists():  # not yet, where a gate was killed before a side's first run was over
            loaded = load_records(folder / side)
            problems += loaded.problems
            by_file = {record_file_name(record): record for record in loaded.records}
        wanted = [run.file for run in counted_runs(sitting.runs) if run.side == side]
        problems += [f"{folder / side / file}: is missing" for file in wanted if file not in by_file]
        records[side] = tuple(by_file[file] for file in wanted if file in by_file)
    return SittingRecords(folder=folder, sitting=sitting, records=records, problems=tuple(problems))


class CalibratedGroup(Stored):
    """Runs of one process of one side in one sitting, in the order run; each as samples by metric.

    Speed and step time have a sample for each measured step, other metrics one.
    """

    sitting: Positive
    side: SideName
    runs: tuple[Samples, ...]


class CalibratedCell(Stored):
    """The groups of one cell. ``digest`` is that of the cell: another one's noise is another."""

    cell: str
    digest: str
    groups: tuple[CalibratedGroup, ...]


class Calibration(Stored):
    """What one machine's runs of one scenario spread, its environment against itself."""

    calibration_version: Literal[1] = 1
    scenario: str
    made_at: str = Field(description="UTC, ISO 8601.")
    environment: Environment
    cuda_name: str | None = None
    interleave: Literal["runs", "steps"] = Field("runs", description="What the sides took turns at.")
    cells: tuple[CalibratedCell, ...]
    caveats: tuple[Caveat, ...] = ()

    def runs(self, digest: str, metric: str, *, total: bool = False) -> tuple[SampledRuns, ...]:
        """Return the samples of a metric by sitting and run, both sides together: their code is the same.

        With ``total`` one a run, over all its steps. Empty where the cell was not calibrated.
        """
        both = (tuple(chain(*sides.values())) for sides in self._sampled(digest, metric, total=total))
        return tuple(runs for runs in both if runs)

    def pairs(
        self, digest: str, metric: str, *, total: bool = False
    ) -> tuple[tuple[SampledRuns, SampledRuns], ...]:
        """Return the samples of a metric by sitting: the base's by run, and the candidate's, made in turn."""
        sampled = self._sampled(digest, metric, total=total)
        return tuple((sides["base"], sides["candidate"]) for sides in sampled if len(sides) == len(SIDES))

    def _sampled(self, digest: str, metric: str, *, total: bool) -> Iterable[dict[SideName, SampledRuns]]:
        """Return the runs of each side, by sitting."""
        by_sitting: dict[int, dict[SideName, SampledRuns]] = {}
        for group in next((cell.groups for cell in self.cells if cell.digest == digest), ()):
            sides = by_sitting.setdefault(group.sitting, {})
            made = tuple(
                (over_window(run, metric),) if total else run[metric] for run in group.runs if metric in run
            )
            sides[group.side] = (*sides.get(group.side, ()), *made)
        return by_sitting.values()


def read_calibration(path: Path) -> Calibration:
    """Read a calibration from its file or its folder. Raises ``UsageError`` where there is none."""
    file = path / CALIBRATION_FILE if path.is_dir() else path
    return read_json(file, Calibration, "a calibration", "make one with bench calibrate")


def require_this_machine(
    calibration: Calibration, environment: Environment, cuda_name: str | None = None
) -> None:
    """Raise ``UsageError`` where the calibration is of another machine, card or number of threads."""
    then, now = (
        {name: there.machine.get(name) for name in SAME_MACHINE} | {"CUDA device": cuda} | there.threads
        for there, cuda in ((calibration.environment, calibration.cuda_name), (environment, cuda_name))
    )
    different = [
        f"{name} {then.get(name)} then, {now.get(name)} now"
        for name in then | now
        if then.get(name) != now.get(name)
    ]
    if different:
        raise UsageError(
            f"the calibration of {calibration.scenario} was made on another machine or with other settings "
            f"({'; '.join(different)}), whose noise says nothing here; run bench calibrate on this one"
        )
