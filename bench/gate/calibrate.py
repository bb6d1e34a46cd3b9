"""The environment as it is against itself: how far runs spread when nothing changed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import InfrastructureError
from bench.gate.begin import SittingOptions
from bench.gate.logbook import utc_now
from bench.gate.observe import GateObserver
from bench.gate.process import SERVE
from bench.gate.sides import side_as_is
from bench.gate.sitting import run_sitting
from bench.io import write_json
from bench.records.calibrations import (
    CALIBRATION_FILE,
    CalibratedCell,
    CalibratedGroup,
    Calibration,
    samples,
)
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.sittings import SIDES, SideName, SittingRecords
from bench.scenario.gate import GateSpec
from bench.scenario.types import Cell


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Where the calibration goes, and how much is run: ``repeats`` runs of each of two sides in each sitting.

    ``gate`` says what the sides take turns at: a gate's noise is learnt as it is met.
    Each side of each sitting is a group. Two sittings of three repeats are four groups of three runs: eight
    degrees of freedom, and more would not weigh more (``MOST_PRIOR_DEGREES``, ``analysis/moderated.py``).
    """

    folder: Path
    sittings: int = 2
    repeats: int = 3
    gate: GateSpec = field(default_factory=GateSpec)
    trust_remote_code: bool = False
    command: tuple[str, ...] = SERVE


def calibrate(
    cells: Sequence[Cell], options: CalibrateOptions, observer: GateObserver | None = None
) -> Calibration:
    """Run every cell on two sides that are the same, write ``calibration.json``, and return it.

    The records lie in a folder for each sitting beside it. Raises what ``run_sitting`` raises, and
    ``InfrastructureError`` where no cell could be measured.
    """
    sittings = [
        run_sitting(
            cells,
            (side_as_is("base"), side_as_is("candidate")),
            _never_decided,
            SittingOptions(
                folder=options.folder / "sittings",
                looks=(options.repeats,),
                gate=options.gate,
                trust_remote_code=options.trust_remote_code,
                command=options.command,
            ),
            observer,
        )
        for _ in range(options.sittings)
    ]
    calibration = calibration_of(cells, sittings)
    write_json(options.folder / CALIBRATION_FILE, calibration)
    return calibration


def _never_decided(records: Mapping[SideName, Sequence[Record]], repeats: int) -> Collection[str]:
    """Judge nothing: the number of repeats is fixed."""
    del records, repeats
    return ()


def calibration_of(cells: Sequence[Cell], sittings: Sequence[SittingRecords]) -> Calibration:
    """Return what sittings of unchanged code say. Raises ``InfrastructureError`` where all of it failed."""
    calibrated, caveats = [], []
    for cell in cells:
        groups = tuple(
            CalibratedGroup(sitting=number, side=side, runs=tuple(samples(record) for record in made))
            for number, sitting in enumerate(sittings, start=1)
            for side in SIDES
            if (made := _measured(sitting.records[side], cell))
        )
        if groups:
            calibrated.append(CalibratedCell(cell=cell.id, digest=cell.digest, groups=groups))
        else:
            message = f"{cell.id} did not run to its end, so its noise is not known."
            caveats.append(Caveat(code="not-calibrated", message=message))
    facts = sittings[0].sitting.base
    if not calibrated or facts.environment is None:
        raise InfrastructureError(
            "no cell ran to its end, so nothing could be calibrated; see the records in "
            f"{sittings[0].folder}, and bench doctor"
        )
    devices = (record.measurement.device for record in sittings[0].records["base"])
    return Calibration(
        scenario=cells[0].scenario,
        made_at=utc_now(),
        environment=facts.environment,
        cuda_name=next((device.cuda_name for device in devices if device), None),
        interleave="steps" if sittings[0].sitting.by_steps else "runs",
        cells=tuple(calibrated),
        caveats=tuple(caveats),
    )


def _measured(records: Sequence[Record], cell: Cell) -> list[Record]:
    return [record for record in records if record.cell.id == cell.id and record.outcome == "ok"]
