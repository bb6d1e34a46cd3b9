"""A gate from two REFs to its verdicts, and the calibration: how far runs spread where nothing changed."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bench.errors import InfrastructureError, InterruptedByUserError, UsageError
from bench.gate.session import SessionOptions, run_session
from bench.gate.session_log import Tell, ignore, utc_now
from bench.gate.sides import prepared_sides, side_as_is
from bench.io import write_json
from bench.records.derived_metrics import read_metrics, read_samples
from bench.records.environment import read_environment
from bench.records.readings import Caveat
from bench.records.sessions import (
    CALIBRATION_FILE,
    SIDES,
    CalibratedCell,
    CalibratedGroup,
    Calibration,
    SittingRecords,
    require_this_machine,
)
from bench.records.verdicts import Design, Verdicts
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.workers import interrupts

if TYPE_CHECKING:
    from bench.stats.power import NoiseRow

VERDICTS_FILE = "verdicts.json"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smh])")


def gate_references(  # noqa: PLR0913 - what run_session takes, where REFs are, and the noise known beforehand
    cells: Sequence[Cell],
    references: tuple[str, str | None],
    options: SessionOptions,
    tell: Tell = ignore,
    *,
    calibration: Calibration | None = None,
    here: Path | None = None,
) -> tuple[Path, Verdicts]:
    """Run base and candidate in one session and judge them; return the session's folder and the verdicts.

    Both are made ready for it, and only the folder stays. When to look, and whether only exact metrics are of
    interest, is taken from the gate of the options. ``here`` is the folder that REFs are relative to, the
    current one by default. Raises what ``prepared_sides`` and ``run_session`` raise, and ``UsageError`` where
    the calibration is of another machine, or of sides that took turns at something else.
    """
    from bench.compare.gate_report import GateJudge, judge_records  # not for calibrating: they need scipy
    from bench.stats.sequential import policies, rule_of

    gate = options.gate or GateSpec()
    if calibration is not None:
        # Before anything is run; the card is compared once a worker has seen it.
        require_this_machine(calibration, read_environment(), calibration.cuda_name)
        if calibration.interleave != gate.interleave:
            raise UsageError(
                f"the sides of the calibration took turns at {calibration.interleave}, and those of this "
                f"gate take turns at {gate.interleave} (gate.interleave), where noise is another; run bench "
                "calibrate on the scenario as it is"
            )
    varying = any(each.gated and each.metric.kind == "statistical" for each in policies(gate).values())
    looks = rule_of(gate).looks if varying else (1,)
    by_steps = varying and gate.interleave == "steps"
    design: Design = "one sitting by steps" if by_steps else "one sitting"
    judge = GateJudge(gate=gate, design=design, looks=looks, calibration=calibration)
    options = replace(options, gate=gate, looks=looks, exact_only=not varying)
    with interrupts.caught():
        try:
            with prepared_sides(*references, here=here) as sides:
                session = run_session(cells, sides, judge, options, tell)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before anything was measured") from None
    verdicts = judge_records(session, calibration)
    if calibration is not None:
        write_json(session.folder / CALIBRATION_FILE, calibration)
    write_json(session.folder / VERDICTS_FILE, verdicts)
    return session.folder, verdicts


def seconds(text: str) -> float:
    """Return a duration such as 90s, 30m or 1.5h in seconds. Raises ``UsageError`` for anything else."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"invalid duration {text!r} for --budget; write for example 90s, 30m or 1.5h")
    return float(found[1]) * _SECONDS[found[2]]


def with_repeats(gate: GateSpec, most: int | None) -> GateSpec:
    """Return the gate with at most so many runs of each side. Raises ``UsageError`` for fewer than two."""
    if most is None:
        return gate
    repeats = {"repeats": min(gate.repeats, most), "max_repeats": most}
    try:
        return GateSpec.model_validate(gate.model_dump() | repeats)
    except ValidationError:
        raise UsageError(f"--repeats {most} is out of range; give from 2 to 1000") from None


def calibrate(
    cells: Sequence[Cell], options: SessionOptions, tell: Tell = ignore, *, sittings: int = 2
) -> Calibration:
    """Run every cell on two sides that are the same, write ``calibration.json``, and return it.

    The records lie in a folder for each session beside it. The options' gate says what the sides take turns
    at, as a gate's noise is learnt as it is met; after its only look nothing is undecided. Each side of each
    session is a group: two sessions of three repeats are four groups of three runs, with eight degrees of
    freedom, and more would not weigh more (``MOST_PRIOR_DEGREES``, ``stats/noise.py``). Raises what
    ``run_session`` raises, and ``InfrastructureError`` where no cell could be measured.
    """
    sides = side_as_is("base"), side_as_is("candidate")
    within = replace(options, folder=options.folder / "sittings")
    sessions = [run_session(cells, sides, lambda *_: (), within, tell) for _ in range(sittings)]
    calibration = calibration_of(cells, sessions)
    write_json(options.folder / CALIBRATION_FILE, calibration)
    return calibration


def calibration_of(cells: Sequence[Cell], sessions: Sequence[SittingRecords]) -> Calibration:
    """Return what sessions of unchanged code say. Raises ``InfrastructureError`` where all of it failed."""
    calibrated, caveats = [], []
    for cell in cells:
        made = [
            (
                number,
                side,
                [
                    record
                    for record in session.records[side]
                    if record.cell.id == cell.id and record.outcome == "ok"
                ],
            )
            for number, session in enumerate(sessions, start=1)
            for side in SIDES
        ]
        groups = tuple(
            CalibratedGroup(
                sitting=number,
                side=side,
                runs=tuple(read_samples(record, read_metrics(record)) for record in records),
            )
            for number, side, records in made
            if records
        )
        if groups:
            calibrated.append(CalibratedCell(cell=cell.id, digest=cell.digest, groups=groups))
        else:
            message = f"{cell.id} did not run to its end, so its noise is not known."
            caveats.append(Caveat(code="not-calibrated", message=message))
    first = sessions[0]
    if not calibrated or first.sitting.base.environment is None:
        raise InfrastructureError(
            f"no cell ran to its end, so nothing could be calibrated; see the records in {first.folder}, and "
            "bench doctor"
        )
    devices = (record.measurement.device for record in first.records["base"])
    return Calibration(
        scenario=cells[0].scenario,
        made_at=utc_now(),
        environment=first.sitting.base.environment,
        cuda_name=next((device.cuda_name for device in devices if device), None),
        interleave="steps" if first.sitting.by_steps else "runs",
        cells=tuple(calibrated),
        caveats=tuple(caveats),
    )


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
