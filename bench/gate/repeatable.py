"""Whether what is taken to be exact repeats from run to run of the same code."""

from collections.abc import Mapping, Sequence

from bench.metrics import METRICS
from bench.records.derived_metrics import read_metrics
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.sittings import SideName


def unrepeatable(records: Mapping[SideName, Sequence[Record]]) -> tuple[Caveat, ...]:
    """Return a caveat for each deterministic metric that differs between runs of one cell on one side."""
    caveats = []
    for side, made in records.items():
        by_cell: dict[str, list[dict[str, float | int | None]]] = {}
        for record in made:
            if record.outcome == "ok":
                by_cell.setdefault(record.cell.id, []).append(read_metrics(record))
        for cell, runs in by_cell.items():
            for name, metric in METRICS.items():
                values = {run[name] for run in runs} if metric.kind == "deterministic" else set()
                if len(values) > 1:
                    shown = ", ".join(
                        "none" if value is None else f"{value:,}" for value in sorted(values, key=str)
                    )
                    caveats.append(
                        Caveat(
                            code="not-repeatable",
                            message=f"{name} of {cell} differs between runs of the {side} ({shown} "
                            f"{metric.unit}), "
                            "so it is no exact metric here.",
                        )
                    )
    return tuple(caveats)
