"""A session: both sides run cell by cell in turn, one run at a time, until every cell is decided.

A gate is one session from two REFs to its verdicts; a calibration is several of unchanged code, which say how
far runs spread. Which cells are decided is asked of a judge after each look; nothing is judged here.
Everything is on disk as soon as it is there, so a session that broke off can go on.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import InfrastructureError, InterruptedByUserError, UsageError, percent
from bench.gate.judge import judge_name
from bench.gate.process import SERVE
from bench.gate.protocol import Opening
from bench.gate.session_log import (
    SessionLog,
    Stopped,
    Tell,
    begun,
    folder_of_new,
    ignore,
    resumed,
    utc_now,
)
from bench.gate.sides import Side, prepared_sides, side_as_is
from bench.io import write_json
from bench.records.derived_metrics import read_metrics, read_samples
from bench.records.environment import read_environment
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.sessions import (
    CALIBRATION_FILE,
    SIDES,
    CalibratedCell,
    CalibratedGroup,
    Calibration,
    SideFacts,
    SideName,
    Sitting,
    SittingRecords,
    load_sitting,
    require_this_machine,
)
from bench.records.verdicts import Design, Verdicts
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.workers import interrupts

if TYPE_CHECKING:
    from bench.stats.power import NoiseRow

VERDICTS_FILE = "verdicts.json"
Judge = Callable[[Mapping[SideName, Sequence[Record]], int], Collection[str]]
"""Tells which cells more runs could still decide, from all records that count and the number of repeats."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Where sessions go (each a folder of its own), when to look, and how long it may take.

    ``looks`` are numbers of repeats, rising. ``exact_only`` says that no gated metric varies between runs:
    then each side runs once, and the candidate once more as a check. ``gate`` is kept with the session, for
    whoever judges it again. ``budget_s`` counts from the start; no repeat is begun that would end after it.
    ``resume`` goes on with the latest session where it broke off. ``allow_code`` are functions that may be
    loops, of which each side imports its own.
    """

    folder: Path
    looks: tuple[int, ...] = (3, 5, 8)
    exact_only: bool = False
    gate: GateSpec | None = None
    budget_s: float | None = None
    resume: bool = False
    trust_remote_code: bool = False
    allow_code: tuple[str, ...] = ()
    command: tuple[str, ...] = SERVE


def gate_references(
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
    from bench.stats.power import family_of, repeats_asked
    from bench.stats.sequential import policies, rule_of

    gate = options.gate or GateSpec()
    if calibration is not None:
        _require_alike(calibration, gate)
    varying = any(each.gated and each.metric.kind == "statistical" for each in policies(gate).values())
    looks = rule_of(gate).looks if varying else (1,)
    by_steps = varying and gate.interleave == "steps"
    if varying:
        tell(repeats_asked(rule_of(gate), family_of(gate, cells), pairs=by_steps))
    design: Design = "one sitting by steps" if by_steps else "one sitting"
    judge = GateJudge(gate=gate, design=design, looks=looks, calibration=calibration)
    options = replace(options, gate=gate, looks=looks, exact_only=not varying)
    with interrupts.caught():
        try:
            loops = {_top_of(cell.loop.code) for cell in cells if cell.loop.code is not None}
            with prepared_sides(*references, here=here, code=sorted(loops)) as sides:
                _require_scripts(cells, sides)
                session = run_session(cells, sides, judge, options, tell)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before anything was measured") from None
    verdicts = judge_records(session, calibration)
    if calibration is not None:
        write_json(session.folder / CALIBRATION_FILE, calibration)
    write_json(session.folder / VERDICTS_FILE, verdicts)
    return session.folder, verdicts


def _require_scripts(cells: Sequence[Cell], sides: Sequence[Side]) -> None:
    """Raise ``UsageError`` for a script that a side lacks."""
    scripts = [cell.loop.args["command"][0] for cell in cells if cell.loop.driver == "script"]
    for side, script in product(sides, scripts):
        if script != "-m" and not (Path(side.code) / script).is_file():
            raise UsageError(
                f"the {side.name} has no {script}, and each side runs its own; commit it there first, or "
                "name another REF"
            )


def _require_alike(calibration: Calibration, gate: GateSpec) -> None:
    """Refuse it before anything is run; the card is compared once a worker has seen it."""
    require_this_machine(calibration, read_environment(), calibration.cuda_name)
    if calibration.interleave != gate.interleave:
        raise UsageError(
            f"the sides of the calibration took turns at {calibration.interleave}, and those of this "
            f"gate take turns at {gate.interleave} (gate.interleave), where noise is another; run bench "
            "calibrate on the scenario as it is"
        )


def _top_of(code: str) -> str:
    """Return what a folder has to hold, as NAME or NAME.py, to have this code of the user's."""
    return code if "/" in code else code.partition(".")[0]


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
        groups = tuple(
            CalibratedGroup(sitting=number, side=side, runs=runs)
            for number, session in enumerate(sessions, start=1)
            for side in SIDES
            if (
                runs := tuple(
                    read_samples(record, read_metrics(record))
                    for record in session.records[side]
                    if record.cell.id == cell.id and record.outcome == "ok"
                )
            )
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
            f"{percent(share)} with {look} repeats"
            for look, share in zip(row.looks, row.detectable_shares, strict=True)
        )
        needed = "more than a hundred" if row.repeats_needed is None else row.repeats_needed
        yield (
            f"{row.cell} {row.metric}: spread {percent(row.spread_share)} from run to run "
            f"({row.degrees_of_freedom} degrees of freedom); finds a change of {found}; "
            f"{percent(row.tolerance_share)} takes {needed} repeats"
        )


def run_session(
    cells: Sequence[Cell],
    sides: tuple[Side, Side],
    judge: Judge,
    options: SessionOptions,
    tell: Tell = ignore,
) -> SittingRecords:
    """Run the sides in turn until the judge is done, the repeats are, or the budget is spent.

    Raises ``UsageError`` where a side has no suite that can be talked to, or there is nothing to resume;
    ``InfrastructureError`` where a side breaks down; ``InterruptedByUserError`` on Ctrl-C and SIGTERM. What
    was finished by then is on disk.
    """
    deadline_s = None if options.budget_s is None else time.monotonic() + options.budget_s
    session = _asked(cells, sides, options)
    _require_one_at_a_time_on_gpus(cells, session)
    folder = folder_of_new(options.folder)
    if options.resume:
        folder, session = resumed(options.folder, session, cells)
    allowed = Opening(
        trust_remote_code=options.trust_remote_code,
        allow_code=options.allow_code,
        evaluates=any(cell.evaluation.tasks for cell in cells),
    )
    with interrupts.caught():
        try:
            with begun(folder, session, sides, tell, opening=allowed, command=options.command) as log:
                log.end(_run(cells, log, judge, deadline_s))
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {folder}, and the same command with --resume goes on "
                "there, though a session without a break says more"
            ) from None
    return load_sitting(folder)


def _asked(cells: Sequence[Cell], sides: tuple[Side, Side], options: SessionOptions) -> Sitting:
    caveats = [caveat for side in sides for caveat in side.caveats]
    if not options.exact_only:
        message = "The first run of each side and model was made to warm up and is left out."
        caveats.append(Caveat(code="warm-up", message=message))
    return new_session(cells[0].scenario, cells, (sides[0].facts, sides[1].facts), caveats, options)


def new_session(
    scenario: str,
    cells: Iterable[Cell],
    facts: tuple[SideFacts, SideFacts],
    caveats: Iterable[Caveat],
    options: SessionOptions,
) -> Sitting:
    """Return a session of a base and a candidate that has not begun."""
    return Sitting(
        scenario=scenario,
        cells=tuple(cell.id for cell in cells),
        judge=judge_name(),
        base=facts[0],
        candidate=facts[1],
        looks=(1,) if options.exact_only else options.looks,
        exact_only=options.exact_only,
        gate=options.gate,
        budget_s=options.budget_s,
        started_at=utc_now(),
        caveats=tuple(caveats),
    )


def _require_one_at_a_time_on_gpus(cells: Sequence[Cell], session: Sitting) -> None:
    """Raise ``UsageError`` where two models would have to share a GPU."""
    on_gpu = next((cell.id for cell in cells if cell.device == "cuda"), None)
    if on_gpu and session.by_steps:
        raise UsageError(
            f'gate.interleave = "steps" keeps both sides in memory at once, and {on_gpu} runs on a GPU, '
            'whose memory is what is measured; set it to "runs"'
        )


def _run(cells: Sequence[Cell], log: SessionLog, judge: Judge, deadline_s: float | None) -> Stopped:
    """Go from look to look with the cells that are undecided; return why it ended."""
    if log.session.exact_only:
        return _run_exact(cells, log, deadline_s)
    for cell in warm_ups(cells):
        log.run(cell, SIDES, 0, "warm-up")
    going_on, done = list(cells), 0
    for look in log.session.looks:
        for cell in going_on:
            if not _repeat(cell, range(done + 1, look + 1), log, deadline_s):
                return "budget"
        undecided = set(judge(log.counted(), look))
        going_on = [cell for cell in going_on if cell.id in undecided and log.all_ran(cell.id)]
        if not going_on:
            return "decided"
        log.tell(f"undecided after repeat {look}: {', '.join(sorted(cell.id for cell in going_on))}")
        done = look
    return "all repeats"


def warm_ups(cells: Sequence[Cell]) -> list[Cell]:
    """Return the first cell of each model and device, whose first run on each side is to be discarded.

    The first run after a start reads libraries and weights from the disk that later ones find in memory.
    """
    first = {(cell.device, cell.model.model_dump_json()): cell for cell in reversed(cells)}
    return sorted(first.values(), key=cells.index)


def _repeat(cell: Cell, repeats: range, log: SessionLog, deadline_s: float | None) -> bool:
    """Run what is left of these repeats; False where the next would end after the deadline.

    A cell that did not run to its end, on either side, is not repeated: more of the same says nothing.
    """
    for repeat in repeats:
        if not (left := log.left(cell.id, repeat)):
            continue
        if not log.all_ran(cell.id):
            return True
        if deadline_s is not None and time.monotonic() + log.longest_repeat_s(cell.id) > deadline_s:
            return False
        log.run(cell, left, repeat)
    return True


def _run_exact(cells: Sequence[Cell], log: SessionLog, deadline_s: float | None) -> Stopped:
    """Run each side once, and the candidate once more, which shows whether exact metrics repeat."""
    checked = {run.cell for run in log.session.runs if run.purpose == "check"}
    for cell in cells:
        if not _repeat(cell, range(1, 2), log, deadline_s):
            return "budget"
        if cell.id not in checked and log.all_ran(cell.id):
            log.run(cell, ["candidate"], 1, "check")
    return "decided"
