"""Cells small enough for a unit test: random weights, two layers, a few steps. Shapes, never claims."""

from typing import Any

from bench.records.messages import Message, ReadingMade, Send
from bench.scenario.cell import Cell


def tiny_cell(method: dict[str, Any] | None = None, **changes: Any) -> Cell:
    """Return a CPU cell on the toy architecture; ``changes`` are merged into the cell's tables."""
    fields: dict[str, Any] = {
        "id": "tiny/test/b2-s32",
        "scenario": "tests",
        "model": {"name": "tiny", "random": "tiny-llama-test"},
        "method": method or {"kind": "full"},
        "data": {"source": "synthetic"},
        "training": {"sequence_length": 32, "micro_batch": 2},
        "window": {"warmup_steps": 1, "measured_steps": 2},
        "loop": {},
        "parallel": {},
        "evaluation": {},
        "limits": {},
    }
    for name, value in changes.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    return Cell.model_validate(fields)


def readings_of(cell: Cell, rank: int = 0) -> list[Any]:
    """Run the cell's loop in this process, as one rank of a group that is there; return what it read."""
    from bench.training.loops import run_cell

    readings: list[Any] = []
    run_cell(cell, _collector(readings), rank=rank)
    return readings


def of_type(readings: list[Any], kind: type[Any]) -> list[Any]:
    """Return the readings of one type."""
    return [reading for reading in readings if isinstance(reading, kind)]


def _collector(readings: list[Any]) -> Send:
    def send(message: Message) -> None:
        if isinstance(message, ReadingMade):
            readings.append(message.reading)

    return send
