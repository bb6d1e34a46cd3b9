"""Supervision with real processes: every way a worker can end leaves the right outcome and no process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import records_factory
from bench.records.messages import Heartbeat, Job, Message, PhaseStarted, ProbeJob
from bench.scenario.types import LimitsSpec
from bench.workers import launch
from bench.workers.launch import Launcher, Worker
from bench.workers.supervise import JobEnd, RunningJob
from replay_worker import ASKED_BYTES, make_facts, make_job, replay

LIMITS = LimitsSpec(timeout_s=60, heartbeat_timeout_s=30, host_memory_gib=None)


@pytest.fixture
def launcher() -> Launcher:
    """Return a launcher of replay workers, without anything imported beforehand."""
    return Launcher(work=replay, preload=["bench.workers.child"])


def run(launcher: Launcher, behaviour: str, limits: LimitsSpec = LIMITS) -> JobEnd:
    """Run one replay job."""
    return RunningJob(make_job(behaviour), launcher, limits).to_end()


def assert_kept_readings(end: JobEnd) -> None:
    """Whatever the end, the readings sent before it are there."""
    assert end.measurement.steps == records_factory.make_steps()
    assert end.measurement.model is not None


def test_a_job_that_ends_well_is_ok_and_its_start_is_timed(launcher: Launcher) -> None:
    """Readings are complete, and the start is a phase of its own, within the total."""
    end = run(launcher, "ok")
    assert (end.outcome, end.failure) == ("ok", None)
    assert_kept_readings(end)
    assert [phase.name for phase in end.measurement.phases] == ["start"]
    assert 0 < end.measurement.phases[0].duration_ns <= end.total_ns


def test_who_listens_hears_every_message(launcher: Launcher) -> None:
    """Phases come in order and heartbeats come too."""
    heard: list[Message] = []
    RunningJob(make_job("ok"), launcher, LIMITS, hear=heard.append).to_end()
    assert [item.phase for item in heard if isinstance(item, PhaseStarted)] == ["load", "steady"]
    assert isinstance(heard[0], Heartbeat)


def test_a_job_of_several_ranks_ends_as_the_one_that_failed(launcher: Launcher) -> None:
    """Each rank says which it is and keeps its readings; one that dies ends the job for all."""
    heard: list[Message] = []
    end = RunningJob(make_job("ok"), launcher, LIMITS, ranks=2, hear=heard.append).to_end()
    assert (end.outcome, len(end.measurements)) == ("ok", 2)
    assert end.measurements[0].steps == end.measurements[1].steps == records_factory.make_steps()
    assert {message.rank for message in heard} == {0, 1}

    class OneDies(Launcher):
        def start(
            self, job: Job, *, ranks: int = 1, host_memory_gib: float | None = None
        ) -> Sequence[Worker]:
            """Start a second worker that does another job."""
            assert (ranks, host_memory_gib) == (2, None)
            return [*super().start(job), *super().start(make_job("sigkill"))]

    one_dies = OneDies(work=replay, preload=["bench.workers.child"])
    end = RunningJob(make_job("hang"), one_dies, LIMITS, ranks=2).to_end()
    assert end.failure is not None
    assert (end.outcome, end.failure.exit_signal, len(end.measurements)) == ("crashed", "SIGKILL", 2)


def test_a_probe_brings_facts(launcher: Launcher) -> None:
    """A job that is not a cell runs the same way."""
    assert RunningJob(ProbeJob(), launcher).to_end().measurement.device == make_facts()


@pytest.mark.parametrize(
    ("behaviour", "outcome", "message"),
    [
        ("oom", "oom", "Out of memory"),
        ("exception", "failed", "ValueError: the width of the model"),
        ("unavailable", "unavailable", "The hub cannot be reached; set HF_TOKEN or use a local path."),
        ("sigkill", "crashed", "The worker was ended by SIGKILL in phase steady"),
        ("sigsegv", "crashed", "The worker was ended by SIGSEGV in phase steady"),
        ("sigabrt", "crashed", "The worker was ended by SIGABRT in phase steady"),
        ("exit-silently", "crashed", "The worker exited with code 3 before its job was done"),
        ("abort-on-bad-alloc", "oom", "Native code ran out of memory"),
        ("malformed", "crashed", "The worker sent a line that is not a message in phase steady"),
        ("endless-line", "crashed", "The worker sent a line that is not a message in phase steady"),
    ],
)
def test_a_bad_end_has_its_outcome_phase_and_reason(
    launcher: Launcher, behaviour: str, outcome: str, message: str
) -> None:
    """Each failure is told apart, says in which phase it came, and keeps what was read before."""
    end = run(launcher, behaviour)
    assert end.failure is not None
    assert (end.outcome, end.failure.phase) == (outcome, "steady")
    assert end.failure.message.startswith(message)
    assert "\n" not in end.failure.message
    assert_kept_readings(end)


def test_an_exception_leaves_its_traceback_without_the_home_folder(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output tail says where it happened; whose machine it was it does not."""
    monkeypatch.setattr(Path, "home", lambda: Path(__file__).parents[1] / "support")
    end = run(launcher, "exception")
    assert end.failure is not None
    assert "in _exception" in end.failure.output_tail
    assert '"~/replay_worker.py"' in end.failure.output_tail
    assert str(Path(__file__).parents[1] / "support") not in end.failure.output_tail


def test_a_kill_the_kernel_counts_is_out_of_memory(launcher: Launcher) -> None:
    """SIGKILL with a risen counter of the out-of-memory killer is oom."""
    counts = iter([7, 8])
    end = RunningJob(make_job("sigkill"), launcher, LIMITS, oom_kills=lambda: next(counts)).to_end()
    assert end.failure is not None
    assert (end.outcome, end.failure.exit_signal) == ("oom", "SIGKILL")


@pytest.mark.parametrize(
    ("behaviour", "limits", "setting", "frame"),
    [
        ("hang", {"timeout_s": 1.5}, "limits.timeout_s", "in _hang"),
        (
            "hang-holding-the-lock",
            {"heartbeat_timeout_s": 1.5},
            "limits.heartbeat_timeout_s",
            "_hang_holding",
        ),
    ],
)
def test_a_hang_is_ended_by_the_limit_that_sees_it(
    launcher: Launcher, behaviour: str, limits: dict[str, float], setting: str, frame: str
) -> None:
    """The time limit ends what sleeps, the heartbeat limit what blocks the interpreter; both say where."""
    end = run(launcher, behaviour, LIMITS.model_copy(update=limits))
    assert end.failure is not None
    assert end.outcome == "timeout"
    assert setting in end.failure.message
    assert frame in end.failure.output_tail
    assert_kept_readings(end)


def test_a_hundred_megabytes_of_chatter_are_harmless(launcher: Launcher) -> None:
    """Output is drained without being kept, and only its last part stays."""
    end = run(launcher, "chatter")
    assert (end.outcome, end.failure) == ("ok", None)
    (worker,) = launcher.start(make_job("chatter"))
    assert worker.wait_for_end(30)
    worker.end()
    assert len(worker.output_tail) == launch.TAIL_BYTES
    assert worker.output_tail.endswith("x\nthe last line\n")


def test_a_deadlock_at_exit_costs_nothing(launcher: Launcher) -> None:
    """A worker that has reported leaves at once, whatever its threads and exit handlers do."""
    end = run(launcher, "deadlock-at-exit")
    assert end.outcome == "ok"


@pytest.mark.parametrize(
    ("kind", "caveats"), [("grandchild", []), ("grandchild-of-another-session", ["strays-killed"])]
)
def test_a_grandchild_left_behind_is_ended(launcher: Launcher, kind: str, caveats: list[str]) -> None:
    """Killing the worker takes along what it has started; one in another session is found by its output."""
    end = run(launcher, kind)
    assert end.failure is not None
    assert caveats == [caveat.code for caveat in end.measurement.caveats]
    found = re.search(r"grandchild (\d+)", end.failure.output_tail)
    assert found
    assert gone([int(found[1])])


def test_starting_again_is_quick(launcher: Launcher) -> None:
    """After the first, a worker comes up from the server in well under a second."""
    run(launcher, "ok")
    starts_ns = [run(launcher, "ok").measurement.phases[0].duration_ns for _ in range(5)]
    assert min(starts_ns) < 1_000_000_000


def test_workers_share_what_the_server_imported() -> None:
    """Garbage collection leaves the server's objects alone, or it would copy them all at each start."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
        "from replay_worker import count_frozen\n"
        "from bench.records.messages import ProbeJob\n"
        "from bench.workers.launch import Launcher\n"
        "from bench.workers.supervise import RunningJob\n"
        "launcher = Launcher(work=count_frozen, preload=['bench.workers.child'])\n"
        "print(RunningJob(ProbeJob(), launcher).to_end().measurement.caveats[0].message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) > 10_000


def test_a_memory_limit_makes_a_real_torch_allocation_fail_as_out_of_memory(launcher: Launcher) -> None:
    """Under the limit torch raises its own error; bytes and phase are in the record."""
    end = run(launcher, "torch-allocation", LIMITS.model_copy(update={"host_memory_gib": 2.0}))
    assert end.failure is not None
    assert (end.outcome, end.failure.phase) == ("oom", "steady")
    assert end.failure.requested_bytes == ASKED_BYTES
    assert end.failure.message == (
        "Out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        f"{ASKED_BYTES} bytes. Error code 12 (Cannot allocate memory)); lower micro_batch or sequence_length"
        ", or turn gradient_checkpointing on, or raise limits.host_memory_gib (2)."
    )
    assert_kept_readings(end)


def test_workers_are_spawned_once_the_server_has_touched_cuda(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with CUDA's device file open is not forked from again."""
    asked: list[str] = []

    def holds(pid: int | None, path: str) -> bool:
        assert Path(f"/proc/{pid}/cmdline").read_bytes().find(b"forkserver") > 0
        asked.append(path)
        return True

    monkeypatch.setattr(launch, "holds_file_open", holds)
    end = run(launcher, "ok")
    assert (end.outcome, launcher.start_method) == ("ok", "spawn")
    assert asked == ["/dev/nvidia-uvm"]
    assert run(launcher, "sigsegv").outcome == "crashed"


def test_an_open_file_is_found(tmp_path: Path) -> None:
    """The check for CUDA sees a file that a process holds open, and no other."""
    path = tmp_path / "device"
    with path.open("w"):
        assert launch.holds_file_open(os.getpid(), str(path))
    assert not launch.holds_file_open(os.getpid(), str(path))
    assert not launch.holds_file_open(None, str(path))


PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
from replay_worker import make_job, replay
from bench.workers.launch import Launcher, wait_for_any
print("imported as", __name__, file=sys.stderr)
launcher = Launcher(work=replay, preload=["bench.workers.child"])
(worker,) = launcher.start(make_job({behaviour!r}))
while "steady" not in worker.receive().decode(): wait_for_any([worker], 30)
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("behaviour", ["hang", "hang-holding-the-lock"])
def test_a_worker_dies_with_its_supervisor(tmp_path: Path, behaviour: str) -> None:
    """A supervisor killed outright leaves no worker, not even one that holds the interpreter lock.

    Its script needs no ``__main__`` guard either: workers do not import it again.
    """
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parents[1] / "support"), behaviour=behaviour))
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        worker_pid = int(parent.stdout.readline())
        assert Path(f"/proc/{worker_pid}").exists()
        parent.send_signal(signal.SIGKILL)
        assert gone([worker_pid])
        assert parent.stderr.read().count(b"imported as") == 1


def test_a_server_that_dies_on_import_is_told_with_what_it_said(tmp_path: Path) -> None:
    """The error holds what the imports printed and ends with what to do."""
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('libcudart.so.99 is missing')")
    code = (
        "from bench.errors import InfrastructureError\n"
        "from bench.workers.launch import Launcher\n"
        "from bench.records.messages import ProbeJob\n"
        "try: Launcher(preload=['broken_library']).start(ProbeJob())\n"
        "except InfrastructureError as error: print(error)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert "RuntimeError: libcudart.so.99 is missing" in done.stdout.decode()
    assert "the worker failed to start" in done.stdout.decode().splitlines()[-1]
    assert done.stderr == b""


def gone(pids: Sequence[int]) -> bool:
    """Tell whether all processes have ended within a few seconds; a zombie has."""
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
