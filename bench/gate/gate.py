"""A gate from two REFs to its verdicts: run a sitting, judge it, leave beside it what it was judged by."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench.compare.gate_report import SessionJudge, judge_records
from bench.errors import UsageError
from bench.gate.begin import SittingOptions
from bench.gate.observe import GateObserver
from bench.gate.process import SERVE
from bench.gate.sitting import run_gate
from bench.io import write_json
from bench.records.calibrations import CALIBRATION_FILE, Calibration, require_this_machine
from bench.records.environment import read_environment
from bench.records.verdicts import Verdicts
from bench.scenario.gate import GateSpec
from bench.scenario.types import Cell
from bench.stats.sequential import policies, rule_of

VERDICTS_FILE = "verdicts.json"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smh])")


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Where sittings go, by what they are judged, and how long they may take."""

    folder: Path
    gate: GateSpec
    calibration: Calibration | None = None
    budget_s: float | None = None
    resume: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = SERVE


def gate_references(
    cells: Sequence[Cell],
    references: tuple[str, str | None],
    options: GateOptions,
    observer: GateObserver | None = None,
    *,
    here: Path | None = None,
) -> tuple[Path, Verdicts]:
    """Run both sides in one sitting and judge them; return the sitting's folder and the verdicts.

    Raises what ``run_gate`` raises, and ``UsageError`` where the calibration is of another machine.
    """
    calibration = options.calibration
    if calibration is not None:
        # Before anything is run; the card is compared once a worker has seen it.
        require_this_machine(calibration, read_environment(), calibration.cuda_name)
        _require_same_turns(calibration, options.gate)
    varying = any(
        each.gated and each.metric.kind == "statistical" for each in policies(options.gate).values()
    )
    looks = rule_of(options.gate).looks if varying else (1,)
    sitting = run_gate(
        cells,
        references,
        SessionJudge(
            gate=options.gate,
            looks=looks,
            by_steps=varying and options.gate.interleave == "steps",
            calibration=calibration,
        ),
        SittingOptions(
            folder=options.folder,
            looks=looks,
            exact_only=not varying,
            gate=options.gate,
            budget_s=options.budget_s,
            resume=options.resume,
            trust_remote_code=options.trust_remote_code,
            command=options.command,
        ),
        observer,
        here=here,
    )
    verdicts = judge_records(sitting, calibration)
    if calibration is not None:
        write_json(sitting.folder / CALIBRATION_FILE, calibration)
    write_json(sitting.folder / VERDICTS_FILE, verdicts)
    return sitting.folder, verdicts


def _require_same_turns(calibration: Calibration, gate: GateSpec) -> None:
    """Raise ``UsageError`` where the sides of the calibration took turns at something else."""
    if calibration.interleave != gate.interleave:
        raise UsageError(
            f"the sides of the calibration took turns at {calibration.interleave}, and those of this gate "
            f"take turns at {gate.interleave} (gate.interleave), where noise is another; run bench calibrate "
            "on the scenario as it is"
        )


def seconds(text: str) -> float:
    """Return a duration such as 90s, 30m or 1.5h in seconds. Raises ``UsageError`` for anything else."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"--budget {text!r} is no duration; write for example 90s, 30m or 1.5h")
    return float(found[1]) * _SECONDS[found[2]]


def with_repeats(gate: GateSpec, most: int | None) -> GateSpec:
    """Return the gate with at most so many runs of each side. Raises ``UsageError`` for fewer than two."""
    if most is None:
        return gate
    try:
        return GateSpec.model_validate(
            gate.model_dump() | {"repeats": min(gate.repeats, most), "max_repeats": most}
        )
    except ValidationError:
        raise UsageError(f"--repeats {most} is out of range; give from 2 to 1000") from None
