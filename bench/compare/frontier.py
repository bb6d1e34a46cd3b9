"""Which cells no other beats in memory, speed and accuracy at once, among those that may be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare.measured import Comparison, Instrument, Measured

# What has to fit comes first; all cells of a group are read by the same instrument.
INSTRUMENTS: dict[str, tuple[Instrument, ...]] = {
    "cuda": ("cuda_reserved", "cuda_allocated", "ledger"),
    "cpu": ("ledger", "host_net", "host"),
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A cell's three readings; ``dominated_by`` names one that is as good in all and better in one."""

    row: Measured
    memory_bytes: int
    tokens_per_second: float
    accuracy: float | None
    dominated_by: Measured | None


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Cells of one model, data and place. ``task`` is None where they share none: accuracy is left out then.

    Readings are taken as they are: cells whose spreads overlap may change places in another run.
    """

    model: str
    device_name: str
    environment: str
    instrument: Instrument
    task: str | None
    standings: tuple[Standing, ...]
    left_out: int


def frontiers(comparison: Comparison) -> tuple[Frontier, ...]:
    """Return a frontier for each model, data and place with two cells or more that have memory and speed."""
    groups: dict[tuple[str, str, str, str], list[Measured]] = {}
    for row in comparison.rows:
        if row.outcome == "ok":
            data = row.cell.data.model_dump_json()
            groups.setdefault((row.model, row.device_name, row.environment, data), []).append(row)
    found = (_frontier(rows) for rows in groups.values())
    return tuple(one for one in found if one is not None and len(one.standings) > 1)


def _frontier(rows: Sequence[Measured]) -> Frontier | None:
    instrument = next(
        (one for one in INSTRUMENTS[rows[0].device] if all(row.peak(one) for row in rows)), None
    ) or next((one for one in INSTRUMENTS[rows[0].device] if any(row.peak(one) for row in rows)), None)
    if instrument is None:
        return None
    usable = [row for row in rows if row.peak(instrument) and row.throughput]
    task = _shared_task(usable)
    points = [_standing(row, instrument, task) for row in usable]
    return Frontier(
        model=rows[0].model,
        device_name=rows[0].device_name,
        environment=rows[0].environment,
        instrument=instrument,
        task=task,
        standings=tuple(_judged(points)),
        left_out=len(rows) - len(usable),
    )


def _shared_task(rows: Sequence[Measured]) -> str | None:
    """Return the first task that every row was evaluated on after training."""
    tasks = [{one.task for one in row.accuracies if one.after is not None} for row in rows]
    shared = set.intersection(*tasks) if tasks else set()
    return next((one.task for row in rows for one in row.accuracies if one.task in shared), None)


def _standing(row: Measured, instrument: Instrument, task: str | None) -> Standing:
    peak, accuracy = row.peak(instrument), row.accuracy(task) if task else None
    assert peak is not None and row.throughput is not None  # noqa: S101, PT018 - chosen for having both
    return Standing(
        row=row,
        memory_bytes=peak.peak_bytes,
        tokens_per_second=row.throughput.tokens_per_second,
        accuracy=accuracy.after if accuracy else None,
        dominated_by=None,
    )


def _judged(points: Sequence[Standing]) -> list[Standing]:
    """Say of each point which undominated one dominates it, if any does.

    From the least memory on, so that a point can be dominated by an earlier one only, and one that is
    dominated is dominated by one that is not.
    """
    undominated: list[Standing] = []
    better: dict[str, Measured] = {}
    for point in sorted(points, key=_order):
        above = next((other for other in undominated if _dominates(other, point)), None)
        if above is None:
            undominated.append(point)
        else:
            better[point.row.key] = above.row
    return [
        Standing(
            row=point.row,
            memory_bytes=point.memory_bytes,
            tokens_per_second=point.tokens_per_second,
            accuracy=point.accuracy,
            dominated_by=better.get(point.row.key),
        )
        for point in points
    ]


def _order(point: Standing) -> tuple[int, float, float]:
    return point.memory_bytes, -point.tokens_per_second, -(point.accuracy or 0.0)


def _dominates(one: Standing, other: Standing) -> bool:
    mine = (-one.memory_bytes, one.tokens_per_second, one.accuracy or 0.0)
    theirs = (-other.memory_bytes, other.tokens_per_second, other.accuracy or 0.0)
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))
