"""Real ranks of toy cells: gloo processes on the CPU, each of which writes down the ledgers that it reads."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import msgspec
import torch
from torch import distributed
from torch.distributed import _functional_collectives, distributed_c10d
from torch.utils._python_dispatch import _disable_current_modes

from bench.predict.trace.loops import forget_state
from bench.probes.ledger import Ledger
from bench.probes.tensors import Outside
from bench.records.messages import CellJob, Job, Send
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.types import LimitsSpec
from bench.training.loading.weights import fetch_weights
from bench.workers.launch import Launcher
from bench.workers.supervise import RunningJob
from tiny_cells import of_type, readings_of
from toy_families import configuration, true_reading

LIMIT_S = 900


def readings_of_ranks(cells: Sequence[Cell], family: str, folder: Path) -> list[list[LedgerReading]]:
    """Train each cell under the ledger on as many processes as it asks for; return its readings by rank.

    All cells are of one number of ranks. Their processes are forked from the server of workers.
    """
    world = cells[0].parallel.gpus
    for cell in cells:
        if cell.loop.driver != "window" and cell.model.random:
            fetch_weights(cell.model)  # as a sweep does: of ranks only the first would save any
    job = CellJob(cell_json=cells[0].model_dump_json(), rendezvous=str(folder / "rendezvous"))
    launcher = Launcher(work=partial(be_rank, family, cells, folder))
    end = RunningJob(job, launcher, LimitsSpec(timeout_s=LIMIT_S), ranks=world).to_end()
    assert end.outcome == "ok", end.failure
    read = [
        [msgspec.json.decode(line, type=LedgerReading) for line in told.read_text().splitlines()]
        for told in (_told_by(rank, folder) for rank in range(world))
    ]
    return [list(of_cell) for of_cell in zip(*read, strict=True)]


def _told_by(rank: int, folder: Path) -> Path:
    return folder / f"rank{rank}.jsonl"


def be_rank(family: str, cells: Sequence[Cell], folder: Path, job: Job, _send: Send) -> None:
    """Read the ledger of each cell as one of the ranks."""
    assert isinstance(job, CellJob)
    torch.set_num_threads(1)
    with (
        _told_by(job.rank, folder).open("w") as told,
        patch.object(distributed_c10d, "ProcessGroupGloo", _OfOneThread),
        patch.object(distributed, "reduce_scatter_single", _settled(distributed.reduce_scatter_single)),
        patch.object(distributed, "all_gather_single", _settled(distributed.all_gather_single)),
        patch.object(_functional_collectives, "wait_tensor", _settled(_functional_collectives.wait_tensor)),
        patch.object(Ledger, "mark", _settled(Ledger.mark, before=True)),
        patch.object(Outside, "by_holder", lambda _: {}),  # no names: what the cell before has left is known
    ):
        rendezvous, world = f"file://{job.rendezvous}", cells[0].parallel.gpus
        distributed.init_process_group("gloo", rendezvous, rank=job.rank, world_size=world)
        for cell in cells:
            if cell.loop.driver == "window":
                reading = true_reading(cell, configuration(family))
            else:  # as a worker trains it
                (reading,) = of_type(readings_of(cell, job.rank), LedgerReading)
                forget_state()
            told.write(msgspec.json.encode(reading).decode() + "\n")
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
