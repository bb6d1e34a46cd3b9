"""The verdicts on a sitting, from its records: while it lasts, to know what to run again, and ever after.

The same records, gate and calibration always give the same verdicts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.compare.compare import HowToJudge, Side, compare_sides
from bench.records.calibrations import (
    CALIBRATION_FILE,
    Calibration,
    read_calibration,
    require_this_machine,
)
from bench.records.records import Record
from bench.records.run_facts import facts_of
from bench.records.sittings import SIDES, SideName, Sitting, SittingRecords, counted_runs, load_sitting
from bench.records.store import record_file_name
from bench.records.stored import Caveat
from bench.records.verdicts import Judged, Verdicts
from bench.scenario.gate import GateSpec
from bench.stats.calibrated import noise_of
from bench.stats.exact import OUTCOME
from bench.stats.verdicts import overall

AS_IT_IS = "the environment as it is"


@dataclass(frozen=True, kw_only=True)
class SittingJudge:
    """Judges the records of both sides by one gate. ``looks`` are the repeats after which it could end.

    ``by_steps`` says that the sides took turns at steps.
    """

    gate: GateSpec
    looks: tuple[int, ...]
    by_steps: bool = False
    calibration: Calibration | None = None

    def __call__(self, records: Mapping[SideName, Sequence[Record]], repeats: int) -> frozenset[str]:
        """Return the cells that more runs could decide. What is left after a look is so after the next."""
        del repeats  # the records say it
        return open_cells(self.judge(records))

    def judge(
        self,
        records: Mapping[SideName, Sequence[Record]],
        *,
        given: Mapping[SideName, str] | None = None,
        caveats: Sequence[Caveat] = (),
        problems: Sequence[str] = (),
    ) -> Verdicts:
        """Return every verdict. Raises ``UsageError`` where the calibration is of another machine."""
        base, candidate = (
            Side(given=(given or {}).get(side, side), sittings=(tuple(map(facts_of, records[side])),))
            for side in SIDES
        )
        if self.calibration is not None and records["base"]:
            made = records["base"][0]
            device = made.measurement.device
            require_this_machine(self.calibration, made.environment, device.cuda_name if device else None)
        how = HowToJudge(
            gate=self.gate,
            design="one sitting by steps" if self.by_steps else "one sitting",
            looks=self.looks,
            noise_of=partial(noise_of, self.calibration) if self.calibration else None,
            caveats=tuple(caveats),
        )
        verdicts = compare_sides(base, candidate, how)
        return verdicts.model_copy(
            update={
                "caveats": (*verdicts.caveats, *self._assumption(verdicts)),
                "problems": (*verdicts.problems, *problems),
            }
        )

    def _assumption(self, verdicts: Verdicts) -> Iterator[Caveat]:
        """Say what error rates rest on where nothing is known of the machine (*restless* in a self-check)."""
        varying = any(one.kind == "statistical" for one in verdicts.gated)
        if varying and not self.by_steps and self.calibration is None:
            message = (
                "Without a calibration error rates assume a machine that keeps about one speed; where it "
                'jumps between two, use bench calibrate or gate.interleave = "steps".'
            )
            yield Caveat(code="not-calibrated", message=message)


def open_cells(verdicts: Verdicts) -> frozenset[str]:
    """Return the cells with a gated metric that varies and is undecided, and none that regressed."""
    undecided = {
        one.cell for one in verdicts.gated if (one.kind, one.verdict) == ("statistical", "inconclusive")
    }
    return frozenset(undecided - {one.cell for one in verdicts.gated if one.verdict == "regression"})


def judge_folder(folder: Path) -> Verdicts:
    """Judge a stored sitting by the gate it was made for and the calibration that lies beside it.

    Raises ``UsageError`` where there is no sitting, or its calibration is damaged or of another machine.
    """
    calibrated = (folder / CALIBRATION_FILE).exists()
    return judge_sitting(load_sitting(folder), read_calibration(folder) if calibrated else None)


def judge_sitting(loaded: SittingRecords, calibration: Calibration | None = None) -> Verdicts:
    """Judge a sitting as loaded. A cell that never began has not passed; a missing record is a failure."""
    sitting = loaded.sitting
    judge = SittingJudge(
        gate=sitting.gate or GateSpec(),
        looks=sitting.looks,
        by_steps=sitting.by_steps,
        calibration=calibration,
    )
    verdicts = judge.judge(
        loaded.records,
        given={side: sitting.facts(side).given or AS_IT_IS for side in SIDES},
        caveats=tuple(dict.fromkeys((*sitting.caveats, *_about_its_end(sitting)))),
        problems=loaded.problems,
    )
    judgements = (*_never_begun(sitting, verdicts), *verdicts.judgements)
    failed = dict.fromkeys((*verdicts.failed_cells, *_without_record(loaded)))
    verdict = overall(judgements)
    return verdicts.model_copy(
        update={
            "judgements": judgements,
            "failed_cells": tuple(failed),
            "verdict": "inconclusive" if failed and verdict == "pass" else verdict,
        }
    )


def _about_its_end(sitting: Sitting) -> Iterator[Caveat]:
    if sitting.ended_at is None:
        yield Caveat(code="unfinished", message="The sitting was broken off; run it again with --resume.")
    elif sitting.stopped == "budget":
        yield Caveat(code="budget-spent", message=f"The budget of {sitting.budget_s:g} s ended the sitting.")


def _never_begun(sitting: Sitting, verdicts: Verdicts) -> Iterator[Judged]:
    """Yield a judgement on each cell of the scenario that has no run at all."""
    judged = {one.cell for one in verdicts.judgements}
    for cell in sitting.cells:
        if cell not in judged:
            yield Judged(
                cell=cell,
                metric=OUTCOME,
                kind="outcome",
                verdict="inconclusive",
                gated=True,
                reason="the sitting ended before its turn; give it a larger --budget",
            )


def _without_record(loaded: SittingRecords) -> Iterator[str]:
    """Yield the cells of runs that count and whose record cannot be read."""
    there = {side: {record_file_name(record) for record in loaded.records[side]} for side in SIDES}
    for run in counted_runs(loaded.sitting.runs):
        if run.file not in there[run.side]:
            yield run.cell
