"""Real ranks of toy cells: gloo processes on the CPU, each of which prints the ledger that it reads.

Run as a program it is one rank: it reads cells from standard input, one a line.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import msgspec
import torch
from torch import distributed
from torch.distributed import _functional_collectives, distributed_c10d
from torch.utils._python_dispatch import _disable_current_modes

from bench.probes.ledger import Ledger
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.training.loading.weights import fetch_weights

LIMIT_S = 900


def readings_of_ranks(cells: Sequence[Cell], family: str, folder: Path) -> list[list[LedgerReading]]:
    """Train each cell under the ledger on as many processes as it asks for; return its readings by rank.

    All cells are of one number of ranks.
    """
    world = cells[0].parallel.gpus
    for cell in cells:
        if cell.loop.driver != "window" and cell.model.random:
            fetch_weights(cell.model)  # as a sweep does: of ranks only the first would save any
    asked = folder / "cells.jsonl"
    asked.write_text("".join(f"{cell.model_dump_json()}\n" for cell in cells))
    told = [folder / f"rank{rank}.jsonl" for rank in range(world)]  # pipes that nobody reads would fill up
    command = [sys.executable, __file__, family, str(folder / "rendezvous"), str(world)]
    processes: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        for rank in range(world):
            files = [stack.enter_context(path.open(mode)) for path, mode in ((asked, "r"), (told[rank], "w"))]
            process = subprocess.Popen(
                [*command, str(rank)], stdin=files[0], stdout=files[1], env=environment
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        codes = [process.wait(timeout=LIMIT_S) for process in processes]
    assert codes == [0] * world
    read = [
        [msgspec.json.decode(line, type=LedgerReading) for line in path.read_text().splitlines()]
        for path in told
    ]
    return [list(of_cell) for of_cell in zip(*read, strict=True)]


def be_rank(family: str, rendezvous: str, world: int, rank: int) -> None:
    """Read the ledger of each cell on standard input as one of the ranks."""
    import bench.training.preload  # noqa: F401 - without torch's compiler
    from bench.predict.trace.loops import forget_state
    from tiny_cells import of_type, readings_of
    from toy_families import configuration, true_reading

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # each ledger looks through all objects, and imports have made half a million
    with (
        patch.object(distributed_c10d, "ProcessGroupGloo", _OfOneThread),
        patch.object(distributed, "reduce_scatter_single", _settled(distributed.reduce_scatter_single)),
        patch.object(distributed, "all_gather_single", _settled(distributed.all_gather_single)),
        patch.object(_functional_collectives, "wait_tensor", _settled(_functional_collectives.wait_tensor)),
        patch.object(Ledger, "mark", _settled(Ledger.mark, before=True)),
    ):
        distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
        for line in sys.stdin:
            cell = Cell.model_validate_json(line)
            if cell.loop.driver == "window":
                reading = true_reading(cell, configuration(family))
            else:  # as a worker trains it
                (reading,) = of_type(readings_of(cell, rank), LedgerReading)
                forget_state()
            sys.stdout.write(msgspec.json.encode(reading).decode() + "\n")
        distributed.destroy_process_group()


class _OfOneThread(distributed.ProcessGroupGloo):
    """Gloo's group as torch makes it, but that one thread does its work, in order."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        options = cast("Any", distributed.ProcessGroupGloo)._Options()
        options._threads, options._timeout = 1, timeout
        options._devices = [distributed.ProcessGroupGloo.create_default_device()]
        super().__init__(store, rank, size, options)


def _settled(function: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """Call a function that waits for a collective, and go on when gloo's thread has let go of its tensors.

    Gloo reduces in copies of its own, which other backends do not make, so that no ledger looks while a work
    is waited for; and its thread holds tensors a little longer than the work lasts, until the next begins.
    Source: pytorch torch/csrc/distributed/c10d/ProcessGroupGloo.cpp, runLoop and the works.
    """

    def settled(*args: Any, **options: Any) -> Any:
        collective = "async_op" in options
        if before:
            with _disable_current_modes():
                distributed.barrier()
        result = function(*args, **options | ({"async_op": True} if collective else {}))
        with _disable_current_modes():
            if collective:
                result = result.wait() and None
            distributed.barrier()
        return result

    return settled


if __name__ == "__main__":
    be_rank(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
