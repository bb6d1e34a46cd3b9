"""What fits on how many GPUs, in sentences: the fewest, the largest batches, where one card does as much."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.errors import counted
from bench.records.predictions import Answer, Bound, Fit
from bench.report.text import grouped, notes, plain

_CLOSE: Answer = "too close to call"


def called(fit: Fit, bound: Bound) -> str:
    """Name a method, with its number of GPUs where there are several numbers."""
    return plain(bound.method) + (f" on {bound.gpus}" if fit.over_several else "")


class _OverGpus(NamedTuple):
    """A method at a length: its bounds on every number of GPUs where it fits, and where that is not known."""

    method: str
    length: int
    asked: tuple[int, ...]
    largest: tuple[Bound, ...]
    borderline: tuple[int, ...]


class _Beaten(NamedTuple):
    """An adapter on one GPU that takes as many sequences as full fine-tuning over so many."""

    length: int
    adapter: Bound
    full: Bound


def gpu_sentences(fit: Fit) -> list[str]:
    """Say how many GPUs each method needs, and where one card does as much; nothing of one number of them."""
    if not fit.over_several:
        return []
    bounds = [bound for bound in fit.bounds if bound.axis == "micro_batch" and bound.refusal is None]
    alike = grouped(((one.sequence_length, one.method), one) for one in bounds)
    methods = [
        _OverGpus(
            method=method,
            length=length,
            asked=tuple(one.gpus for one in own),
            largest=tuple(one for one in own if one.fits),
            borderline=tuple(
                one.gpus for one in own if one.next and not one.fits and one.next.verdict.answer == _CLOSE
            ),
        )
        for (length, method), own in alike.items()
    ]
    return notes("fit_gpus.j2", methods=methods, beaten=[*_beaten(bounds)], counted=counted)


def _beaten(bounds: Sequence[Bound]) -> Iterator[_Beaten]:
    for adapter in bounds:
        if adapter.gpus > 1 or adapter.method == "full" or not adapter.fits:
            continue
        least = adapter.fits.value
        several = [
            one
            for one in bounds
            if (one.method, one.sequence_length) == ("full", adapter.sequence_length)
            if one.gpus > 1 and (one.fits is None or one.gpus * one.fits.value <= least)
            if one.fits or one.next is None or one.next.verdict.answer != _CLOSE
        ]
        if several:
            most = max(several, key=lambda one: one.gpus)
            yield _Beaten(adapter.sequence_length, adapter, most)
