"""A session: both sides run cell by cell in turn, one run at a time, until every cell is decided.

Which cells are decided is asked of a judge after each look; nothing is judged here. Everything is on disk as
soon as it is there, so a session that broke off can go on.
"""

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import InterruptedByUserError, UsageError
from bench.gate.process import SERVE, open_sides
from bench.gate.session_log import SessionLog, Tell, folder_of_new, ignore, resumed, utc_now
from bench.gate.sides import Side
from bench.metrics import METRICS
from bench.records.derived_metrics import read_metrics
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.sessions import SIDES, SideName, Sitting, SittingRecords, load_sitting
from bench.records.store import open_folder
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.workers import interrupts

Stopped = Literal["decided", "all repeats", "budget"]
Judge = Callable[[Mapping[SideName, Sequence[Record]], int], Collection[str]]
"""Tells which cells more runs could still decide, from all records that count and the number of repeats."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Where sessions go (each a folder of its own), when to look, and how long it may take.

    ``looks`` are numbers of repeats, rising. ``exact_only`` says that no gated metric varies between runs:
    then each side runs once, and the candidate once more as a check. ``gate`` is kept with the session, for
    whoever judges it again. ``budget_s`` counts from the start; no repeat is begun that would end after it.
    ``resume`` goes on with the latest session where it broke off.
    """

    folder: Path
    looks: tuple[int, ...] = (3, 5, 8)
    exact_only: bool = False
    gate: GateSpec | None = None
    budget_s: float | None = None
    resume: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = SERVE


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
    remote = options.trust_remote_code
    with interrupts.caught():
        try:
            for side in sides:
                for sentence in (side.facts.understood, *(caveat.message for caveat in side.caveats)):
                    tell(f"{side.name}: {sentence}")
            with (
                open_sides(sides, tell, trust_remote_code=remote, command=options.command) as opened,
                open_folder(folder),
            ):
                processes = {process.side.name: process for process, _ in opened}
                log = SessionLog(folder=folder, session=session, processes=processes, tell=tell)
                log.open(opened)
                stopped = _run(cells, log, judge, deadline_s)
                caveats = (*log.session.caveats, *unrepeatable(log.counted()))
                log.note(ended_at=utc_now(), stopped=stopped, caveats=caveats)
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {folder}, and the same command with --resume goes on "
                "there, though a session without a break says more"
            ) from None
    return load_sitting(folder)


def _asked(cells: Sequence[Cell], sides: tuple[Side, Side], options: SessionOptions) -> Sitting:
    """Return a session that has not begun."""
    caveats = [caveat for side in sides for caveat in side.caveats]
    if not options.exact_only:
        message = "The first run of each side and model was made to warm up and is left out."
        caveats.append(Caveat(code="warm-up", message=message))
    return Sitting(
        scenario=cells[0].scenario,
        cells=tuple(cell.id for cell in cells),
        base=sides[0].facts,
        candidate=sides[1].facts,
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


def unrepeatable(records: Mapping[SideName, Sequence[Record]]) -> Iterator[Caveat]:
    """Yield a caveat for each deterministic metric that differs between runs of one cell on one side."""
    exact = {name: metric for name, metric in METRICS.items() if metric.kind == "deterministic"}
    for side, made in records.items():
        by_cell: dict[str, list[dict[str, float | int | None]]] = {}
        for record in made:
            if record.outcome == "ok":
                by_cell.setdefault(record.cell.id, []).append(read_metrics(record))
        for (cell, runs), (name, metric) in itertools.product(by_cell.items(), exact.items()):
            values = {run[name] for run in runs}
            if len(values) > 1:
                shown = ", ".join("none" if each is None else f"{each:,}" for each in sorted(values, key=str))
                message = (
                    f"{name} of {cell} differs between runs of the {side} ({shown} {metric.unit}), so it is "
                    "no exact metric here."
                )
                yield Caveat(code="not-repeatable", message=message)
