"""The part of a record that verdicts go by is the same as in the record read whole."""

from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from bench.metrics import METRICS
from bench.records.derived_metrics import headline_evaluation, read_metrics
from bench.records.records import Record
from bench.records.run_facts import facts_of, facts_of_content
from gpu_factory import make_gpu, make_gpu_record
from records_factory import make_measurement, make_record

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
RECORDS = [
    *(Record.model_validate_json(file.read_bytes()) for file in sorted(REFERENCE.glob("*/*--r1.json"))),
    make_record(),
    make_record(outcome="oom", measurement={}),
    make_record(measurement=make_measurement(caveats=[{"code": "steps-in-turn", "message": "In turn."}])),
    make_gpu_record(make_gpu(isolation="process")),
    make_gpu_record(make_gpu(isolation="device_delta")),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.cell.id} {record.outcome}")
def test_a_brief_reading_says_what_the_whole_record_says(record: Record) -> None:
    """Every metric, sample, answer and condition."""
    brief = facts_of_content(record.model_dump_json(indent=1).encode())
    assert facts_of(record) == brief
    assert record.cell == brief.cell.cell
    assert record.cell.digest == brief.cell.digest
    metrics = read_metrics(record)
    assert {name: metrics[name] for name in METRICS if METRICS[name].kind != "paired"} == brief.values
    reading = headline_evaluation(record, "after")
    expected = (
        [] if reading is None else [(item.doc_id, item.doc_hash, item.correct) for item in reading.items]
    )
    after = [answers for answers in brief.answers if answers.when == "after"]
    assert expected == [tuple(item) for answers in after[:1] for item in answers.items]


def test_runs_that_saw_the_same_questions_share_them() -> None:
    """Ten thousand records do not hold ten thousand copies."""
    first, second = (facts_of_content(make_record(run=run).model_dump_json().encode()) for run in (1, 2))
    assert first.answers[0].questions is second.answers[0].questions
    assert first.answers[1].accuracy == 0.75


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"peak_bytes":629145600', '"peak_bytes":-1'),
        ('"peak_bytes":629145600', '"peak_bytes":"much"'),
        ('"schema_version":1', '"schema_version":2'),
        ('"outcome":"ok"', '"outcome":"good"'),
        ('"correct":true', '"correct":3'),
    ],
)
def test_what_cannot_have_been_measured_is_refused(old: str, new: str) -> None:
    """As the whole record would be."""
    text = make_record().model_dump_json()
    assert old in text
    with pytest.raises((msgspec.DecodeError, ValidationError)):
        facts_of_content(text.replace(old, new).encode())
