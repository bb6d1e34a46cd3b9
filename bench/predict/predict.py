"""What a cell takes on a platform, under an allocator's settings: traced, deepened, replayed, summed up."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from bench.errors import UnavailableError, UntraceableError, UsageError, first_line, library_at_fault
from bench.metrics import GIB
from bench.predict.allocator.replay import DEFAULT_SETTINGS
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.families import Family, families, streams
from bench.predict.reach import beyond_training, refused_as_unreachable
from bench.predict.speed.cpu import this_machine
from bench.predict.speed.predict import speed_here, speeds_of
from bench.predict.summary import predicted_for_cpu, summed_up
from bench.predict.trace.calls import Calls
from bench.predict.trace.depth import depth_of
from bench.predict.trace.trace import Tracer, read_cpu_ledger
from bench.predict.trace.variants import litgpt
from bench.predict.trace.variants.adapters import assumed_of_adapter
from bench.predict.trace.variants.older_computations import (
    caveats_of_versions,
    unknown_attention_bytes,
    unknown_loss_bytes,
)
from bench.predict.trace.variants.older_models import caveats_of_version
from bench.predict.varying import widened
from bench.records.machine_card import THIS_CPU, card_of
from bench.records.predictions import Prediction, Refusal, Speed
from bench.records.readings import Caveat
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.scenario.types import LoraMethod, ModelSpec, SyntheticData
from bench.training.loading.models import assumed_of, configuration_of, stored_as, stored_caveats
from bench.training.weights_reached import Reached

_VALIDATED = ("window", "hf-trainer")
"""Loops whose predictions for a card were compared with published measurements."""
_LOADED = {
    "fsdp1": "Weights reach it from the host layer by layer, each flattened and sharded at once.",
    "fsdp2": "Weights reach it from the host layer by layer and are sharded at once.",
    "ddp": "Each GPU loads all weights.",
}
"""How weights reach a GPU of several, as assumed."""
_RESERVED_BY_RANKS = 1.125
"""In seven runs of fsdp_qlora under FSDP1 (records/published/data) the replay was off by up to 11.4 %."""
_COMPARED = {
    "fsdp1": "report/prediction.md compares such predictions.",
    "fsdp2": "report/prediction.md compares two such predictions, of full fine-tuning.",
    "ddp": "No such prediction was compared with a real group of GPUs yet.",
}
"""What was measured of each strategy."""


def predict(
    cell: Cell,
    platform: Platform,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    steps: tuple[int, int] | None = None,
    cards: Sequence[Card] = (),
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
    elif cell.parallel.several:
        prediction = _predict_ranks(cell, Tracer(platform, config, timed=bool(cards)), settings, cards, steps)
    else:
        (family,) = families([cell], config)
        tracer = Tracer(platform, config, timed=bool(cards))
        ((_, stream, method),) = streams(family, tracer)
        speeds = speeds_of(stream, cell, config, cards)
        stream = stream.during(*steps) if steps else stream
        prediction = summed_up(stream, platform, settings, method)
        prediction = widened(prediction, cell, tracer, settings)
        prediction = prediction.model_copy(update={"speeds": speeds})
    return _completed(prediction, cell, config, platform)


def predict_all(
    cells: Sequence[Cell],
    platform: Platform,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    *,
    reuse_ranges: bool = False,
    cards: Sequence[Card] = (),
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
        alone = [cell for cell in within if platform.device == "cpu" or cell.parallel.several]
        yield from ((cell, _predicted_or_refused(cell, platform, settings, cards)) for cell in alone)
        within = [cell for cell in within if cell not in alone]
        tracer = Tracer(platform, config, timed=bool(cards))
        for family in families(within, config):
            yield from _predicted(family, tracer, settings, cards, reuse_ranges=reuse_ranges)


def _predicted(
    family: Family,
    tracer: Tracer,
    settings: AllocatorSettings,
    cards: Sequence[Card],
    *,
    reuse_ranges: bool,
) -> Iterator[tuple[Cell, Prediction | Refusal]]:
    """Predict the cells of a family; where one cannot be, each is asked for its own reason."""
    left = dict(family.cells)
    relative = None
    platform, config = tracer.platform, tracer.config
    try:
        for point, stream, method in streams(family, tracer):
            prediction = summed_up(stream, platform, settings, method, relative)
            if relative is None:
                prediction = widened(prediction, left[point][0], tracer, settings)
            relative = prediction if reuse_ranges and relative is None else relative
            if cards and not stream.calls:  # they do not follow from those of other cells
                own = left[point][0]
                stream = replace(stream, calls=tracer.trace(own, depth_of(own, config)).calls)  # noqa: PLW2901 - the same one
            speeds = speeds_of(stream, left[point][0], config, cards)
            prediction = prediction.model_copy(update={"speeds": speeds})
            for cell in left.pop(point):
                yield cell, _completed(prediction, cell, config, platform)
    except Exception:  # noqa: BLE001 - a library's, or ours
        for cell in chain.from_iterable(left.values()):
            yield cell, _predicted_or_refused(cell, platform, settings, cards)


def _by_model(cells: Sequence[Cell]) -> Iterable[tuple[ModelSpec, list[Cell]]]:
    grouped: dict[str, tuple[ModelSpec, list[Cell]]] = {}
    for cell in cells:
        grouped.setdefault(cell.model.model_dump_json(), (cell.model, []))[1].append(cell)
    return grouped.values()


def _predicted_or_refused(
    cell: Cell, platform: Platform, settings: AllocatorSettings, cards: Sequence[Card]
) -> Prediction | Refusal:
    try:
        return predict(cell, platform, settings, cards=cards)
    except (UntraceableError, UnavailableError) as error:
        return Refusal(message=str(error))
    except UsageError as error:  # a library's, where it quotes one
        its_own = isinstance(error.__cause__, Exception) and library_at_fault(error.__cause__)
        return Refusal(message=str(error), by="library" if its_own else "tracer")
    except Exception as error:
        if (refused := _refused_by_library(error)) is None:
            raise
        return refused


def _refused_by_library(error: Exception) -> Refusal | None:
    """Return the refusal of a cell on which a library's code failed, by its name; None where ours did."""
    fault = library_at_fault(error)
    if fault is None:
        return None
    return Refusal(
        message=f"{fault.library} fails on this cell: {type(error).__name__}: {first_line(error)[:200]} "
        f"({fault.place}); change what this names in the scenario, or try the cell with bench run, which "
        "trains with data.",
        by="library",
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


def _predict_cpu(cell: Cell, platform: Platform, config: Any) -> Prediction:
    asked: set[str] = set()
    reached = list[Reached]()
    machine, refused, calls = None, "", list[Calls]()
    try:
        machine = card_of(this_machine())
    except UsageError as error:  # without which memory is predicted all the same
        refused = str(error).rstrip(".")
    reading = read_cpu_ledger(cell, platform, config, asked, reached, calls=calls if machine else None)
    prediction = predicted_for_cpu(reading, platform, asked)
    weights, trainable, caveats = reached[0]
    speeds = (Speed(card=THIS_CPU, refused=refused),) if refused else ()
    speeds = (speed_here(calls, caveats, cell, config, machine),) if machine else speeds
    more = {"reach": weights, "trainable_parameters": trainable, "speeds": speeds}
    return prediction.model_copy(update=more | {"caveats": (*prediction.caveats, *caveats)})


def _predict_ranks(
    cell: Cell,
    tracer: Tracer,
    settings: AllocatorSettings,
    cards: Sequence[Card],
    steps: tuple[int, int] | None,
) -> Prediction:
    """Predict the first rank, and the last where shards are uneven; return what the needier one takes."""
    last = cell.parallel.gpus - 1
    first = tracer.trace_rank(cell, 0)
    streams = [first, tracer.trace_rank(cell, last)] if first.uneven and last else [first]
    streams = [stream.during(*steps) if steps else stream for stream in streams]
    predictions = [summed_up(stream, tracer.platform, settings, "full trace") for stream in streams]
    rank, worst = max(enumerate(predictions), key=lambda one: one[1].needed_bytes)
    message = (
        f"Predicted for GPU {rank * last} of {last + 1}, counted from 0: no other needs more. "
        f"{_LOADED[cell.parallel.strategy]} What NCCL allocates for itself is outside torch's counters and "
        f"not counted. {_COMPARED[cell.parallel.strategy]} When memory that another stream used is free "
        f"again is not replayed, so the range of what is reserved is {_RESERVED_BY_RANKS:g} times as wide."
    )
    if getattr(cell.method, "quant_storage", "") == "bf16":
        message += " Packed 4-bit weights are held in bf16 (quant_storage), as FSDP shards them."
    if cell.parallel.cpu_offload:
        host = max(stream.host_bytes for stream in streams) / GIB
        message += (
            f" Its process holds {host:.2f} GiB in pinned memory of the host at its peak (cpu_offload); "
            "no such prediction was compared with a card yet."
        )
    low, high = worst.reserved_low_bytes or 0, worst.reserved_high_bytes or worst.allocated_peak_bytes
    return worst.model_copy(
        update={
            "reserved_low_bytes": max(worst.allocated_peak_bytes, round(low / _RESERVED_BY_RANKS)),
            "reserved_high_bytes": round(high * _RESERVED_BY_RANKS),
            "caveats": (*worst.caveats, Caveat(code="one-of-several-gpus", message=message)),
            "speeds": speeds_of(first, cell, tracer.config, cards),
        }
    )
