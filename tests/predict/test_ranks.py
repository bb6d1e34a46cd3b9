"""What is predicted of each rank is what its ledger reads in a real group of gloo processes, to the byte.

Left out of the comparison: what gloo itself allocates inside a collective (see ``ranks.py`` in support), and
of DDP the name of the module at the peak, since autograd's hooks run its buckets beside any module.
RANKS=full tries all 96 cells, not a handful.
"""

import os
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench.predict.trace.trace import read_cpu_ledger
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from rank_cells import METHODS, STRATEGIES, cell_of_ranks, weights_bytes
from ranks import readings_of_ranks
from tiny_cells import tiny_cell
from toy_families import configuration

HANDFUL = {
    ("full", "fsdp2", True, "off"),
    ("full", "offloaded", True, "non-reentrant"),
    ("lora", "ddp", False, "non-reentrant"),
    ("qlora", "kept", True, "non-reentrant"),
}
MORE = {
    ("full", "ddp", True, "off"),
    ("lora", "fsdp2", False, "non-reentrant"),
    ("qlora", "ddp", True, "non-reentrant"),
}
FLAT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "full": ({"kind": "full"}, {"dtype": "fp32"}, {}),
    "full, recomputed": ({"kind": "full"}, {"dtype": "fp32", "gradient_checkpointing": "reentrant"}, {}),
    "full, kept": (
        {"kind": "full"},
        {"dtype": "fp32", "autocast": "bf16", "gradient_checkpointing": "non-reentrant"},
        {"reshard_after_forward": False},
    ),
    "lora": (
        {"kind": "lora", "rank": 4, "dropout": 0.1},
        {"dtype": "bf16", "gradient_checkpointing": "reentrant"},
        {},
    ),
    "qlora": (
        {"kind": "qlora", "rank": 4, "quant_storage": "bf16", "kbit_preparation": False},
        {"dtype": "bf16", "autocast": "bf16", "gradient_checkpointing": "reentrant"},
        {"param_dtype": "bf16", "reduce_dtype": "bf16"},
    ),
}
IN_LOOPS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("hf-trainer", "lora", "ddp", {}),
    ("hf-trainer", "full", "fsdp2", {"autocast": "bf16", "dtype": "bf16"}),
    ("trl-sft", "qlora", "ddp", {}),
    ("trl-sft", "lora", "fsdp2", {"gradient_checkpointing": "non-reentrant", "gradient_accumulation": 2}),
    # by RANKS=full
    ("hf-trainer", "full", "ddp", {"autocast": "bf16"}),
    ("hf-trainer", "lora", "ddp", {"gradient_accumulation": 2}),
    ("hf-trainer", "lora", "kept", {"gradient_checkpointing": "non-reentrant"}),
    ("hf-trainer", "qlora", "fsdp2", {}),
    ("trl-sft", "full", "ddp", {}),
    ("trl-sft", "full", "fsdp2", {}),
    ("trl-sft", "lora", "fsdp2", {"autocast": "bf16", "dtype": "bf16"}),
    ("trl-sft", "qlora", "kept", {}),
]
EVERYTHING = os.environ.get("RANKS") == "full"
Real = dict[str, list[LedgerReading]]


_BESIDE = {"ddp": {"peak_module"}, "fsdp1": {"op_count", "allocation_count"}}
"""What of a strategy is not compared; gloo gathers flat parameters into a list of their parts."""


def _compared(reading: LedgerReading, cell: Cell) -> dict[str, Any]:
    beside = {"device", "timeline", "retained", *_BESIDE.get(cell.parallel.strategy, ())}
    if cell.loop.driver == "trl-sft":  # whose metrics ask for values
        beside |= {"op_count", "allocation_count"}
    return {name: getattr(reading, name) for name in reading.__struct_fields__ if name not in beside}


def _of_window(gpus: int, handful: Collection[tuple[str, str, bool, str]] = HANDFUL) -> list[Cell]:
    combinations = product(METHODS, STRATEGIES, (False, True), ("off", "non-reentrant"))
    chosen = [each for each in combinations if EVERYTHING or each in handful]
    return [
        cell_of_ranks(method, strategy, gpus, low=low, checkpointing=checkpointing)
        for method, strategy, low, checkpointing in chosen
    ]


def _of_flat_parameters() -> list[Cell]:
    return [
        tiny_cell(
            method,
            training={"sequence_length": 16} | training,
            parallel={"strategy": "fsdp1", "gpus": 2} | parallel,
        )
        for method, training, parallel in FLAT.values()
    ]


def _of_loops() -> list[Cell]:
    return [
        tiny_cell(
            METHODS[method],
            training={"sequence_length": 16, "dtype": "fp32"} | training,
            parallel=STRATEGIES[strategy] | {"gpus": 2},
            loop={"driver": driver},
            window={"warmup_steps": 0, "measured_steps": 1, "flops": False},
        )
        for driver, method, strategy, training in IN_LOOPS[: None if EVERYTHING else 4]
        if find_spec("trl")
    ]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """Return what two ranks read of all cells of two, which they train one after the other."""
    cells = [*_of_window(2), *_of_flat_parameters(), *_of_loops()]
    read = readings_of_ranks(cells, "llama", tmp_path_factory.mktemp("ranks"))
    return {cell.model_dump_json(): of_ranks for cell, of_ranks in zip(cells, read, strict=True)}


@pytest.mark.parametrize(
    "gpus", [2, pytest.param(3, marks=pytest.mark.skipif(not EVERYTHING, reason="RANKS"))]
)
def test_each_rank_is_predicted_to_the_byte(gpus: int, real: Real, tmp_path: Path) -> None:
    """Every field of every rank's reading is as in the real group: peaks, categories, phases, operators.

    A thread of gloo's that lets go of a tensor too late may spoil a reading, so that a cell has three tries.
    """
    _all_as_predicted(_of_window(gpus), real, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(EVERYTHING, reason="among all")
def test_each_rank_of_more_cells_is_predicted_to_the_byte(tmp_path: Path) -> None:
    """Likewise other pairs of a method and a strategy."""
    _all_as_predicted(_of_window(2, MORE), {}, tmp_path)


def test_each_rank_of_flat_parameters_is_predicted_to_the_byte(real: Real, tmp_path: Path) -> None:
    """FSDP1 likewise: each wrapped layer is one parameter, and what is trained of an adapter another."""
    _all_as_predicted(_of_flat_parameters(), real, tmp_path)


def test_each_rank_of_a_library_s_loop_is_predicted_to_the_byte(real: Real, tmp_path: Path) -> None:
    """Trainer and SFTTrainer, which accelerate spreads, as workers train them: its own groups of layers."""
    pytest.importorskip("trl")
    _all_as_predicted(_of_loops(), real, tmp_path)


def _all_as_predicted(cells: Sequence[Cell], real: Real, tmp_path: Path) -> None:
    read = [real[key] for cell in cells if (key := cell.model_dump_json()) in real]
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        read = read or readings_of_ranks(cells, "llama", folder)
        last, of_cells, read = attempt == 2, read, []
        cells = [
            cell
            for cell, of_ranks in zip(cells, of_cells, strict=True)
            if not _as_predicted(cell, of_ranks, insist=last)
        ]
        if not cells:
            return


def _as_predicted(cell: Cell, of_ranks: Sequence[LedgerReading], *, insist: bool) -> bool:
    for rank, reading in enumerate(of_ranks):
        config = configuration("llama") if cell.loop.driver == "window" else None
        predicted = read_cpu_ledger(cell, Platform(device="cpu"), config, rank=rank)
        mine, its = _compared(predicted, cell), _compared(reading, cell)
        if mine != its and not insist:
            return False
        assert mine == its, (cell.parallel, rank)
        shares = 1 / cell.parallel.gpus if cell.parallel.sharded else 1.0
        assert reading.categories_at_peak_bytes["collectives"] > 0
        assert config is None or reading.categories_at_peak_bytes["weights"] <= 1.1 * shares * weights_bytes(
            cell
        )
    return True
