"""Predictions made in worker processes, so that the parent holds no torch; several workers at once.

A worker that dies, or an answer that is missing, costs one cell: its batch is halved until the cell to
blame is alone, and that cell is refused. Variants of a cell that may take less memory are predicted likewise.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version
from pydantic import ValidationError

from bench.errors import InfrastructureError, UsageError
from bench.records.messages import Message, PlanJob, PredictionMade
from bench.records.predictions import Change, Prediction, Refusal, check_fit
from bench.records.records import DeviceFacts
from bench.scenario.catalogue import Card, absurdities
from bench.scenario.cell import Cell
from bench.scenario.platform import KNOWN_SINCE, Platform, card_exactly
from bench.scenario.types import SHARED_BY_ADAPTERS, FullMethod, LimitsSpec, LoraMethod, QloraMethod
from bench.workers.launch import Launcher, wait_for_any
from bench.workers.supervise import MAX_SLEEP_S, JobEnd, RunningJob

PRELOAD = ("bench.predict.preload", "bench.workers.child")
"""For a ``Launcher`` whose workers predict and do nothing else."""
LONGEST_PLAN = LimitsSpec(timeout_s=24 * 3600, heartbeat_timeout_s=300, host_memory_gib=None)
Hear = Callable[[Message], None]
"""Is told what workers say besides their predictions."""
Progress = Callable[[int, int], None]
"""Is told how many cells of how many are predicted."""


def ignored(*_: object) -> None:
    """Take what nobody wants to hear."""


@dataclass(frozen=True, kw_only=True)
class PredictionRequest:
    """A cell, the platform on which its memory is asked for, and the cards on which its speed is."""

    cell: Cell
    platform: Platform
    cards: tuple[Card, ...] = ()


RANGES_REPLAYED = 96  # cells; eight replays each take most of a prediction's time
_BATCHES_A_WORKER = 4  # more would balance better, and start as many processes, each with a second of its own
NEXT_TORCH = Version("2.14")
"""The first version of which no source was read."""


def platform_of(
    device: str, capability: tuple[int, int] = (8, 0), torch_version: str | None = None
) -> Platform:
    """Return the platform of a device with the libraries installed here, or another version of torch.

    Raises ``UsageError`` where that is no version, or one whose kernels are not known.
    """
    known = {name: _installed(name) for name in ("torch", "bitsandbytes", "transformers")}
    known["torch"] = torch_version or known["torch"]
    given = {name: text for name, text in known.items() if text is not None}
    try:
        platform = Platform.model_validate({"device": device, "capability": capability, **given})
    except ValidationError:
        raise UsageError(f'"{torch_version}" is no version of torch; write it as in 2.13.') from None
    if torch_version is not None and not Version(KNOWN_SINCE["torch"]) <= Version(torch_version) < NEXT_TORCH:
        raise UsageError(
            f"the kernels of torch {torch_version} are not known here; give a version from "
            f"{KNOWN_SINCE['torch']} to 2.13, or leave --torch out."
        )
    return platform


@cache
def _installed(package: str) -> str | None:
    try:
        return ".".join(map(str, Version(version(package)).release[:3]))
    except PackageNotFoundError:
        return None


def card_of_device(facts: DeviceFacts) -> Card | None:
    """Return the CUDA device of this machine as a card; None where there is none.

    How fast it is, and its name, are those of the catalogued card that it is, if it is one.
    """
    if facts.cuda_total_bytes is None or facts.cuda_capability is None:
        return None
    known = card_exactly(facts.cuda_name, facts.cuda_total_bytes)
    rates = ("name", "bandwidth_bytes_per_s", "peak_bf16_flops", "speed_source", "speed")
    return Card(
        **{"name": "this-device"} | ({name: getattr(known, name) for name in rates} if known else {}),
        title=facts.cuda_name or "this machine's card",
        memory_bytes=facts.cuda_total_bytes,
        read_usable_bytes=facts.cuda_total_bytes,
        memory_source="read from the device",
        capability=facts.cuda_capability,
        assumptions=("the size of its CUDA context is assumed",),
    )


def predict_cells(
    requests: Sequence[PredictionRequest],
    launcher: Launcher,
    *,
    allocator: str = "",
    limits: LimitsSpec = LONGEST_PLAN,
    workers: int | None = None,
    reuse_ranges: bool | None = None,
    progress: Progress = ignored,
    observe: Hear = ignored,
    keep: Callable[[int, Prediction | Refusal], None] = ignored,
) -> list[Prediction | Refusal]:
    """Return a prediction or refusal for each request, in their order, from so many workers or one a core.

    ``limits`` hold for all together; what is not predicted by then is refused with the reason. ``keep`` gets
    each answer that a worker gave. Raises ``InfrastructureError`` when no worker starts, or a library cannot
    be imported.
    """
    found: dict[int, Prediction | Refusal] = {}

    def hear(message: Message) -> None:
        if isinstance(message, PredictionMade):
            found[int(message.cell_id)] = message.answer
            keep(int(message.cell_id), message.answer)
        else:
            observe(message)

    workers = workers or cores()
    waiting = _batches(requests, workers)
    reuse_ranges = len(requests) > RANGES_REPLAYED if reuse_ranges is None else reuse_ranges
    make_job = partial(_job, allocator=allocator, reuse_ranges=reuse_ranges)
    running: list[tuple[list[int], RunningJob]] = []
    deadline_s = time.monotonic() + limits.timeout_s
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                batch = waiting.pop(0)
                job = make_job([(index, requests[index]) for index in batch])
                left = limits.model_copy(update={"timeout_s": max(deadline_s - time.monotonic(), 0.0)})
                running.append((batch, RunningJob(job, launcher, left, hear=hear)))
            wait_for_any([worker for _, one in running for worker in one.workers], MAX_SLEEP_S)
            for batch, running_job in list(running):
                end = running_job.advance(0)
                if end is not None:
                    running.remove((batch, running_job))
                    if end.outcome == "unavailable" and end.failure:  # a library cannot be imported
                        raise InfrastructureError(end.failure.message)
                    missing = [index for index in batch if index not in found]
                    refused, halves = _unpredicted(missing, end, limits)
                    found |= refused
                    waiting += halves
            progress(len(found), len(requests))
    finally:
        for _, running_job in running:
            running_job.abandon()
    return [found[index] for index in range(len(requests))]


def _job(batch: Sequence[tuple[int, PredictionRequest]], *, allocator: str, reuse_ranges: bool) -> PlanJob:
    """Return the job of a batch on one platform; a cell is called by its index, since ids may repeat."""
    cells = [request.cell.model_copy(update={"id": str(index)}) for index, request in batch]
    return PlanJob(
        cells_json=tuple(cell.model_dump_json() for cell in cells),
        platform=batch[0][1].platform,
        cards=batch[0][1].cards,
        allocator=allocator,
        reuse_ranges=reuse_ranges,
    )


def _unpredicted(
    left: Sequence[int], end: JobEnd, limits: LimitsSpec
) -> tuple[dict[int, Refusal], list[list[int]]]:
    """Return refusals of what a worker left unpredicted, or the halves in which it is tried again."""
    if end.outcome == "timeout":
        why = f"Predicting took longer than {limits.timeout_s:g} s and was ended."
    elif len(left) > 1:
        middle = len(left) // 2
        return {}, [[*left[:middle]], [*left[middle:]]]
    else:
        said = end.failure.message if end.failure else "no answer came."
        why = f"The predictor failed on this cell: {said}"
    return dict.fromkeys(left, Refusal(message=why)), []


def _batches(requests: Sequence[PredictionRequest], workers: int) -> list[list[int]]:
    """Return the indices of the requests in batches, one platform each; those of most structures first.

    What two cells share is worked out once where one worker has both, so a batch holds all cells of a model
    and kind of method, up to a worker's share of the whole; small ones are joined.
    """
    found: list[list[int]] = []
    largest = -(-len(requests) // workers)
    kind_before = platform_before = ""
    for platform, kind, _, index in sorted((*_sorting(one), index) for index, one in enumerate(requests)):
        small = bool(found) and (workers == 1 or len(found[-1]) < largest // _BATCHES_A_WORKER)
        if platform != platform_before or (kind != kind_before and not small) or len(found[-1]) == largest:
            found.append([])
        found[-1].append(index)
        kind_before, platform_before = kind, platform
    return sorted(found, key=lambda batch: -len({_sorting(requests[index]) for index in batch}))


def _sorting(request: PredictionRequest) -> tuple[str, str, str]:
    """Return the platform, the model and kind of method, and what else cells that share work agree in."""
    cell = request.cell
    training = cell.training.model_dump_json(exclude={"micro_batch", "sequence_length"})
    method = cell.method.model_dump_json(exclude={"rank", "name"})
    return (
        request.platform.model_dump_json(),
        cell.model.model_dump_json() + cell.method.kind,
        method + training,
    )


def cores() -> int:
    """Return how many cores this process may use: one worker each."""
    return len(os.sched_getaffinity(0))


_RANK = 16
Predict = Callable[[Sequence[PredictionRequest]], Sequence[Prediction | Refusal]]


def find_savers(
    subjects: Sequence[tuple[Cell, Prediction, Sequence[Card]]], predict: Predict
) -> list[tuple[Change, ...]]:
    """Predict the variants of each cell; return those that free memory, judged for its cards, best first."""
    tried = [
        (index, what, PredictionRequest(cell=variant, platform=before.platform))
        for index, (cell, before, _) in enumerate(subjects)
        for what, variant in variants(cell)
    ]
    predicted = predict([request for *_, request in tried])
    found: list[list[Change]] = [[] for _ in subjects]
    for (index, what, _), after in zip(tried, predicted, strict=True):
        _, before, cards = subjects[index]
        if isinstance(after, Prediction) and after.needed_bytes < before.needed_bytes:
            verdicts = tuple(check_fit(after, card) for card in cards)
            slim = after.model_copy(update={"modules_at_peak_bytes": {}})  # which nobody is shown
            found[index].append(Change(what=what, prediction=slim, verdicts=verdicts))
    for changes in found:
        changes.sort(key=lambda change: (change.prediction.needed_bytes, len(change.what)))
    return [tuple(one for one in changes if not _adds_nothing(one, changes)) for changes in found]


def _adds_nothing(change: Change, changes: Sequence[Change]) -> bool:
    """Tell whether one part of a combined change frees as much by itself."""
    return any(
        _parts(one.what) < _parts(change.what)
        and one.prediction.needed_bytes <= change.prediction.needed_bytes
        for one in changes
    )


def _parts(what: str) -> set[str]:
    return {part for some in what.split(", ") for part in some.split(" and ")}


def variants(cell: Cell) -> list[tuple[str, Cell]]:
    """Return each change in words with the cell it makes; impossible ones are left out.

    The last, where several apply that leave method, batch and length alone, is all of these.
    """
    found = []
    for what, changes in _changes(cell):
        made = _with(cell, changes)
        if made is not None and made.digest != cell.digest:
            found.append((what, made))
    return found


def _changes(cell: Cell) -> Iterator[tuple[str, dict[str, Any]]]:
    training = cell.training
    savings: dict[str, dict[str, Any]] = {}
    if training.gradient_checkpointing == "off":
        savings["gradient checkpointing"] = {"gradient_checkpointing": "non-reentrant"}
    if "8bit" not in training.optimizer and training.optimizer.startswith(("adamw", "paged-adamw")):
        savings["paged 8-bit AdamW"] = {"optimizer": "paged-adamw-8bit"}
    if training.loss == "full":
        savings["loss in chunks"] = {"loss": "chunked"}
    for what, changes in savings.items():
        yield what, {"training": changes}
    yield from _other_methods(cell)
    if cell.parallel.strategy == "fsdp2":
        yield "offloading to the host", {"parallel": {"cpu_offload": True}}
    if training.sequence_length > 2:  # noqa: PLR2004 - the shortest there is
        yield "half the sequence length", {"training": {"sequence_length": training.sequence_length // 2}}
    if training.micro_batch > 1:
        halved = {
            "micro_batch": training.micro_batch // 2,
            "gradient_accumulation": training.gradient_accumulation * 2,
        }
        yield "half the micro-batch, twice the accumulation", {"training": halved}
    if len(savings) > 1:
        together = {key: value for changes in savings.values() for key, value in changes.items()}
        yield " and ".join((", ".join([*savings][:-1]), [*savings][-1])), {"training": together}


def _other_methods(cell: Cell) -> Iterator[tuple[str, dict[str, Any]]]:
    method = cell.method
    stored: dict[str, Any] = {"quant_storage": "bf16"} if cell.parallel.sharded else {}
    if isinstance(method, FullMethod):
        yield f"LoRA of rank {_RANK}", {"method": LoraMethod(rank=_RANK)}
        yield f"QLoRA of rank {_RANK}", {"method": QloraMethod(rank=_RANK, **stored)}
    elif isinstance(method, LoraMethod):
        shared = {
            name: getattr(method, name) for name in QloraMethod.model_fields if name in SHARED_BY_ADAPTERS
        }
        yield "QLoRA (NF4, double quantisation)", {"method": QloraMethod(**shared, **stored)}


def _with(cell: Cell, changes: dict[str, Any]) -> Cell | None:
    """Return the cell so changed and checked anew; None where it contradicts itself or its model."""
    parts = dict(cell)
    for part, change in changes.items():
        parts[part] = parts[part].model_copy(update=change) if isinstance(change, dict) else change
    try:
        made = Cell.model_validate(parts)
    except ValidationError:
        return None
    return None if absurdities(made) else made
