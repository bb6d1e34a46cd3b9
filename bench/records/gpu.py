"""What NVML said about a GPU while a cell ran, as stored: maxima and counters per phase, and who spoke."""

from typing import Literal

from pydantic import Field

from bench.records.stored import Count, Positive, Stored

Isolation = Literal["process", "device_delta", "unavailable"]


class GpuFacts(Stored):
    """One GPU or MIG slice as NVML describes it; None is what the driver does not tell."""

    uuid: str = Field(description="GPU-… or MIG-…, as CUDA_VISIBLE_DEVICES takes it.")
    name: str | None = None
    index: Count | None = Field(None, description="NVML's, which is the order of the PCI bus.")
    pci_bus_id: str | None = None
    total_bytes: Count | None = None
    parent_uuid: str | None = Field(None, description="The card that a MIG slice is cut from.")
    driver_version: str | None = None
    power_limit_mw: Count | None = None


class GpuPhase(Stored):
    """What the samples between two marks of the worker showed; None where no sample had the reading."""

    name: str = Field(description="A phase of the window.")
    samples: Count
    process_peak_bytes: Count | None = Field(None, description="Of the worker and its children.")
    device_peak_bytes: Count | None = Field(None, description="Used on the device, by anyone.")
    utilisation_mean_percent: float | None = Field(None, ge=0, le=100)
    power_mean_mw: float | None = Field(None, ge=0)
    energy_mj: Count | None = Field(None, description="Counter at the end less at the start.")
    energy_time_ns: Count | None = Field(None, description="Between those two readings of the counter.")
    sm_clock_min_mhz: Count | None = None
    sm_clock_max_mhz: Count | None = None
    temperature_max_c: int | None = None
    event_reasons: Count = Field(0, description="Clock event (throttle) reasons seen, or-ed together.")


class GpuReading(Stored):
    """The GPU of one cell, watched from outside the worker."""

    facts: GpuFacts
    isolation: Isolation = Field(description="Which reading moved when a known block was allocated.")
    isolation_reason: str = Field(description="Why so, in one sentence.")
    interval_ns: Positive = Field(description="Aimed at between two samples; shorter spikes are missed.")
    complete_interval_ns: Positive | None = Field(
        None,
        description="Aimed at between two samples that are of more than memory, besides the first of each "
        "phase; None in older records, whose samples are all complete.",
    )
    longest_gap_ns: Count = Field(0, description="Longest time between two samples that came about.")
    watched_ns: Count | None = Field(None, description="From the worker's start to its end.")
    watching_cpu_ns: Count | None = Field(
        None, description="Of the thread that sampled meanwhile, the driver's part included."
    )
    memory_version: Literal["v2", "v1"] | None = None
    processes_version: Literal["v3", "v2", "v1"] | None = None
    idle_device_bytes: Count | None = Field(None, description="Used before the worker was started.")
    non_torch_bytes: Count | None = Field(
        None, description="NVML less torch's reserved bytes, at an instant when the worker stood still."
    )
    phases: tuple[GpuPhase, ...] = ()
    foreign_pids: Count = Field(0, description="Processes on the device that are not ours.")
    unexplained_growth_bytes: Count | None = Field(
        None, description="Most the device grew beyond what our process and its start explain."
    )
    problems: tuple[str, ...] = Field((), description="What NVML could not be asked for, once each.")

    def phase(self, name: str) -> GpuPhase | None:
        """Return what was seen in one phase, if it was reached."""
        return next((phase for phase in self.phases if phase.name == name), None)
