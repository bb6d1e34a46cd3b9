"""A plan for cells: each predicted, judged for each card, with what would make it fit.

``bench plan`` asks for one; ``bench run`` predicts what it is about to run, and goes on where that fails.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import BenchError, UsageError
from bench.metrics import GIB
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.kept import Kept
from bench.predict.pool import (
    LONGEST_PLAN,
    PRELOAD,
    Hear,
    Predict,
    PredictionRequest,
    Progress,
    card_of_device,
    find_savers,
    ignored,
    platform_of,
    predict_cells,
)
from bench.records.messages import EpochCounted, EpochJob, Message
from bench.records.predictions import Plan, PlannedCell, Prediction, Refusal, check_fit
from bench.records.records import DeviceFacts, Failure
from bench.scenario.catalogue import Card, card, card_of_memory
from bench.scenario.cell import Cell
from bench.scenario.load import Scenario, choose_cells, load_scenario
from bench.scenario.platform import Platform
from bench.scenario.types import JsonlData, LimitsSpec, TaskData
from bench.workers.launch import Launcher
from bench.workers.supervise import RunningJob, probe

LADDER = ("rtx3060-12gb", "rtx4070ti-super", "rtx4090", "a100-40gb", "rtx-a6000", "a100-80gb", "h200")
"""One card of each size that people have or rent, for a plan that names none."""
LADDER_CAPABILITY = (8, 0)
MOST_CELLS_WITH_ADVICE = 12
LONGEST_BEFORE_SWEEP_S = 60
LONGEST_A_CELL_S = 2
# In the order in which torch looks for them: c10/cuda/CUDAAllocatorConfig.h, CUDAAllocatorConfig::instance.
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to predict for: cards (none: a ladder of usual ones), allocator settings, version of torch.

    ``gpus`` spreads every cell over so many. ``advice`` None tries changes where the plan is small. ``speed``
    predicts that, too. ``epochs`` are to be trained on, so that each cell's data is counted, or taken for so
    many ``examples`` of the full length. ``workers`` None is one for each core. Without ``kept`` nothing is
    kept.
    """

    cards: tuple[Card, ...] = ()
    allocator: str = ""
    torch_version: str | None = None
    advice: bool | None = None
    speed: bool = True
    workers: int | None = None
    gpus: tuple[int, ...] = ()
    epochs: int | None = None
    examples: int | None = None
    kept: Kept | None = None


def chosen_cards(names: Sequence[str], sizes: Sequence[str]) -> tuple[Card, ...]:
    """Return the cards that a user names and those of sizes; raise ``UsageError`` for an unknown one."""
    return tuple({one.name: one for one in (*map(card, names), *map(card_of_memory, sizes))}.values())


def plan_scenario(
    scenario: Path | Scenario,
    only: str | None,
    request: PlanRequest,
    progress: Progress,
    launcher: Launcher | None = None,
) -> Plan:
    """Plan the chosen cells of a scenario; where it is for CUDA and names no card, for this machine's.

    Nothing is measured and nothing downloaded but configurations. Raises ``UsageError`` on a wrong
    scenario, choice of cells, allocator setting or version.
    """
    scenario = load_scenario(scenario) if isinstance(scenario, Path) else scenario
    cells = choose_cells(scenario.cells, only)
    cells = [spread_over(cell, gpus) for cell in cells for gpus in request.gpus] or cells
    AllocatorSettings.parse(request.allocator)
    launcher = launcher or Launcher(preload=PRELOAD)
    if request.examples:
        tokens = {cell.id: request.examples * cell.training.sequence_length for cell in cells}
    else:
        tokens = _epoch_tokens(cells, launcher) if request.epochs else {}
    on_cuda = any(cell.device == "cuda" for cell in cells)
    if not request.cards and on_cuda:
        own = card_of_device(request.kept.device(launcher) if request.kept else probe(launcher))
        request = replace(request, cards=() if own is None else (own,))
    plan = plan_cells(cells, request, launcher, title=scenario.title, progress=progress)
    counted = (one.model_copy(update={"epoch_tokens": tokens.get(one.cell.id)}) for one in plan.cells)
    work = {"epochs": request.epochs, "examples": request.examples}
    plan = plan.model_copy(update={"cells": tuple(counted), **work})
    small = len(cells) <= MOST_CELLS_WITH_ADVICE
    if not (request.advice or (request.advice is None and small)):
        return plan
    planned = [*plan.cells]
    cards = {card.name: card for card in plan.cards}
    subjects = {
        index: (one.cell, one.answer, tuple(cards[fit.card] for fit in one.verdicts))
        for index, one in enumerate(planned)
        if isinstance(one.answer, Prediction)
        and (small or any(verdict.answer != "fits" for verdict in one.verdicts))
    }
    predict = partial(
        request.kept.predict if request.kept else predict_cells,
        launcher=launcher,
        allocator=request.allocator,
        progress=progress,
    )
    for index, changes in zip(subjects, find_savers([*subjects.values()], predict), strict=True):
        planned[index] = planned[index].model_copy(update={"changes": changes})
    return plan.model_copy(update={"cells": tuple(planned)})


def _epoch_tokens(cells: Sequence[Cell], launcher: Launcher) -> dict[str, int]:
    """Return what a pass over each cell's data computes; nothing of pairs, whose speed is not told.

    Raises ``UsageError`` where data or a tokenizer is not at hand.
    """
    counted = [cell for cell in cells if not cell.loop.takes_pairs]
    for cell in counted:
        if not isinstance(cell.data, TaskData | JsonlData):
            raise UsageError(
                f"--epochs counts data at hand, and {cell.id} has data.source = {cell.data.source}; "
                "give --tokens in its place"
            )
    found: dict[str, int] = {}

    def hear(message: Message) -> None:
        if isinstance(message, EpochCounted):
            found[message.cell_id] = message.tokens

    job = EpochJob(cells_json=tuple(cell.model_dump_json() for cell in counted))
    end = RunningJob(job, launcher, LONGEST_PLAN, hear=hear).to_end()
    if end.failure is not None:
        raise UsageError(f"--epochs: {end.failure.message}")
    return found


def spread_over(cell: Cell, gpus: int) -> Cell:
    """Return a cell of one GPU as one over so many, by fsdp2; raise ``UsageError`` where it cannot be.

    Packed 4-bit weights are then held in bf16, the only way in which fsdp2 shards them, and in the place of
    autocast weights are gathered in its dtype, as accelerate has it; a library's loop does so by itself.
    """
    if cell.parallel.several:
        raise UsageError(f"{cell.id} says itself how many GPUs it is for; leave --gpus out")
    if gpus == 1:
        return cell
    parallel, training = {"strategy": "fsdp2", "gpus": gpus}, cell.training.model_dump()
    named, dtype = f"{cell.id}-fsdp2-x{gpus}", cell.training.autocast
    if dtype != "off" and cell.loop.driver == "window":
        parallel["param_dtype"], training["autocast"] = dtype, "off"
        named = f"{named.replace(f'-autocast-{dtype}', '')}-params-{dtype}"
    changed: dict[str, Any] = {
        "id": named,
        "parallel": parallel,
        "training": training,
    }
    if cell.method.kind == "qlora":
        changed["method"] = cell.method.model_dump() | {"quant_storage": "bf16"}
    try:
        return Cell.model_validate(cell.model_dump() | changed)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--gpus {gpus}: {cell.id} cannot be spread: {why}") from error


def plan_cells(
    cells: Sequence[Cell],
    request: PlanRequest,
    launcher: Launcher,
    *,
    title: str,
    progress: Progress = ignored,
    observe: Hear = ignored,
) -> Plan:
    """Predict cells and judge them for the cards; where none is named, those for CUDA on the ladder."""
    ladder = not request.cards and any(cell.device == "cuda" for cell in cells)
    cards = tuple(sorted(map(card, LADDER) if ladder else request.cards, key=attrgetter("usable_bytes")))
    asked = [
        (cell, platform, judged)
        for cell in cells
        for platform, judged in _platforms(cell, cards, request.torch_version, ladder=ladder)
    ]
    predict = partial(
        request.kept.predict if request.kept else predict_cells,
        launcher=launcher,
        allocator=request.allocator,
        workers=request.workers,
        progress=progress,
        observe=observe,
    )
    return Plan(
        scenario=cells[0].scenario,
        title=title,
        allocator=request.allocator,
        cards=cards,
        ladder=ladder,
        cells=tuple(_planned(asked, predict, speed=request.speed)),
    )


def plan_before_sweep(cells: Sequence[Cell], facts: DeviceFacts, launcher: Launcher) -> Plan:
    """Return a plan of cells that are about to run on this machine; what cannot be predicted is refused."""
    allocator = next((os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ), "")
    own = card_of_device(facts)
    asked = [
        (
            cell,
            platform_of(cell.device, facts.cuda_capability or LADDER_CAPABILITY),
            (own,) if own and cell.device == "cuda" else (),
        )
        for cell in cells
    ]
    limit_s = LONGEST_BEFORE_SWEEP_S + LONGEST_A_CELL_S * len(cells)
    limits = LimitsSpec(timeout_s=limit_s, heartbeat_timeout_s=limit_s, host_memory_gib=None)
    try:
        AllocatorSettings.parse(allocator)
        predict = partial(Kept().predict, launcher=launcher, allocator=allocator, limits=limits)
        planned = _planned(asked, predict)
    except BenchError as error:
        planned = [PlannedCell(cell=cell, answer=Refusal(message=str(error))) for cell in cells]
    return Plan(
        scenario=cells[0].scenario,
        title=cells[0].scenario,
        allocator=allocator,
        cards=(own,) if own and any(cell.device == "cuda" for cell in cells) else (),
        cells=tuple(planned),
    )


def _planned(
    asked: Sequence[tuple[Cell, Platform, Sequence[Card]]], predict: Predict, *, speed: bool = True
) -> list[PlannedCell]:
    requests = [
        PredictionRequest(cell=cell, platform=platform, cards=tuple(judged) if speed else ())
        for cell, platform, judged in asked
    ]
    return [
        PlannedCell(
            cell=cell,
            answer=one.model_copy(
                update=({"speeds": ()} if judged else {})  # a verdict has that of its card
                if isinstance(one, Prediction)
                else {"platform": platform}
            ),
            verdicts=tuple(check_fit(one, each) for each in judged if isinstance(one, Prediction)),
        )
        for (cell, platform, judged), one in zip(asked, predict(requests), strict=True)
    ]


def _platforms(
    cell: Cell, cards: Sequence[Card], torch_version: str | None, *, ladder: bool
) -> list[tuple[Platform, Sequence[Card]]]:
    """Return the platforms to predict a cell on, each with the cards to judge it for.

    A cell for the CPU is predicted for the CPU unless cards are named; the ladder is judged from one
    prediction.
    """
    if not cards or (ladder and cell.device == "cpu"):
        return [(platform_of("cpu", torch_version=torch_version), ())]
    if ladder:
        return [(platform_of("cuda", LADDER_CAPABILITY, torch_version), cards)]
    alike: dict[tuple[int, int], list[Card]] = {}
    for one in cards:
        alike.setdefault(one.capability, []).append(one)
    return [
        (platform_of("cuda", capability, torch_version), members) for capability, members in alike.items()
    ]


def why_unfit(planned: PlannedCell, card: Card) -> str | None:
    """Return in one sentence why a cell will run out of memory; None unless that is beyond doubt."""
    if not isinstance(planned.answer, Prediction) or not planned.verdicts:
        return None
    (verdict,) = planned.verdicts
    if verdict.answer != "does not fit":
        return None
    allocated, context = planned.answer.allocated_peak_bytes / GIB, card.context_bytes / GIB
    return (
        f"Predicted not to fit: {allocated:.2f} GiB of tensors at the peak and a CUDA context of "
        f"{context:.2f} GiB, where {card.title} has {verdict.usable_bytes / GIB:.2f} GiB; run it without "
        "--skip-unfit to try it all the same."
    )


def with_prediction(failure: Failure, planned: PlannedCell | None) -> Failure:
    """Return an out-of-memory failure with what had been predicted in its sentence, if anything had."""
    if planned is None or not isinstance(planned.answer, Prediction):
        return failure
    if planned.verdicts:
        (verdict,) = planned.verdicts
        needed, usable = verdict.needed_bytes / GIB, verdict.usable_bytes / GIB
        told = f"predicted to need {needed:.2f} GiB with its CUDA context; the card has {usable:.2f} GiB"
    else:
        told = f"predicted to hold {planned.answer.allocated_peak_bytes / GIB:.2f} GiB of tensors at its peak"
    return failure.replace(message=f"{failure.message.rstrip('.')}; {told}.")
