"""Made-up records of runs on a GPU that NVML watched, and a GPU that tells what a test has it tell."""

import time
from collections.abc import Callable
from typing import Any

from bench.probes.nvml import GpuSample
from bench.records.readings import GpuFacts, GpuReading, checked, plain
from bench.records.records import DeviceFacts, Record
from records_factory import MIB, SECOND_NS, make_cell, make_measurement, make_phases, make_record

IDLE_BYTES = 300 * MIB
FACTS = GpuFacts(uuid="GPU-1", name="Example GPU", total_bytes=24 * 1024 * MIB, power_limit_mw=350_000)


def make_phase(
    name: str,
    peak_bytes: int | None,
    *,
    isolation: str = "process",
    **changes: Any,
) -> dict[str, Any]:
    """Return a phase of 40 samples with this peak of the process, or of the device beyond its idle bytes."""
    of_process = {"process_peak_bytes": peak_bytes}
    of_device = {"device_peak_bytes": None if peak_bytes is None else IDLE_BYTES + peak_bytes}
    memory = of_process | of_device if isolation == "process" else of_device
    return {"name": name, "samples": 40, **memory, **changes}


def make_gpu(
    peak_bytes: int = 2000 * MIB,
    *,
    isolation: str = "process",
    steady: dict[str, Any] | None = None,
    **changes: Any,
) -> GpuReading:
    """Return a reading whose highest training peak is in the first backward pass; 5 mJ for a token."""
    measured = {
        "energy_mj": 4000,
        "energy_time_ns": 2 * SECOND_NS,
        "power_mean_mw": 200_000.0,
        "sm_clock_min_mhz": 1500,
        "sm_clock_max_mhz": 1800,
        "temperature_max_c": 60,
    }
    fields: dict[str, Any] = {
        "facts": FACTS,
        "isolation": isolation,
        "isolation_reason": f"It was {isolation}.",
        "interval_ns": 50_000_000,
        "longest_gap_ns": 70_000_000,
        "idle_device_bytes": IDLE_BYTES,
        "non_torch_bytes": 500 * MIB,
        "phases": (
            make_phase("load", peak_bytes // 2, isolation=isolation),
            {"name": "adapt", "samples": 0},
            make_phase("first_backward", peak_bytes, isolation=isolation, temperature_max_c=70),
            make_phase("steady", peak_bytes - 1, isolation=isolation, **(measured | (steady or {}))),
            make_phase("evaluate_after", peak_bytes * 2, isolation=isolation, temperature_max_c=99),
        ),
    }
    return checked(GpuReading, plain(fields | changes))


def make_gpu_record(gpu: GpuReading | None, *, method: str = "lora", **changes: Any) -> Record:
    """Return the record of a good run on CUDA."""
    fields: dict[str, Any] = {"kind": method} | ({} if method == "full" else {"rank": 8})
    measurement = make_measurement(
        gpu=gpu,
        device=DeviceFacts(cpu_threads=2, cuda_available=True, cuda_name="Example GPU"),
        phases=make_phases(cuda_allocated_peak_bytes=1000 * MIB),
        caveats=changes.pop("caveats", ()),
    )
    cell = make_cell(id=f"tiny/{method}/b4-s256", device="cuda", method=fields)
    return make_record(cell=cell, measurement=measurement, **changes)


class ScriptedGpu:
    """Answers each question with what ``tell`` makes of the number of the question, from 0."""

    def __init__(self, tell: Callable[[int], dict[str, Any]], facts: GpuFacts = FACTS) -> None:
        """Count from the first sample on."""
        self.facts = facts
        self.problems: tuple[str, ...] = ()
        self.asked = 0
        self._tell = tell

    def sample(self, *, complete: bool = True) -> GpuSample:
        """Return the next sample."""
        told = self._tell(self.asked)
        self.asked += 1
        if not complete:
            told = {name: told[name] for name in told.keys() & {"processes", "device_used_bytes"}}
        return make_sample(at_ns=time.monotonic_ns(), **told)


def make_sample(
    processes: dict[int, int | None] | None = None,
    *,
    at_ns: int = 0,
    **readings: Any,
) -> GpuSample:
    """Return a sample with the bytes of each process by its number."""
    return GpuSample(at_ns=at_ns, processes=processes, **readings)
