"""Whether a prediction fits on a card: both limits, to the byte."""

from typing import Literal

import pytest
from pydantic import ValidationError

from bench.records.predictions import Prediction, Speed, check_fit
from bench.scenario.catalogue import ASSUMED_CONTEXT_BYTES, card_of_memory
from bench.scenario.platform import Platform

GIB = 1 << 30
ROOM_BYTES = 24 * GIB - ASSUMED_CONTEXT_BYTES
"""What a card of 24 GiB leaves beside the context."""


def _prediction(allocated: int, high: int | None, device: Literal["cpu", "cuda"] = "cuda") -> Prediction:
    return Prediction(
        platform=Platform(device=device),
        allocated_peak_bytes=allocated,
        reserved_peak_bytes=high,
        reserved_low_bytes=high,
        reserved_high_bytes=high,
        phase_peaks_bytes={"forward": allocated},
        phase_ends_bytes={},
        peak_phase="forward",
        peak_op="aten::mm",
        peak_module="model",
        categories_at_peak_bytes={},
        method="full trace",
    )


@pytest.mark.parametrize(
    ("allocated", "high", "answer"),
    [
        (10 * GIB, ROOM_BYTES, "fits"),
        (10 * GIB, ROOM_BYTES + 1, "too close to call"),
        (ROOM_BYTES, ROOM_BYTES + GIB, "too close to call"),
        (ROOM_BYTES + 1, ROOM_BYTES + GIB, "does not fit"),
        (ROOM_BYTES, None, "fits"),
    ],
)
def test_the_answer_turns_at_the_byte(allocated: int, high: int | None, answer: str) -> None:
    """The top of the band with the context fits; what is allocated with the context does not; or neither."""
    verdict = check_fit(_prediction(allocated, high), card_of_memory("24GiB"))
    assert answer == verdict.answer


def test_what_runs_out_in_a_replay_does_not_fit() -> None:
    """With more reserved than there is, and less allocated, a limit under which a replay failed decides."""
    close = _prediction(20 * GIB, 30 * GIB)
    assert "too close to call" == check_fit(close, card_of_memory("24GiB")).answer
    fails = close.model_copy(update={"insufficient_bytes": 25 * GIB})
    assert "does not fit" == check_fit(fails, card_of_memory("24GiB")).answer


def test_a_verdict_says_what_it_rests_on() -> None:
    """The bytes needed at most, and what the card has."""
    verdict = check_fit(_prediction(10 * GIB, 12 * GIB), card_of_memory("24GiB"))
    assert (12 * GIB + ASSUMED_CONTEXT_BYTES, 24 * GIB) == (verdict.needed_bytes, verdict.usable_bytes)


def test_a_prediction_for_the_cpu_is_not_judged() -> None:
    """There is no card, so no answer is made up."""
    with pytest.raises(ValueError, match="CPU"):
        check_fit(_prediction(GIB, None, "cpu"), card_of_memory("24GiB"))


@pytest.mark.parametrize("ends", [(0, 0, 0), (0, 1, 2), (2, 1, 3), (1, 3, 2), (1, 2, float("inf"))])
def test_a_speed_is_a_range_above_zero_or_refused(ends: tuple[float, float, float]) -> None:
    """A document from elsewhere may say otherwise, and hours are divided by it."""
    low, point, high = ends
    with pytest.raises(ValidationError, match="a speed on h200 that is no range above zero"):
        Speed(card="h200", low=low, point=point, high=high)
    assert Speed(card="h200", refused="not timed").point == 0
