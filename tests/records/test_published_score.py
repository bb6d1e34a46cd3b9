"""Errors, bands and summaries of predictions, from a predictor whose answers are known."""

from pathlib import Path

import pytest

from bench.compare.predictions import loops_beside, summarise, summarise_speeds
from bench.errors import UsageError
from bench.records.predictions import Prediction, Refusal, Speed
from bench.records.published import Measured, MeasuredSpeed, Row, Source
from bench.records.published.score import (
    Outcome,
    Validation,
    read_validation,
    score,
    write_validation,
)
from bench.records.readings import Caveat
from bench.report.self_check import render_validation
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell


def _prediction(allocated: int, reserved: int) -> Prediction:
    return Prediction(
        platform=Platform(),
        allocated_peak_bytes=allocated,
        reserved_peak_bytes=reserved,
        reserved_low_bytes=reserved - 10,
        reserved_high_bytes=reserved + 10,
        phase_peaks_bytes={"load": 50, "adapt": 70, "forward": allocated},
        phase_ends_bytes={"load": 40, "adapt": 60, "forward": 90},
        peak_phase="forward",
        peak_op="aten::mm",
        peak_module="model.layers.3",
        categories_at_peak_bytes={"weights": allocated},
        method="full trace",
        caveats=(Caveat(code="half-known", message="One | half is a guess."),),
    )


def _measured(metric: str, size: int, moment: str = "peak", spread: int = 0) -> Measured:
    return Measured.model_validate(
        {
            "metric": metric,
            "moment": moment,
            "size_bytes": size,
            "low_bytes": size - spread,
            "high_bytes": size + spread,
        }
    )


def _row(name: str, *measured: Measured, refused: str | None = None) -> Row:
    return Row(
        name=name,
        source="lab",
        tier=1,
        reference="page 1",
        date="2025",
        gpu="A100",
        software="torch 2.6",
        measured=measured,
        refused=refused,
    )


ROWS = (
    _row(
        "exact",
        _measured("allocated", 100),
        _measured("reserved", 195),
        _measured("allocated", 90, "forward"),
    ),
    _row(
        "low",
        _measured("allocated", 125),
        _measured("reserved", 215, spread=5),
        _measured("allocated", 70, "adapt_peak"),
    ),
    _row("far", _measured("reserved", 250), _measured("unknown", 7)),
    _row("gptq", _measured("allocated", 5), refused="GPTQ base."),
    _row("odd", _measured("allocated", 5)),
)


def _predict(row: Row) -> Outcome:
    return Refusal(message="aten::nonzero needs data.") if row.name == "odd" else _prediction(100, 200)


def _validation() -> Validation:
    source = Source(
        name="lab", title="A | laboratory", repository="example.org", licence="CC0", note="Beware."
    )
    return Validation(versions={"torch": "2.13"}, sources=(source,), rows=score(ROWS, _predict))


def test_each_measurement_meets_the_figure_that_answers_it() -> None:
    """Peaks, bands and the ends of phases are compared with their like; an unknown counter with nothing."""
    scored = {row.name: row.measurements for row in score(ROWS, _predict)}
    assert [100, 200, 90] == [one.predicted_bytes for one in scored["exact"]]
    assert [-0.2, 200 / 215 - 1, 0.0] == [pytest.approx(one.error) for one in scored["low"]]
    assert [200, None] == [one.predicted_bytes for one in scored["far"]]
    assert [True, True, False] == [
        scored[name][index].in_band for name, index in (("exact", 1), ("low", 1), ("far", 0))
    ]


def test_what_the_file_refuses_is_not_asked_of_the_predictor() -> None:
    """Both kinds of refusal keep their reason and are told apart."""
    asked: list[str] = []

    def predict(row: Row) -> Outcome:
        asked.append(row.name)
        return _predict(row)

    scored = {row.name: row for row in score(ROWS, predict)}
    assert ["exact", "low", "far", "odd"] == asked
    assert ("GPTQ base.", True) == (scored["gptq"].refused, scored["gptq"].inexpressible)
    assert ("aten::nonzero needs data.", False) == (scored["odd"].refused, scored["odd"].inexpressible)
    assert "forward: aten::mm, model.layers.3" == scored["exact"].peak


def test_summary_is_by_source_tier_counter_and_moment() -> None:
    """Sizes of errors have a median, a mean and a largest; their mean with the sign is beside them."""
    first, reserved, *_ = summarise(score(ROWS, _predict))
    assert ("lab", 1, "allocated", "peak", 2) == (
        first.source,
        first.tier,
        first.metric,
        first.moment,
        first.count,
    )
    errors = (first.median_error, first.mean_error, first.largest_error, first.signed_error)
    assert pytest.approx((0.1, 0.1, 0.2, -0.1)) == errors
    assert (0, 0) == (first.in_band, first.with_band)
    assert ("reserved", 3, 2, 3) == (reserved.metric, reserved.count, reserved.in_band, reserved.with_band)


def test_a_loop_stands_beside_its_imitation() -> None:
    """Of each measurement both errors, how far the two are apart, and which is nearer; runs count once."""
    cells = [tiny_cell(device="cuda", loop={"driver": driver}) for driver in ("window", "trl-sft")]
    run = _row("both", _measured("allocated", 100), _measured("unknown", 7))
    run = run.model_copy(update=dict(zip(("cell", "looped"), cells, strict=True)))

    def predicted(row: Row) -> Outcome:
        assert row.cell is not None
        return _prediction(90 if row.cell.loop.driver == "window" else 99, 200)

    rows = score(run.each_loop, predicted)
    (beside,) = loops_beside(rows)
    assert ("lab", "trl-sft", "allocated", 1, 1) == (
        beside.source,
        beside.loop,
        beside.metric,
        beside.count,
        beside.nearer,
    )
    medians = beside.imitated_median, beside.real_median, beside.apart_median
    assert pytest.approx((0.1, 0.01, 0.1)) == medians
    page = render_validation(_validation().model_copy(update={"rows": rows}))
    row = "| lab | trl-sft | allocated | 1 | 10.000 %, 10.000 % | 1.000 %, 1.000 % | 10.000 %, 10.000 % |"
    assert f"{row} 1 of 1 |" in page
    assert "Rows: 1. Predicted: 1." in page
    assert [f"| both | {loop} | allocated |" in page for loop in ("window", "trl-sft")] == [True, True]


def test_validation_survives_its_file(tmp_path: Path) -> None:
    """What is written is what is read."""
    path = tmp_path / "made" / "prediction.json"
    write_validation(_validation(), path)
    assert _validation() == read_validation(path)


def test_file_that_is_no_validation_is_refused(tmp_path: Path) -> None:
    """A missing file and a foreign one are told as what they are."""
    with pytest.raises(UsageError, match="make it with bench validate"):
        read_validation(tmp_path / "none.json")
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"format": 2}')
    with pytest.raises(UsageError, match="is not a validation"):
        read_validation(foreign)


def test_page_shows_every_number_and_every_refusal() -> None:
    """Numbers with their errors, counts, refusals with reasons, and a stranger's text made harmless."""
    page = render_validation(_validation())
    assert (
        "Rows: 5. Predicted: 3. Refused because the run cannot be expressed: 1. Refused while tracing: 1."
        in page
    )
    assert "### A \\| laboratory" in page
    assert "| low | allocated | peak |" in page
    assert "−20.00 %" in page  # noqa: RUF001 - the minus sign that reports use
    assert "- GPTQ base. (1: gptq)" in page
    assert "- aten::nonzero needs data. (1: odd)" in page
    assert "Readings: 10. Compared with a prediction: 7. Of refused rows: 2." in page
    assert "Without a figure in the prediction of their row: 1 (unknown at peak: 1)." in page
    assert "| n/a |" not in page
    assert "- half-known: One \\| half is a guess. (3: exact, low, far)" in page
    assert all("| half-known |" in line for line in page.splitlines() if line.startswith("| low | "))


def test_rows_that_are_all_refused_are_no_prediction() -> None:
    """Whoever asks whether anything was predicted is told of both kinds of refusal."""
    assert _validation().any_predicted
    refused = [row for row in ROWS if row.name in ("gptq", "odd")]
    assert not Validation(versions={}, sources=(), rows=score(refused, _predict)).any_predicted


def _speed_row(name: str, gpu: str, **measured: object) -> Row:
    speed = MeasuredSpeed.model_validate(measured)
    return _row(name, _measured("allocated", 100)).model_copy(update={"gpu": gpu, "measured": (speed,)})


def test_speeds_are_scored_by_the_time_of_a_step() -> None:
    """Seconds and tokens a second are held against one prediction; errors, band and order follow."""
    speed = Speed(card="a", low=900, point=1000, high=1100, step_s=2.0, bound_by="compute")
    rows = [
        _speed_row("slower", "a", metric="step_time_s", value=2.5),  # 800 tokens/s
        _speed_row("as-said", "a", metric="tokens_per_second", value=1050),
        _speed_row("cold", "a", metric="step_time_s", value=2.3, low=1.9, high=2.3, cold=True),
    ]
    points = {"slower": 1000, "as-said": 1001, "cold": 1002}

    def predicted(row: Row) -> Prediction:
        own = speed.model_copy(update={"point": points[row.name], "step_s": 2000 / points[row.name]})
        return _prediction(100, 200).model_copy(update={"speeds": (own,)})

    scored = score(rows, predicted)
    assert [pytest.approx(error, abs=1e-3) for error in (-0.2, 0.049, -0.132)] == [
        row.speeds[0].error for row in scored
    ]
    assert [False, True, True] == [row.speeds[0].in_band for row in scored]
    everything, bound, *_ = summarise_speeds(scored)
    assert ("all of one GPU", 3, 2) == (everything.name, everything.count, everything.in_band)
    assert 2 == bound.count
    assert (1, 2) == (everything.ordered, everything.pairs)


def test_a_page_shows_speeds_and_why_some_are_missing() -> None:
    """Each predicted speed stands on the page; a card that is unknown is named with its row."""
    known = Speed(card="a", low=900, point=1000, high=1100, step_s=2.0)
    rows = [
        _speed_row("told", "a", metric="tokens_per_second", value=1050),
        _speed_row("untold", "b", metric="tokens_per_second", value=1050),
    ]
    speeds = {"told": known, "untold": Speed(card="b", refused="b is unknown")}
    scored = score(rows, lambda row: _prediction(100, 200).model_copy(update={"speeds": (speeds[row.name],)}))
    source = Source(name="lab", title="Lab", repository="r", licence="l")
    page = render_validation(Validation(versions={}, sources=(source,), rows=scored))
    assert "| told | a | 1,050 | 900 to 1,100 | 5.0 % | hit |" in page
    assert "b is unknown (1: untold)" in page
