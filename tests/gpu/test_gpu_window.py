"""A real card: every method measured and held to its prediction, to torch and to the driver. pytest --gpu."""

import pickle
from pathlib import Path
from typing import Any

import pytest

import gpu_cells
from bench.compare.plausibility import lint
from bench.records.records import Record
from bench.workers.launch import Launcher
from gpu_cells import SPECIFICATIONS, gpu_cell, sweep, too_large_cell

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("tiny_weights"), pytest.mark.timeout(600)]

NAMES = list(SPECIFICATIONS)


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    """Return one launcher for all, so that the libraries are imported once."""
    return Launcher()


@pytest.fixture(scope="module")
def records(
    launcher: Launcher, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Record]:
    """Run every cell once; return its record by name."""
    assert tiny_weights.is_dir()
    cells = {name: gpu_cell(name) for name in NAMES}
    found = sweep(tmp_path_factory.mktemp("records"), list(cells.values()), launcher)
    return {name: found[cell.id] for name, cell in cells.items()}


@pytest.mark.parametrize("name", NAMES)
def test_each_cell_runs_and_is_plausible(records: dict[str, Record], name: str) -> None:
    """Every method, optimizer and lever trains on the card, and no lint finds fault."""
    gpu_cells.check_ran(records[name])


@pytest.mark.parametrize("name", NAMES)
def test_allocated_is_as_predicted(records: dict[str, Record], name: str) -> None:
    """To the byte for the plain ones."""
    gpu_cells.check_allocated(records[name])


@pytest.mark.parametrize("name", NAMES)
def test_reserved_is_within_the_predicted_band(records: dict[str, Record], name: str) -> None:
    """The caching allocator did as its replay."""
    gpu_cells.check_reserved(records[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_accounts_for_what_torch_allocated(records: dict[str, Record], name: str) -> None:
    """Live tensors are most of it and never more."""
    gpu_cells.check_ledger(records[name])


@pytest.mark.parametrize("name", NAMES)
def test_paged_state_is_as_predicted(records: dict[str, Record], name: str) -> None:
    """To the byte, and none where nothing pages."""
    gpu_cells.check_paged(records[name])


@pytest.mark.parametrize("name", ["full", "lora", "nf4-dq"])
def test_the_driver_sees_what_torch_holds(records: dict[str, Record], name: str) -> None:
    """NVML, from outside, against torch's counters, from inside."""
    gpu_cells.check_nvml(records[name])


def test_settings_of_torch_are_in_the_record(records: dict[str, Record]) -> None:
    """Those of a process that has used CUDA."""
    settings = records["full"].measurement.torch_settings
    assert settings is not None
    assert (settings.allocator_backend, settings.deterministic_algorithms) == ("native", "off")


def test_workers_are_forked_since_importing_the_libraries_touches_no_cuda(
    launcher: Launcher, records: dict[str, Record]
) -> None:
    """As long as that holds, a cell starts at once."""
    assert records
    assert launcher.start_method == "forkserver"


def test_a_cell_that_runs_out_of_memory_says_all_about_it(launcher: Launcher, tmp_path: Path) -> None:
    """Phase, bytes asked for and held, and the prediction; its snapshot holds the error."""
    (record,) = sweep(tmp_path, [too_large_cell()], launcher, snapshot=True).values()
    gpu_cells.check_out_of_memory(record)
    snapshot = record.measurement.snapshot
    assert snapshot is not None
    assert snapshot.moment == "out of memory"
    actions = {entry["action"] for entry in open_snapshot(tmp_path / snapshot.file_name)["device_traces"][0]}
    assert "oom" in actions
    assert lint(record) == ()


def test_a_snapshot_opens_in_torchs_viewer(launcher: Launcher, tmp_path: Path) -> None:
    """Segments, births and deaths with their Python stacks, as the page's own reader takes them."""
    from torch.cuda import _memory_viz

    (record,) = sweep(tmp_path, [gpu_cell("lora")], launcher, snapshot=True).values()
    snapshot = record.measurement.snapshot
    assert snapshot is not None
    assert snapshot.moment == "after the warm-up"
    content = open_snapshot(tmp_path / snapshot.file_name)
    assert {"segments", "device_traces"} <= set(content)
    reserved = [phase.cuda_reserved_peak_bytes or 0 for phase in record.measurement.phases]
    assert 0 < sum(segment["total_size"] for segment in content["segments"]) <= max(reserved)
    births = [entry for entry in content["device_traces"][0] if entry["action"] == "alloc"]
    assert any("run_step" in {frame["name"] for frame in entry["frames"]} for entry in births)
    assert "<html" in _memory_viz.trace_plot(content)


def open_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot that this test has had written."""
    content: dict[str, Any] = pickle.loads(path.read_bytes())  # noqa: S301 - written by us
    return content


def test_a_worker_that_was_spawned_sees_the_chosen_card_and_the_allocators_settings(
    records: dict[str, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not forked: CUDA_VISIBLE_DEVICES by UUID, and allocator settings that the prediction knows of."""
    facts = records["full"].measurement.device
    assert facts is not None
    assert facts.cuda_uuid is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", facts.cuda_uuid)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    spawning = Launcher()
    spawning.start_method = "spawn"
    (record,) = sweep(tmp_path, [gpu_cell("lora")], spawning).values()
    gpu_cells.check_ran(record)
    gpu_cells.check_allocated(record)
    gpu_cells.check_reserved(record)
    assert record.measurement.device is not None
    assert record.measurement.device.cuda_uuid == facts.cuda_uuid
    settings = record.measurement.torch_settings
    assert settings is not None
    assert settings.allocator_settings == "expandable_segments:True"
