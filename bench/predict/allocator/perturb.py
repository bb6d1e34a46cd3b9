"""How far reserved memory may lie from its replay: the same stream, perturbed as reality perturbs it.

Allocated memory hardly depends on order; what is reserved depends on which free block happens to fit. The
perturbations are fixed, so the same stream always has the same band.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics import MIB
from bench.predict.allocator.pools import Numbers
from bench.predict.allocator.replay import DEFAULT_SETTINGS, replay
from bench.predict.allocator.settings import AllocatorSettings

LOADING_THREADS = 4  # GLOBAL_WORKERS in core_model_loading.py of transformers 5
WARM_UP_CHANGES_BYTES = (-32 * MIB, -2 * MIB, 2 * MIB, 32 * MIB)
"""A segment's grain, and about a weight of a mid-sized model: each leaves other gaps for what follows."""


@dataclass(frozen=True, kw_only=True)
class Freedom:
    """What a stream leaves open.

    ``weights`` are the ranges of events (start, end) in which one weight each is loaded, back to back;
    ``warm_up`` is the block that the loader allocates and frees first. Sequences whose lengths vary from
    step to step are left out: the large blocks that a shorter step leaves behind stay reserved until memory
    is short, so they may nearly double what is reserved without being needed.
    """

    weights: Sequence[tuple[int, int]] = ()
    warm_up: int | None = None


@dataclass(frozen=True, kw_only=True)
class Band:
    """Peak of reserved bytes: as replayed, and the least and most of all perturbed replays."""

    traced_bytes: int
    low_bytes: int
    high_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Variant:
    events: Numbers
    sizes: Numbers
    ascending: bool = True


def band(
    events: Sequence[int] | Numbers,
    sizes: Sequence[int] | Numbers,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    freedom: Freedom | None = None,
) -> Band:
    """Return the peak of reserved memory over at most eight replays of a stream (see ``replay``)."""
    traced = _Variant(events=np.asarray(events, dtype=np.int64), sizes=np.asarray(sizes, dtype=np.int64))
    peaks = [
        replay(each.events, each.sizes, settings, ascending=each.ascending).reserved_peak_bytes
        for each in _variants(traced, freedom or Freedom())
    ]
    return Band(traced_bytes=peaks[0], low_bytes=min(peaks), high_bytes=max(peaks))


def _variants(traced: _Variant, freedom: Freedom) -> Iterator[_Variant]:
    """Yield the stream as traced, then each perturbation by itself."""
    yield traced
    yield replace(traced, ascending=False)
    if freedom.warm_up is not None:
        for change in WARM_UP_CHANGES_BYTES:
            sizes = traced.sizes.copy()
            sizes[freedom.warm_up] = max(sizes[freedom.warm_up] + change, 0)
            yield replace(traced, sizes=sizes)
    if freedom.weights:
        for turn in (1, 2):
            yield replace(traced, events=_reordered(traced.events, freedom.weights, turn))


def _reordered(events: Numbers, weights: Sequence[tuple[int, int]], turn: int) -> Numbers:
    """Rotate the weights within each group that loads at the same time, as threads may overtake."""
    order = [events[: weights[0][0]]]
    for group in range(0, len(weights), LOADING_THREADS):
        together = weights[group : group + LOADING_THREADS]
        order += [events[start:end] for start, end in (*together[turn:], *together[:turn])]
    return np.concatenate([*order, events[weights[-1][1] :]])
