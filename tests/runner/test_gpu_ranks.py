"""Two ranks on two virtual cards: real processes, the real pynvml, and readings known beforehand."""

import functools
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bench.probes.nvml import Gpu
from bench.records.messages import CellJob, Job, ProbeJob, ReadingMade, Send
from bench.records.records import Record
from bench.scenario.cell import Cell
from virtual_gpu import VirtualCard, VirtualGpus
from virtual_training import (
    BASE_BYTES,
    CARD,
    CONTEXT_BYTES,
    INTERVAL_NS,
    MIB,
    OWN,
    PATIENCE_S,
    PEAKS_BYTES,
    Actor,
    CountedGpu,
    Script,
    make_cell,
    make_facts,
)

UUIDS = tuple(f"GPU-00000000-0000-4000-800{rank}-{OWN:012}" for rank in range(2))
MORE_BYTES = 100 * MIB  # that the second rank's context takes


class RankActor(Actor):
    """Moves the readings of one card of two; those of the other are read from a file that its actor keeps."""

    def __init__(self, gpus: VirtualGpus, folder: Path, rank: int) -> None:
        """Read how often this rank's card was sampled."""
        super().__init__(gpus, Script(), folder / UUIDS[rank])
        self._folder, self._rank = folder, rank

    def leave(self) -> None:
        """Leave the card idle."""
        show_cards(self._gpus, self._folder, self._rank, idle_card(self._rank))

    def _write(self) -> None:
        own_bytes = CONTEXT_BYTES + self._rank * MORE_BYTES + self._stage.torch_bytes
        more: dict[str, Any] = {**self._stage.card}
        card = replace(
            idle_card(self._rank),
            used_bytes=BASE_BYTES + own_bytes,
            compute={os.getpid(): own_bytes},
            **more,
        )
        show_cards(self._gpus, self._folder, self._rank, card)


def idle_card(rank: int) -> VirtualCard:
    """Return a card with a display alone."""
    return replace(CARD, uuid=UUIDS[rank], used_bytes=BASE_BYTES)


def show_cards(gpus: VirtualGpus, folder: Path, rank: int, card: VirtualCard) -> None:
    """Show a rank's card anew, beside the other as that was shown last."""
    with FileLock(folder / "lock"):
        (folder / f"card{rank}").write_bytes(pickle.dumps(card))
        files = [(folder / f"card{each}").read_bytes() for each in range(2)]
        gpus.write(*map(pickle.loads, files))


def train_as_rank(gpus: VirtualGpus, folder: Path, job: Job, send: Send) -> None:
    """Do a worker's job; torch sees both cards, and each rank trains on the CPU in a group of gloo's."""
    from bench.training.jobs import run_job

    if isinstance(job, ProbeJob):
        send(ReadingMade(reading=make_facts(UUIDS[0]).replace(cuda_uuids=UUIDS)))
    elif isinstance(job, CellJob):
        cell = Cell.model_validate_json(job.cell_json).model_copy(update={"device": "cpu"})
        on_cpu = job.model_copy(update={"cell_json": cell.model_dump_json()})
        with RankActor(gpus, folder, job.rank).on_stage(folder) as actor:
            run_job(on_cpu, actor.listen_to(send))
    else:
        run_job(job, send)  # type: ignore[arg-type]  # weights to fetch


def sweep_over_ranks(gpus: VirtualGpus, folder: Path) -> tuple[Record, ...]:
    """Run a cell over two ranks as ``bench run`` would; call it in a box."""
    from bench.runner.executors import local
    from bench.runner.gpu_watch import GpuWatch
    from bench.runner.schedule import SweepOptions
    from bench.runner.sweep import run_sweep
    from bench.workers.launch import Launcher

    (folder / "card1").write_bytes(pickle.dumps(idle_card(1)))
    show_cards(gpus, folder, 0, idle_card(0))
    counted: Any = functools.cache(lambda gpu: CountedGpu(gpu, folder / gpu.facts.uuid))

    def watch(gpu: Gpu, **options: Any) -> GpuWatch:
        return GpuWatch(counted(gpu), interval_ns=INTERVAL_NS, idle_patience_s=PATIENCE_S, **options)

    cell = make_cell("process")
    cell = Cell.model_validate(cell.model_dump() | {"parallel": {"strategy": "ddp", "gpus": 2}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "GpuWatch", watch)
        launcher = Launcher(work=functools.partial(train_as_rank, gpus, folder))
        options = SweepOptions(results=folder / "results", predict=False)
        return run_sweep([cell], options, lambda _: None, launcher).records


def test_each_rank_s_gpu_is_read_by_its_uuid_and_the_record_has_the_worst(
    tmp_path: Path, tiny_weights: Path
) -> None:
    """Peaks of both processes, each on its own card; the reading is of the one that held more."""
    del tiny_weights  # only its variable is needed
    gpus = VirtualGpus(tmp_path)
    with gpus.box() as box:
        (record,) = box._pool.submit(sweep_over_ranks, gpus, tmp_path).result(timeout=300)
    measured = record.measurement
    assert "ok" == record.outcome, record.failure
    assert isinstance(measured.ranks, tuple)
    highest = max(PEAKS_BYTES.values())
    found = [(rank.nvml_uuid, rank.nvml_peak_bytes) for rank in measured.ranks]
    assert [(UUIDS[0], highest), (UUIDS[1], highest + MORE_BYTES)] == found
    assert measured.gpu is not None
    assert (UUIDS[1], "process") == (measured.gpu.facts.uuid, measured.gpu.isolation)
    codes = {caveat.code for caveat in measured.caveats}
    assert "ranks-unwatched" not in codes
    assert not any(code.startswith("nvml") for code in codes)
