"""Exact metrics that differ between runs of one side are named; differences between sides are not meant."""

from bench.gate.repeatable import unrepeatable
from bench.records.records import Record
from records_factory import MIB, make_ledger, make_measurement, make_record


def record(peak_bytes: int) -> Record:
    """Return a record with such a ledger peak."""
    return make_record(measurement=make_measurement(ledger=make_ledger(peak_bytes)))


def test_only_what_differs_within_a_side_is_named() -> None:
    """To the byte."""
    alike = (record(600 * MIB), record(600 * MIB))
    assert () == unrepeatable({"base": alike, "candidate": (record(700 * MIB), record(700 * MIB))})
    (caveat,) = unrepeatable({"base": alike, "candidate": (record(600 * MIB), record(600 * MIB + 1))})
    assert caveat.message == (
        f"ledger_peak_bytes of {alike[0].cell.id} differs between runs of the candidate "
        "(629,145,600, 629,145,601 bytes), so it is no exact metric here."
    )
