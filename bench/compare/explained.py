"""Why a cell takes otherwise in one plan than in another, and what two plans cannot tell."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import UnsetType

from bench.errors import listed
from bench.metrics import MIB, size_text
from bench.records.predictions import PlannedCell, Prediction
from bench.records.readings import Caveat
from bench.records.records import LedgerReading
from bench.scenario.types import LoraMethod, QloraMethod

_MOST_NAMED = 4
Traced = Prediction | LedgerReading


def changed_bytes(before: float, after: float) -> str:
    """Write a change of a size with its sign."""
    return f"{'-' if after < before else '+'}{size_text(abs(after - before))}"


_BLIND_SPOTS = {
    "loading": "The order in which weights load, the loader's warm-up block and quantising while loading "
    "follow bench's account of transformers, so a change to those is not seen.",
    "kernels": "Which attention and optimizer kernels run, their workspaces and what dropout keeps follow "
    "bench's account of torch for the card, so a change to a kernel is not seen.",
    "4 bits": "The forward product of 4-bit weights is bench's own, as bitsandbytes has it in each version.",
    "8 bits": "Products of 8-bit weights are traced without outlier columns, whose number depends on data.",
}
"""Where a prediction runs bench's lines in the place of a library's (``predict/trace/``)."""


def blind_spots(planned: Iterable[PlannedCell]) -> Iterator[Caveat]:
    """Yield what a comparison of predictions of these cells cannot see."""
    there = set[str]()
    for one in planned:
        method = one.cell.method
        if isinstance(one.answer, Prediction) and one.answer.platform.device == "cuda":
            there |= {"loading", "kernels"}
            there |= {"4 bits"} if isinstance(method, QloraMethod) else set()
            there |= {"8 bits"} if isinstance(method, LoraMethod) and method.base == "int8" else set()
    for name, message in _BLIND_SPOTS.items():
        if name in there:
            yield Caveat(code="blind-spot", message=message)


def explained(before: PlannedCell, after: PlannedCell) -> str:
    """Return what else differs between two predictions of a cell, in clauses; empty where nothing does."""
    if not isinstance(before.answer, Prediction) or not isinstance(after.answer, Prediction):
        return ""
    first, second = before.answer, after.answer
    clauses = [*_trained(first.trainable_parameters, second.trainable_parameters)]
    clauses += peak_explained(first, second, MIB)
    if phases := phases_told(first.phase_requested_bytes, second.phase_requested_bytes, MIB):
        clauses.append(f"by phase {phases}")
    clauses += _fitting(before, after)
    return "; ".join(clauses)


def _trained(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    """Yield which modules are trained now, no longer, or in other numbers."""
    if not before or not after:
        return
    new, gone = after.keys() - before.keys(), before.keys() - after.keys()
    resized = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    for names, are in ((new, "trained now"), (gone, "no longer trained"), (resized, "trained otherwise")):
        if names:
            change = sum(after.get(name, 0) - before.get(name, 0) for name in names)
            plural = "are" if len(names) > 1 or any("*" in name for name in names) else "is"
            shown = sorted(name.removeprefix("model.") for name in names)  # as a model's own code has them
            yield f"{listed(shown, _MOST_NAMED)} {plural} {are} ({change:+,} parameters)"


def peak_explained(before: Traced, after: Traced, least: int) -> Iterator[str]:
    """Yield which categories and modules hold more or less at the peak, and where that was and is.

    Of changes by the ``least`` on, largest first.
    """
    held = [(_spelled(one.categories_at_peak_bytes), _by_module(one)) for one in (before, after)]
    for where, first, second in zip(("at the peak", "in"), *held, strict=True):
        change = {name: abs(second[name] - first[name]) for name in first | second}
        largest = sorted(change, key=lambda name: -change[name])[:_MOST_NAMED]
        named = [{name: own[name] for name in largest} for own in (first, second)]
        if told := changes_told(named[0], named[1], least):
            yield f"{where} {told}"
    yield from _moved(before, after)


def _by_module(one: Traced) -> Counter[str]:
    modules = {} if isinstance(one.modules_at_peak_bytes, UnsetType) else one.modules_at_peak_bytes
    return Counter({name: sum(own.values()) for name, own in modules.items()})


def _spelled(sizes: Mapping[Any, int]) -> Counter[str]:
    return Counter({name.replace("_", " "): nbytes for name, nbytes in sizes.items()})


def changes_told(before: Mapping[str, int], after: Mapping[str, int], least: int) -> str:
    """Write how sizes that both sides have changed, each by its name, from the ``least`` change on."""
    return ", ".join(
        f"{name} {changed_bytes(before[name], after[name])}"
        for name in before
        if name in after and abs(after[name] - before[name]) >= least
    )


def phases_told(before: Mapping[Any, int], after: Mapping[Any, int], least: int) -> str:
    """Write how sizes by phase changed, likewise."""
    return changes_told(_spelled(before), _spelled(after), least)


def _moved(before: Traced, after: Traced) -> Iterator[str]:
    """Yield where the peak was and is: told, never judged."""
    first, second = ((one.peak_op, one.peak_module, one.peak_phase) for one in (before, after))
    if first != second:
        was, now = (f"{op} in {module} ({phase.replace('_', ' ')})" for op, module, phase in (first, second))
        yield f"the peak moved from {was} to {now}"


def _fitting(before: PlannedCell, after: PlannedCell) -> Iterator[str]:
    """Yield the cards of which another thing is said now."""
    now = {fit.card: fit.answer for fit in after.verdicts}
    for fit in before.verdicts:
        if now.get(fit.card, fit.answer) != fit.answer:
            yield f"{fit.card}: {fit.answer}, now {now[fit.card]}"
