"""Gates and baselines killed at random instants, by real commands: nothing is lost, torn, or left running."""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.records.result_sets import BaselineFolder
from bench.records.sessions import SITTING_FILE, counted_runs, load_sitting
from bench.records.store import load_records, write_record
from replay_bench import FULL, PYTHON, ReplayBench, scenario
from sittings_factory import make_runs

KILLS = 50 if FULL else 2
CHANCE = random.Random(6)
Start = Callable[..., ReplayBench]

REPLAYED = f"""
import os
os.environ["REPLAY_ALONE"] = os.path.abspath("alone")
os.environ["FINETUNE_BENCH_CACHE"] = os.path.abspath("cache")
from bench.gate import session
session.SessionOptions.__init__.__kwdefaults__["command"] = ({str(Path(__file__).parents[1])!r}
    + "/support/replay_serve.py",)
"""
"""Has both sides run replay workers, never at the same moment."""

SLOW_SYNC = """
import os, time
sync = os.fsync
def slow(descriptor):
    print("writing", flush=True)
    time.sleep(0.02)
    sync(descriptor)
os.fsync = slow
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts a command, and end all that were started."""
    with ExitStack() as started:
        yield lambda *arguments, **options: started.enter_context(ReplayBench(*arguments, **options))


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every record of a session, warm-ups too, and what was put aside for one made again."""
    return {path: path.read_bytes() for path in folder.rglob("*--r*.json*")}


def session_of(sessions: Path) -> Path | None:
    """Return the folder of the one session, if it has begun."""
    found = [path.parent for path in sessions.glob(f"*/{SITTING_FILE}")]
    assert len(found) < 2
    return found[0] if found else None


def assert_whole(session: Path | None, before: dict[Path, bytes]) -> dict[Path, bytes]:
    """Check that what is written is whole, what was there is there, and what is listed exists."""
    if session is None:
        return {}
    loaded = load_sitting(session)
    assert loaded.problems == ()
    there = contents(session)
    for path, content in before.items():  # one that was not noted yet is made again, and the first put aside
        assert content in {there[each] for each in there if each.name.startswith(path.name)}
    for run in counted_runs(loaded.sitting.runs):
        assert session / run.side / run.file in there
    return there


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_gate_killed_at_random_instants_loses_nothing_and_leaves_nobody(
    tmp_path: Path, start: Start
) -> None:
    """While it imports, opens its sides, runs and writes; resumed, it ends with every run there once."""
    command = ("gate", "s.toml", "--base", PYTHON, "--repeats", "2", "--results", "sessions")
    kills, number, whole_s = 0, 0, 0.0
    while kills < KILLS:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "s.toml").write_text(scenario("ok", seeds=3))
        before: dict[Path, bytes] = {}
        code = None
        while code is None:
            session = session_of(folder / "sessions")
            if session and load_sitting(session).sitting.ended_at:
                break  # killed once all was done
            resume = ["--resume"] if session else []
            began_s = time.monotonic()
            running = start(folder, *command, *resume, prelude=REPLAYED + SLOW_SYNC)
            if whole_s and kills < KILLS:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.communicate(timeout=CHANCE.uniform(0, whole_s))
                if running.poll() is None:
                    running.kill()
                    kills += 1
                running.communicate()
            else:
                code, said = running.finish(600)
                whole_s = whole_s or time.monotonic() - began_s
                assert code in {0, 3}, said
            assert running.leaves_no_process()
            before = assert_whole(session_of(folder / "sessions"), before)
            code = code if running.returncode >= 0 else None
        session = session_of(folder / "sessions")
        assert session is not None
        runs = [run for run in load_sitting(session).sitting.runs if run.purpose == "measured"]
        assert len({(run.cell, run.side, run.repeat) for run in runs}) == len(runs) == 3 * 2 * 2
        if code is not None:  # else killed after the session's end, perhaps within a last write
            assert not list(session.rglob(".*.tmp"))
        number += 1


@pytest.mark.timeout(7200)
def test_a_baseline_killed_at_random_instants_keeps_what_was_accepted(tmp_path: Path, start: Start) -> None:
    """The history and its records stay whole; the same command again adds the session, once."""
    for number in range(KILLS):
        folder = tmp_path / str(number)
        for name, day in (("first", "01"), ("second", "02")):
            for record in make_runs():
                started_at = record.started_at.replace("-22T", f"-{day}T")
                write_record(folder / name, record.replace(started_at=started_at))
        baseline = BaselineFolder(root=folder / "baselines", name="b")
        first = load_records(folder / "first").records
        files = sorted((folder / "first").glob("*.json"))
        with baseline.held():
            baseline.accept(files, reason="begin", new_level=False)
        command = ("baseline", "accept", "second", "--name", "b", "--reason", "r", "--baselines", "baselines")
        running = start(folder, *command, prelude=SLOW_SYNC)
        for _ in range(CHANCE.randrange(1, len(files) + 5)):
            running.wait_for("writing")
        time.sleep(CHANCE.uniform(0, 0.03))
        running.kill()
        running.communicate()
        assert running.leaves_no_process()
        history = baseline.read()
        assert [one.number for one in history.accepted] in ([1], [1, 2])
        assert baseline.result_set(history.accepted).problems == ()
        code, said = start(folder, *command).finish(300)
        assert (code, "is in the baseline b already" in said) == ((0, False), (2, True))[
            len(history.accepted) - 1
        ]
        after = baseline.read().accepted
        assert [len(runs) for runs in baseline.result_set(after).sessions] == [len(first)] * 2
        assert not list(baseline.path.glob(".*.tmp"))
