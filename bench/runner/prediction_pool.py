"""Predictions made in worker processes, so that the parent holds no torch; several workers at once.

A worker that dies, or an answer that is missing, costs one cell: its part of the work is halved until
the cell to blame is alone, and that cell is refused.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version
from pydantic import ValidationError

from bench.errors import UsageError
from bench.records.messages import Message, PlanJob, PredictionMade
from bench.records.predictions import Prediction, Refusal
from bench.records.records import DeviceFacts
from bench.scenario.catalogue import Card
from bench.scenario.platforms import Platform
from bench.scenario.types import Cell, LimitsSpec
from bench.workers.launch import Launcher, wait_for_any
from bench.workers.supervise import MAX_SLEEP_S, JobEnd, RunningJob

PRELOAD = ("bench.predict.jobs", "bench.workers.child", "bench.workers.freeze")
"""For a ``LocalLauncher`` whose workers predict and do nothing else."""
LONGEST_PLAN = LimitsSpec(timeout_s=24 * 3600, heartbeat_timeout_s=300, host_memory_gib=None)
Answer = Prediction | Refusal
Progress = Callable[[int, int], None]
"""Is told how many cells of how many are predicted."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A cell, and the platform on which its memory is asked for."""

    cell: Cell
    platform: Platform


OLDEST_TORCH, NEXT_TORCH = Version("2.1"), Version("2.14")
"""From the oldest that a published row was measured with, up to the one whose sources were read last."""


def platform_of(
    device: str, capability: tuple[int, int] = (8, 0), torch_version: str | None = None
) -> Platform:
    """Return the platform of a device with the libraries installed here, or another version of torch.

    Raises ``UsageError`` where that is no version, or one whose kernels are not known.
    """
    known = {"torch": torch_version or _installed("torch"), "bitsandbytes": _installed("bitsandbytes")}
    given = {name: text for name, text in known.items() if text is not None}
    try:
        platform = Platform.model_validate({"device": device, "capability": capability, **given})
    except ValidationError:
        raise UsageError(f'"{torch_version}" is no version of torch; write it as in 2.13.') from None
    if torch_version is not None and not OLDEST_TORCH <= Version(torch_version) < NEXT_TORCH:
        raise UsageError(
            f"the kernels of torch {torch_version} are not known here; give a version from {OLDEST_TORCH} "
            "to 2.13, or leave --torch out."
        )
    return platform


@cache
def _installed(package: str) -> str | None:
    try:
        return ".".join(map(str, Version(version(package)).release[:3]))
    except PackageNotFoundError:
        return None


def card_of_device(facts: DeviceFacts) -> Card | None:
    """Return the CUDA device of this machine as a card; None where there is none."""
    if facts.cuda_total_bytes is None or facts.cuda_capability is None:
        return None
    title = facts.cuda_name or "this machine's card"
    return Card(
        name="this-device",
        title=title,
        memory_bytes=facts.cuda_total_bytes,
        read_usable_bytes=facts.cuda_total_bytes,
        memory_source="read from the device",
        capability=facts.cuda_capability,
        assumptions=("the size of its CUDA context is assumed",),
    )


def predict_cells(
    questions: Sequence[Question],
    launcher: Launcher,
    *,
    allocator: str = "",
    limits: LimitsSpec = LONGEST_PLAN,
    progress: Progress = lambda _done, _total: None,
) -> list[Answer]:
    """Return an answer for each question, in their order, asking as many workers as there are cores.

    ``limits`` hold for each worker; what it had not
    answered by then is refused with the reason. Raises ``InfrastructureError`` when no worker starts.
    """
    desk = _Desk(questions, limits)
    running: list[tuple[_Part, RunningJob]] = []
    try:
        while desk.waiting or running:
            while desk.waiting and len(running) < cores():
                part = desk.waiting.pop(0)
                job = RunningJob(part.job(questions, allocator), launcher, limits, hear=part.hear)
                running.append((part, job))
            wait_for_any([worker for _, job in running for worker in job.workers], MAX_SLEEP_S)
            still: list[tuple[_Part, RunningJob]] = []
            for part, job in running:
                end = job.advance(0)
                if end is None:
                    still.append((part, job))
                else:
                    desk.take(part, end)
            running = still
            progress(desk.answered + sum(len(part.answers) for part, _ in running), len(questions))
    finally:
        for _, job in running:
            job.abandon()
    return desk.answers()


class _Part:
    """Some of the questions, all on one platform, as one job; hears the answers."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.answers: dict[int, Answer] = {}

    def job(self, questions: Sequence[Question], allocator: str) -> PlanJob:
        """Return the job; a cell is called by its place, since ids may repeat."""
        cells = [questions[index].cell.model_copy(update={"id": str(index)}) for index in self.indices]
        return PlanJob(
            cells_json=tuple(cell.model_dump_json() for cell in cells),
            platform=questions[self.indices[0]].platform,
            allocator=allocator,
        )

    def hear(self, message: Message) -> None:
        """Keep an answer."""
        if isinstance(message, PredictionMade):
            self.answers[int(message.cell_id)] = message.answer


class _Desk:
    """Hands out the questions in parts and gathers the answers."""

    def __init__(self, questions: Sequence[Question], limits: LimitsSpec) -> None:
        self.waiting = [_Part(indices) for indices in _split(questions, cores())]
        self._limits = limits
        self._answers: dict[int, Answer] = {}
        self._total = len(questions)

    @property
    def answered(self) -> int:
        return len(self._answers)

    def answers(self) -> list[Answer]:
        return [self._answers[index] for index in range(self._total)]

    def take(self, part: _Part, end: JobEnd) -> None:
        """Keep what a part has answered; halve what it has not, or refuse it if that is one cell."""
        self._answers |= part.answers
        left = [index for index in part.indices if index not in part.answers]
        if end.outcome == "timeout":
            why = f"Predicting took longer than {self._limits.timeout_s:g} s and was ended."
        elif len(left) > 1:
            middle = len(left) // 2
            self.waiting += [_Part(left[:middle]), _Part(left[middle:])]
            return
        else:
            said = end.failure.message if end.failure else "no answer came."
            why = f"The predictor failed on this cell: {said}"
        self._answers |= {index: Refusal(message=why) for index in left}


def _split(questions: Sequence[Question], workers: int) -> list[list[int]]:
    """Return the places of the questions in parts, one platform each, cells of one structure side by side.

    What two cells share is worked out once where one worker has both, so the parts are long runs.
    """
    platforms: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        platforms.setdefault(question.platform.model_dump_json(), []).append(index)
    parts = []
    for indices in platforms.values():
        indices.sort(key=lambda index: _structure(questions[index].cell))
        size = -(-len(indices) // workers)
        parts += [indices[start : start + size] for start in range(0, len(indices), size)]
    return parts


def _structure(cell: Cell) -> str:
    """Return what cells that share work agree in: all but batch, length and rank."""
    training = cell.training.model_dump_json(exclude={"micro_batch", "sequence_length"})
    return cell.model.model_dump_json() + cell.method.model_dump_json(exclude={"rank", "name"}) + training


def cores() -> int:
    """Return how many cores this process may use: one worker each."""
    return len(os.sched_getaffinity(0))
