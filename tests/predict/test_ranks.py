"""What is predicted of each rank is what its ledger reads in a real group of gloo processes, to the byte.

Left out of the comparison: what gloo itself allocates inside a collective (see ``ranks.py`` in support), and
of DDP the name of the module at the peak, since autograd's hooks run its buckets beside any module.
RANKS=full tries all 72 cells, not a handful.
"""

import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from bench.predict.trace.trace import read_cpu_ledger
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from ranks import readings_of_ranks
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
}
LOW: dict[str, Any] = {"param_dtype": "bf16", "reduce_dtype": "fp32"}
HANDFUL = {
    ("full", "ddp", True, "off"),
    ("full", "fsdp2", True, "off"),
    ("lora", "fsdp2", False, "non-reentrant"),
    ("lora", "ddp", False, "non-reentrant"),
    ("qlora", "kept", True, "non-reentrant"),
    ("qlora", "ddp", True, "off"),
}
EVERYTHING = os.environ.get("RANKS") == "full"


def _cell(method: str, strategy: str, gpus: int, *, low: bool, checkpointing: str) -> Cell:
    sharded = strategy != "ddp"
    training = {"sequence_length": 16, "dtype": "fp32", "gradient_checkpointing": checkpointing}
    training |= {"autocast": "bf16"} if low and not sharded else {}
    parallel = STRATEGIES[strategy] | {"gpus": gpus} | (LOW if low and sharded else {})
    return tiny_cell(METHODS[method], training=training, parallel=parallel)


def _compared(reading: LedgerReading, cell: Cell) -> LedgerReading:
    beside: dict[str, Any] = {"device": "", "timeline": None, "retained": UNSET}
    return reading.replace(**beside | ({"peak_module": ""} if cell.parallel.strategy == "ddp" else {}))


@pytest.mark.parametrize(
    "gpus", [2, pytest.param(3, marks=pytest.mark.skipif(not EVERYTHING, reason="RANKS"))]
)
def test_each_rank_is_predicted_to_the_byte(gpus: int, tmp_path: Path) -> None:
    """Every field of every rank's reading is as in the real group: peaks, categories, phases, operators."""
    combinations = product(METHODS, STRATEGIES, (False, True), ("off", "non-reentrant"))
    chosen = [each for each in combinations if EVERYTHING or each in HANDFUL]
    cells = [
        _cell(method, strategy, gpus, low=low, checkpointing=checkpointing)
        for method, strategy, low, checkpointing in chosen
    ]
    real = readings_of_ranks(cells, "llama", tmp_path)
    for cell, of_ranks in zip(cells, real, strict=True):
        for rank, reading in enumerate(of_ranks):
            predicted = read_cpu_ledger(cell, Platform(device="cpu"), configuration("llama"), rank=rank)
            assert _compared(reading, cell) == _compared(predicted, cell), (cell.parallel, rank)
            shares = {"ddp": 1.0, "fsdp2": 1 / gpus}[cell.parallel.strategy]
            assert reading.categories_at_peak_bytes["collectives"] > 0
            assert reading.categories_at_peak_bytes["weights"] <= 1.1 * shares * _whole(cell)


def _whole(cell: Cell) -> int:
    """Return the bytes of the cell's weights on one GPU."""
    alone = cell.model_copy(update={"parallel": type(cell.parallel)()})
    reading = read_cpu_ledger(alone, Platform(device="cpu"), configuration("llama"))
    return reading.categories_at_peak_bytes["weights"]
