"""Messages put together, however the pipe cuts them."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.records.messages import Failed, Finished, Heartbeat, Message, PhaseStarted, ReadingMade
from bench.records.readings import Caveat
from bench.records.records import Failure
from bench.workers import supervise as module
from bench.workers.supervise import Transcript
from records_factory import make_measurement


def make_messages() -> list[Message]:
    """Return the messages of a whole cell."""
    measurement = make_measurement()
    readings = [
        measurement.model,
        *measurement.phases[1:],
        *measurement.steps,
        measurement.ledger,
        *measurement.evaluations,
        Caveat(code="truncated", message="Some were cut."),
    ]
    made = [ReadingMade(reading=reading) for reading in readings if reading is not None]
    return [Heartbeat(), PhaseStarted(phase="load"), *made, Finished()]


def as_lines(messages: list[Message]) -> bytes:
    """Return them as the worker writes them."""
    return b"".join(message.model_dump_json().encode() + b"\n" for message in messages)


@settings(deadline=None)
@given(st.data())
def test_any_cut_of_the_stream_gives_the_same_measurement(data: st.DataObject) -> None:
    """What is read does not depend on where the pipe's reads end."""
    content = as_lines(make_messages())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    found = Transcript(time.monotonic_ns())
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        assert found.feed(content[start:end])
    expected = make_measurement()
    measured = found.measurement()
    assert found.result == Finished()
    assert measured.phases[0].name == "start"
    assert measured.phases[1:] == expected.phases[1:]
    assert (measured.model, measured.ledger) == (expected.model, expected.ledger)
    assert (measured.steps, measured.evaluations) == (expected.steps, expected.evaluations)
    assert measured.caveats == (Caveat(code="truncated", message="Some were cut."),)


def test_nothing_counts_after_the_end() -> None:
    """The first result stands."""
    found = Transcript(0)
    failed = Failed(outcome="oom", failure=Failure(message="Out of memory."))
    assert found.feed(as_lines([failed, Finished()]) + b"rubbish\n")
    assert found.result == failed


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"type": "finished", "extra": 1}', b"\xff\xfe", b"null", b"[" * 9999]
)
def test_a_line_that_is_no_message_is_told(line: bytes) -> None:
    """Whatever stands there, the reason is a short printable sentence."""
    found = Transcript(0)
    assert not found.feed(line + b"\n")
    assert found.malformed is not None
    assert len(found.malformed) < 400
    assert found.malformed.isprintable()


def test_a_line_without_an_end_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the parent is bounded."""
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 1000)
    found = Transcript(0)
    assert found.feed(b"x" * 1000)
    assert not found.feed(b"x")
    assert found.malformed == "it is longer than 1000 bytes."


def test_a_reading_costs_the_same_however_many_there_were() -> None:
    """A window may have a million steps: what was read is added to, not copied for each."""
    found = Transcript(0)
    line = as_lines([ReadingMade(reading=Caveat(code="one", message="One."))])
    assert found.feed(line)
    kept = found._fields["caveats"]
    assert found.feed(line * 2)
    assert found._fields["caveats"] is kept
    assert len(found.measurement().caveats) == 3
