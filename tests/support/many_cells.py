"""Many made-up records that differ as a large sweep's would, for tests of pages with all of them."""

from collections.abc import Iterator
from typing import Any

from bench.records.readings import PhaseStart, Timeline
from bench.records.records import Record
from records_factory import MIB, make_cell, make_ledger, make_measurement, make_record, make_steps

_METHODS: tuple[dict[str, Any], ...] = (
    {"kind": "full"},
    *({"kind": "lora", "rank": rank} for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    *({"kind": "qlora", "rank": rank} for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    {"kind": "lora", "rank": 8, "base": "int8", "name": "int8"},
)
TIMELINE = Timeline(
    entries=(1, 2, 3, 4),
    live_bytes=(300 * MIB, 500 * MIB, 600 * MIB, 310 * MIB),
    phases=(PhaseStart(phase="forward", entry=0), PhaseStart(phase="backward", entry=2)),
    last_entry=4,
)


def make_records(count: int) -> Iterator[Record]:
    """Yield records of models, methods, lengths and batches; memory falls and speed rises with the number."""
    for number in range(count):
        method = _METHODS[number % len(_METHODS)]
        window = number // len(_METHODS)
        length, batch, model = 64 << window % 5, 1 << window // 5 % 4, f"model-{window // 20}"
        name = method["kind"] if method["kind"] == "full" else f"{method['kind']}-r{method['rank']}"
        cell = make_cell(
            id=f"{model}/{method.get('name', name)}/b{batch}-s{length}",
            model={"name": model, "random": "toy"},
            method=method,
            training={"sequence_length": length, "micro_batch": batch},
        )
        ledger = make_ledger(600 * MIB - number * 1024, timeline=TIMELINE if number < len(_METHODS) else None)
        measurement = make_measurement(ledger=ledger, steps=make_steps((1000.0 + number,) * 8))
        yield make_record(cell=cell, measurement=measurement)
