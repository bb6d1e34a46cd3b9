"""The CUDA branch of the window and its probes without a GPU: torch.cuda is played from a script."""

import gc
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch

from bench.probes.machine import (
    CudaAllocator,
    SnapshotRecorder,
    describe,
    noted_out_of_memory,
    read_torch_settings,
)
from bench.probes.phases import PhaseReader
from bench.records.messages import CellJob, Message, ReadingMade
from bench.records.readings import AllocatorSnapshot, Caveat, PagedMemory, TorchSettings
from bench.records.records import PhaseReading, StepSample
from bench.training import jobs, loops, window
from bench.training.loading.models import device_of
from bench.training.step import optimizer_state, paged_memory
from bench.workers.classify import classify_exception
from scripted_cuda import ScriptedCuda
from tiny_cells import of_type, readings_of, tiny_cell

GIB = 1024**3
CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ScriptedCuda:
    """Return torch.cuda as a script."""
    script = ScriptedCuda()
    script.install(monkeypatch)
    return script


def test_cuda_is_always_the_first_device() -> None:
    """The index is there from the start; which card it is, CUDA_VISIBLE_DEVICES has decided."""
    cells = [tiny_cell(), tiny_cell(device="cuda")]
    assert [device_of(cell) for cell in cells] == [torch.device("cpu"), torch.device("cuda:0")]


@pytest.mark.usefixtures("tiny_weights")
def test_the_window_waits_for_the_device_around_each_step_and_resets_peaks_per_phase(
    cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors of the CPU, but with the probe and the marks of a card; every call names device 0."""
    monkeypatch.setattr(loops, "allocator_of", lambda _: CudaAllocator(CUDA))
    monkeypatch.setattr(loops, "mark_block", lambda *_: None)
    monkeypatch.setattr(window, "mark_quiescent", lambda *_: cuda.calls.append("quiescent"))
    cuda.allocated_bytes, cuda.reserved_bytes = 7, 9
    readings = readings_of(
        tiny_cell(window={"ledger": False, "flops": False}, training={"empty_cache_steps": 2})
    )
    phases = of_type(readings, PhaseReading)
    assert {(phase.cuda_allocated_peak_bytes, phase.cuda_reserved_peak_bytes) for phase in phases} == {(7, 9)}
    assert cuda.calls.count("reset") == len(phases) == 8
    assert cuda.calls.count("empty_cache") == 2
    steady = cuda.calls[len(cuda.calls) - cuda.calls[::-1].index("reset") :]
    # Two steps, one of which empties the cache; then the phase's own wait.
    assert steady == [*["synchronize"] * 3, "empty_cache", *["synchronize"] * 2, "quiescent"]
    assert cuda.devices == {CUDA}
    assert len(of_type(readings, StepSample)) == 4


def test_a_device_that_failed_is_not_waited_for(cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an exception is on its way the counters are read as they are, so that it arrives."""

    def refuse(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail() -> None:
        monkeypatch.setattr(torch.cuda, "synchronize", refuse)
        raise ValueError("the first")

    sent: list[Message] = []
    reader = PhaseReader(sent.append, CudaAllocator(CUDA))
    with pytest.raises(ValueError, match="the first"), reader.phase("warmup"):
        fail()
    assert [type(message).__name__ for message in sent] == ["PhaseStarted", "ReadingMade"]
    assert cuda.calls == ["synchronize", "reset"]


class RunsOut(torch.autograd.Function):
    """Runs out of memory in its backward pass, which torch runs in C++."""

    @staticmethod
    def forward(_context: object, value: torch.Tensor, script: ScriptedCuda) -> torch.Tensor:
        """Pass the value on."""
        _context.script = script  # type: ignore[attr-defined]  # torch's way of keeping it
        return value.clone()

    @staticmethod
    def backward(context: object, *_gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Fail."""
        context.script.run_out(512, 2 * GIB, 3 * GIB)  # type: ignore[attr-defined]  # the same
        raise AssertionError("it ran out before")


def in_backward(script: ScriptedCuda) -> None:
    """Run out of memory in the backward pass."""
    value = torch.ones(2, requires_grad=True)
    cast("Callable[..., torch.Tensor]", RunsOut.apply)(value, script).sum().backward()


def in_optimizer(script: ScriptedCuda) -> None:
    """Run out of memory as an optimizer makes its state, wrapped by a library."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: script.run_out(512, 2 * GIB, 3 * GIB))
    try:
        optimizer.step()
    except torch.OutOfMemoryError as error:
        raise RuntimeError("the training could not go on") from error


@pytest.mark.parametrize("fail", [in_backward, in_optimizer])
def test_what_torch_held_at_the_moment_of_the_error_reaches_the_failure(
    cuda: ScriptedCuda, fail: Callable[[ScriptedCuda], None]
) -> None:
    """To the byte and as it was before anything died, from any thread and through any wrapping."""
    with pytest.raises(RuntimeError) as caught, noted_out_of_memory(CUDA):
        fail(cuda)
    found = classify_exception(caught.value)
    assert found.outcome == "oom"
    failure = found.failure
    held = (failure.requested_bytes, failure.allocated_bytes, failure.reserved_bytes)
    assert held == (512, 2 * GIB, 3 * GIB)


def test_without_an_observer_the_counters_are_read_as_the_error_arrives(cuda: ScriptedCuda) -> None:
    """As for cuBLAS, and for the assertion that takes an out-of-memory error's place on a MIG slice."""
    cuda.allocated_bytes, cuda.reserved_bytes = 5, 6
    with pytest.raises(RuntimeError) as caught, noted_out_of_memory(CUDA):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert caught.value.__notes__ == [describe(5, 6, free_bytes=0)]
    failure = classify_exception(caught.value).failure
    assert (failure.requested_bytes, failure.allocated_bytes, failure.reserved_bytes) == (None, 5, 6)
    assert "; torch held 0.00 GiB allocated, 0.00 GiB reserved); " in failure.message


def test_an_allocator_without_observers_is_no_obstacle(
    cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """backend:cudaMallocAsync refuses them."""

    def refuse(_: object) -> None:
        raise RuntimeError("cudaMallocAsync does not yet support attachOutOfMemoryObserver.")

    monkeypatch.setattr(torch._C, "_cuda_attach_out_of_memory_observer", refuse, raising=False)
    with noted_out_of_memory(CUDA):
        pass
    assert cuda.observers == []


def run_cell(
    cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch, path: Path | None, body: Callable[..., None]
) -> list[Any]:
    """Run a cell for CUDA as a worker would, with ``body`` in its place; return its readings."""
    sent: list[Message] = []
    monkeypatch.setattr(loops, "run_cell", body)
    monkeypatch.setattr(jobs, "quiet_libraries", lambda: None)
    job = CellJob(
        cell_json=tiny_cell(device="cuda").model_dump_json(),
        snapshot_path=None if path is None else str(path),
    )
    try:
        jobs.run_job(job, sent.append)
    except torch.OutOfMemoryError:
        cuda.calls.append("out of memory")
    return [message.reading for message in sent if isinstance(message, ReadingMade)]


def test_a_snapshot_is_written_after_the_warm_up(
    cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Recording stops before the measured steps; the file is the pickle that torch's own writer makes."""

    def body(*_: object, after_warmup: Callable[[], None], **__: object) -> None:
        assert cuda.recording == {"stacks": "python", "max_entries": 200_000}
        cuda.allocated_bytes = 77
        after_warmup()
        assert cuda.recording is None
        cuda.allocated_bytes = 88

    path = tmp_path / "cell--0--r1.snapshot.pickle"
    readings = run_cell(cuda, monkeypatch, path, body)
    size_bytes = path.stat().st_size
    assert readings == [
        AllocatorSnapshot(file_name=path.name, moment="after the warm-up", size_bytes=size_bytes)
    ]
    expected = io.BytesIO()
    pickle.dump({"segments": [{"total_size": 77}], "device_traces": [[]]}, expected)
    assert path.read_bytes() == expected.getvalue()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_snapshot_at_an_out_of_memory_error_shows_what_was_held_then(
    cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes the place of an earlier one, and a link in the file's place is replaced, not followed."""
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "snapshot.pickle"
    elsewhere.write_text("untouched")
    path.symlink_to(elsewhere)

    def body(*_: object, after_warmup: Callable[[], None], **__: object) -> None:
        after_warmup()
        cuda.run_out(512, 99, 100)

    readings = run_cell(cuda, monkeypatch, path, body)
    assert [reading.moment for reading in readings] == ["after the warm-up", "out of memory"]
    assert pickle.dumps(99)[2:-1] in path.read_bytes()
    assert (path.is_symlink(), elsewhere.read_text()) == (False, "untouched")
    assert cuda.calls == ["out of memory"]


def test_a_cell_that_fails_otherwise_leaves_what_was_held(
    cuda: ScriptedCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An error that torch's observer was not told of, before the warm-up was over."""

    def body(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("in some library's own allocator")

    (reading,) = run_cell(cuda, monkeypatch, tmp_path / "snapshot.pickle", body)
    assert reading.moment == "as the cell failed"


def test_a_snapshot_that_cannot_be_written_is_a_caveat(cuda: ScriptedCuda, tmp_path: Path) -> None:
    """The measurement goes on."""
    sent: list[Message] = []
    recorder = SnapshotRecorder(tmp_path / "no such folder" / "snapshot.pickle", sent.append)
    with recorder:
        recorder.after_warmup()
    (message,) = sent
    assert isinstance(message, ReadingMade)
    assert isinstance(message.reading, Caveat)
    assert message.reading.code == "snapshot-not-written"
    assert "(No such file or directory)" in message.reading.message
    assert cuda.recording is None


def test_on_a_cpu_there_is_nothing_to_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is said, and the cell runs."""
    ran: list[bool] = []
    monkeypatch.setattr(loops, "run_cell", lambda *_, **__: ran.append(True))
    monkeypatch.setattr(jobs, "quiet_libraries", lambda: None)
    sent: list[Message] = []
    path = tmp_path / "snapshot.pickle"
    jobs.run_job(CellJob(cell_json=tiny_cell().model_dump_json(), snapshot_path=str(path)), sent.append)
    (message,) = sent
    assert isinstance(message, ReadingMade)
    assert isinstance(message.reading, Caveat)
    assert message.reading.message == (
        "There is nothing to snapshot on a CPU: torch records its allocator's history on CUDA only."
    )
    assert (ran, path.exists()) == ([True], False)


def test_paged_state_is_counted_by_bitsandbytes_own_mark() -> None:
    """What is not marked is in torch's counters already."""
    parameter = torch.nn.Parameter(torch.zeros(1024))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(1024)
    optimizer.step()
    assert paged_memory(optimizer) == PagedMemory(paged_bytes=0, paged_tensors=0)
    for tensor in optimizer_state(optimizer):
        tensor.is_paged = tensor.numel() > 1  # type: ignore[attr-defined]  # as bitsandbytes marks them
    assert paged_memory(optimizer) == PagedMemory(paged_bytes=2 * 4 * 1024, paged_tensors=2)
    gc.collect()


def test_settings_are_read_as_torch_has_them() -> None:
    """Defaults first, then what somebody has set; on a build without CUDA there is no allocator backend."""
    before = read_torch_settings()
    assert (before.float32_matmul_precision, before.deterministic_algorithms) == ("highest", "off")
    assert (before.matmul_allow_tf32, before.cudnn_benchmark) == (False, False)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    try:
        after = read_torch_settings()
    finally:
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cudnn.benchmark = False
    changed = {"deterministic_algorithms": "warn only", "cudnn_benchmark": True}
    assert after == before.replace(**changed)


SETTINGS = """
import msgspec
import torch
from bench.probes.machine import read_torch_settings
torch.backends.cuda.matmul.fp32_precision = "tf32"
print(msgspec.json.encode(read_torch_settings()).decode())
"""


def test_allocator_settings_are_those_that_torch_parsed() -> None:
    """Of two variables torch takes CUDA's own; TF32 set by the newer names is unknown, not guessed."""
    variables = {
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SETTINGS],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    settings = msgspec.json.decode(done.stdout, type=TorchSettings)
    assert settings.allocator_settings == "expandable_segments:True"
    assert settings.matmul_allow_tf32 is None
