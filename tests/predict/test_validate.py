"""Published rows predicted in processes of their own."""

import os

from bench.predict.validate import each_apart
from bench.records.predictions import Refusal


def test_a_process_that_is_ended_costs_its_row() -> None:
    """The others are predicted, the progress is told, and the answers are in the rows' order."""
    told: list[tuple[int, int]] = []
    found = each_apart(_told, [1, 0, 2, 3], lambda done, total: told.append((done, total)))
    messages = [one.message for one in found if isinstance(one, Refusal)]
    assert "process that predicted it was ended" in messages.pop(1)
    assert ["row 1", "row 2", "row 3"] == messages
    assert [(done, 4) for done in range(5)] == told


def _told(row: int) -> Refusal:
    return Refusal(message=f"row {row}") if row else os._exit(9)
