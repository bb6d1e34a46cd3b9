"""A gate of predictions: the libraries of both sides are traced without a GPU, once each, and judged.

It is a session like any other, with the same sides, facts and caveats, but what its sides make are plans: no
data, no weights, no repeats, and nothing that has to have the machine for itself. Bench is the same on both.

In which release of a library a prediction first changed is found by halving between two releases. Each is
gated against the first of them, so that a change is what the gate takes for one. It is predicted once, for
all cells, and its plan is kept, for the next time too.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from packaging.version import Version

from bench.compare.gate_report import judge_folder
from bench.compare.predicted_gate import judge_plans, stored_plan
from bench.errors import InfrastructureError, InterruptedByUserError, UsageError, counted
from bench.gate.judge import judge_name
from bench.gate.process import answers_of
from bench.gate.protocol import Opening, PlanAssignment, Planned
from bench.gate.references import parse_ref, released
from bench.gate.session import VERDICTS_FILE, SessionOptions, new_session
from bench.gate.session_log import Tell, begun, folder_of_new, ignore
from bench.gate.sides import Side, prepared_sides, side_as_is
from bench.io import cache_folder, make_folder, read_data, write_bytes, write_json, write_text
from bench.records.environment import read_environment
from bench.records.predictions import Plan, is_plan, plan_json, read_plan
from bench.records.readings import Caveat
from bench.records.sessions import PLAN_FILES, SIDES, SideFacts, SideName
from bench.records.verdicts import MetricVerdict, Verdicts
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.workers import interrupts

LONGEST_PLAN_S = 24 * 3600.0


def gate_predictions(
    asked: PlanAssignment, references: tuple[str, str | None], options: SessionOptions, tell: Tell = ignore
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
            with _sides(references, asked, stored=stored is not None) as sides:
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
    references: tuple[str, str | None], asked: PlanAssignment, *, stored: bool
) -> Iterator[tuple[Side, ...]]:
    """Make ready the sides that are to be predicted: both, or the candidate of a stored plan."""
    base, candidate = references
    code = [] if not asked.command else [Path(asked.command[asked.command[0] == "-m"]).stem]
    if stored and candidate is None:
        yield (side_as_is("candidate"),)
        return
    with prepared_sides(str(candidate) if stored else base, candidate, code=code) as sides:
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


State = Literal["alike", "changed", "unknown"]
"""How a cell of a release is to that of the first one; unknown where either cannot be predicted."""


@dataclass(frozen=True, kw_only=True)
class FirstChange:
    """A cell is in one release as in the first of all, and in the next that can be predicted no longer."""

    cell: str
    alike: str
    changed: str


def bisect_predictions(
    asked: PlanAssignment, references: tuple[str, str | None], options: SessionOptions, tell: Tell = ignore
) -> tuple[Path, Verdicts]:
    """Gate two releases of a library; a caveat for each cell that differs says in which release it began to.

    Return the folder with a plan of each release, and the verdicts. Raises what ``gate_predictions`` raises,
    and ``UsageError`` where the references are not two releases of one library, the older first.
    """
    package, first, last = _ends(*references)
    between = [one for one in released(package) if Version(first) < Version(one) < Version(last)]
    folder = _kept(asked, options)
    releases = _Releases(package=package, first=first, asked=asked, options=options, tell=tell, folder=folder)
    tell(f"{package}: {len(between)} releases between {first} and {last}")
    verdicts = releases.verdicts(last)
    found = first_changes([first, *between, last], cache(releases.states))
    caveats = tuple(Caveat("first-change", releases.told(one)) for one in found)
    for caveat in caveats:
        tell(caveat.message)
    return folder, verdicts.model_copy(update={"caveats": (*verdicts.caveats, *caveats)})


def first_changes(
    releases: Sequence[str], states: Callable[[str], Mapping[str, State]]
) -> Iterator[FirstChange]:
    """Yield where each cell that is changed in the last release was so first; the oldest release first.

    Of a cell that changed more than once, halving finds one of the changes.
    """
    differing = {cell for cell, state in states(releases[-1]).items() if state == "changed"}
    yield from _halved(differing, tuple(releases), states)


def _halved(
    cells: set[str], releases: tuple[str, ...], states: Callable[[str], Mapping[str, State]]
) -> Iterator[FirstChange]:
    """Look between a release where all cells are as at first, and one where none is."""
    *known, last = releases
    if not cells or len(known) == 1:
        yield from (FirstChange(cell=cell, alike=releases[0], changed=last) for cell in sorted(cells))
        return
    middle = len(releases) // 2
    found = states(releases[middle])
    alike = {cell for cell in cells if found.get(cell) == "alike"}
    changed = {cell for cell in cells if found.get(cell) == "changed"}
    yield from _halved(changed, releases[: middle + 1], states)
    yield from _halved(alike, releases[middle:], states)
    yield from _halved(cells - alike - changed, releases[:middle] + releases[middle + 1 :], states)


def _ends(base: str, candidate: str | None) -> tuple[str, str, str]:
    """Return the library and its two releases; without a candidate the later one is what is installed."""
    pins = parse_ref(base).pins if "==" in base else ()
    package, first = pins[0] if len(pins) == 1 else ("", "")
    try:
        others = ((package, version(package)),) if candidate is None else parse_ref(candidate).pins
    except (PackageNotFoundError, ValueError):
        others = ()
    if not package or [name for name, _ in others] != [package] or Version(first) >= Version(others[0][1]):
        raise UsageError(
            f"--bisect looks between two releases of one library, and {base} and "
            f"{candidate or 'this environment'} are none, the older first; give for example "
            "--base transformers==5.0.0 --candidate transformers==5.20.2"
        )
    return package, first, others[0][1]


def _kept(asked: PlanAssignment, options: SessionOptions) -> Path:
    """Return the folder for plans of these cells, by these sources, over these libraries.

    What also depends on files of the user's, as a script does, is predicted anew each time.
    """
    cells = [Cell.model_validate_json(text) for text in asked.cells_json]
    if asked.command or any(cell.model.random is None or cell.loop.code is not None for cell in cells):
        return folder_of_new(options.folder)
    digest = hashlib.sha256(asked.model_dump_json(exclude={"title", "scenario"}).encode())
    digest.update(repr((judge_name(), sorted(read_environment().versions.items()))).encode())
    return cache_folder() / "plans" / digest.hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class _Releases:
    """The releases of one library, each judged against the first of those that are looked at."""

    package: str
    first: str
    asked: PlanAssignment
    options: SessionOptions
    tell: Tell
    folder: Path

    def verdicts(self, release: str) -> Verdicts:
        """Return the verdicts on a release, predicting it, and the first one, if that was not done before."""
        names = [f"{self.package}=={one}" for one in (self.first, release)]
        files = [self.folder / f"{name}.json" for name in names]
        if not all(file.is_file() for file in files):
            base = str(files[0]) if files[0].is_file() else names[0]
            made, _ = gate_predictions(self.asked, (base, names[1]), self.options, self.tell)
            make_folder(self.folder)
            for side, file in zip(SIDES, files, strict=True):
                write_bytes(file, read_data(made / PLAN_FILES[side]))
        sides = [SideFacts(given=name, kind="packages", understood=name) for name in names]
        gate = self.options.gate or GateSpec()
        return judge_plans(read_plan(files[0]), read_plan(files[1]), gate, sides=(sides[0], sides[1]))

    def states(self, release: str) -> dict[str, State]:
        """Return how the cells are to those of the first release; of none, where it cannot be had."""
        try:
            judgements = self.verdicts(release).gated
        except InfrastructureError as error:
            self.tell(f"{self.package} {release} is left out: {error}")
            return {}
        found: dict[str, State] = {}
        for one in judgements:
            if _is_change(one):
                found[one.cell] = "changed"
            elif one.verdict != "pass":
                found.setdefault(one.cell, "unknown")
        return {one.cell: found.get(one.cell, "alike") for one in judgements}

    def told(self, found: FirstChange) -> str:
        """Say in a sentence where a cell changed, and by how much."""
        judgements = self.verdicts(found.changed).gated
        reason = next(one.reason for one in judgements if one.cell == found.cell and _is_change(one))
        return (
            f"{found.cell} first changed in {self.package} {found.changed}, and is in {found.alike} still as "
            f"in {self.first}: {reason}."
        )


def _is_change(one: MetricVerdict) -> bool:
    return one.verdict == "regression" or one.improved
