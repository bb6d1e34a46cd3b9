"""Variants of a cell that take less memory: the usual changes, one at a time, and those together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from bench.predict.pool import PredictionRequest
from bench.records.predictions import Change, Prediction, Refusal, check_fit
from bench.scenario.catalogue import Card, absurdities
from bench.scenario.cell import Cell
from bench.scenario.types import FullMethod, LoraMethod, QloraMethod

_RANK = 16
_CHECKPOINTING = {"gradient_checkpointing": "non-reentrant"}
_PAGED = {"optimizer": "paged-adamw-8bit"}
_CHUNKED = {"loss": "chunked"}


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
            found[index].append(Change(what=what, prediction=after, verdicts=verdicts))
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
        savings["gradient checkpointing"] = _CHECKPOINTING
    if "8bit" not in training.optimizer and training.optimizer.startswith(("adamw", "paged-adamw")):
        savings["paged 8-bit AdamW"] = _PAGED
    if training.loss == "full":
        savings["loss in chunks"] = _CHUNKED
    for what, changes in savings.items():
        yield what, {"training": changes}
    yield from _other_methods(cell)
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
    if isinstance(method, FullMethod):
        yield f"LoRA of rank {_RANK}", {"method": LoraMethod(rank=_RANK)}
        yield f"QLoRA of rank {_RANK}", {"method": QloraMethod(rank=_RANK)}
    elif isinstance(method, LoraMethod):
        shared = {name: getattr(method, name) for name in QloraMethod.model_fields if name in _SHARED}
        yield "QLoRA (NF4, double quantisation)", {"method": QloraMethod(**shared)}


_SHARED = {"rank", "alpha", "dropout", "target_modules", "bias", "adapter_dtype", "peft"}


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
