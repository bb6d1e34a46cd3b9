"""A traced window replayed and summed up: peaks by phase, what is alive at the peak, what a step computes."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from bench.predict.allocator.pools import Numbers
from bench.predict.allocator.replay import EMPTY_CACHE, Replay, ReservedRange, replay, reserved_range
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.trace.meta_ledger import Mark
from bench.predict.trace.stream import Ints, Stream, spans
from bench.predict.varying import insufficient_bytes
from bench.records.predictions import Method, PredictedPhase, Prediction
from bench.records.readings import Caveat, summed
from bench.records.records import LedgerReading
from bench.scenario.platform import Platform

_TRACED_WITH = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")
_REUSED_RANGE = Caveat(
    code="band-of-a-relative",
    message="In a plan of this many cells the reserved band is computed for one representative cell of each "
    "kind and reused for those that differ from it in batch, length or rank; plan fewer cells to compute "
    "each.",
)


def traced_with() -> dict[str, str]:
    """Return the versions of the libraries that this process has loaded, as they call themselves.

    What is installed may say otherwise: sources that lie before it on the path have no metadata of their own.
    """
    loaded = {name: sys.modules.get(name) for name in _TRACED_WITH}
    return {name: str(module.__version__) for name, module in loaded.items() if module is not None}


def summed_up(
    stream: Stream,
    platform: Platform,
    settings: AllocatorSettings,
    method: Method,
    relative: Prediction | None = None,
) -> Prediction:
    """Replay a stream and say what it took; the range is as wide as a relative's, if one is given."""
    replayed = _replayed(stream, settings)
    reset, insufficient = stream.reset_at, None
    traced = int(replayed.reserved_bytes[reset:].max())
    allocated = replayed.allocated_bytes
    peak = reset + int(allocated[reset:].argmax())
    if relative is None:
        of_stream = *_with_empty_cache(stream), settings
        reserved = reserved_range(*of_stream, stream.variability(), _player(stream))
        released = replayed.reserved_peak_bytes - traced  # before the reset, and in some replays perhaps not
        reserved = dataclasses.replace(reserved, low_bytes=max(0, reserved.low_bytes - released))
        if not reset and stream.streams is None:
            insufficient = insufficient_bytes(*of_stream, int(allocated[peak]), traced)
    else:
        reserved = _range_like(relative, traced, int(allocated[peak]))
    varies = reset == 0 and reserved.allocated_low_bytes < reserved.allocated_high_bytes
    prediction = _at_peak(stream, platform, method, replayed, peak)
    told: Iterable[Caveat] = (_REUSED_RANGE,) if relative else ()
    return prediction.model_copy(
        update={
            "allocator": str(settings),
            "allocated_low_bytes": reserved.allocated_low_bytes if varies else None,
            "allocated_high_bytes": reserved.allocated_high_bytes if varies else None,
            "reserved_peak_bytes": traced,
            "reserved_low_bytes": reserved.low_bytes,
            "reserved_high_bytes": reserved.high_bytes,
            "sufficient_bytes": _in_proportion(relative, traced),
            "insufficient_bytes": insufficient,
            "caveats": (*told, *prediction.caveats),
        }
    )


def _at_peak(stream: Stream, platform: Platform, method: Method, replayed: Replay, peak: int) -> Prediction:
    """Return what does not depend on how much the allocator keeps in reserve."""
    block = int(stream.events[peak])
    modules = stream.modules(stream.live_at(peak + 1))
    phases = list(spans(stream.marks, len(stream.events)))
    allocated, requested = replayed.allocated_bytes, replayed.requested_bytes
    reached = stream.reached
    return Prediction(
        platform=platform,
        allocated_peak_bytes=int(allocated[peak]),
        requested_peak_bytes=int(requested[stream.reset_at :].max()),
        paged_bytes=stream.paged_bytes,
        phase_peaks_bytes=_highest(phases, allocated),
        phase_ends_bytes=_first_ends(phases, allocated),
        first_peaks_bytes=_highest([one for one in phases if one[0].step == 0], allocated),
        phase_requested_bytes=_highest(phases, requested),
        phase_ends_reserved_bytes=_first_ends(phases, replayed.reserved_bytes),
        peak_phase=next(mark.phase for mark, part in phases if peak in part),
        peak_op=stream.blocks[stream.kinds[block]].op,
        peak_module=stream.module_of(block),
        categories_at_peak_bytes=summed(modules),
        modules_at_peak_bytes=modules,
        method=method,
        reach=reached.weights if reached else None,
        trainable_parameters=reached.trainable if reached else {},
        op_count=2 * stream.ops_of_step,
        step_flops=stream.flops_of_step,
        saved_for_backward_bytes=stream.saved_bytes(),
        traced_with=traced_with(),
        caveats=(*_answered(stream.asked), *(reached.caveats if reached else ())),
    )


_Spans = Sequence[tuple[Mark, range]]


def _highest(phases: _Spans, values: Ints) -> dict[PredictedPhase, int]:
    """Return the most of each phase, over its steps; nothing of one in which nothing happens."""
    found: dict[PredictedPhase, int] = {}
    for mark, part in phases:
        if part:
            found[mark.phase] = max(found.get(mark.phase, 0), int(values[part.start : part.stop].max()))
    return found


def _first_ends(phases: _Spans, values: Ints) -> dict[PredictedPhase, int]:
    """Return what there is as each phase of the first step ends."""
    first = [(mark, part) for mark, part in phases if mark.step == 0]
    return {mark.phase: int(values[part.stop - 1]) if part.stop else 0 for mark, part in first}


def _answered(lines: Iterable[str]) -> Iterator[Caveat]:
    if asked := sorted(lines):
        yield Caveat(
            code="values-assumed",
            message="The loop asks for values that a prediction does not have, and was told no for a truth "
            f"value and one for a number; if more than logging depends on it, measure: {'; '.join(asked)}.",
        )


def _range_like(relative: Prediction, traced_bytes: int, allocated_bytes: int) -> ReservedRange:
    """Return a range in the same proportion to its replay as a relative's."""
    peak, low, high = relative.reserved_peak_bytes, relative.reserved_low_bytes, relative.reserved_high_bytes
    if not peak or low is None or high is None:
        raise AssertionError("a prediction for CUDA has a range")
    exact = relative.allocated_peak_bytes
    allocated = (
        (relative.allocated_low_bytes or exact) / exact,
        (relative.allocated_high_bytes or exact) / exact,
    )
    return ReservedRange(
        traced_bytes=traced_bytes,
        low_bytes=traced_bytes * low // peak,
        high_bytes=traced_bytes * high // peak,
        allocated_low_bytes=int(allocated_bytes * allocated[0]),
        allocated_high_bytes=int(allocated_bytes * allocated[1]),
    )


def _in_proportion(relative: Prediction | None, traced_bytes: int) -> int | None:
    """Return how much suffices in the same proportion as a relative's."""
    if relative is None or not relative.sufficient_bytes or not relative.reserved_peak_bytes:
        return None
    return traced_bytes * relative.sufficient_bytes // relative.reserved_peak_bytes


def _replayed(stream: Stream, settings: AllocatorSettings) -> Replay:
    """Replay with the calls of empty_cache() put in; the counters are those after each event."""
    events, sizes = _with_empty_cache(stream)
    replayed = _player(stream)(events, sizes, settings)
    if not stream.cache_emptied_at:
        return replayed
    kept = events != EMPTY_CACHE
    return dataclasses.replace(
        replayed,
        allocated_bytes=replayed.allocated_bytes[kept],
        requested_bytes=replayed.requested_bytes[kept],
        reserved_bytes=replayed.reserved_bytes[kept],
    )


def _player(stream: Stream) -> Callable[..., Replay]:
    """Return what replays a stream's events: with a pool for each CUDA stream, where there are several."""
    return replay if stream.streams is None else partial(replay_streams, streams=stream.streams)


def _with_empty_cache(stream: Stream) -> tuple[Ints, Ints]:
    """Return events and sizes as a replay takes them."""
    positions = np.asarray(stream.cache_emptied_at, dtype=np.int64)
    return np.insert(stream.events, positions, EMPTY_CACHE), stream.sizes


def predicted_for_cpu(reading: LedgerReading, platform: Platform, asked: Iterable[str]) -> Prediction:
    """Say what a ledger on meta tensors found; ``asked`` are the lines that asked for values."""
    return Prediction(
        platform=platform,
        allocated_peak_bytes=reading.peak_bytes,
        phase_peaks_bytes=reading.phase_peaks_bytes,
        phase_ends_bytes={},
        peak_phase=reading.peak_phase,
        peak_op=reading.peak_op,
        peak_module=reading.peak_module,
        categories_at_peak_bytes=reading.categories_at_peak_bytes,
        modules_at_peak_bytes=reading.modules_at_peak_bytes or {},
        method="full trace",
        op_count=reading.op_count,
        saved_for_backward_bytes=reading.saved_for_backward_bytes,
        traced_with=traced_with(),
        caveats=tuple(_answered(asked)),
    )


def replay_streams(
    events: Sequence[int] | Numbers,
    sizes: Sequence[int] | Numbers,
    settings: AllocatorSettings,
    *,
    streams: Numbers,
    ascending: bool = True,
) -> Replay:
    """Return what ``replay`` does where block ``b`` is made on stream ``streams[b]``; memory is unlimited.

    A free block serves the stream that it was made on alone (c10/cuda/CUDACachingAllocator.cpp,
    get_free_block, which passes over blocks of other streams).
    """
    numbers, asked = np.asarray(events, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    counters = np.zeros((3, len(numbers)), dtype=np.int64)
    segments = 0
    for stream in np.unique(streams):
        its = streams == stream
        own = np.flatnonzero((numbers == EMPTY_CACHE) | its[numbers])
        renumbered = np.where(numbers[own] == EMPTY_CACHE, EMPTY_CACHE, (its.cumsum() - 1)[numbers[own]])
        one = replay(renumbered, asked[its], settings, ascending=ascending)
        changes = np.zeros_like(counters)
        values = one.allocated_bytes, one.requested_bytes, one.reserved_bytes
        changes[:, own] = np.diff(np.stack(values), prepend=0)
        counters += changes.cumsum(axis=1)
        segments += one.segments_acquired
    allocated, requested, reserved = counters
    return Replay(
        allocated_bytes=allocated,
        requested_bytes=requested,
        reserved_bytes=reserved,
        segments_acquired=segments,
        retries=0,
        out_of_memory=None,
    )
