"""What the tests on a real card run and check, tried without one: cells that exist, checks that can fail."""

from collections.abc import Callable
from typing import Any

import pytest

import gpu_cells
from bench.predict.predict import predict
from bench.records.predictions import Prediction, check_fit
from bench.records.readings import GpuFacts, GpuPhase, GpuReading, PagedMemory
from bench.records.records import DeviceFacts, Failure, Record
from bench.runner.schedule import why_unavailable
from bench.scenario.catalogue import card
from bench.scenario.platform import Platform
from bench.workers.classify import LESS_MEMORY
from records_factory import (
    MIB,
    make_environment,
    make_ledger,
    make_measurement,
    make_phases,
    make_prediction,
    make_record,
)


def record_of(name: str = "lora", allocated_bytes: int = 600 * MIB, **changes: Any) -> Record:
    """Return a good record of one of the cells, whose prediction is met."""
    gpu = GpuReading(
        facts=GpuFacts(uuid="GPU-0"),
        isolation="process",
        isolation_reason="Made up.",
        interval_ns=50_000_000,
        non_torch_bytes=400 * MIB,
        phases=(
            GpuPhase(name="steady", samples=5, process_peak_bytes=900 * MIB, device_peak_bytes=950 * MIB),
        ),
    )
    measurement: dict[str, Any] = {
        "device": DeviceFacts(cpu_threads=2, cuda_available=True, cuda_name="NVIDIA L4"),
        "phases": make_phases(cuda_allocated_peak_bytes=allocated_bytes * 105 // 100),
        "ledger": make_ledger(peak_bytes=250 * MIB, device="cuda"),
        "paged": PagedMemory(paged_bytes=0, paged_tensors=0),
        "gpu": gpu,
        "evaluations": (),
    }
    phases = tuple(
        phase.replace(cuda_allocated_peak_bytes=allocated_bytes) if phase.name == "first_backward" else phase
        for phase in measurement["phases"]
    )
    fields = {
        "cell": gpu_cells.gpu_cell(name),
        "prediction": make_prediction(600 * MIB),
        "measurement": make_measurement(**(measurement | {"phases": phases} | changes)),
    }
    return make_record(**fields)


def test_every_cell_is_possible_on_a_card_that_people_have() -> None:
    """None contradicts itself or lacks anything but the card."""
    facts = DeviceFacts(
        cpu_threads=2,
        cuda_available=True,
        cuda_name="NVIDIA L4",
        cuda_capability=(8, 9),
        cuda_total_bytes=22 * 1024 * MIB,
        bf16_on_cuda=True,
    )
    environment = make_environment(versions={"bitsandbytes": "0.50"})
    cells = [gpu_cells.gpu_cell(name) for name in gpu_cells.SPECIFICATIONS]
    reasons = [why_unavailable(cell, facts, environment) for cell in (*cells, gpu_cells.too_large_cell())]
    assert set(reasons) == {None}
    assert len({cell.digest for cell in cells}) == len(cells) == 26


@pytest.mark.parametrize("name", ["full-paged-8bit", "nf4-dq"])
def test_a_cell_can_be_predicted(name: str) -> None:
    """Small, with a band, and paged where it pages."""
    prediction = predict(gpu_cells.gpu_cell(name), Platform())
    assert 10 * MIB < prediction.allocated_peak_bytes < 200 * MIB
    assert (prediction.paged_bytes > 0) == ("paged" in name)


def test_the_cell_that_is_too_large_fits_no_card() -> None:
    """Not even the largest of the catalogue."""
    prediction = predict(gpu_cells.too_large_cell(), Platform())
    assert check_fit(prediction, card("b200")).answer == "does not fit"


CHECKS: tuple[Callable[[Record], None], ...] = (
    gpu_cells.check_allocated,
    gpu_cells.check_reserved,
    gpu_cells.check_ledger,
    gpu_cells.check_paged,
    gpu_cells.check_nvml,
)


@pytest.mark.parametrize("check", CHECKS)
def test_a_record_as_predicted_passes_each_check(check: Callable[[Record], None]) -> None:
    """Allocated to the byte, reserved within the band."""
    check(record_of())


BAD = [
    (gpu_cells.check_allocated, {"allocated_bytes": 600 * MIB + 512}),
    (gpu_cells.check_allocated, {"name": "dora", "allocated_bytes": 650 * MIB}),
    (gpu_cells.check_reserved, {"allocated_bytes": 700 * MIB}),
    (gpu_cells.check_reserved, {"allocated_bytes": 500 * MIB}),
    (gpu_cells.check_ledger, {"ledger": make_ledger(peak_bytes=400 * MIB, device="cuda")}),
    (gpu_cells.check_ledger, {"ledger": make_ledger(peak_bytes=250 * MIB)}),
    (gpu_cells.check_paged, {"paged": PagedMemory(paged_bytes=8, paged_tensors=1)}),
    (gpu_cells.check_paged, {"name": "full-paged-8bit"}),
    (gpu_cells.check_nvml, {"gpu": None}),
]


@pytest.mark.parametrize(("check", "changes"), BAD)
def test_each_check_can_fail(check: Callable[[Record], None], changes: dict[str, Any]) -> None:
    """One number off is enough."""
    with pytest.raises(AssertionError):
        check(record_of(**changes))


def test_out_of_memory_is_checked_in_full() -> None:
    """Phase, figures and prediction have to be there."""
    failure = Failure(
        message=f"Out of memory (CUDA out of memory); {LESS_MEMORY}; predicted to need 300.00 GiB.",
        phase="first_forward",
        requested_bytes=128 * 1024 * MIB,
        allocated_bytes=5,
        reserved_bytes=6,
    )
    gpu_cells.check_out_of_memory(make_record(outcome="oom", failure=failure))
    for missing in ("phase", "requested_bytes", "allocated_bytes", "reserved_bytes"):
        with pytest.raises(AssertionError):
            gpu_cells.check_out_of_memory(
                make_record(outcome="oom", failure=failure.replace(**{missing: None}))
            )


def test_a_refusal_is_no_prediction() -> None:
    """A cell that could not be predicted fails the check instead of passing it."""
    with pytest.raises(AssertionError):
        gpu_cells.check_allocated(record_of().replace(prediction=None))
    assert isinstance(record_of().prediction, Prediction)
