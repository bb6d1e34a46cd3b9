"""Two runs that take turns at steps: the order, and what happens when one of them is over."""

import os
import threading
from pathlib import Path

import pytest

from bench.records.messages import ALONE, Message, ReadingMade, StepTurns
from bench.training.turns import Turns
from records_factory import make_steps

MEASURED = 8


@pytest.fixture
def pipes(tmp_path: Path) -> tuple[Path, Path]:
    """Make two named pipes, which stay open as long as the process, as a gate keeps them."""
    paths = (tmp_path / "first", tmp_path / "second")
    for path in paths:
        os.mkfifo(path)
    return paths


def run(pipes: tuple[Path, Path], *, first: bool, steps: int, seen: list[str]) -> None:
    """Do as a worker does: load, warm up, take steps, and do what comes after them."""
    own, other = pipes if first else pipes[::-1]
    given = StepTurns(own_pipe=str(own), other_pipe=str(other), first=first)
    turns, name = Turns(given, threads=1), "A" if first else "B"

    def note(message: Message) -> None:
        if isinstance(message, ReadingMade):
            seen.append(name)

    turns.begin()
    seen.append(f"load {name}")
    turns.hand_over()
    send = turns.between_steps(note)
    for sample in [step for step in make_steps() if step.stage == "measured"][:steps]:
        send(ReadingMade(reading=sample))
    seen.append(f"end {name}")
    with other.open("wb") as pipe:  # as the gate does when a run is over
        pipe.write(ALONE)


@pytest.mark.parametrize(
    ("first_steps", "second_steps", "expected"),
    [
        (4, 4, ["A", "B", "B", "A", "A", "B", "B", "A", "end A", "end B"]),
        (3, 3, ["A", "B", "B", "A", "A", "B", "end B", "end A"]),
        (1, 4, ["A", "B", "B", "end A", "B", "B", "end B"]),
        (4, 0, ["A", "end B", "A", "A", "A", "end A"]),
    ],
)
def test_one_works_at_a_time_and_what_is_left_is_done_alone(
    pipes: tuple[Path, Path], first_steps: int, second_steps: int, expected: list[str]
) -> None:
    """Also where one of them takes fewer steps, as one that fails does."""
    ends = [os.open(path, os.O_RDWR) for path in pipes]
    seen: list[str] = []
    workers = [
        threading.Thread(target=run, args=(pipes,), kwargs={"first": first, "steps": steps, "seen": seen})
        for first, steps in ((False, second_steps), (True, first_steps))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()
    assert ["load A", "load B", *expected] == seen
    for end in ends:
        os.close(end)


def test_both_keep_to_the_same_cores_and_say_so(pipes: tuple[Path, Path]) -> None:
    """As many as a run has threads, always the last; only steps that are measured are handed over."""
    before = os.sched_getaffinity(0)
    given = StepTurns(own_pipe=str(pipes[0]), other_pipe=str(pipes[0]), first=True)
    ends = [os.open(pipes[0], os.O_RDWR)]
    try:
        turns = Turns(given, threads=1)
        assert {max(before)} == os.sched_getaffinity(0)
        assert f"on the same cores ({max(before)})" in turns.caveat().message
    finally:
        os.sched_setaffinity(0, before)
    send = turns.between_steps(lambda _message: None)
    for sample in make_steps():
        if sample.stage != "measured":
            send(ReadingMade(reading=sample))  # it would wait for ever
    os.close(ends[0])
