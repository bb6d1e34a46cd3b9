"""Columns of cells over several GPUs, which stand beside those of every comparison."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.compare.measured import Measured
from bench.report.columns import Column
from bench.report.text import NOT_APPLICABLE, NOT_MEASURED, MemoryUnit, share, significant, small_share


def rank_columns(rows: Sequence[Measured], unit: MemoryUnit) -> Iterator[Column[Measured]]:
    """Yield how many GPUs there were and what each did; on a CPU the processes in their place."""
    one, several = ("GPU", "GPUs") if any(row.device == "cuda" for row in rows) else ("process", "Processes")

    def efficiency(row: Measured) -> str:
        if (value := row.scaling_efficiency) is not None and row.fewer:
            return f"{share(value, 0)} of {row.fewer.gpus}"
        return NOT_APPLICABLE if not row.cell.parallel.several else f"{NOT_MEASURED}: {_why_no_scaling(row)}"

    def over_ranks(
        title: str, read: Callable[[Measured], list[int]], absent: str, **shown: Any
    ) -> Column[Measured]:
        return Column(
            title,
            lambda row: unit.span(min(sizes), max(sizes)) if (sizes := read(row)) else absent,
            lambda row: max(sizes) - min(sizes) if (sizes := read(row)) else None,
            place="memory",
            **shown,
        )

    name = f"tokens/s per {one}"
    yield Column(several, lambda row: f"{row.gpus:,}", lambda row: row.gpus, frame="gpus", narrow=several)
    yield Column(
        name,
        lambda row: significant(row.tokens_per_second_per_gpu),
        lambda row: row.tokens_per_second_per_gpu,
        frame="tokens_per_second_per_gpu",
        narrow=name,
        place="speed",
    )
    yield Column(
        "Scaling efficiency",
        efficiency,
        lambda row: row.scaling_efficiency,
        frame="scaling_efficiency_share",
        narrow="scaling efficiency",
        place="speed",
    )
    frame, narrow = "peak_spread_over_ranks_bytes", "peak over ranks"
    yield over_ranks("Peak over ranks", _of_each_rank, NOT_APPLICABLE, frame=frame, narrow=narrow)
    yield over_ranks("NVML peak over ranks", _by_nvml, NOT_MEASURED, frame=f"nvml_{frame}", page=False)
    yield Column(
        "Step time over ranks",
        lambda row: small_share(_step_spread(row)),
        _step_spread,
        page=False,
        frame="step_time_spread_over_ranks_share",
        place="speed",
    )


def _why_no_scaling(row: Measured) -> str:
    if row.throughput is None:
        return "no speed"
    if row.fewer is None:
        return "not run alike on fewer"
    return "others used the machine" if row.fewer.throughput else f"no speed on {row.fewer.gpus}"


def _of_each_rank(row: Measured) -> list[int]:
    """Return each rank's peak of live tensors, on a GPU of allocated bytes."""
    field = "cuda_allocated_peak_bytes" if row.device == "cuda" else "ledger_peak_bytes"
    return [size for rank in row.ranks if (size := getattr(rank, field)) is not None]


def _by_nvml(row: Measured) -> list[int]:
    return [rank.nvml_peak_bytes for rank in row.ranks if isinstance(rank.nvml_peak_bytes, int)]


def _step_spread(row: Measured) -> float | None:
    """Return how much longer the slowest rank's median step took than the fastest's, as a share."""
    times = [rank.step_time_ns for rank in row.ranks if rank.step_time_ns]
    return max(times) / min(times) - 1 if times else None
