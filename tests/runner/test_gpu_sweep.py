"""A sweep on a GPU that NVML does not show: run all the same, said in the record, and never two at once."""

from pathlib import Path

import pytest

from bench.errors import InfrastructureError
from bench.records.messages import Job, ProbeJob, ReadingMade, Send
from bench.runner.gpu_watch import hold_gpu
from bench.runner.schedule import SweepOptions
from bench.runner.sweep import SweepResult, run_sweep
from bench.workers.launch import Launcher
from replay_worker import make_cell, make_facts, replay

UUID = "GPU-00000000-0000-4000-8000-00000000feed"


def replay_on_cuda(job: Job, send: Send) -> None:
    """Replay a cell on a card that only torch knows."""
    if isinstance(job, ProbeJob):
        send(ReadingMade(reading=make_facts(cuda_available=True, cuda_name="Card", cuda_uuid=UUID)))
    else:
        replay(job, send)


def sweep(folder: Path, *devices: str) -> SweepResult:
    """Run a cell on each of the devices."""
    names = ("ok", "ok-2")
    cells = [make_cell(name, device=device) for name, device in zip(names, devices, strict=False)]
    launcher = Launcher(work=replay_on_cuda, preload=["bench.workers.child"])
    return run_sweep(cells, SweepOptions(results=folder), lambda _: None, launcher)


def test_without_nvml_a_run_on_cuda_is_good_and_says_that_it_was_not_watched(tmp_path: Path) -> None:
    """No reading rather than a false one, and the caveat only where it belongs."""
    on_cuda, on_cpu = sweep(tmp_path, "cuda", "cpu").records
    assert [("ok", None)] * 2 == [(run.outcome, run.measurement.gpu) for run in (on_cuda, on_cpu)]
    (caveat,) = on_cuda.measurement.caveats
    assert "nvml-unavailable" == caveat.code
    assert caveat.message.startswith("No peak by NVML: ")
    assert caveat.message.endswith(".")
    assert ".." not in caveat.message
    assert () == on_cpu.measurement.caveats


def test_two_sweeps_are_never_on_one_gpu_and_a_cpu_needs_none(tmp_path: Path) -> None:
    """The second is refused before it measures anything; one on the CPU goes on."""
    with hold_gpu(UUID):
        with pytest.raises(InfrastructureError, match=f"uses {UUID}, and two would measure each other"):
            sweep(tmp_path / "second", "cuda")
        assert "ok" == sweep(tmp_path / "cpu", "cpu").records[0].outcome
    assert "ok" == sweep(tmp_path / "third", "cuda").records[0].outcome
