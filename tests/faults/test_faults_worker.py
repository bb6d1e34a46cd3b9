"""Faults of a worker beyond those of test_run_supervise.py: closed pipes, other versions, a flood."""

import resource

import pytest

import records_factory
from bench.scenario.types import LimitsSpec
from bench.workers.launch import TAIL_BYTES, Launcher
from bench.workers.supervise import JobEnd, RunningJob
from replay_bench import FULL
from replay_worker import make_job, replay

LIMITS = LimitsSpec(timeout_s=300, heartbeat_timeout_s=60, host_memory_gib=None)
MOST_GROWTH_KIB = 64 * 1024


def run(behaviour: str) -> JobEnd:
    """Run one replay job."""
    return RunningJob(
        make_job(behaviour), Launcher(work=replay, preload=["bench.workers.child"]), LIMITS
    ).to_end()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("close-messages", "The worker was ended by SIGKILL in phase steady; output_tail holds what"),
        ("segfault", "The worker was ended by SIGSEGV in phase steady; output_tail holds what"),
        ("newer", "The worker sent a line that is not a message in phase steady; it begins with"),
    ],
)
def test_a_worker_that_breaks_the_rules_is_ended_and_its_readings_are_kept(
    behaviour: str, message: str
) -> None:
    """The outcome is *crashed*, the reason one line with the phase, the steps until then are there."""
    end = run(behaviour)
    assert end.failure is not None
    assert (end.outcome, end.failure.phase) == ("crashed", "steady")
    assert end.failure.message.startswith(message)
    assert "\n" not in end.failure.message
    assert end.measurement.steps == records_factory.make_steps()
    assert behaviour != "segfault" or "in _read_address_zero" in end.failure.output_tail


def test_a_worker_without_output_goes_on() -> None:
    """Nobody needs what it prints; its readings come on a pipe of their own."""
    end = run("close-output")
    assert (end.outcome, end.failure) == ("ok", None)
    assert end.measurement.steps == records_factory.make_steps()


def test_a_worker_of_an_older_version_is_understood() -> None:
    """Messages without what was added since are messages."""
    end = run("older")
    assert (end.outcome, end.failure) == ("ok", None)
    assert end.measurement.device is not None
    assert end.measurement.device.cpu_threads == 7


@pytest.mark.skipif(not FULL, reason="2 GiB take a while; set FAULTS=full")
def test_two_gigabytes_of_output_leave_the_supervisors_memory_flat() -> None:
    """All of it is taken from the pipe, its end is kept, and no more."""
    run("ok")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    launcher = Launcher(work=replay, preload=["bench.workers.child"])
    (worker,) = launcher.start(make_job("flood"))
    assert worker.wait_for_end(300)
    assert worker.end() == 0
    assert len(worker.output_tail) == TAIL_BYTES
    assert worker.output_tail.endswith("x\nthe last line\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < MOST_GROWTH_KIB
