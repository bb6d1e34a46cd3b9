"""Runs of several seeds whose answers a test chooses."""

from collections.abc import Sequence
from typing import Any

from bench.compare.comparison import measure
from bench.compare.measured import Measured
from bench.records.records import Record
from records_factory import make_cell, make_evaluation, make_measurement, make_record


def make_run(
    seed: int,
    right: Sequence[bool],
    *,
    method: str = "lora",
    before: Sequence[bool] = (False,) * 20,
    **changes: Any,
) -> Record:
    """Return a run of one seed with the given answers before and after training."""
    cell = make_cell(
        id=f"tiny/{method}-r8/b4-s256-seed={seed}-task=longest-word",
        method={"kind": "lora", "name": method, "rank": 8} | (changes.pop("method_fields", None) or {}),
        training={"sequence_length": 256, "micro_batch": 4, "seed": seed},
    )
    evaluations = (make_evaluation("before", before), make_evaluation("after", right))
    return make_record(**{"cell": cell, "measurement": make_measurement(evaluations=evaluations)} | changes)


def right(count: int, items: int = 20) -> list[bool]:
    """Return answers of which the first ones are right."""
    return [index < count for index in range(items)]


def one_measured(records: Sequence[Record]) -> Measured:
    """Return the only cell of the records."""
    (row,) = measure(records)
    return row
