"""What one of several GPUs takes: the rank that needs most, traced whole."""

from typing import Any

from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.speed.predict import ON_SEVERAL_GPUS
from bench.predict.summary import summed_up
from bench.predict.trace.trace import Tracer
from bench.records.predictions import Prediction, Speed
from bench.records.readings import Caveat
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform

_LOADED = {
    "fsdp2": "Weights reach it from the host layer by layer and are sharded at once.",
    "ddp": "Each GPU loads all weights.",
}


def predict_ranks(
    cell: Cell, platform: Platform, settings: AllocatorSettings, config: Any, cards: tuple[Card, ...]
) -> Prediction:
    """Predict the first rank, and the last where shards are uneven; return what the needier one takes."""
    tracer, last = Tracer(platform, config), cell.parallel.gpus - 1
    first = tracer.trace_rank(cell, 0)
    streams = [first, tracer.trace_rank(cell, last)] if first.uneven and last else [first]
    predictions = [summed_up(stream, platform, settings, "full trace") for stream in streams]
    rank, worst = max(enumerate(predictions), key=lambda one: one[1].needed_bytes)
    message = (
        f"Predicted for GPU {rank * last} of {last + 1}, counted from 0: no other needs more. "
        f"{_LOADED[cell.parallel.strategy]} What NCCL allocates for itself is outside torch's counters and "
        "not counted; no such prediction was compared with a real group of GPUs yet."
    )
    if getattr(cell.method, "quant_storage", "") == "bf16":
        message += " Packed 4-bit weights are held in bf16 (quant_storage), as fsdp2 shards them."
    return worst.model_copy(
        update={
            "caveats": (*worst.caveats, Caveat(code="one-of-several-gpus", message=message)),
            "speeds": tuple(Speed(card=card.name, refused=ON_SEVERAL_GPUS) for card in cards),
        }
    )
