"""Faults of the parent, by the real ``bench run`` in a process of its own: signals, kills, two at once."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.records.store import load_records
from replay_bench import FULL, ReplayBench, scenario

KILLS = 100 if FULL else 4
CELLS_TO_KILL = 20
INTERRUPTED = "bench: interrupted; what was finished is in results/s, and the same command again resumes\n"
INTERRUPTED_AGAIN = "bench: interrupted again and left at once; the same command again resumes\n"


Start = Callable[..., ReplayBench]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts a command, and end all that were started."""
    with ExitStack() as started:
        yield lambda *arguments, **options: started.enter_context(ReplayBench(*arguments, **options))


def write(folder: Path, text: str) -> None:
    """Write the scenario."""
    (folder / "s.toml").write_text(text)


def runs(folder: Path) -> Counter[tuple[str, int]]:
    """Return how often each run of each cell is on disk; nothing there is damaged or left over."""
    loaded = load_records(folder / "results" / "s")
    assert loaded.problems == ()
    return Counter((record.cell.id, record.run) for record in loaded.records)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what the records hold, by name."""
    return {path.name: path.read_bytes() for path in (folder / "results" / "s").glob("*.json")}


def test_killed_at_random_instants_a_sweep_loses_repeats_and_tears_nothing(
    tmp_path: Path, start: Start
) -> None:
    """After a kill no worker is left and no record is changed; resumed to the end, each is there once."""
    chance = random.Random(0)
    kills, sweeps, kills_with_records = 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / str(sweeps)
        folder.mkdir()
        write(folder, scenario("ok", seeds=CELLS_TO_KILL))
        before: dict[str, bytes] = {}
        finished = False
        while not finished:
            running = start(folder, "run", "s.toml")
            if kills < KILLS:
                left = CELLS_TO_KILL - len(before)
                if chance.random() < 0.9:
                    ended = chance.randrange(left) if left else 0
                    running.wait_for(f"[{ended}/{left}]" if ended else " to do, ")
                time.sleep(chance.uniform(0, 0.1))
                finished = running.poll() is not None
                running.kill()
                kills += not finished
                running.communicate()
            else:
                assert running.finish() == (0, "")
                finished = True
            assert running.leaves_no_process()
            now = contents(folder) if (folder / "results").exists() else {}
            assert {name: now.get(name) for name in before} == before
            kills_with_records += 0 < len(now) < CELLS_TO_KILL
            before = now
        assert runs(folder) == {(f"tiny/ok-r8/b1-s512-seed={seed}", 1): 1 for seed in range(CELLS_TO_KILL)}
        assert not list((folder / "results" / "s").glob(".*.tmp"))
        sweeps += 1
    assert kills_with_records > 0


SLOW_IMPORT = """
import os
os.environ["REPLAY_PRELOAD"] = "slow_import"
os.environ["PYTHONPATH"] += os.pathsep + os.getcwd()
"""
SPAWNED = """
from bench.workers.launch import Launcher
Launcher.start_method = "spawn"
"""


@pytest.mark.parametrize("how", ["server", "spawned"])
def test_killed_while_workers_import_it_leaves_none(tmp_path: Path, start: Start, how: str) -> None:
    """The server that imports for all of them, and one that imports for itself, are gone within seconds."""
    (tmp_path / "slow_import.py").write_text("import time\nopen('importing', 'w').close()\ntime.sleep(90)\n")
    write(tmp_path, scenario("stuck"))
    running = start(tmp_path, "run", "s.toml", prelude=SLOW_IMPORT if how == "server" else SPAWNED)
    deadline_s = time.monotonic() + 60
    while len(running.processes()) < 3 and not (tmp_path / "importing").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    running.kill()
    running.communicate()
    assert running.leaves_no_process()


def test_the_server_outlives_the_thread_that_started_it() -> None:
    """What ends it with its parent while it imports is taken back: threads of a program come and go."""
    code = (
        f"import sys, threading; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
        "from replay_worker import make_job, replay\n"
        "from bench.scenario.types import LimitsSpec\n"
        "from bench.workers.launch import Launcher\n"
        "from bench.workers.supervise import RunningJob\n"
        "from multiprocessing.forkserver import _forkserver\n"
        "launcher = Launcher(work=replay, preload=['bench.workers.child'])\n"
        "work = lambda: print(RunningJob(make_job('ok'), launcher, LimitsSpec()).to_end().outcome)\n"
        "for _ in range(2):\n"
        "    thread = threading.Thread(target=work)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    print(_forkserver._forkserver_pid)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    first, pid, second, same = said.split()
    assert (first, second, pid) == ("ok", "ok", same)


MOMENTS = [
    ("importing the libraries", signal.SIGINT),
    ("predicting memory", signal.SIGTERM),
    ("fetching the weights", signal.SIGINT),
    ("run 1: steady", signal.SIGTERM),
    ("importing the libraries", signal.SIGTERM),
    ("predicting memory", signal.SIGINT),
    ("fetching the weights", signal.SIGTERM),
    ("run 1: steady", signal.SIGINT),
]


@pytest.mark.parametrize(("moment", "number"), MOMENTS if FULL else MOMENTS[1:4:2])
def test_interrupted_at_any_stage_it_ends_in_one_sentence(
    tmp_path: Path, start: Start, number: signal.Signals, moment: str
) -> None:
    """Ctrl-C and SIGTERM give exit code 130 and one sentence, and leave no process."""
    write(tmp_path, scenario("stuck"))
    running = start(tmp_path, "run", "s.toml")
    running.wait_for(moment)
    running.send_signal(number)
    assert running.finish() == (130, INTERRUPTED)
    assert running.leaves_no_process()


TWICE = [(signal.SIGINT, 0.3), (signal.SIGTERM, 0.0), (signal.SIGTERM, 0.3), (signal.SIGINT, 0.0)]


@pytest.mark.parametrize(("number", "pause_s"), TWICE if FULL else TWICE[:1])
def test_interrupted_twice_it_leaves_at_once_and_no_worker_stays(
    tmp_path: Path, start: Start, number: signal.Signals, pause_s: float
) -> None:
    """A worker that does not heed SIGTERM would be waited for; the second signal does not wait."""
    write(tmp_path, scenario("ok", "deaf"))
    running = start(tmp_path, "run", "s.toml")
    running.wait_for("run 1: evaluate_after")
    running.send_signal(number)
    time.sleep(pause_s)
    running.send_signal(number)
    began_s = time.monotonic()
    exit_code, said = running.finish()
    assert (exit_code, said) in [(130, INTERRUPTED_AGAIN), (130, INTERRUPTED)]
    assert pause_s == 0 or said == INTERRUPTED_AGAIN
    assert time.monotonic() - began_s < 60
    assert running.leaves_no_process()
    assert runs(tmp_path) == {("tiny/ok-r8/b1-s512-seed=0", 1): 1}


SLOW_WRITING = """
import os, time
sync = os.fsync
def slow(descriptor):
    print("writing", flush=True)
    time.sleep(0.3)
    sync(descriptor)
os.fsync = slow
"""


def test_a_run_that_has_ended_is_written_before_an_interrupt_is_heeded(tmp_path: Path, start: Start) -> None:
    """Signals while a record is being written wait for it, however many."""
    write(tmp_path, scenario("ok", "ok-2"))
    running = start(tmp_path, "run", "s.toml", prelude=SLOW_WRITING)
    running.wait_for("run 1: steady")
    running.wait_for("writing")
    for _ in range(3):
        running.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert running.finish() == (130, INTERRUPTED)
    assert runs(tmp_path) == {("tiny/ok-r8/b1-s512-seed=0", 1): 1}


def test_the_second_of_two_runs_on_one_folder_is_refused_and_harms_nothing(
    tmp_path: Path, start: Start
) -> None:
    """It says who writes there, at once; the first has kept what it had finished."""
    write(tmp_path, scenario("ok", "stuck"))
    first = start(tmp_path, "run", "s.toml")
    first.wait_for("tiny/stuck-r8/b1-s512-seed=0 run 1: steady")
    second = start(tmp_path, "run", "s.toml")
    said = "another bench run is writing to results/s; wait for it, or choose another with --results"
    assert second.finish() == (4, f"bench: {said}\n")
    first.send_signal(signal.SIGINT)
    assert first.finish() == (130, INTERRUPTED)
    assert runs(tmp_path) == {("tiny/ok-r8/b1-s512-seed=0", 1): 1}


BACKWARDS = """
import datetime
class Backwards(datetime.datetime):
    calls = 0
    @classmethod
    def now(cls, zone=None):
        cls.calls += 1
        return datetime.datetime(2026, 1, 1, tzinfo=zone) - datetime.timedelta(days=cls.calls)
datetime.datetime = Backwards
"""


def test_a_clock_that_jumps_backwards_changes_neither_runs_nor_order(tmp_path: Path, start: Start) -> None:
    """Every run is stamped earlier than the one before; repeats and resumption go by number all the same."""
    write(tmp_path, scenario("ok", "exception"))
    running = start(tmp_path, "run", "s.toml", "--repeats", "2", prelude=BACKWARDS)
    assert running.finish()[0] == 4
    again = start(tmp_path, "run", "s.toml", "--repeats", "2", "--retry", "failed", prelude=BACKWARDS)
    again.wait_for("2 runs to do, 4 on disk already")
    assert again.finish()[0] == 4
    ok, failed = "tiny/ok-r8/b1-s512-seed=0", "tiny/exception-r8/b1-s512-seed=0"
    assert runs(tmp_path) == {(ok, 1): 1, (ok, 2): 1, **{(failed, run): 1 for run in (1, 2, 3, 4)}}
    records = load_records(tmp_path / "results" / "s").records
    stamps = {(record.cell.id, record.run): record.started_at for record in records}
    assert stamps[ok, 2] < stamps[ok, 1]
    assert {record.total_ns > 0 for record in records} == {True}
