"""A gate from two REFs to its verdicts: run a session, judge it, leave beside it what it was judged by."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from bench.compare.gate_report import GateJudge, judge_records
from bench.errors import UsageError
from bench.gate.session import SessionOptions, run_gate
from bench.gate.session_log import Tell, ignore
from bench.io import write_json
from bench.records.environment import read_environment
from bench.records.sessions import CALIBRATION_FILE, Calibration, require_this_machine
from bench.records.verdicts import Verdicts
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.stats.sequential import policies, rule_of

VERDICTS_FILE = "verdicts.json"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smh])")


def gate_references(  # noqa: PLR0913 - what run_gate takes, and the noise known beforehand
    cells: Sequence[Cell],
    references: tuple[str, str | None],
    options: SessionOptions,
    tell: Tell = ignore,
    *,
    calibration: Calibration | None = None,
    here: Path | None = None,
) -> tuple[Path, Verdicts]:
    """Run both sides in one session and judge them; return the session's folder and the verdicts.

    When to look, and whether only exact metrics are of interest, is taken from the gate of the options.
    Raises what ``run_gate`` raises, and ``UsageError`` where the calibration is of another machine.
    """
    gate = options.gate or GateSpec()
    if calibration is not None:
        # Before anything is run; the card is compared once a worker has seen it.
        require_this_machine(calibration, read_environment(), calibration.cuda_name)
        _require_same_turns(calibration, gate)
    varying = any(each.gated and each.metric.kind == "statistical" for each in policies(gate).values())
    looks = rule_of(gate).looks if varying else (1,)
    by_steps = varying and gate.interleave == "steps"
    judge = GateJudge(
        gate=gate,
        design="one sitting by steps" if by_steps else "one sitting",
        looks=looks,
        calibration=calibration,
    )
    options = replace(options, gate=gate, looks=looks, exact_only=not varying)
    session = run_gate(cells, references, judge, options, tell, here=here)
    verdicts = judge_records(session, calibration)
    if calibration is not None:
        write_json(session.folder / CALIBRATION_FILE, calibration)
    write_json(session.folder / VERDICTS_FILE, verdicts)
    return session.folder, verdicts


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
        raise UsageError(f"invalid duration {text!r} for --budget; write for example 90s, 30m or 1.5h")
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
