"""Toy cells over several ranks, by method and strategy, and where a step of theirs begins."""

from functools import cache
from typing import Any

from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import read_cpu_ledger
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell
from toy_families import configuration

METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4},
    "qlora": {"kind": "qlora", "rank": 4, "quant_storage": "bf16"},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "kept": {"strategy": "fsdp2", "reshard_after_forward": False},
    "offloaded": {"strategy": "fsdp2", "cpu_offload": True},
}
LOW: dict[str, Any] = {"param_dtype": "bf16", "reduce_dtype": "fp32"}


def cell_of_ranks(method: str, strategy: str, gpus: int, *, low: bool, checkpointing: str) -> Cell:
    """Return a toy of fp32; ``low`` has bf16 by autocast, or as what FSDP gathers."""
    sharded = strategy != "ddp"
    training = {"sequence_length": 16, "dtype": "fp32", "gradient_checkpointing": checkpointing}
    training |= {"autocast": "bf16"} if low and not sharded else {}
    parallel = STRATEGIES[strategy] | {"gpus": gpus} | (LOW if low and sharded else {})
    return tiny_cell(METHODS[method], training=training, parallel=parallel)


def begin_of(stream: Stream, step: int) -> int:
    """Return the number of events before the first forward pass of a step."""
    return next(mark.entries for mark in stream.marks if (mark.phase, mark.step) == ("forward", step))


def weights_bytes(cell: Cell) -> int:
    """Return the bytes of the cell's weights on one GPU."""
    plain = cell.training.model_copy(update={"gradient_checkpointing": "off", "autocast": "off"})
    alone = cell.model_copy(update={"training": plain, "parallel": type(cell.parallel)()})
    return _weights_bytes(alone.model_dump_json())


@cache
def _weights_bytes(cell_json: str) -> int:
    reading = read_cpu_ledger(
        Cell.model_validate_json(cell_json), Platform(device="cpu"), configuration("llama")
    )
    return reading.categories_at_peak_bytes["weights"]
