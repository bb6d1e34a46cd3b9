"""Items worked on by two processes: the same results in the same order, or one process does it all."""

import os
import signal
import threading
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.results import two_processes
from bench.results.result_sets import load_result_set
from bench.results.store import write_record
from bench.results.two_processes import map_in_two
from records_factory import make_record

HERE = os.getpid()


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have two cores, and no thread besides: what runs the tests may have one of its own."""
    monkeypatch.setattr(two_processes, "_FEWEST_TO_SHARE", 4)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def _where(item: int) -> tuple[int, bool]:
    return item, os.getpid() == HERE


def _all_here(count: int) -> list[tuple[int, bool]]:
    return [(item, True) for item in range(count)]


def test_the_second_half_is_worked_out_by_another_process() -> None:
    """In order, however large the results are."""
    assert [(0, True), (1, True), (2, False), (3, False), (4, False)] == map_in_two(_where, range(5))
    assert [b"x" * 10**6] * 9 == map_in_two(lambda _: b"x" * 10**6, range(9))


def test_one_process_does_it_all_where_two_would_not_pay_or_could_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of few items, on one core, and beside another thread, whose locks a fork would find held."""
    assert _all_here(3) == map_in_two(_where, range(3))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert _all_here(9) == map_in_two(_where, range(9))
    monkeypatch.undo()
    monkeypatch.setattr(two_processes, "_FEWEST_TO_SHARE", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    assert _all_here(9) == map_in_two(_where, range(9))
    done.set()
    other.join()


def test_what_the_other_process_leaves_undone_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is killed or fails; what fails here too is raised, and no process is left behind."""
    forked: list[int] = []
    fork = os.fork

    def kept() -> int:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", kept)

    def killed(item: int) -> tuple[int, bool]:
        if os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return _where(item)

    def fails(item: int) -> int:
        if item == refused:
            raise UsageError(f"not {item}")
        return item

    assert _all_here(9) == map_in_two(killed, range(9))
    for refused in (1, 7):
        with pytest.raises(UsageError, match=f"not {refused}"):
            map_in_two(fails, range(9))
    assert 3 == len(forked)
    for process in forked:
        with pytest.raises(ChildProcessError):
            os.waitpid(process, os.WNOHANG)


def test_runs_read_by_two_processes_are_those_that_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of a cell share it and their questions whoever read them; what is no record is named in order."""
    for run in range(1, 5):
        write_record(tmp_path, make_record(run=run))
    (tmp_path / "z.json").write_text("{}")
    found = load_result_set(str(tmp_path))
    monkeypatch.setattr(two_processes, "_FEWEST_TO_SHARE", 100)
    alone = load_result_set(str(tmp_path))
    assert (alone, 4, 1) == (found, len(found.runs), len(found.problems))
    assert 1 == len({id(run.cell) for run in (*found.runs, *alone.runs)})
    assert 1 == len({id(run.answers[0].questions) for run in (*found.runs, *alone.runs)})
