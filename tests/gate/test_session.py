"""A session from its first run to why it ended, also where it was broken off; metrics that do not repeat."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import pytest

from bench.errors import InfrastructureError, InterruptedByUserError, UsageError
from bench.gate import session
from bench.gate.protocol import Made
from bench.gate.session import SessionOptions, run_session
from bench.gate.session_log import SessionLog, Tell, ignore, unrepeatable
from bench.gate.sides import prepared_sides, side_as_is
from bench.records.records import Record
from bench.records.sessions import SideName, Sitting, SittingRecords, SittingRun, load_sitting
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.scenario.loop import LoopSpec
from gate_projects import git, make_repository
from records_factory import MIB, make_ledger, make_measurement, make_record
from replay_worker import make_cell

if TYPE_CHECKING:
    from bench.gate.process import SideProcess

COMMAND = (str(Path(__file__).parents[1] / "support" / "replay_serve.py"),)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have cells of two sides fail where they overlap."""
    monkeypatch.setenv("REPLAY_ALONE", str(tmp_path / "alone"))
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))


def sit(
    folder: Path,
    cells: Sequence[Cell],
    judge: "Judging",
    tell: Tell = ignore,
    **options: object,
) -> SittingRecords:
    """Run a session of the environment as it is against itself."""
    chosen = SessionOptions(folder=folder, command=COMMAND, **options)  # type: ignore[arg-type] # a test names them right
    return run_session(cells, (side_as_is("base"), side_as_is("candidate")), judge, chosen, tell)


class Judging:
    """Calls a cell decided at the look that is given for it, and keeps what it was asked."""

    def __init__(self, **decided_at: int) -> None:
        """Take the repeats after which a cell, by its behaviour, is decided."""
        self._decided_at = decided_at
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, records: Mapping[SideName, Sequence[Record]], repeats: int) -> Collection[str]:
        """Keep how many records there were of each side."""
        self.asked.append((repeats, len(records["base"]), len(records["candidate"])))
        return [f"replay/{name}" for name, last in self._decided_at.items() if repeats < last]


def order(runs: Sequence[SittingRun], behaviour: str) -> str:
    """Return the sides of a cell's runs in the order run: A for the base, small letters for warm-ups."""
    letters = {"base": "A", "candidate": "B"}
    return "".join(
        letters[run.side].lower() if run.purpose == "warm-up" else letters[run.side]
        for run in runs
        if run.cell == f"replay/{behaviour}"
    )


class Sham:
    """A side whose every run takes ten seconds, it says."""

    seen_peak_bytes = None

    def run(self, cell: Cell, number: int) -> Made:
        """Return a record at once."""
        return Made(record=make_record(cell=cell, run=number, total_ns=10_000_000_000))


@pytest.mark.parametrize(("left_s", "repeats"), [(15, 1), (25, 5)])
def test_no_repeat_is_begun_that_would_end_after_the_budget(
    tmp_path: Path, left_s: float, repeats: int
) -> None:
    """A repeat is expected to take as long as the longest of its cell so far; the first is always begun."""
    sham = cast("SideProcess", Sham())
    cell, facts = make_cell("ok"), side_as_is("base").facts
    log = SessionLog(
        folder=tmp_path,
        session=Sitting(scenario="s", cells=(), base=facts, candidate=facts, looks=(5,), started_at="now"),
        processes={"base": sham, "candidate": sham},
        tell=ignore,
    )
    enough = session._repeat(cell, range(1, 6), log, time.monotonic() + left_s)
    assert (2 * repeats, repeats == 5) == (len(log.session.runs), enough)


def kill_the_base_in_its_second_repeat(line: str) -> None:
    """Kill the process of one side as its run of a repeat begins, after the other's has ended."""
    if " repeat 2 candidate: " in line:
        os.kill(min(children()), signal.SIGKILL)


def children() -> list[int]:
    """Return this process's children that are sides, the base first."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if COMMAND[0] in command_of(pid) and parent_of(pid) == os.getpid()]


def command_of(pid: int) -> str:
    """Return a process's command line; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """Return a process's parent; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_sides_run_in_turn_until_each_cell_is_decided_even_after_one_was_killed(tmp_path: Path) -> None:
    """One run at a time, A B B A; a decided cell runs no more, one out of memory is not repeated.

    What was run before a side was killed is on disk and counts, and the session is said to have been resumed.
    """
    judge, looks = Judging(ok=1, oom=9, **{"ok-2": 3}), (1, 3, 5)
    cells = [make_cell("ok"), make_cell("oom"), make_cell("ok-2")]
    with pytest.raises(InfrastructureError, match=r"the base \(the environment as it is\) ended by SIGKILL"):
        sit(tmp_path, cells, judge, kill_the_base_in_its_second_repeat, looks=looks)
    assert [] == children()
    (file,) = tmp_path.glob("*/sitting.json")
    assert "ABB" == order(load_sitting(file.parent).sitting.runs, "ok-2")
    with pytest.raises(UsageError, match="its scenario changed since"):
        sit(tmp_path, [make_cell("ok", training={"seed": 1})], judge, looks=looks, resume=True)
    with pytest.raises(UsageError, match="its gate changed since"):
        sit(tmp_path, cells, judge, looks=looks, resume=True, gate=GateSpec(alpha=0.2))
    told: list[str] = []
    result = sit(tmp_path, cells, judge, told.append, looks=looks, resume=True)
    assert ["base: the environment as it is", "candidate: the environment as it is"] == told[:2]
    assert ["undecided after repeat 1: replay/ok-2"] == [line for line in told if "undecided" in line]
    runs = result.sitting.runs
    assert ("abABab", "AB", "ABBAAB") == (order(runs, "ok"), order(runs, "oom"), order(runs, "ok-2"))
    assert {"ok": 12, "oom": 2} == Counter(run.outcome for run in runs)
    assert sorted(run.started_at for run in runs) == [run.started_at for run in runs]
    assert [(1, 3, 3), (1, 3, 4), (3, 5, 5)] == judge.asked
    assert ("decided", 1) == (result.sitting.stopped, len(result.sitting.resumed_at))
    assert ["warm-up", "resumed"] == [caveat.code for caveat in result.sitting.caveats]
    on_disk = {path.name for path in (result.folder / "base").glob("*.json")}
    assert {run.file for run in runs if (run.side, run.purpose) == ("base", "measured")} == on_disk
    with pytest.raises(UsageError, match="is complete; run without --resume"):
        sit(tmp_path, cells, judge, looks=looks, resume=True)


def test_a_script_that_a_side_lacks_is_named(tmp_path: Path) -> None:
    """Before anything runs: the base of a first pull request does not have it yet."""
    loop = LoopSpec(driver="script", args={"command": ["train.py"]})
    cell = make_cell("ok").model_copy(update={"loop": loop})
    base, candidate = (replace(side_as_is(name), code=str(tmp_path / name)) for name in get_args(SideName))
    (tmp_path / "candidate").mkdir()
    (tmp_path / "candidate" / "train.py").touch()
    session._require_scripts([cell], [candidate])
    with pytest.raises(UsageError, match=r"the base has no train\.py, and each side runs its own; commit it"):
        session._require_scripts([cell], [base, candidate])


def test_there_has_to_be_something_to_resume(tmp_path: Path) -> None:
    """In a folder without a session."""
    with pytest.raises(UsageError, match="there is no session in"):
        sit(tmp_path, [make_cell("ok")], Judging(), resume=True)


GATE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from replay_worker import make_cell
from bench.errors import BenchError
from bench.gate.session import gate_references
from bench.gate.process import SideProcess
from bench.gate.session import SessionOptions

run = SideProcess.run

def running(side, cell, number):
    print("started", flush=True)
    return run(side, cell, number)

SideProcess.run = running
options = SessionOptions(folder=Path({folder!r}), command=({command!r},))
try:
    cells, here = [make_cell("hang")], Path({repository!r})
    gate_references(cells, ("v1.0", None), options, here=here)
except BenchError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """Start a gate of a git revision whose one cell hangs, and return once it does."""
    monkeypatch.setenv("GATE_OF_THIS_TEST", str(tmp_path))
    repository = make_repository(tmp_path / "project", ["1.0", "2.0"])
    code = GATE.format(
        tests=str(Path(__file__).parents[1] / "support"),
        folder=str(tmp_path / "sittings"),
        command=COMMAND[0],
        repository=str(repository),
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "started\n" == process.stdout.readline()
        yield process
        process.kill()


def processes_of(folder: Path) -> list[int]:
    """Return the processes that have been started by a gate, those that are only waited for left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"GATE_OF_THIS_TEST={folder}".encode() in (path / "environ").read_bytes()
        except OSError:
            continue
        if marked and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def wait_until_gone(folder: Path) -> None:
    """Return when no process is left."""
    deadline_s = time.monotonic() + 20
    while processes_of(folder):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_ctrl_c_leaves_neither_a_process_nor_a_worktree(
    gate: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """And says where the session is and how to go on."""
    assert (
        len(processes_of(tmp_path)) >= 5
    )  # the gate, two sides, a server that workers are forked from, a worker
    gate.send_signal(signal.SIGINT)
    said, _ = gate.communicate(timeout=30)
    assert InterruptedByUserError.exit_code == gate.returncode
    assert said.startswith(f"interrupted; what was finished is in {tmp_path / 'sittings'}")
    assert [] == processes_of(tmp_path)
    assert 1 == len(git(tmp_path / "project", "worktree", "list").splitlines())
    assert [] == [path for path in (tmp_path / "cache" / "worktrees").iterdir() if path.is_dir()]


def test_a_gate_that_is_killed_takes_its_sides_along_and_the_next_clears_up(
    gate: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """The kernel ends the sides; the worktree is removed by whoever makes the next."""
    gate.kill()
    gate.wait()
    wait_until_gone(tmp_path)
    assert 2 == len(git(tmp_path / "project", "worktree", "list").splitlines())
    with prepared_sides("v2.0", here=tmp_path / "project"):
        assert 2 == len(git(tmp_path / "project", "worktree", "list").splitlines())
    assert 1 == len(git(tmp_path / "project", "worktree", "list").splitlines())


def record(peak_bytes: int) -> Record:
    """Return a record with such a ledger peak."""
    return make_record(measurement=make_measurement(ledger=make_ledger(peak_bytes)))


def test_only_what_differs_within_a_side_is_named() -> None:
    """To the byte."""
    alike = (record(600 * MIB), record(600 * MIB))
    assert [] == [*unrepeatable({"base": alike, "candidate": (record(700 * MIB), record(700 * MIB))})]
    (caveat,) = unrepeatable({"base": alike, "candidate": (record(600 * MIB), record(600 * MIB + 1))})
    assert caveat.message == (
        f"ledger_peak_bytes of {alike[0].cell.id} differs between runs of the candidate "
        "(629,145,600, 629,145,601 bytes), so it is no exact metric here."
    )
