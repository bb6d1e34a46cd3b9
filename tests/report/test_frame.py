"""The tidy table on a terminal."""

import io

from rich.console import Console

from bench.records.records import Measurement
from bench.records.table import tidy
from bench.report.pages import render_frame
from records_factory import make_record


def test_runs_with_their_headline_metrics_and_a_word_on_the_rest() -> None:
    """Values with units in the header, n/a for what is missing, and where all columns are."""
    out = io.StringIO()
    frame = tidy([make_record(), make_record(run=2, outcome="crashed", measurement=Measurement())])
    Console(file=out, width=120).print(render_frame(frame))
    shown = out.getvalue()
    for expected in (
        "ledger_peak_bytes",
        "629,145,600",
        "1,000.0",
        "0.75",
        "crashed",
        "n/a",
        "more columns in a file",
    ):
        assert expected in shown
    assert "cuda_allocated_peak_bytes" not in shown
