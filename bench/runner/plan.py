"""A plan for the cells of a scenario: each predicted, judged for each card, with what would make it fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from bench.predict.allocator.settings import AllocatorSettings
from bench.records.plans import CardVerdict, Change, Plan, PlannedCell, needed_bytes
from bench.records.predictions import Prediction
from bench.runner.memory_savers import changed_cells
from bench.runner.prediction_pool import (
    PRELOAD,
    Answer,
    Progress,
    Question,
    card_of_device,
    platform_of,
    predict_cells,
)
from bench.runner.schedule import choose_cells
from bench.scenario.catalogue import Card, card, card_of_memory
from bench.scenario.load import Scenario, load_scenario
from bench.scenario.platforms import Platform
from bench.scenario.types import Cell
from bench.workers.launch import Launcher, LocalLauncher
from bench.workers.supervise import probe

LADDER = ("rtx3060-12gb", "rtx4070ti-super", "rtx4090", "a100-40gb", "rtx-a6000", "a100-80gb", "h200")
"""One card of each size that people have or rent, for a plan that names none."""
LADDER_CAPABILITY = (8, 0)
MOST_CELLS_WITH_ADVICE = 12


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What to predict for: cards (none: a ladder of usual ones), allocator settings, version of torch.

    ``advice`` None tries changes where the plan is small.
    """

    cards: tuple[Card, ...] = ()
    allocator: str = ""
    torch_version: str | None = None
    advice: bool | None = None


def chosen_cards(names: Sequence[str], sizes: Sequence[str]) -> tuple[Card, ...]:
    """Return the cards that a user names and those of sizes; raise ``UsageError`` for an unknown one."""
    return tuple({one.name: one for one in (*map(card, names), *map(card_of_memory, sizes))}.values())


def plan_scenario(
    path: Path,
    only: str | None,
    outlook: Outlook,
    progress: Progress,
    launcher: Launcher | None = None,
) -> Plan:
    """Plan the chosen cells of a scenario; where it is for CUDA and names no card, for this machine's.

    Raises ``UsageError`` on a wrong scenario, choice of cells, allocator setting or version.
    """
    scenario = load_scenario(path)
    cells = choose_cells(scenario.cells, only)
    AllocatorSettings.parse(outlook.allocator)
    launcher = launcher or LocalLauncher(preload=PRELOAD)
    if not outlook.cards and any(cell.device == "cuda" for cell in cells):
        own = card_of_device(probe(launcher))
        outlook = replace(outlook, cards=() if own is None else (own,))
    return make_plan(scenario, cells, outlook, launcher, progress)


def make_plan(
    scenario: Scenario, cells: Sequence[Cell], outlook: Outlook, launcher: Launcher, progress: Progress
) -> Plan:
    """Predict cells, and what changes would free. Nothing is measured and nothing downloaded but configs."""
    ladder = not outlook.cards and any(cell.device == "cuda" for cell in cells)
    cards = tuple(card(name) for name in LADDER) if ladder else outlook.cards
    cards = tuple(sorted(cards, key=attrgetter("usable_bytes")))
    asked = [
        (Question(cell=cell, platform=platform), judged)
        for cell in cells
        for platform, judged in _platforms(cell, cards, outlook, ladder=ladder)
    ]
    answers = predict_cells(
        [question for question, _ in asked], launcher, allocator=outlook.allocator, progress=progress
    )
    planned = [
        PlannedCell(cell=question.cell, answer=answer, verdicts=_verdicts(answer, judged))
        for (question, judged), answer in zip(asked, answers, strict=True)
    ]
    small = len(cells) <= MOST_CELLS_WITH_ADVICE
    if outlook.advice or (outlook.advice is None and small):
        tried = [small or not _fits_everywhere(one) for one in planned]
        judged_for = [judged if chosen else None for (_, judged), chosen in zip(asked, tried, strict=True)]
        planned = _with_changes(planned, judged_for, outlook.allocator, launcher, progress)
    return Plan(
        scenario=scenario.name,
        title=scenario.title,
        allocator=outlook.allocator,
        cards=cards,
        ladder=ladder,
        cells=tuple(planned),
    )


def _platforms(
    cell: Cell, cards: Sequence[Card], outlook: Outlook, *, ladder: bool
) -> list[tuple[Platform, tuple[Card, ...]]]:
    """Return the platforms to predict a cell on, each with the cards to judge it for.

    A cell for the CPU is predicted for the CPU unless cards are named; the ladder is judged from one
    prediction.
    """
    if not cards or (ladder and cell.device == "cpu"):
        return [(platform_of("cpu", torch_version=outlook.torch_version), ())]
    if ladder:
        return [(platform_of("cuda", LADDER_CAPABILITY, outlook.torch_version), tuple(cards))]
    alike: dict[tuple[int, int], list[Card]] = {}
    for one in cards:
        alike.setdefault(one.capability, []).append(one)
    return [
        (platform_of("cuda", capability, outlook.torch_version), tuple(members))
        for capability, members in alike.items()
    ]


def _verdicts(answer: Answer, cards: Sequence[Card]) -> tuple[CardVerdict, ...]:
    if not isinstance(answer, Prediction):
        return ()
    return tuple(CardVerdict.of(answer, one) for one in cards)


def _with_changes(
    planned: Sequence[PlannedCell],
    judged_for: Sequence[Sequence[Card] | None],
    allocator: str,
    launcher: Launcher,
    progress: Progress,
) -> list[PlannedCell]:
    """Predict the changes of each cell and keep those that free memory; None: no change is tried."""
    tried = [
        (index, what, changed, one.answer)
        for index, (one, cards) in enumerate(zip(planned, judged_for, strict=True))
        if cards is not None and isinstance(one.answer, Prediction)
        for what, changed in changed_cells(one.cell)
    ]
    questions = [Question(cell=changed, platform=before.platform) for _, _, changed, before in tried]
    answers = predict_cells(questions, launcher, allocator=allocator, progress=progress)
    found: dict[int, list[Change]] = {index: [] for index, *_ in tried}
    for (index, what, _, before), answer in zip(tried, answers, strict=True):
        if isinstance(answer, Prediction) and needed_bytes(answer) < needed_bytes(before):
            verdicts = _verdicts(answer, judged_for[index] or ())
            found[index].append(Change(what=what, prediction=answer, verdicts=verdicts))
    changed_plan = list(planned)
    for index, changes in found.items():
        changes.sort(key=lambda change: (needed_bytes(change.prediction), len(change.what)))
        kept = [change for change in changes if not _adds_nothing(change, changes)]
        changed_plan[index] = planned[index].model_copy(update={"changes": tuple(kept)})
    return changed_plan


def _adds_nothing(change: Change, changes: Sequence[Change]) -> bool:
    """Tell whether one part of a combined change frees as much by itself."""
    return any(
        _parts(one.what) < _parts(change.what)
        and needed_bytes(one.prediction) <= needed_bytes(change.prediction)
        for one in changes
    )


def _parts(what: str) -> set[str]:
    return {part for some in what.split(", ") for part in some.split(" and ")}


def _fits_everywhere(planned: PlannedCell) -> bool:
    return all(verdict.answer == "fits" for verdict in planned.verdicts)
