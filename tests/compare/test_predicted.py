"""Predicted peaks beside read ones: each with its own instrument, refusals and other devices left out."""

from itertools import combinations
from pathlib import Path
from statistics import median

from bench.compare.comparison import compare
from bench.compare.readings import (
    Peak,
    PredictedSpeed,
    phase_predictions,
    predicted_speeds,
    predictions,
    throughput,
)
from bench.metrics import Instrument
from bench.records.predictions import Refusal, Speed
from bench.records.store import gather
from bench.scenario.platform import Platform
from records_factory import MIB, make_measurement, make_phases, make_prediction, make_record


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


def test_each_phase_of_the_first_step_stands_beside_its_own_reading() -> None:
    """By the phase's name in the record; what was not read, and what was not predicted, is left out."""
    phases = tuple(
        phase.replace(cuda_allocated_peak_bytes=500 * MIB if phase.name == "first_backward" else None)
        for phase in make_phases()
    )
    predicted = make_prediction(first_peaks_bytes={"load": 200 * MIB, "inputs": 1, "backward": 550 * MIB})
    run = make_record(prediction=predicted, measurement=make_measurement(phases=phases))
    (one,) = phase_predictions(run)
    assert (one.phase, one.high_bytes, one.measured_bytes) == ("backward", 550 * MIB, 500 * MIB)
    assert round(one.difference_share, 3) == 0.1
    assert phase_predictions(make_record()) == ()


def test_what_set_a_predicted_peak_is_told() -> None:
    """The phase and the operator of the prediction, beside either counter."""
    assert {(one.phase, one.set_by) for one in predictions(make_prediction(), PEAKS)} == {
        ("backward", "aten::mm")
    }


def test_speed_is_shown_beside_the_measured_one() -> None:
    """The error is of the time; a speed that was refused, and one that was not measured, is left out."""
    told = Speed(card="this-cpu", low=80, point=100, high=125, bound_by="compute")
    refused = Speed(card="this-cpu", refused="no")
    runs = [make_record(prediction=make_prediction(speeds=(one,))) for one in (told, refused)]
    measured = throughput(runs[:1])
    assert measured is not None

    (shown,) = predicted_speeds(runs[0], measured)
    assert (shown.told, shown.measured) == (told, measured.tokens_per_second)
    assert shown.difference_share == measured.tokens_per_second / 100 - 1
    assert shown.roofline_share is None
    above = PredictedSpeed(told.model_copy(update={"roofline": 400.0}), 100.0)
    assert above.roofline_share == 0.25
    assert predicted_speeds(runs[1], measured) == ()
    assert predicted_speeds(runs[0], None) == ()


def test_the_page_says_how_far_off_the_speed_of_a_cpu_was() -> None:
    """Its figures are those of the committed records: errors, ranges that hold, and the order of pairs."""
    rows = compare(gather([Path("results/validation/speed_cpu")]).records).rows
    shown = [one for row in rows for one in row.predicted_speeds]
    errors = [abs(one.difference_share) for one in shown]
    held = sum(one.told.low <= one.measured <= one.told.high for one in shown)
    apart = [
        (one, other)
        for one, other in combinations(shown, 2)
        if max(one.measured, other.measured) > 1.2 * min(one.measured, other.measured)
    ]
    right = sum(
        (one.told.point < other.told.point) == (one.measured < other.measured) for one, other in apart
    )
    said = " ".join(Path("report/prediction.md").read_text().split())
    assert f"over {len(shown)} cells the time of a step was {100 * median(errors):.1f} % off" in said
    assert f"{100 * max(errors):.1f} % at most, {held} lay in their range" in said
    assert f"of {len(apart)} pairs more than 20 % apart {right} came out in the right order" in said
    assert median(errors) <= 0.15
    assert right >= 0.9 * len(apart)
