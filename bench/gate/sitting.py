"""One sitting: both sides run cell by cell in turn, one run at a time, until every cell is decided.

Which cells are decided is asked of a judge after each look; nothing is judged here. Everything is on disk as
soon as it is there.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from bench.errors import InterruptedByUserError, UsageError
from bench.gate.begin import SittingOptions, new_sitting, open_logbook, resumed_sitting
from bench.gate.logbook import Logbook, utc_now
from bench.gate.observe import GateObserver, NullGateObserver
from bench.gate.process import open_sides
from bench.gate.repeatable import unrepeatable
from bench.gate.schedule import Turn, turns, warm_ups
from bench.gate.sides import Side, prepared_sides
from bench.records.records import Record
from bench.records.sittings import SideName, SittingRecords, load_sitting
from bench.records.store import open_folder
from bench.scenario.types import Cell
from bench.workers import interrupts

__all__ = ["Judge", "SittingOptions", "run_gate", "run_sitting"]

Stopped = Literal["decided", "all repeats", "budget"]


class Judge(Protocol):
    """Tells which cells more runs could still decide."""

    def __call__(self, records: Mapping[SideName, Sequence[Record]], repeats: int) -> Collection[str]:
        """Return their ids. ``records`` are all so far that count; the look is after so many repeats."""


def run_gate(  # noqa: PLR0913 - what run_sitting takes, and where
    cells: Sequence[Cell],
    references: tuple[str, str | None],
    judge: Judge,
    options: SittingOptions,
    observer: GateObserver | None = None,
    *,
    here: Path | None = None,
) -> SittingRecords:
    """Make ready what the REFs of base and candidate stand for, and run a sitting; only records stay.

    ``here`` is the folder that REFs are relative to, the current one by default. Raises what
    ``prepared_sides`` and ``run_sitting`` raise.
    """
    with interrupts.caught():
        try:
            with prepared_sides(*references, here=here) as sides:
                return run_sitting(cells, sides, judge, options, observer)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before anything was measured") from None


def run_sitting(
    cells: Sequence[Cell],
    sides: tuple[Side, Side],
    judge: Judge,
    options: SittingOptions,
    observer: GateObserver | None = None,
) -> SittingRecords:
    """Run the sides in turn until the judge is done, the repeats are, or the budget is spent.

    Raises ``UsageError`` where a side has no suite that can be talked to, or there is nothing to resume;
    ``InfrastructureError`` where a side breaks down; ``InterruptedByUserError`` on Ctrl-C and SIGTERM. What
    was finished by then is on disk.
    """
    _require_one_at_a_time_on_gpus(cells, options)
    deadline_s = None if options.budget_s is None else time.monotonic() + options.budget_s
    seen = observer or NullGateObserver()
    folder, sitting = (resumed_sitting if options.resume else new_sitting)(cells, sides, options)
    with interrupts.caught():
        try:
            for side in sides:
                seen.understood(side)
            with (
                open_sides(
                    sides, seen.note, trust_remote_code=options.trust_remote_code, command=options.command
                ) as opened,
                open_folder(folder),
            ):
                log = open_logbook(folder, sitting, opened, seen)
                stopped = _sit(cells, log, judge, options, deadline_s)
                caveats = (*log.sitting.caveats, *unrepeatable(log.counted()))
                log.note(ended_at=utc_now(), stopped=stopped, caveats=caveats)
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {folder}, and the same command with --resume goes on "
                "there, though a sitting without a break says more"
            ) from None
    return load_sitting(folder)


def _require_one_at_a_time_on_gpus(cells: Sequence[Cell], options: SittingOptions) -> None:
    """Raise ``UsageError`` where two models would have to share a GPU."""
    on_gpu = next((cell.id for cell in cells if cell.device == "cuda"), None)
    by_steps = options.gate is not None and options.gate.interleave == "steps" and not options.exact_only
    if on_gpu and by_steps:
        raise UsageError(
            f'gate.interleave = "steps" keeps both sides in memory at once, and {on_gpu} runs on a GPU, '
            'whose memory is what is measured; set it to "runs"'
        )


def _sit(
    cells: Sequence[Cell], log: Logbook, judge: Judge, options: SittingOptions, deadline_s: float | None
) -> Stopped:
    """Go from look to look with the cells that are undecided; return why it ended."""
    if options.exact_only:
        return _sit_exact(cells, log, deadline_s)
    for turn in warm_ups(cells):
        log.run(turn, "warm-up")
    going_on, done = list(cells), 0
    for look in options.looks:
        for cell in going_on:
            if not _repeat(cell, range(done + 1, look + 1), log, deadline_s):
                return "budget"
        undecided = set(judge(log.counted(), look))
        going_on = [cell for cell in going_on if cell.id in undecided and log.all_ran(cell.id)]
        log.observer.looked(look, [cell.id for cell in going_on])
        if not going_on:
            return "decided"
        done = look
    return "all repeats"


def _repeat(cell: Cell, repeats: range, log: Logbook, deadline_s: float | None) -> bool:
    """Run what is left of these repeats; False where the next would end after the deadline.

    A cell that did not run to its end, on either side, is not repeated: more of the same says nothing.
    """
    for repeat in turns(cell, repeats, log.sitting.runs):
        if not log.all_ran(cell.id):
            return True
        if deadline_s is not None and time.monotonic() + log.longest_repeat_s(cell.id) > deadline_s:
            return False
        if log.sitting.by_steps:
            log.run_together(cell, repeat[0].repeat)
            continue
        for turn in repeat:
            log.run(turn, "measured")
    return True


def _sit_exact(cells: Sequence[Cell], log: Logbook, deadline_s: float | None) -> Stopped:
    """Run each side once, and the candidate once more, which shows whether exact metrics repeat."""
    checked = {run.cell for run in log.sitting.runs if run.purpose == "check"}
    for cell in cells:
        if not _repeat(cell, range(1, 2), log, deadline_s):
            return "budget"
        if cell.id not in checked and log.all_ran(cell.id):
            log.run(Turn(cell=cell, side="candidate", repeat=1), "check")
    return "decided"
