"""A worker that really trains, on the CPU, while it passes itself off as running on a virtual GPU.

It moves the fake library's readings along a script as its phases advance, and goes on only when the parent
has sampled each state: what must be found is therefore known exactly.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from bench.probes.machine import Allocator, AllocatorPeaks, AllocatorUse
from bench.probes.nvml import Gpu, GpuSample
from bench.records.messages import (
    CellJob,
    FetchJob,
    Job,
    Message,
    PhaseStarted,
    PlanJob,
    ProbeJob,
    ReadingMade,
    Send,
)
from bench.records.records import DeviceFacts, PhaseReading, Record
from bench.scenario.cell import Cell
from tiny_cells import tiny_cell
from virtual_gpu import VirtualCard, VirtualGpus, VirtualSlice

MIB = 1024**2
BASE_BYTES = 300 * MIB  # a display's, which is there all the time
CONTEXT_BYTES = 500 * MIB
REST_BYTES = 1024 * MIB  # what torch has reserved between phases, once something is loaded
PEAKS_BYTES = {
    "load": 2000 * MIB,
    "adapt": 2100 * MIB,
    "prepare_data": 2050 * MIB,
    "first_forward": 3000 * MIB,
    "first_backward": 5000 * MIB,
    "first_optimizer_step": 6001 * MIB,
    "warmup": 5900 * MIB,
    "steady": 5950 * MIB,
}
"""What the worker's process takes at its worst in each phase."""
STEADY_ENERGY_MJ = 5000
FOREIGN_PID = 3_999_999_999
HOLD_NS = 150_000_000
INTERVAL_NS = 5_000_000
PATIENCE_S = 0.3

Visibility = Literal["own", "n/a", "other number"]


@dataclass(frozen=True, kw_only=True)
class Script:
    """How NVML shows the worker, and what else happens on the card."""

    shows: Visibility = "own"
    steady_reasons: int = 0
    foreign_in_run: int | None = None
    lost_after: str | None = None
    on_slice: bool = False
    out_of_memory_in: str | None = None


SCRIPTS = {
    "process": Script(),
    "device-delta": Script(shows="n/a", steady_reasons=0x44),
    "foreign": Script(foreign_in_run=1),
    "lost": Script(lost_after="first_optimizer_step"),
    "slice": Script(shows="other number", on_slice=True),
    "full-out-of-memory": Script(out_of_memory_in="first_forward"),
}
OWN = sum(os.environ.get("PYTEST_XDIST_WORKER", "").encode())
"""Tells apart the cards of pytest's processes, since only one sweep of a machine at a time may use a card."""
CARD = VirtualCard(uuid=f"GPU-00000000-0000-4000-8000-{OWN:012}")
_SLICE = VirtualSlice(uuid=f"MIG-00000000-0000-4000-8000-{OWN:012}")
SLICED_CARD = VirtualCard(uuid=CARD.uuid, mig_mode=True, slices=(_SLICE,))


def sweep_on_virtual_gpu(
    gpus: VirtualGpus, folder: Path, *names: str, cells: Sequence[Cell] = (), predict: bool = False
) -> tuple[Record, ...]:
    """Run one cell for each script, or the given ones, as ``bench run`` would; call it in a box."""
    from bench.runner.executors import local
    from bench.runner.gpu_watch import GpuWatch
    from bench.runner.schedule import SweepOptions
    from bench.runner.sweep import run_sweep
    from bench.workers.launch import Launcher

    uuid = (SLICED_CARD.slices[0] if SCRIPTS[names[0]].on_slice else CARD).uuid
    cells = cells or [make_cell(name) for name in names]
    sampled = folder / "sampled"
    sampled.parent.mkdir(exist_ok=True)
    work = functools.partial(train_on_virtual_gpu, gpus, sampled, uuid)
    counted: Any = functools.cache(lambda gpu: CountedGpu(gpu, sampled))

    def watch(gpu: Gpu, **options: Any) -> GpuWatch:
        return GpuWatch(counted(gpu), interval_ns=INTERVAL_NS, idle_patience_s=PATIENCE_S, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "GpuWatch", watch)
        idle(gpus, SCRIPTS[names[0]])
        launcher = Launcher(work=work)
        return run_sweep(
            cells, SweepOptions(results=folder, predict=predict), lambda _: None, launcher
        ).records


def make_cell(name: str) -> Cell:
    """Return the cell that a script is played on: a few steps and no instrument after them."""
    return tiny_cell(
        {"kind": "full", "name": name},
        id=f"tiny/{name}/b2-s32",
        device="cuda",
        window={"ledger": False, "flops": False, "merge_check": False},
    )


class CountedGpu:
    """The real thing, which says in a file how often it was sampled, and how often completely."""

    def __init__(self, gpu: Gpu, file: Path) -> None:
        """Pass everything on to ``gpu``."""
        self._gpu, self._file, self._counts = gpu, file, Counts(samples=0, complete=0)
        self.facts = gpu.facts

    def __getattr__(self, name: str) -> object:
        return getattr(self._gpu, name)

    def sample(self, *, complete: bool = True) -> GpuSample:
        """Sample and count."""
        sample = self._gpu.sample(complete=complete)
        before = self._counts
        self._counts = Counts(samples=before.samples + 1, complete=before.complete + complete)
        written = self._file.with_suffix(".new")
        written.write_text(f"{self._counts.samples} {self._counts.complete}")
        written.replace(self._file)
        return sample


class Counts(NamedTuple):
    """How many samples the parent has taken, and how many of them were of more than memory."""

    samples: int
    complete: int

    @classmethod
    def read(cls, file: Path) -> "Counts":
        """Read what ``CountedGpu`` has written."""
        samples, complete = file.read_text().split()
        return cls(int(samples), int(complete))


def train_on_virtual_gpu(gpus: VirtualGpus, sampled: Path, uuid: str, job: Job, send: Send) -> None:
    """Do the worker's job; torch sees a card with this UUID."""
    from bench.training.jobs import run_job

    if isinstance(job, ProbeJob):
        send(ReadingMade(reading=make_facts(uuid)))
    elif isinstance(job, CellJob):
        cell = Cell.model_validate_json(job.cell_json)
        on_cpu = cell.model_copy(update={"device": "cpu"})
        script = SCRIPTS.get(cell.method.name or "", SCRIPTS["process"])
        with Actor(gpus, script, sampled).on_stage(sampled.parent) as actor:
            run_job(CellJob(cell_json=on_cpu.model_dump_json()), actor.listen_to(send))
    elif isinstance(job, PlanJob):
        from bench.predict.jobs import run_plan

        run_plan(job, send)
    elif isinstance(job, FetchJob):
        run_job(job, send)


def make_facts(uuid: str) -> DeviceFacts:
    """Return what torch would say of the card."""
    return DeviceFacts(
        cpu_threads=1,
        cuda_available=True,
        cuda_name=CARD.name,
        cuda_uuid=uuid,
        cuda_capability=(9, 0),
        cuda_total_bytes=CARD.total_bytes,
        bf16_on_cuda=True,
    )


def idle(gpus: VirtualGpus, script: Script) -> None:
    """Show the GPU as it is without the worker."""
    gpus.write(show(script, own_bytes=None))


def show(
    script: Script,
    *,
    own_bytes: int | None,
    foreign: Mapping[int, int] | None = None,
    **card: Any,
) -> VirtualCard:
    """Return the card with the worker on it, by its number or as the script has it."""
    number = os.getpid() if script.shows != "other number" else FOREIGN_PID - 1
    own = {} if own_bytes is None else {number: None if script.shows == "n/a" else own_bytes}
    used_bytes = BASE_BYTES + (own_bytes or 0) + sum((foreign or {}).values())
    compute = own | dict(foreign or {})
    if script.on_slice:
        part = replace(SLICED_CARD.slices[0], used_bytes=used_bytes, compute=compute)
        return replace(SLICED_CARD, slices=(part,))
    return replace(CARD, used_bytes=used_bytes, compute=compute, **card)


@dataclass(kw_only=True)
class Stage:
    """What the card shows at the moment."""

    torch_bytes: int = 0
    card: dict[str, int] = field(default_factory=dict)
    foreign: dict[int, int] = field(default_factory=dict)
    fail: dict[str, int] = field(default_factory=dict)


class Actor(Allocator):
    """Stands in for torch's allocator, and moves the card's readings as the worker goes on."""

    def __init__(self, gpus: VirtualGpus, script: Script, sampled: Path) -> None:
        """Read from ``sampled`` how far the parent's sampler is."""
        self._gpus, self._script, self._sampled = gpus, script, sampled
        self._stage = Stage()
        self._peak_bytes = 0
        self._run = 0

    @contextlib.contextmanager
    def on_stage(self, folder: Path) -> Iterator["Actor"]:
        """Take the place of the window's allocator meanwhile, and leave the card idle."""
        from bench.probes import phases
        from bench.training import loops

        self._run = 1 + len(list(folder.glob("tiny-foreign*.json")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loops, "allocator_of", lambda _: self)
            patch.setattr(phases, "HOLD_NS", HOLD_NS)
            self._write()
            try:
                yield self
            finally:
                self.leave()

    def leave(self) -> None:
        """Leave the card idle."""
        idle(self._gpus, self._script)

    def listen_to(self, send: Send) -> Send:
        """Return a ``send`` that plays the script at each phase."""

        def listen(message: Message) -> None:
            if isinstance(message, ReadingMade) and isinstance(message.reading, PhaseReading):
                self._stage.torch_bytes = REST_BYTES
                if message.reading.name == self._script.lost_after:  # before another begins
                    self._stage.fail = {"*": 15}  # NVML_ERROR_GPU_IS_LOST
                self._write()
            send(message)
            if isinstance(message, PhaseStarted):
                self._play(message.phase)

        return listen

    def _play(self, phase: str) -> None:
        script, stage = self._script, self._stage
        stage.torch_bytes = self._peak_bytes = PEAKS_BYTES.get(phase, CONTEXT_BYTES) - CONTEXT_BYTES
        steady = phase == "steady"
        stage.card = {"event_reasons": script.steady_reasons} if steady and script.steady_reasons else {}
        stage.foreign = {FOREIGN_PID: 2048 * MIB} if steady and self._run == script.foreign_in_run else {}
        self._write()
        self._wait(complete=steady)
        if phase == script.out_of_memory_in:
            import torch  # of the worker: what watches it needs none

            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 501.00 GiB. GPU 0 has a total capacity of 79.10 GiB "
                "of which 74.22 GiB is free."
            )
        if steady and not script.on_slice:
            stage.card["energy_mj"] = (CARD.energy_mj or 0) + STEADY_ENERGY_MJ
            self._write()
            self._wait(complete=True)

    def _write(self) -> None:
        stage = self._stage
        own_bytes = CONTEXT_BYTES + stage.torch_bytes
        card = show(self._script, own_bytes=own_bytes, foreign=stage.foreign, **stage.card)
        self._gpus.write(card, fail=stage.fail)

    def _wait(self, *, complete: bool) -> None:
        """Return when a sample has been taken that began after this call, one of everything if asked."""
        before = Counts.read(self._sampled)[complete]
        deadline_s = time.monotonic() + 120  # machines that test are busy
        while Counts.read(self._sampled)[complete] < before + 2:
            assert time.monotonic() < deadline_s
            time.sleep(INTERVAL_NS / 1e9)

    def read_peak(self) -> AllocatorPeaks:
        """Return what the script has torch hold at its worst."""
        return AllocatorPeaks(self._peak_bytes, self._peak_bytes)

    def use(self) -> AllocatorUse:
        """Return what torch holds now."""
        held = self._stage.torch_bytes
        return AllocatorUse(held, held, (CARD.total_bytes or 0) - held)

    def take(self, size_bytes: int) -> object:
        """Take the test block; ``empty_cache`` gives it back."""
        self._stage.torch_bytes += size_bytes
        self._write()
        return object()

    def empty_cache(self) -> None:
        """Give the test block back."""
        self._stage.torch_bytes = 0
        self._write()
