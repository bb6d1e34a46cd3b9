"""What a sweep's cells will take, predicted before the first one runs. Failing at that stops nothing."""

import os
from collections.abc import Sequence

from bench.errors import BenchError
from bench.metrics import GIB
from bench.predict.allocator.settings import AllocatorSettings
from bench.records.plans import CardVerdict, Plan, PlannedCell
from bench.records.predictions import Prediction, Refusal
from bench.records.records import DeviceFacts, Failure
from bench.runner.prediction_pool import Answer, Question, card_of_device, platform_of, predict_cells
from bench.scenario.catalogue import Card
from bench.scenario.types import Cell, LimitsSpec
from bench.workers.launch import Launcher

LONGEST_S = 60
LONGEST_A_CELL_S = 2
# In the order in which torch looks for them: c10/cuda/CUDAAllocatorConfig.h, CUDAAllocatorConfig::instance.
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def expect(cells: Sequence[Cell], facts: DeviceFacts, launcher: Launcher) -> Plan:
    """Return a plan of cells that are about to run on this machine; what cannot be predicted is refused."""
    allocator = next((os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ), "")
    card = card_of_device(facts)
    answers = _answers(cells, facts, launcher, allocator)
    return Plan(
        scenario=cells[0].scenario,
        title=cells[0].scenario,
        allocator=allocator,
        cards=(card,) if card and any(cell.device == "cuda" for cell in cells) else (),
        cells=tuple(
            PlannedCell(cell=cell, answer=answer, verdicts=_verdicts(answer, card))
            for cell, answer in zip(cells, answers, strict=True)
        ),
    )


def _answers(
    cells: Sequence[Cell], facts: DeviceFacts, launcher: Launcher, allocator: str
) -> Sequence[Answer]:
    limit_s = LONGEST_S + LONGEST_A_CELL_S * len(cells)
    limits = LimitsSpec(timeout_s=limit_s, heartbeat_timeout_s=limit_s, host_memory_gib=None)
    questions = [
        Question(cell=cell, platform=platform_of(cell.device, facts.cuda_capability or (8, 0)))
        for cell in cells
    ]
    try:
        AllocatorSettings.parse(allocator)
        return predict_cells(questions, launcher, allocator=allocator, limits=limits)
    except BenchError as error:
        return [Refusal(message=str(error))] * len(cells)


def _verdicts(answer: Answer, card: Card | None) -> tuple[CardVerdict, ...]:
    if card is None or not isinstance(answer, Prediction) or answer.platform.device != "cuda":
        return ()
    return (CardVerdict.of(answer, card),)


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


def beside_expectation(failure: Failure, planned: PlannedCell | None) -> Failure:
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
