"""What a verdict goes by is what the record says; a record that cannot be is refused."""

import json
from pathlib import Path

import pytest

from bench.metrics import METRICS
from bench.records.derived_metrics import headline_evaluation, read_metrics
from bench.records.records import Record, decode_record, encode_record
from bench.records.run_summary import summarise_run
from gpu_factory import make_gpu, make_gpu_record
from records_factory import make_measurement, make_record

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
RECORDS = [
    *(decode_record(file.read_bytes()) for file in sorted(REFERENCE.glob("*/*--r1.json"))),
    make_record(),
    make_record(outcome="oom", measurement={}),
    make_record(measurement=make_measurement(caveats=[{"code": "steps-in-turn", "message": "In turn."}])),
    make_gpu_record(make_gpu(isolation="process")),
    make_gpu_record(make_gpu(isolation="device_delta")),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.cell.id} {record.outcome}")
def test_a_summary_says_what_the_record_says(record: Record) -> None:
    """Every metric, sample, answer and condition."""
    summary = summarise_run(decode_record(encode_record(record)))
    assert summarise_run(record) == summary
    assert record.cell == summary.cell
    metrics = read_metrics(record)
    assert {name: metrics[name] for name in METRICS if METRICS[name].kind != "paired"} == summary.values
    reading = headline_evaluation(record, "after")
    expected = [] if reading is None else list(reading.items)
    after = [answers for answers in summary.answers if answers.when == "after"]
    assert expected == [item for answers in after[:1] for item in answers.items]


def test_runs_share_what_they_have_in_common() -> None:
    """Ten thousand summaries do not hold ten thousand copies of cell, environment and questions."""
    first, second = (summarise_run(decode_record(encode_record(make_record(run=run)))) for run in (1, 2))
    assert first.answers[0].questions is second.answers[0].questions
    assert first.cell is second.cell
    assert first.environment is second.environment
    assert first.answers[1].accuracy == 0.75


COMMITTED = sorted(REFERENCE.parent.glob("*/*/*.json"))


def test_a_committed_record_is_written_as_it_was() -> None:
    """Byte for byte, but for the oldest, whose cells lack settings that came later."""
    files = [file for file in COMMITTED if file.parent.name != "smollm2_learns"]
    records = [content for file in files if b'"schema_version"' in (content := file.read_bytes())]
    assert len(records) > 100
    for content in records:
        assert encode_record(decode_record(content)) == content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("measurement.ledger.peak_bytes", -1),
        ("measurement.ledger.peak_bytes", "much"),
        ("measurement.ledger.peak_bytes", 2**63),
        ("measurement.ledger.unknown", 1),
        ("measurement.steps.0.loss", "nought"),
        ("measurement.steps.0.step_time_ns", 0),
        ("measurement.caveats", [{"code": "Not a code", "message": ""}]),
        ("measurement.evaluations.0.items.0.correct", 3),
        ("environment.versions.torch", 2),
        ("cell.method.rank", -1),
        ("cell.unknown", 1),
        ("prediction", {"platform": "tpu"}),
        ("schema_version", 2),
        ("outcome", "good"),
        ("unknown", 1),
    ],
)
def test_what_cannot_have_been_measured_is_refused(path: str, value: object) -> None:
    """Wherever it stands: numbers out of range, words that are none, fields that nobody knows."""
    document = json.loads(encode_record(make_record()))
    *place, last = path.split(".")
    inner = document
    for name in place:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    with pytest.raises(ValueError, match=r"."):
        decode_record(json.dumps(document).encode())


def test_an_unknown_outcome_is_answered_with_those_there_are() -> None:
    """Whoever wrote the record by hand reads what may stand there."""
    document = json.loads(encode_record(make_record())) | {"outcome": "good"}
    with pytest.raises(ValueError, match=r"'good' - at `\$\.outcome`, which is ok or oom or .* contaminated"):
        decode_record(json.dumps(document).encode())
