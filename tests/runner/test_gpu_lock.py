"""Two runs of this suite never measure on one GPU."""

import os
import signal
import subprocess
import sys

import pytest

from bench.errors import InfrastructureError
from bench.runner.gpu_watch import hold_gpu

HOLDER = """
import sys, time
from bench.runner.gpu_watch import hold_gpu
with hold_gpu(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_gpu_is_held_by_one_run_and_free_again_when_it_is_killed() -> None:
    """The second run is told which process holds it; SIGKILL leaves nothing behind."""
    uuid = f"GPU-{os.getpid()}-killed"
    with subprocess.Popen([sys.executable, "-c", HOLDER, uuid], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert "held\n" == other.stdout.readline()
        with pytest.raises(InfrastructureError) as caught, hold_gpu(uuid):
            pass
        assert (
            f"another bench run (process {other.pid}) uses {uuid}, and two would measure each other; wait "
            "until it has ended, or choose another GPU with CUDA_VISIBLE_DEVICES"
        ) == str(caught.value)
        with hold_gpu(f"{uuid}-another"):
            pass
        other.send_signal(signal.SIGKILL)
    with hold_gpu(uuid):
        pass


def test_a_gpu_is_free_after_the_run_and_not_during_it() -> None:
    """The same process cannot hold it twice at once, but one time after the other."""
    uuid = f"GPU-{os.getpid()}-again"
    for _ in range(2):
        with (
            hold_gpu(uuid),
            pytest.raises(InfrastructureError, match=f"process {os.getpid()}"),
            hold_gpu(uuid),
        ):
            pass


def test_a_started_process_does_not_inherit_the_lock() -> None:
    """What a run leaves behind does not hold the GPU."""
    uuid = f"GPU-{os.getpid()}-child"
    with hold_gpu(uuid):
        child = subprocess.Popen(
            [sys.executable, "-c", "print('up', flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
    with child:
        assert child.stdout is not None
        assert b"up\n" == child.stdout.readline()
        with hold_gpu(uuid):
            pass
        child.communicate(b"\n")


def test_a_sandbox_without_unix_sockets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that cannot be taken is an error, never silently left out."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("socket.socket.bind", refuse)
    refused = r"GPU-x cannot be locked .*\(Operation not permitted\)"
    with pytest.raises(InfrastructureError, match=refused), hold_gpu("GPU-x"):
        pass
