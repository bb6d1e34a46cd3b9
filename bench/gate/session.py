"""A session: both sides run cell by cell in turn, one run at a time, until every cell is decided.

Which cells are decided is asked of a judge after each look; nothing is judged here. Everything is on disk as
soon as it is there, so a session that broke off can go on.
"""

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from bench.errors import InfrastructureError, InterruptedByUserError, UsageError
from bench.gate.process import SERVE, Ready, SideProcess, open_sides
from bench.gate.session_log import (
    Looked,
    Noted,
    Prepared,
    SessionLog,
    Tell,
    Turn,
    ignore,
    turns,
    utc_now,
    warm_ups,
)
from bench.gate.sides import Side, prepared_sides
from bench.metrics import METRICS
from bench.records.derived_metrics import read_metrics
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.sessions import SITTING_FILE, SideName, Sitting, SittingRecords, load_sitting
from bench.records.store import open_folder, record_file_name
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.workers import interrupts

_SAME_WHEN_RESUMED = {"given", "kind", "understood", "commit"}


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


Stopped = Literal["decided", "all repeats", "budget"]


class Judge(Protocol):
    """Tells which cells more runs could still decide."""

    def __call__(self, records: Mapping[SideName, Sequence[Record]], repeats: int) -> Collection[str]:
        """Return their ids. ``records`` are all so far that count; the look is after so many repeats."""


def run_gate(  # noqa: PLR0913 - what run_session takes, and where
    cells: Sequence[Cell],
    references: tuple[str, str | None],
    judge: Judge,
    options: SessionOptions,
    tell: Tell = ignore,
    *,
    here: Path | None = None,
) -> SittingRecords:
    """Make ready what the REFs of base and candidate stand for, and run a session; only records stay.

    ``here`` is the folder that REFs are relative to, the current one by default. Raises what
    ``prepared_sides`` and ``run_session`` raise.
    """
    with interrupts.caught():
        try:
            with prepared_sides(*references, here=here) as sides:
                return run_session(cells, sides, judge, options, tell)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before anything was measured") from None


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
    _require_one_at_a_time_on_gpus(cells, options)
    deadline_s = None if options.budget_s is None else time.monotonic() + options.budget_s
    folder, session = (_resumed_session if options.resume else _new_session)(cells, sides, options)
    with interrupts.caught():
        try:
            for side in sides:
                tell(Prepared(side=side))
            with (
                open_sides(
                    sides,
                    lambda text: tell(Noted(text=text)),
                    trust_remote_code=options.trust_remote_code,
                    command=options.command,
                ) as opened,
                open_folder(folder),
            ):
                log = _open_log(folder, session, opened, tell)
                stopped = _run(cells, log, judge, options, deadline_s)
                caveats = (*log.session.caveats, *unrepeatable(log.counted()))
                log.note(ended_at=utc_now(), stopped=stopped, caveats=caveats)
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; what was finished is in {folder}, and the same command with --resume goes on "
                "there, though a session without a break says more"
            ) from None
    return load_sitting(folder)


def _require_one_at_a_time_on_gpus(cells: Sequence[Cell], options: SessionOptions) -> None:
    """Raise ``UsageError`` where two models would have to share a GPU."""
    on_gpu = next((cell.id for cell in cells if cell.device == "cuda"), None)
    by_steps = options.gate is not None and options.gate.interleave == "steps" and not options.exact_only
    if on_gpu and by_steps:
        raise UsageError(
            f'gate.interleave = "steps" keeps both sides in memory at once, and {on_gpu} runs on a GPU, '
            'whose memory is what is measured; set it to "runs"'
        )


def _run(
    cells: Sequence[Cell], log: SessionLog, judge: Judge, options: SessionOptions, deadline_s: float | None
) -> Stopped:
    """Go from look to look with the cells that are undecided; return why it ended."""
    if options.exact_only:
        return _run_exact(cells, log, deadline_s)
    for turn in warm_ups(cells):
        log.run(turn, "warm-up")
    going_on, done = list(cells), 0
    for look in options.looks:
        for cell in going_on:
            if not _repeat(cell, range(done + 1, look + 1), log, deadline_s):
                return "budget"
        undecided = set(judge(log.counted(), look))
        going_on = [cell for cell in going_on if cell.id in undecided and log.all_ran(cell.id)]
        log.tell(Looked(repeats=look, undecided=tuple(cell.id for cell in going_on)))
        if not going_on:
            return "decided"
        done = look
    return "all repeats"


def _repeat(cell: Cell, repeats: range, log: SessionLog, deadline_s: float | None) -> bool:
    """Run what is left of these repeats; False where the next would end after the deadline.

    A cell that did not run to its end, on either side, is not repeated: more of the same says nothing.
    """
    for repeat in turns(cell, repeats, log.session.runs):
        if not log.all_ran(cell.id):
            return True
        if deadline_s is not None and time.monotonic() + log.longest_repeat_s(cell.id) > deadline_s:
            return False
        if log.session.by_steps:
            log.run_together(cell, repeat[0].repeat)
            continue
        for turn in repeat:
            log.run(turn, "measured")
    return True


def _run_exact(cells: Sequence[Cell], log: SessionLog, deadline_s: float | None) -> Stopped:
    """Run each side once, and the candidate once more, which shows whether exact metrics repeat."""
    checked = {run.cell for run in log.session.runs if run.purpose == "check"}
    for cell in cells:
        if not _repeat(cell, range(1, 2), log, deadline_s):
            return "budget"
        if cell.id not in checked and log.all_ran(cell.id):
            log.run(Turn(cell=cell, side="candidate", repeat=1), "check")
    return "decided"


def _new_session(
    cells: Sequence[Cell], sides: tuple[Side, Side], options: SessionOptions
) -> tuple[Path, Sitting]:
    """Return a session that has not begun and the folder it is to have, named after the time."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
    folder = next(options.folder / name for name in names if not (options.folder / name).exists())
    caveats = [caveat for side in sides for caveat in side.caveats]
    if not options.exact_only:
        message = "The first run of each side and model was made to warm up and is left out."
        caveats.append(Caveat(code="warm-up", message=message))
    return folder, Sitting(
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


def _resumed_session(
    cells: Sequence[Cell], sides: tuple[Side, Side], options: SessionOptions
) -> tuple[Path, Sitting]:
    """Return the latest session and its folder. Raises ``UsageError`` unless it broke off and is the same."""
    folders = sorted(path.parent for path in options.folder.glob(f"*/{SITTING_FILE}"))
    if not folders:
        raise UsageError(f"there is no session in {options.folder} to resume; run it without --resume")
    folder = folders[-1]
    loaded = load_sitting(folder)
    session = loaded.sitting
    if session.ended_at is not None:
        raise UsageError(f"the session in {folder} is complete; run without --resume for another")
    digests = {cell.id: cell.digest for cell in cells}
    same_cells = session.cells == tuple(digests) and all(
        record.cell.digest == digests.get(record.cell.id)
        for records in loaded.records.values()
        for record in records
    )
    same_sides = all(
        getattr(session.facts(side.name), name) == getattr(side.facts, name)
        for side in sides
        for name in _SAME_WHEN_RESUMED
    )
    changed = {
        "scenario": not same_cells,
        "two sides": not same_sides,
        "gate": session.gate != options.gate,  # or the runs so far could choose their own rule
        "files": bool(loaded.problems),
    }
    if what := next((name for name, different in changed.items() if different), None):
        raise UsageError(
            f"the session in {folder} cannot be resumed: its {what} changed since; run it without --resume"
        )
    message = "The session was broken off and resumed, so runs before and after that are less alike."
    return folder, session.model_copy(
        update={
            "resumed_at": (*session.resumed_at, utc_now()),
            "budget_s": options.budget_s,
            "caveats": (
                *(caveat for caveat in session.caveats if caveat.code != "resumed"),
                Caveat(code="resumed", message=message),
            ),
        }
    )


def _open_log(
    folder: Path,
    session: Sitting,
    opened: Sequence[tuple[SideProcess, Ready]],
    tell: Tell,
) -> SessionLog:
    """Write down what the sides turned out to be. Raises where they are not what they were asked to be."""
    processes: dict[SideName, SideProcess] = {process.side.name: process for process, _ in opened}
    caveats = list(session.caveats)
    facts = {}
    for process, ready in opened:
        side = process.side
        before = session.facts(side.name)
        if before.environment is not None and before.environment.versions != ready.environment.versions:
            raise UsageError(
                f"the session in {folder} cannot be resumed: versions of the {side.name} changed since; "
                "run it without --resume"
            )
        _require_from_tree(side, ready)
        facts[side.name] = before.model_copy(update={"environment": ready.environment})
        caveats += [caveat for caveat in _as_installed(side, ready) if caveat not in caveats]
    log = SessionLog(folder=folder, session=session, processes=processes, tell=tell)
    for name, records in (load_sitting(folder).records if session.runs else {}).items():
        log.records[name] = {record_file_name(record): record for record in records}
    log.note(**facts, caveats=tuple(caveats))
    return log


def _require_from_tree(side: Side, ready: Ready) -> None:
    """Raise ``InfrastructureError`` where a package of a side's sources would come from elsewhere."""
    if side.tree is None:
        return
    root = side.tree.root.resolve()
    for package in side.tree.packages:
        location = ready.locations.get(package)
        if location is None or not Path(location).resolve().is_relative_to(root):
            raise InfrastructureError(
                f"the {side.name} would import {package} from {location or 'nowhere'} instead of "
                f"{side.facts.given}: something in the environment comes before PYTHONPATH; install that "
                "version into a virtual environment and give that"
            )


def _as_installed(side: Side, ready: Ready) -> list[Caveat]:
    """Say of an environment as it is which packages of the other side's sources it has installed."""
    if side.tree is not None:
        return []
    installed = [
        name for name, location in sorted(ready.locations.items()) if location and "site-packages" in location
    ]
    message = (
        f"The {side.name} imports {' and '.join(installed)} as installed, not from the repository; give "
        "a folder (--candidate .) to have it as it lies there."
    )
    return [Caveat(code="as-installed", message=message)] if installed else []


def unrepeatable(records: Mapping[SideName, Sequence[Record]]) -> tuple[Caveat, ...]:
    """Return a caveat for each deterministic metric that differs between runs of one cell on one side."""
    caveats = []
    for side, made in records.items():
        by_cell: dict[str, list[dict[str, float | int | None]]] = {}
        for record in made:
            if record.outcome == "ok":
                by_cell.setdefault(record.cell.id, []).append(read_metrics(record))
        for cell, runs in by_cell.items():
            for name, metric in METRICS.items():
                values = {run[name] for run in runs} if metric.kind == "deterministic" else set()
                if len(values) < 2:  # noqa: PLR2004 - one value is no difference
                    continue
                shown = ", ".join("none" if each is None else f"{each:,}" for each in sorted(values, key=str))
                message = (
                    f"{name} of {cell} differs between runs of the {side} ({shown} {metric.unit}), so it is "
                    "no exact metric here."
                )
                caveats.append(Caveat(code="not-repeatable", message=message))
    return tuple(caveats)
