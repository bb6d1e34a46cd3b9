"""What NVML saw of each cell, below the comparison: whose memory it could tell, and how the card ran."""

from collections.abc import Callable, Sequence

from bench.compare.measured import Measured
from bench.records.readings import Isolation
from bench.report.layout import Table
from bench.report.text import NOT_APPLICABLE, NOT_MEASURED, MemoryUnit, significant

_READINGS: dict[Isolation, str] = {
    "process": "of the process",
    "device_delta": "of the device, less what was on it before",
    "unavailable": "none",
}


def isolation_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return which reading of NVML could be told to be the worker's, and why."""
    return Table(
        header=("Cell", "NVML's peak is", "Why", "Sampled every", "Longest gap"),
        left=3,
        rows=tuple(
            (
                name(row),
                _READINGS[isolation],
                why,
                _milliseconds(gpu.interval_ns),
                _longest(gpu.longest_gap_ns),
            )
            for row in rows
            if (gpu := row.gpu)
            for isolation, why in gpu.isolations
        ),
    )


def gpu_table(rows: Sequence[Measured], name: Callable[[Measured], str], unit: MemoryUnit) -> Table:
    """Return what the card was doing while the measured steps ran."""
    header = ("Cell", "Not torch's", "Energy per token", "Power", "SM clock", "Hottest", "Slowed by")
    return Table(
        header=header,
        rows=tuple(
            (
                name(row),
                unit.show(gpu.non_torch_bytes),
                NOT_MEASURED if energy is None else f"{significant(energy)} mJ",
                NOT_MEASURED if power is None else f"{significant(power / 1000)} W",
                _clocks(gpu.sm_clock_min_mhz, gpu.sm_clock_max_mhz),
                NOT_MEASURED if gpu.temperature_max_c is None else f"{gpu.temperature_max_c} °C",
                ", ".join(gpu.events) or NOT_APPLICABLE,
            )
            for row in rows
            if (gpu := row.gpu)
            for energy, power in [(gpu.energy_per_token_mj, gpu.power_mean_mw)]
        ),
    )


def _clocks(low_mhz: int | None, high_mhz: int | None) -> str:
    if low_mhz is None or high_mhz is None:
        return NOT_MEASURED
    return f"{high_mhz:,} MHz" if low_mhz == high_mhz else f"{low_mhz:,} to {high_mhz:,} MHz"


def _milliseconds(time_ns: int) -> str:
    return f"{time_ns / 1e6:,.0f} ms"


def _longest(gap_ns: int) -> str:
    return _milliseconds(gap_ns) if gap_ns else NOT_MEASURED
