"""Lines of a sitting and of a calibration."""

from bench.gate.sides import side_as_is
from bench.gate.text import GateLines, noise_lines
from bench.records.records import Failure
from bench.records.sittings import SittingRun
from bench.stats.power import NoiseRow
from records_factory import make_record


def test_a_sitting_line_by_line() -> None:
    """Who was understood, how runs ended and why, what is left."""
    said: list[str] = []
    lines = GateLines(said.append)
    lines.understood(side_as_is("base"))
    for number, purpose in enumerate(("warm-up", "measured")):
        record = (
            make_record(outcome="timeout", failure=Failure(message="Too slow.")) if number else make_record()
        )
        fields = {
            "cell": "c",
            "side": "base",
            "purpose": purpose,
            "repeat": number,
            "total_ns": 1_500_000_000,
        }
        fields |= {"started_at": "now", "outcome": record.outcome, "file": "a.json"}
        lines.run_ended(SittingRun.model_validate(fields), record)
    lines.looked(3, ["c"])
    lines.looked(5, [])
    assert said == [
        "base: the environment as it is",
        "c warm-up base: ok after 1.5 s",
        "c repeat 1 base: timeout after 1.5 s: Too slow.",
        "undecided after repeat 3: c",
    ]


def test_a_calibration_says_what_is_found_with_how_many_repeats() -> None:
    """For each cell and metric."""
    row = NoiseRow(
        cell="c",
        metric="tokens_per_second",
        spread_share=0.012,
        degrees_of_freedom=10,
        looks=(3, 8),
        detectable_shares=(0.061, 0.031),
        tolerance_share=0.05,
        repeats_needed=4,
    )
    (line,) = noise_lines([row])
    assert line == (
        "c tokens_per_second: spread 1.2% from run to run (10 degrees of freedom); finds a change of 6.1% "
        "with "
        "3 repeats, 3.1% with 8 repeats; 5.0% takes 4 repeats"
    )
