"""A gate of predictions: the libraries of both sides are traced without a GPU, once each, and judged.

It is a session like any other, with the same sides, facts and caveats, but what its sides make are plans: no
data, no weights, no repeats, and nothing that has to have the machine for itself. Bench is the same on both.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.compare.gate_report import judge_folder
from bench.compare.predicted_gate import stored_plan
from bench.errors import InfrastructureError, InterruptedByUserError, UsageError, counted
from bench.gate.process import answers_of
from bench.gate.protocol import Opening, PlanAssignment, Planned
from bench.gate.session import VERDICTS_FILE, SessionOptions, new_session
from bench.gate.session_log import Tell, begun, folder_of_new, ignore
from bench.gate.sides import Side, prepared_sides, side_as_is
from bench.io import write_json, write_text
from bench.records.predictions import Plan, is_plan, plan_json, read_plan
from bench.records.sessions import PLAN_FILES, SideName
from bench.records.verdicts import Verdicts
from bench.scenario.cell import Cell
from bench.workers import interrupts

LONGEST_PLAN_S = 24 * 3600.0


def gate_predictions(
    asked: PlanAssignment,
    references: tuple[str, str | None],
    options: SessionOptions,
    tell: Tell = ignore,
    *,
    here: Path | None = None,
) -> tuple[Path, Verdicts]:
    """Predict cells or a script on both sides and judge them; return the session's folder and the verdicts.

    A base that is a plan's file is read, and the candidate predicted as it was. Raises what
    ``prepared_sides`` and ``open_sides`` raise, and ``InfrastructureError`` where nothing was traced of what
    the sides differ in.
    """
    stored = Path(references[0]) if is_plan(Path(references[0])) else None
    if stored is not None:
        asked = _like(read_plan(stored), asked)
    folder = folder_of_new(options.folder)
    with interrupts.caught():
        try:
            with _sides(references, asked, here, stored=stored is not None) as sides:
                exact = replace(options, exact_only=True)
                _predict(asked, sides, stored=stored, folder=folder, options=exact, tell=tell)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before both sides were predicted") from None
    verdicts = judge_folder(folder)
    write_json(folder / VERDICTS_FILE, verdicts)
    for caveat in verdicts.caveats:
        if caveat.code == "nothing-tested":
            raise InfrastructureError(f"{caveat.message} The plans are in {folder}")
    return folder, verdicts


def _like(plan: Plan, asked: PlanAssignment) -> PlanAssignment:
    """Return what is asked of the candidate of a stored plan: the same cards, and the same allocator.

    Raises ``UsageError`` where others were named.
    """
    cards = () if plan.ladder else plan.cards
    if asked.cards and asked.cards != cards:
        names = ", ".join(card.name for card in plan.cards) or "none"
        raise UsageError(f"the stored plan is for other cards ({names}) than those named; leave --gpu out")
    return asked.model_copy(update={"cards": cards, "allocator": plan.allocator})


@contextmanager
def _sides(
    references: tuple[str, str | None], asked: PlanAssignment, here: Path | None, *, stored: bool
) -> Iterator[tuple[Side, ...]]:
    """Make ready the sides that are to be predicted: both, or the candidate of a stored plan."""
    base, candidate = references
    code = [] if not asked.command else [Path(asked.command[asked.command[0] == "-m"]).stem]
    if stored and candidate is None:
        yield (side_as_is("candidate"),)
        return
    with prepared_sides(str(candidate) if stored else base, candidate, here=here, code=code) as sides:
        yield sides[1:] if stored else sides


def _predict(
    asked: PlanAssignment,
    sides: tuple[Side, ...],
    *,
    stored: Path | None,
    folder: Path,
    options: SessionOptions,
    tell: Tell,
) -> None:
    """Write a session: what the sides are, and a plan of each."""
    facts = {side.name: side.facts for side in sides}
    base = facts["base"] if stored is None else stored_plan(stored)
    cells = map(Cell.model_validate_json, asked.cells_json)
    caveats = [caveat for side in sides for caveat in side.caveats]
    session = new_session(asked.scenario, cells, (base, facts["candidate"]), caveats, options)
    opening = Opening(predicts=True)
    with begun(folder, session, sides, tell, opening=opening, command=options.command) as log:
        if stored is not None:
            _write(folder, "base", read_plan(stored))
        started_s = time.monotonic()
        processes = [*log.processes.values()]
        for process in processes:  # at the same time, each on half the cores, where fewer workers share more
            process.send(asked)
        for process, planned in answers_of(Planned, processes, LONGEST_PLAN_S):
            name = process.side.name
            _write(folder, name, planned.plan)
            log.touched.ran(name, planned.project)
            count = counted(len(planned.plan.cells), "cell")
            tell(f"{name}: {count} predicted in {time.monotonic() - started_s:.0f} s")
        log.end("decided")


def _write(folder: Path, side: SideName, plan: Plan) -> None:
    write_text(folder / PLAN_FILES[side], plan_json(plan))
