"""Predicted peaks beside read ones: each with its own instrument, refusals and other devices left out."""

from bench.compare.readings import Peak, predictions
from bench.metrics import Instrument
from bench.records.predictions import Refusal
from bench.scenario.types import Platform
from records_factory import MIB, make_prediction


def peak(instrument: Instrument, size_mib: int) -> Peak:
    """Return a peak of one run."""
    size = size_mib * MIB
    return Peak(instrument=instrument, peak_bytes=size, low_bytes=size, high_bytes=size, phase="backward")


PEAKS = [peak("ledger", 600), peak("host", 900), peak("cuda_allocated", 500), peak("cuda_reserved", 660)]


def test_on_the_cpu_the_ledger_is_what_was_predicted() -> None:
    """Not the process, which holds more than tensors."""
    (one,) = predictions(make_prediction(600 * MIB, platform=Platform(device="cpu")), PEAKS)
    assert (one.instrument, one.measured_bytes, one.difference_share) == ("ledger", 600 * MIB, 0.0)


def test_on_cuda_both_counters_of_the_allocator_are() -> None:
    """The difference is against the top of the band."""
    allocated, reserved = predictions(make_prediction(600 * MIB), PEAKS)
    assert (allocated.instrument, round(allocated.difference_share, 3)) == ("cuda_allocated", 0.2)
    assert (reserved.low_bytes, reserved.high_bytes) == (630 * MIB, 660 * MIB)
    assert reserved.difference_share == 0.0


def test_without_a_prediction_there_is_nothing_to_compare() -> None:
    """A refusal, or a record from before predictions."""
    assert predictions(Refusal(message="no"), PEAKS) == ()
    assert predictions(None, PEAKS) == ()
