"""What a cell takes on a platform, under an allocator's settings: traced, deepened, replayed, summed up."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePath
from traceback import extract_tb
from typing import Any

import numpy as np

from bench.errors import UnavailableError, UntraceableError, UsageError, first_line
from bench.predict.allocator.replay import (
    DEFAULT_SETTINGS,
    EMPTY_CACHE,
    Replay,
    ReservedRange,
    replay,
    reserved_range,
)
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.families import Family, families, streams
from bench.predict.reach import beyond_training, refused_as_unreachable
from bench.predict.trace.adapters import assumed_of_adapter
from bench.predict.trace.stream import Ints, Stream, spans
from bench.predict.trace.trace import Tracer, read_cpu_ledger
from bench.predict.trace.variants import litgpt
from bench.predict.trace.variants.older_computations import (
    caveats_of_versions,
    unknown_attention_bytes,
    unknown_loss_bytes,
)
from bench.predict.trace.variants.older_models import caveats_of_version
from bench.predict.varying import insufficient_bytes, widened
from bench.records.predictions import Method, PredictedPhase, Prediction, Refusal
from bench.records.readings import Caveat
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.scenario.types import LoraMethod, ModelSpec, SyntheticData
from bench.training.loading.models import assumed_of, configuration_of, stored_as, stored_caveats
from bench.training.weights_reached import Reached

_VALIDATED = ("window", "hf-trainer")
"""Loops whose predictions for a card were compared with published measurements."""
_REUSED_RANGE = Caveat(
    code="band-of-a-relative",
    message="In a plan of this many cells the reserved band is computed for one representative cell of each "
    "kind and reused for those that differ from it in batch, length or rank; plan fewer cells to compute "
    "each.",
)


def predict(
    cell: Cell,
    platform: Platform,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    steps: tuple[int, int] | None = None,
) -> Prediction:
    """Predict one cell; with ``steps``, its peaks from the first to the last of them (1, 2 …; 0 is loading).

    Raises ``UntraceableError`` naming what stands in the way, ``UnavailableError`` where the model's
    configuration cannot be read.
    """
    config = configuration_of(cell.model)
    if refused := refused_as_unreachable(cell, config):
        raise UntraceableError(refused.message)
    if platform.device == "cpu":
        prediction = _predict_cpu(cell, platform, config)
    else:
        (family,) = families([cell], config)
        ((_, stream, method),) = streams(family, platform, config)
        stream = stream.during(*steps) if steps else stream
        prediction = summed_up(stream, platform, settings, method)
        prediction = widened(prediction, cell, Tracer(platform, config, family.adapted), settings)
    return _completed(prediction, cell, config, platform)


def predict_all(
    cells: Sequence[Cell],
    platform: Platform,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    *,
    reuse_ranges: bool = False,
) -> Iterator[tuple[Cell, Prediction | Refusal]]:
    """Predict many cells, tracing once what they share; in the order in which they come about.

    With ``reuse_ranges`` the range of reserved memory is replayed for one cell of each family; the others
    have as wide a range in proportion, and a caveat says so.
    """
    for model, members in _by_model(cells):
        try:
            config = configuration_of(model)
        except UnavailableError as error:
            yield from ((cell, Refusal(message=str(error))) for cell in members)
            continue
        refused = [(cell, refused_as_unreachable(cell, config)) for cell in members]
        yield from ((cell, refusal) for cell, refusal in refused if refusal is not None)
        within = [cell for cell, refusal in refused if refusal is None]
        if platform.device == "cpu":
            yield from ((cell, _predicted_or_refused(cell, platform, settings)) for cell in within)
            continue
        for family in families(within, config):
            yield from _predicted(family, platform, config, settings, reuse_ranges=reuse_ranges)


def _predicted(
    family: Family, platform: Platform, config: Any, settings: AllocatorSettings, *, reuse_ranges: bool
) -> Iterator[tuple[Cell, Prediction | Refusal]]:
    """Predict the cells of a family; where one cannot be, each is asked for its own reason."""
    left = dict(family.cells)
    relative = None
    try:
        for point, stream, method in streams(family, platform, config):
            prediction = summed_up(stream, platform, settings, method, relative)
            if relative is None:
                tracer = Tracer(platform, config, family.adapted)
                prediction = widened(prediction, left[point][0], tracer, settings)
            relative = prediction if reuse_ranges and relative is None else relative
            for cell in left.pop(point):
                yield cell, _completed(prediction, cell, config, platform)
    except Exception:  # noqa: BLE001 - a library's, or ours
        for cell in chain.from_iterable(left.values()):
            yield cell, _predicted_or_refused(cell, platform, settings)


def _by_model(cells: Sequence[Cell]) -> Iterable[tuple[ModelSpec, list[Cell]]]:
    grouped: dict[str, tuple[ModelSpec, list[Cell]]] = {}
    for cell in cells:
        grouped.setdefault(cell.model.model_dump_json(), (cell.model, []))[1].append(cell)
    return grouped.values()


def _predicted_or_refused(
    cell: Cell, platform: Platform, settings: AllocatorSettings
) -> Prediction | Refusal:
    try:
        return predict(cell, platform, settings)
    except (UntraceableError, UnavailableError, UsageError) as error:
        return Refusal(message=str(error))
    except Exception as error:
        if (refused := _refused_by_library(error)) is None:
            raise
        return refused


def _refused_by_library(error: Exception) -> Refusal | None:
    """Return the refusal of a cell on which a library's code failed, by its name; None where ours did."""
    asking = [frame for frame in extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    place = PurePath(asking[-1].filename)
    if not asking or "site-packages" not in place.parts:
        return None
    library = place.parts[place.parts.index("site-packages") + 1]
    return Refusal(
        message=f"{library} fails on this cell: {type(error).__name__}: {first_line(error)[:200]} "
        f"({'/'.join(place.parts[-2:])}, line {asking[-1].lineno}); change what this names in the scenario, "
        "or try the cell with bench run, which trains with data."
    )


def _completed(prediction: Prediction, cell: Cell, config: Any, platform: Platform) -> Prediction:
    """Return a prediction with what it takes for granted, and as wide as what is not known makes it."""
    changed: dict[str, Any] = {}
    less = unknown_loss_bytes(cell, config, platform)
    beyond = unknown_attention_bytes(cell, config, platform)
    if less or beyond:
        peak = prediction.allocated_peak_bytes
        low = max(0, (prediction.allocated_low_bytes or peak) - less)
        changed["allocated_low_bytes"] = low
        changed["allocated_high_bytes"] = (prediction.allocated_high_bytes or peak) + beyond
        changed["reserved_low_bytes"] = max(low, (prediction.reserved_low_bytes or 0) - less)
        changed["reserved_high_bytes"] = (prediction.reserved_high_bytes or peak) + beyond
        changed["insufficient_bytes"] = None
    more = _assumptions(cell, config, platform)
    return prediction.model_copy(update=changed | {"caveats": (*prediction.caveats, *more)})


def _assumptions(cell: Cell, config: Any, platform: Platform) -> tuple[Caveat, ...]:
    """Return what a prediction takes for granted that a run may not bear out."""
    found = [*caveats_of_version(config, platform), *stored_caveats(cell, config), *assumed_of_adapter(cell)]
    found += caveats_of_versions(cell, config, platform)
    if assumed := assumed_of(cell.model, config):
        found.append(Caveat(code="architecture-of-a-relative", message=assumed))
    if beyond := beyond_training(cell, config):
        found.append(beyond)
    if platform.litgpt:
        found += litgpt.caveats(cell, platform.litgpt)
    if cell.loop.driver not in _VALIDATED and platform.device != "cpu":
        message = (
            f"{cell.loop.driver} as installed here; no such prediction was compared with a real card yet."
        )
        found.append(Caveat(code="loop-not-validated", message=message))
    if not isinstance(cell.data, SyntheticData) and cell.training.batching != "pack":
        message = "Predicted for sequences of the full length. Shorter ones need less."
        found.append(Caveat(code="full-length-batch", message=message))
    over_int8 = isinstance(cell.method, LoraMethod) and cell.method.base == "int8"
    over_int8 = over_int8 and getattr(cell.method, "implementation", "") == "bitsandbytes"
    if over_int8 or stored_as(config) == "bitsandbytes_8bit":
        found.append(
            Caveat(
                code="int8-without-outliers",
                message="Predicted without outlier columns in int8 products: their number depends on data.",
            )
        )
    return tuple(found)


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
        reserved = reserved_range(*_with_empty_cache(stream), settings, stream.variability())
        released = replayed.reserved_peak_bytes - traced  # before the reset, and in some replays perhaps not
        reserved = dataclasses.replace(reserved, low_bytes=max(0, reserved.low_bytes - released))
        if not reset:
            of_stream = *_with_empty_cache(stream), settings, int(allocated[peak]), traced
            insufficient = insufficient_bytes(*of_stream)
    else:
        reserved = _range_like(relative, traced, int(allocated[peak]))
    varies = reset == 0 and reserved.allocated_low_bytes < reserved.allocated_high_bytes
    block = int(stream.events[peak])
    phases = list(spans(stream.marks, len(stream.events)))
    peaks: dict[PredictedPhase, int] = {}
    first_ends: dict[PredictedPhase, int] = {}
    firsts: dict[PredictedPhase, int] = {}
    for mark, part in phases:
        if part:
            peaks[mark.phase] = max(peaks.get(mark.phase, 0), int(allocated[part.start : part.stop].max()))
            if mark.step == 0:
                firsts[mark.phase] = max(
                    firsts.get(mark.phase, 0), int(allocated[part.start : part.stop].max())
                )
        if mark.step == 0:
            first_ends[mark.phase] = int(allocated[part.stop - 1]) if part.stop else 0
    return Prediction(
        platform=platform,
        allocator=str(settings),
        allocated_peak_bytes=int(allocated[peak]),
        allocated_low_bytes=reserved.allocated_low_bytes if varies else None,
        allocated_high_bytes=reserved.allocated_high_bytes if varies else None,
        reserved_peak_bytes=traced,
        reserved_low_bytes=reserved.low_bytes,
        reserved_high_bytes=reserved.high_bytes,
        sufficient_bytes=_in_proportion(relative, traced),
        insufficient_bytes=insufficient,
        paged_bytes=stream.paged_bytes,
        phase_peaks_bytes=peaks,
        phase_ends_bytes=first_ends,
        first_peaks_bytes=firsts,
        peak_phase=next(mark.phase for mark, part in phases if peak in part),
        peak_op=stream.blocks[stream.kinds[block]].op,
        peak_module=stream.module_of(block),
        categories_at_peak_bytes=stream.categories(stream.live_at(peak + 1)),
        method=method,
        reach=stream.reached.weights if stream.reached else None,
        caveats=(
            *((_REUSED_RANGE,) if relative else ()),
            *_answered(stream.asked),
            *(stream.reached.caveats if stream.reached else ()),
        ),
    )


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
    replayed = replay(events, sizes, settings)
    if not stream.cache_emptied_at:
        return replayed
    kept = events != EMPTY_CACHE
    return dataclasses.replace(
        replayed,
        allocated_bytes=replayed.allocated_bytes[kept],
        requested_bytes=replayed.requested_bytes[kept],
        reserved_bytes=replayed.reserved_bytes[kept],
    )


def _with_empty_cache(stream: Stream) -> tuple[Ints, Ints]:
    """Return events and sizes as a replay takes them."""
    positions = np.asarray(stream.cache_emptied_at, dtype=np.int64)
    return np.insert(stream.events, positions, EMPTY_CACHE), stream.sizes


def _predict_cpu(cell: Cell, platform: Platform, config: Any) -> Prediction:
    asked: set[str] = set()
    reached = list[Reached]()
    reading = read_cpu_ledger(cell, platform, config, asked, reached)
    prediction = predicted_for_cpu(reading, platform, asked)
    caveats = (*prediction.caveats, *reached[0].caveats)
    return prediction.model_copy(update={"reach": reached[0].weights, "caveats": caveats})


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
        method="full trace",
        caveats=tuple(_answered(asked)),
    )
