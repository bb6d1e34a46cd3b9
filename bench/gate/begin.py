"""How a sitting begins, anew or where one broke off, and whether its sides are what they were asked to be."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import InfrastructureError, UsageError
from bench.gate.logbook import Logbook, utc_now
from bench.gate.observe import GateObserver
from bench.gate.process import SERVE, SideProcess
from bench.gate.protocol import Ready
from bench.gate.sides import Side
from bench.records.readings import Caveat
from bench.records.sittings import SITTING_FILE, SideFacts, SideName, Sitting, load_sitting
from bench.records.store import record_file_name
from bench.scenario.gate import GateSpec
from bench.scenario.types import Cell

_SAME_WHEN_RESUMED = {"given", "kind", "understood", "commit"}


@dataclass(frozen=True, kw_only=True)
class SittingOptions:
    """Where sittings go (each a folder of its own), when to look, and how long it may take.

    ``looks`` are numbers of repeats, rising. ``exact_only`` says that no gated metric varies between runs:
    then each side runs once, and the candidate once more as a check. ``gate`` is kept with the sitting, for
    whoever judges it again. ``budget_s`` counts from the start; no repeat is begun that would end after it.
    ``resume`` goes on with the latest sitting where it broke off.
    """

    folder: Path
    looks: tuple[int, ...] = (3, 5, 8)
    exact_only: bool = False
    gate: GateSpec | None = None
    budget_s: float | None = None
    resume: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = SERVE


def new_sitting(
    cells: Sequence[Cell], sides: tuple[Side, Side], options: SittingOptions
) -> tuple[Path, Sitting]:
    """Return a sitting that has not begun and the folder it is to have, named after the time."""
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


def resumed_sitting(
    cells: Sequence[Cell], sides: tuple[Side, Side], options: SittingOptions
) -> tuple[Path, Sitting]:
    """Return the latest sitting and its folder. Raises ``UsageError`` unless it broke off and is the same."""
    folders = sorted(path.parent for path in options.folder.glob(f"*/{SITTING_FILE}"))
    if not folders:
        raise UsageError(f"there is no sitting in {options.folder} to resume; run it without --resume")
    folder = folders[-1]
    loaded = load_sitting(folder)
    sitting = loaded.sitting
    if sitting.ended_at is not None:
        raise UsageError(f"the sitting in {folder} is complete; run without --resume for another")
    digests = {cell.id: cell.digest for cell in cells}
    same_cells = sitting.cells == tuple(digests) and all(
        record.cell.digest == digests.get(record.cell.id)
        for records in loaded.records.values()
        for record in records
    )
    same_sides = all(_identity(sitting.facts(side.name)) == _identity(side.facts) for side in sides)
    changed = {
        "scenario": not same_cells,
        "two sides": not same_sides,
        "gate": sitting.gate != options.gate,  # or the runs so far could choose their own rule
        "files": bool(loaded.problems),
    }
    if any(changed.values()):
        what = next(name for name, different in changed.items() if different)
        raise UsageError(
            f"the sitting in {folder} cannot be resumed: its {what} changed since; run it without --resume"
        )
    message = "The sitting was broken off and resumed, so runs before and after that are less alike."
    return folder, sitting.model_copy(
        update={
            "resumed_at": (*sitting.resumed_at, utc_now()),
            "budget_s": options.budget_s,
            "caveats": (
                *(caveat for caveat in sitting.caveats if caveat.code != "resumed"),
                Caveat(code="resumed", message=message),
            ),
        }
    )


def _identity(facts: SideFacts) -> dict[str, object]:
    return facts.model_dump(include=_SAME_WHEN_RESUMED)


def open_logbook(
    folder: Path,
    sitting: Sitting,
    opened: Sequence[tuple[SideProcess, Ready]],
    observer: GateObserver,
) -> Logbook:
    """Write down what the sides turned out to be. Raises where they are not what they were asked to be."""
    processes: dict[SideName, SideProcess] = {process.side.name: process for process, _ in opened}
    caveats = list(sitting.caveats)
    facts = {}
    for process, ready in opened:
        side = process.side
        before = sitting.facts(side.name)
        if before.environment is not None and before.environment.versions != ready.environment.versions:
            raise UsageError(
                f"the sitting in {folder} cannot be resumed: versions of the {side.name} changed since; run "
                "it "
                "without --resume"
            )
        _require_from_tree(side, ready)
        facts[side.name] = before.model_copy(update={"environment": ready.environment})
        caveats += [caveat for caveat in _where_from(side, ready) if caveat not in caveats]
    log = Logbook(folder=folder, sitting=sitting, processes=processes, observer=observer)
    for name, records in (load_sitting(folder).records if sitting.runs else {}).items():
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


def _where_from(side: Side, ready: Ready) -> list[Caveat]:
    """Say of an environment as it is which packages of the other side's sources it has installed."""
    if side.tree is not None:
        return []
    installed = [
        name for name, location in sorted(ready.locations.items()) if location and "site-packages" in location
    ]
    if not installed:
        return []
    message = (
        f"The {side.name} imports {' and '.join(installed)} as installed, not from the repository; give a "
        "folder "
        "(--candidate .) to have it as it lies there."
    )
    return [Caveat(code="as-installed", message=message)]
