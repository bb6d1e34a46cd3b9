"""What the cells of one group were trained with, in one line; no arithmetic."""

from collections.abc import Sequence

from bench.compare.measured import Measured
from bench.compare.recipe import Setting, settings


def recipe(rows: Sequence[Measured]) -> str:
    """Return what all rows share, then what differs between them and where."""
    found = settings(rows)
    shared = [f"{one.name} {value}" for one in found if len(one.values) == 1 for value in one.values]
    devices = dict.fromkeys(row.device_name for row in rows if row.runs_ok) or {rows[0].device: None}
    told = "; ".join([f"{rows[0].model} on {' and '.join(devices)}", *shared])
    differing = [_differing(one) for one in found if len(one.values) > 1]
    return f"{told}. Differs: {'; '.join(differing)}." if differing else f"{told}."


def _differing(one: Setting) -> str:
    return f"{one.name} " + ", ".join(
        f"{value} ({' and '.join(methods)})" for value, methods in one.values.items()
    )
