"""Whole runs on a virtual GPU: a real training, the real pynvml, and readings that are known beforehand."""

from pathlib import Path

import pytest

from bench.records.readings import GpuReading
from bench.records.records import Record
from virtual_gpu import VirtualGpus
from virtual_training import (
    BASE_BYTES,
    CARD,
    CONTEXT_BYTES,
    FOREIGN_PID,
    MIB,
    PEAKS_BYTES,
    SCRIPTS,
    SLICED_CARD,
    STEADY_ENERGY_MJ,
    sweep_on_virtual_gpu,
)

TIMEOUT_S = 300


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> dict[str, list[Record]]:
    """Run every script once, in one process with a virtual GPU; return the records by script."""
    del tiny_weights  # only its variable is needed, from here on
    gpus = VirtualGpus(tmp_path_factory.mktemp("library"))
    folder = tmp_path_factory.mktemp("results")
    on_card = [name for name, script in SCRIPTS.items() if not script.on_slice]
    with gpus.box() as box:
        made = [
            record
            for names in (on_card, ["slice"])
            for record in box._pool.submit(sweep_on_virtual_gpu, gpus, folder / names[0], *names).result(
                timeout=TIMEOUT_S
            )
        ]
    found: dict[str, list[Record]] = {name: [] for name in SCRIPTS}
    for record in made:
        found[record.cell.method.name or ""].append(record)
    return found


def reading(record: Record) -> GpuReading:
    """Return what NVML said."""
    assert record.measurement.gpu is not None
    return record.measurement.gpu


def test_a_real_training_has_exactly_the_scripted_peaks_of_its_process(
    records: dict[str, list[Record]],
) -> None:
    """Each phase its own peak, the context as non-torch overhead, the counter's energy, and no caveat."""
    (record,) = records["process"]
    gpu = reading(record)
    assert ("ok", 2) == (record.outcome, sum(step.stage == "measured" for step in record.measurement.steps))
    assert PEAKS_BYTES == {phase.name: phase.process_peak_bytes for phase in gpu.phases}
    with_display = {name: peak + BASE_BYTES for name, peak in PEAKS_BYTES.items()}
    assert with_display == {phase.name: phase.device_peak_bytes for phase in gpu.phases}
    assert ("process", CONTEXT_BYTES, BASE_BYTES) == (
        gpu.isolation,
        gpu.non_torch_bytes,
        gpu.idle_device_bytes,
    )
    assert "own process" in gpu.isolation_reason
    assert (0, 0, ()) == (gpu.foreign_pids, gpu.unexplained_growth_bytes, gpu.problems)
    steady = gpu.phase("steady")
    assert steady is not None
    assert STEADY_ENERGY_MJ == steady.energy_mj
    assert () == tuple(caveat.code for caveat in record.measurement.caveats if "nvml" in caveat.code)


def test_without_bytes_of_processes_the_device_less_idle_is_the_peak(
    records: dict[str, list[Record]],
) -> None:
    """N/A is no process memory but None, and the display's part is taken off; throttling is flagged."""
    (record,) = records["device-delta"]
    gpu = reading(record)
    assert ("ok", "device_delta", BASE_BYTES) == (record.outcome, gpu.isolation, gpu.idle_device_bytes)
    assert PEAKS_BYTES == {phase.name: (phase.device_peak_bytes or 0) - BASE_BYTES for phase in gpu.phases}
    assert {None} == {phase.process_peak_bytes for phase in gpu.phases}
    assert CONTEXT_BYTES == gpu.non_torch_bytes
    assert 0 == gpu.unexplained_growth_bytes
    assert ["steady"] == [phase.name for phase in gpu.phases if phase.event_reasons & 0x44 == 0x44]
    assert {"throttled", "power-capped"} <= {caveat.code for caveat in record.measurement.caveats}


def test_a_run_with_a_foreign_process_is_kept_and_run_again(records: dict[str, list[Record]]) -> None:
    """The spoilt run names who came; the next number is the clean one."""
    runs = records["foreign"]
    ends = [(run.run, run.outcome) for run in runs]
    assert [(1, "contaminated"), (2, "ok")] == ends, [run.failure for run in runs]
    spoilt, clean = runs
    assert spoilt.failure is not None
    assert spoilt.failure.message.startswith(
        f"Process {FOREIGN_PID} came onto the GPU during the run with up to 2.0 GiB"
    )
    assert (1, 0) == (reading(spoilt).foreign_pids, reading(clean).foreign_pids)
    assert spoilt.measurement.steps
    steady = reading(spoilt).phase("steady")
    assert steady is not None
    assert (PEAKS_BYTES["steady"], PEAKS_BYTES["steady"] + BASE_BYTES + 2048 * MIB) == (
        steady.process_peak_bytes,
        steady.device_peak_bytes,
    )


def test_a_gpu_that_is_lost_midway_costs_its_readings_and_nothing_else(
    records: dict[str, list[Record]],
) -> None:
    """What was read stands, what was not is None, the problem is named, and the run is good."""
    (record,) = records["lost"]
    gpu = reading(record)
    told = {phase.name: phase.process_peak_bytes for phase in gpu.phases}
    assert PEAKS_BYTES | {"warmup": None, "steady": None} == told
    assert ("ok", None) == (record.outcome, gpu.non_torch_bytes)
    assert any(problem.startswith("everything:") for problem in gpu.problems)
    assert "nvml-gaps" in {caveat.code for caveat in record.measurement.caveats}


def test_a_slice_is_read_as_such_and_a_container_knows_the_worker_by_another_number(
    records: dict[str, list[Record]],
) -> None:
    """The test block tells which process is ours; energy is the card's and not stated."""
    (record,) = records["slice"]
    gpu = reading(record)
    assert (SLICED_CARD.slices[0].uuid, SLICED_CARD.uuid) == (gpu.facts.uuid, gpu.facts.parent_uuid)
    assert ("ok", "process", 0) == (record.outcome, gpu.isolation, gpu.foreign_pids)
    assert f"process {FOREIGN_PID - 1}" in gpu.isolation_reason
    assert PEAKS_BYTES == {phase.name: phase.process_peak_bytes for phase in gpu.phases}
    assert {None} == {phase.energy_mj for phase in gpu.phases}


def test_the_card_is_the_one_that_torch_named(records: dict[str, list[Record]]) -> None:
    """Addressed by UUID."""
    assert {CARD.uuid} == {reading(run).facts.uuid for name in ("process", "lost") for run in records[name]}
