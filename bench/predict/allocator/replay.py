"""Replays allocations and frees of blocks through the rules of CUDA's caching allocator, on one stream.

The rules are those of c10/cuda/CUDACachingAllocator.cpp, torch 2.6 to 2.13. One thing is the driver's
and not torch's: where new segments lie, which decides among free blocks of equal size; here their
addresses rise, or fall. Nothing is known here of tensors, phases or cards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.metrics import MIB
from bench.predict.allocator.compiled import compiled, compiled_entry
from bench.predict.allocator.expandable import map_pages, release_pages, take_from_pages
from bench.predict.allocator.pools import (
    ACQUIRED,
    COUNTS,
    REQUESTS,
    RESERVED,
    RETRIES,
    SMALL_REQUEST_BYTES,
    UNLIMITED,
    Block,
    Numbers,
    Rules,
    Table,
    add_segment,
    collect,
    device_of,
    give,
    pool_of,
    release_oversize,
    release_segments,
    rules_of,
    take_from_segments,
)
from bench.predict.allocator.settings import MINIMUM_BYTES, AllocatorSettings

DEFAULT_SETTINGS = AllocatorSettings()
EMPTY_CACHE = -1
"""In a stream of events: a call of torch.cuda.empty_cache()."""


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The allocation that no memory was left for, and the state in which it failed; bytes."""

    event: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """What torch.cuda's counters would have said after each event of a stream; arrays of bytes.

    After an out-of-memory error nothing more is replayed, and the arrays end with the event before it.
    """

    allocated_bytes: Numbers
    requested_bytes: Numbers
    reserved_bytes: Numbers
    segments_acquired: int
    retries: int
    out_of_memory: OutOfMemory | None

    @property
    def allocated_peak_bytes(self) -> int:
        """Most bytes in live blocks, each counted whole: torch.cuda.max_memory_allocated()."""
        return int(self.allocated_bytes.max(initial=0))

    @property
    def requested_peak_bytes(self) -> int:
        """Most bytes asked for by live blocks, before rounding."""
        return int(self.requested_bytes.max(initial=0))

    @property
    def reserved_peak_bytes(self) -> int:
        """Most bytes held from the driver: torch.cuda.max_memory_reserved()."""
        return int(self.reserved_bytes.max(initial=0))


def replay(
    events: Sequence[int] | Numbers,
    sizes: Sequence[int] | Numbers,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    *,
    capacity_bytes: int | None = None,
    total_bytes: int | None = None,
    ascending: bool = True,
) -> Replay:
    """Return the counters of the allocator along a stream of events.

    ``events`` holds a block's number at its birth and again at its death, and a negative number for
    empty_cache(); ``sizes`` holds the bytes asked for by each block, by its number. Blocks of 0 bytes take
    no memory. ``capacity_bytes`` is what the driver can give; None for any amount. ``total_bytes`` is the
    memory of the card, which settings.per_process_memory_fraction is a share of (default: the capacity).
    Garbage collection happens only where that fraction is set, as in torch. ``ascending`` says whether the
    driver gives new segments rising or falling addresses.
    """
    numbers, asked = np.asarray(events, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    allocator = allocator_of(
        settings, len(asked), capacity_bytes=capacity_bytes, total_bytes=total_bytes, ascending=ascending
    )
    counters, held = np.empty((3, len(numbers)), dtype=np.int64), np.zeros((2, len(asked)), dtype=np.int64)
    replayed = run(allocator, numbers, asked, _rounded(asked, settings), held, counters)
    allocated, requested, reserved = counters[:, :replayed]
    device = allocator.device
    failed = None
    if replayed < len(numbers):
        failed = OutOfMemory(
            event=replayed,
            requested_bytes=int(asked[numbers[replayed]]),
            allocated_bytes=int(allocated[-1]) if replayed else 0,
            reserved_bytes=int(device[RESERVED]),
        )
    return Replay(
        allocated_bytes=allocated,
        requested_bytes=requested,
        reserved_bytes=reserved,
        segments_acquired=int(device[ACQUIRED]),
        retries=int(device[RETRIES]),
        out_of_memory=failed,
    )


def _rounded(sizes: Numbers, settings: AllocatorSettings) -> Numbers:
    if max(settings.roundup_power2_divisions) <= 1:
        return -(-sizes // MINIMUM_BYTES) * MINIMUM_BYTES
    distinct, places = np.unique(sizes, return_inverse=True)
    known = [settings.rounded(size) if size else 0 for size in distinct.tolist()]
    return np.array(known, dtype=np.int64)[places]


LOADING_THREADS = 4  # GLOBAL_WORKERS in core_model_loading.py of transformers 5
WARM_UP_CHANGES_BYTES = (-32 * MIB, -2 * MIB, 2 * MIB, 32 * MIB)
"""A segment's grain, and about a weight of a mid-sized model: each leaves other gaps for what follows."""


@dataclass(frozen=True, kw_only=True)
class ReplayVariability:
    """What a stream leaves open.

    ``weights`` are the ranges of events (start, end) in which one weight each is loaded, back to back;
    ``warm_up`` is the block that the loader allocates and frees first. Sequences whose lengths vary from
    step to step are another stream for each order of them.
    """

    weights: Sequence[tuple[int, int]] = ()
    warm_up: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReservedRange:
    """Peak of reserved bytes: as replayed, and the least and most of all perturbed replays.

    Of allocated bytes too: a block whose rest is too small to be split off counts whole, up to 1 MiB more.
    """

    traced_bytes: int
    low_bytes: int
    high_bytes: int
    allocated_low_bytes: int
    allocated_high_bytes: int


def reserved_range(
    events: Sequence[int] | Numbers,
    sizes: Sequence[int] | Numbers,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    variability: ReplayVariability = ReplayVariability(),
    replayed: Callable[..., Replay] = replay,
) -> ReservedRange:
    """Return the peak of reserved memory over at most eight replays of a stream, as ``replayed`` does it.

    Allocated memory hardly depends on order; what is reserved depends on which free block happens to fit.
    The stream is perturbed as reality perturbs it, always in the same ways, so its range is always the same.
    """
    traced = np.asarray(events, dtype=np.int64), np.asarray(sizes, dtype=np.int64), True
    variants = (traced, *_perturbed(*traced[:2], variability))
    replays = [replayed(order, asked, settings, ascending=ascending) for order, asked, ascending in variants]
    peaks = [one.reserved_peak_bytes for one in replays]
    allocated = [
        one.allocated_peak_bytes
        for one, (_, asked, _) in zip(replays, variants, strict=True)
        if asked is traced[1]  # a larger first block may itself be the most that is allocated
    ]
    return ReservedRange(
        traced_bytes=peaks[0],
        low_bytes=min(peaks),
        high_bytes=max(peaks),
        allocated_low_bytes=min(allocated),
        allocated_high_bytes=max(allocated),
    )


def _perturbed(
    events: Numbers, sizes: Numbers, variability: ReplayVariability
) -> Iterator[tuple[Numbers, Numbers, bool]]:
    """Yield each perturbation by itself: events, sizes, and whether addresses rise."""
    yield events, sizes, False
    if variability.warm_up is not None:
        for change in WARM_UP_CHANGES_BYTES:
            changed = sizes.copy()
            changed[variability.warm_up] = max(changed[variability.warm_up] + change, 0)
            yield events, changed, True
    if variability.weights:
        for turn in (1, 2):
            yield _reordered(events, variability.weights, turn), sizes, True


def _reordered(events: Numbers, weights: Sequence[tuple[int, int]], turn: int) -> Numbers:
    """Rotate the weights within each group that loads at the same time, as threads may overtake."""
    order = [events[: weights[0][0]]]
    for group in range(0, len(weights), LOADING_THREADS):
        together = weights[group : group + LOADING_THREADS]
        order += [events[start:end] for start, end in (*together[turn:], *together[:turn])]
    return np.concatenate([*order, events[weights[-1][1] :]])


class Allocator(NamedTuple):
    """Two pools of free blocks over one device: requests up to 1 MiB, and larger ones."""

    device: Numbers
    small: Table
    large: Table
    small_rules: Rules
    large_rules: Rules
    collect_above_bytes: int


def allocator_of(
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    blocks: int = 1000,
    *,
    capacity_bytes: int | None = None,
    total_bytes: int | None = None,
    ascending: bool = True,
) -> Allocator:
    """Return an allocator that holds nothing, for so many blocks at most; see ``replay`` for the others."""
    total = total_bytes if total_bytes is not None else capacity_bytes
    fraction = settings.per_process_memory_fraction
    allowed = None if total is None or fraction == 1 else int(fraction * total)
    limits = [limit for limit in (capacity_bytes, allowed) if limit is not None]
    threshold = settings.garbage_collection_threshold
    small, large = (rules_of(settings, small=small) for small in (True, False))
    return Allocator(
        device=device_of(min(limits, default=None), ascending=ascending),
        small=pool_of(small, blocks),
        large=pool_of(large, blocks),
        small_rules=small,
        large_rules=large,
        collect_above_bytes=int(threshold * allowed) if allowed and threshold else UNLIMITED,
    )


@compiled_entry
def run(  # noqa: PLR0917 - compiled: what is read, and the arrays that are filled in
    allocator: Allocator, events: Numbers, asked: Numbers, sizes: Numbers, held: Table, counters: Table
) -> int:
    """Play events; return how many were possible.

    ``sizes`` are the rounded ones; ``held`` takes the start and size of each live block, size 0 of others;
    ``counters`` takes allocated, requested and reserved bytes after each event.
    """
    allocated = requested = 0
    for event in range(len(events)):
        block = events[event]
        if block < 0:
            empty_cache(allocator)
        elif held[1, block]:
            pool = allocator.small if sizes[block] <= SMALL_REQUEST_BYTES else allocator.large
            give(pool, held[0, block], held[1, block])
            allocated -= held[1, block]
            requested -= asked[block]
            held[1, block] = 0
        elif sizes[block]:
            held[0, block], held[1, block] = allocate(allocator, sizes[block])
            if not held[1, block]:
                return event
            allocated += held[1, block]
            requested += asked[block]
        counters[0, event], counters[1, event] = allocated, requested
        counters[2, event] = allocator.device[RESERVED]
    return len(events)


@compiled
def allocate(allocator: Allocator, size: int) -> Block:
    """Return a block for a rounded request, cached or of new memory; one of 0 bytes where memory is out."""
    if size <= SMALL_REQUEST_BYTES:
        return _allocate(allocator, allocator.small, allocator.small_rules, size)
    return _allocate(allocator, allocator.large, allocator.large_rules, size)


@compiled
def _allocate(allocator: Allocator, pool: Table, rules: Rules, size: int) -> Block:
    pool[COUNTS, REQUESTS] += 1
    start, held = (
        take_from_pages(pool, rules, size) if rules.expandable else take_from_segments(pool, rules, size)
    )
    if not held:
        start, held = _grow(allocator, pool, rules, size)
    return start, held


@compiled
def _grow(allocator: Allocator, pool: Table, rules: Rules, size: int) -> Block:
    """Ask the driver for a pool that has no block; where memory is out, release cached blocks first."""
    device = allocator.device
    if allocator.collect_above_bytes < UNLIMITED:
        excess = device[RESERVED] - allocator.collect_above_bytes
        collect(allocator.large, allocator.large_rules, device, excess)
    start, held = _add_memory(pool, rules, device, size)
    if not held and release_oversize(pool, rules, device, size):
        start, held = _add_memory(pool, rules, device, size)
    if not held:
        empty_cache(allocator)
        device[RETRIES] += 1
        start, held = _add_memory(pool, rules, device, size)
    return start, held


@compiled
def _add_memory(pool: Table, rules: Rules, device: Numbers, size: int) -> Block:
    return (
        map_pages(pool, rules, device, size) if rules.expandable else add_segment(pool, rules, device, size)
    )


@compiled
def empty_cache(allocator: Allocator) -> None:
    if allocator.large_rules.expandable:
        release_pages(allocator.large, allocator.large_rules, allocator.device)
        release_pages(allocator.small, allocator.small_rules, allocator.device)
    else:
        release_segments(allocator.large, allocator.device)
        release_segments(allocator.small, allocator.device)
