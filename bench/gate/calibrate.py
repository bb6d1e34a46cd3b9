"""The environment as it is against itself: how far runs spread when nothing changed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import InfrastructureError
from bench.gate.process import SERVE
from bench.gate.session import SessionOptions, run_session
from bench.gate.session_log import Tell, ignore, utc_now
from bench.gate.sides import side_as_is
from bench.io import write_json
from bench.records.derived_metrics import read_metrics, read_samples
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.sessions import (
    CALIBRATION_FILE,
    SIDES,
    CalibratedCell,
    CalibratedGroup,
    Calibration,
    SittingRecords,
)
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec

if TYPE_CHECKING:
    from bench.stats.power import NoiseRow


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Where the calibration goes, and how much is run: ``repeats`` runs of each of two sides in each session.

    ``gate`` says what the sides take turns at: a gate's noise is learnt as it is met.
    Each side of each session is a group. Two sessions of three repeats are four groups of three runs: eight
    degrees of freedom, and more would not weigh more (``MOST_PRIOR_DEGREES``, ``stats/noise.py``).
    """

    folder: Path
    sittings: int = 2
    repeats: int = 3
    gate: GateSpec = field(default_factory=GateSpec)
    trust_remote_code: bool = False
    command: tuple[str, ...] = SERVE


def calibrate(cells: Sequence[Cell], options: CalibrateOptions, tell: Tell = ignore) -> Calibration:
    """Run every cell on two sides that are the same, write ``calibration.json``, and return it.

    The records lie in a folder for each session beside it. Raises what ``run_session`` raises, and
    ``InfrastructureError`` where no cell could be measured.
    """
    sessions = [
        run_session(
            cells,
            (side_as_is("base"), side_as_is("candidate")),
            lambda _records, _repeats: (),  # the number of repeats is fixed
            SessionOptions(
                folder=options.folder / "sittings",
                looks=(options.repeats,),
                gate=options.gate,
                trust_remote_code=options.trust_remote_code,
                command=options.command,
            ),
            tell,
        )
        for _ in range(options.sittings)
    ]
    calibration = calibration_of(cells, sessions)
    write_json(options.folder / CALIBRATION_FILE, calibration)
    return calibration


def noise_lines(rows: "Iterable[NoiseRow]") -> Iterator[str]:
    """Yield a line for each row: the spread, and what is found after how many repeats."""
    for row in rows:
        found = ", ".join(
            f"{share:.1%} with {look} repeats"
            for look, share in zip(row.looks, row.detectable_shares, strict=True)
        )
        needed = "more than a hundred" if row.repeats_needed is None else row.repeats_needed
        yield (
            f"{row.cell} {row.metric}: spread {row.spread_share:.1%} from run to run "
            f"({row.degrees_of_freedom} degrees of freedom); finds a change of {found}; "
            f"{row.tolerance_share:.1%} takes {needed} repeats"
        )


def calibration_of(cells: Sequence[Cell], sessions: Sequence[SittingRecords]) -> Calibration:
    """Return what sessions of unchanged code say. Raises ``InfrastructureError`` where all of it failed."""
    calibrated, caveats = [], []
    for cell in cells:
        groups = tuple(
            CalibratedGroup(
                sitting=number,
                side=side,
                runs=tuple(read_samples(record, read_metrics(record)) for record in made),
            )
            for number, session in enumerate(sessions, start=1)
            for side in SIDES
            if (made := _measured(session.records[side], cell))
        )
        if groups:
            calibrated.append(CalibratedCell(cell=cell.id, digest=cell.digest, groups=groups))
        else:
            message = f"{cell.id} did not run to its end, so its noise is not known."
            caveats.append(Caveat(code="not-calibrated", message=message))
    facts = sessions[0].sitting.base
    if not calibrated or facts.environment is None:
        raise InfrastructureError(
            "no cell ran to its end, so nothing could be calibrated; see the records in "
            f"{sessions[0].folder}, and bench doctor"
        )
    devices = (record.measurement.device for record in sessions[0].records["base"])
    return Calibration(
        scenario=cells[0].scenario,
        made_at=utc_now(),
        environment=facts.environment,
        cuda_name=next((device.cuda_name for device in devices if device), None),
        interleave="steps" if sessions[0].sitting.by_steps else "runs",
        cells=tuple(calibrated),
        caveats=tuple(caveats),
    )


def _measured(records: Sequence[Record], cell: Cell) -> list[Record]:
    return [record for record in records if record.cell.id == cell.id and record.outcome == "ok"]
