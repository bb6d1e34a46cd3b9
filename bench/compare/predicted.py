"""A cell's predicted memory beside what the instruments read; each only with its own kind of reading."""

from collections.abc import Sequence

from bench.compare.measured import Instrument, Peak, Predicted
from bench.records.predictions import Prediction, Refusal


def against_readings(prediction: Prediction | Refusal | None, peaks: Sequence[Peak]) -> tuple[Predicted, ...]:
    """Return every predicted figure that there is a reading for; none for a refusal."""
    if not isinstance(prediction, Prediction):
        return ()
    allocated = prediction.allocated_peak_bytes
    figures: dict[Instrument, tuple[int, int]] = {}
    if prediction.platform.device == "cpu":
        figures["ledger"] = (allocated, allocated)
    else:
        figures["cuda_allocated"] = (allocated, allocated)
        if prediction.reserved_low_bytes is not None and prediction.reserved_high_bytes is not None:
            figures["cuda_reserved"] = (prediction.reserved_low_bytes, prediction.reserved_high_bytes)
    return tuple(
        Predicted(
            instrument=peak.instrument,
            low_bytes=low,
            high_bytes=high,
            measured_bytes=peak.peak_bytes,
            difference_share=high / peak.peak_bytes - 1,
        )
        for peak in peaks
        if peak.instrument in figures and peak.peak_bytes
        for low, high in (figures[peak.instrument],)
    )
