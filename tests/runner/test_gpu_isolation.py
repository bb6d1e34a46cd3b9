"""Which reading a test block moves, and who of those on the GPU is the worker."""

import os
import subprocess
import sys

import pytest

from bench.probes.nvml import GpuSample
from bench.runner.gpu_verdict import Owners, judge_isolation
from gpu_factory import make_sample
from records_factory import MIB

WORKER = 4_000_001  # above what Linux gives out
HOST = 4_000_002
BLOCK = 256 * MIB
Shares = dict[int, int | None]


def block_test(shows: list[Shares | None], device: list[int | None]) -> list[GpuSample | None]:
    """Return the three states from the processes and the device's MiB in each."""
    return [
        make_sample(
            None if processes is None else {pid: size and size * MIB for pid, size in processes.items()},
            device_used_bytes=None if used is None else used * MIB,
        )
        for processes, used in zip(shows, device, strict=True)
    ]


MOVES: list[int | None] = [500, 756, 500]


@pytest.mark.parametrize(
    ("shows", "device", "isolation", "reason"),
    [
        ([{WORKER: 500}, {WORKER: 756}, {WORKER: 500}], MOVES, "process", "the worker's own process rose"),
        ([{HOST: 500}, {HOST: 756}, {HOST: 502}], MOVES, "process", f"process {HOST}, as which NVML"),
        (
            [{WORKER: None}] * 3,
            MOVES,
            "device_delta",
            "does not report the bytes of a process here, but",
        ),
        ([{WORKER: 0}] * 3, MOVES, "device_delta", "do not follow what it allocates, but"),
        ([{HOST: 0}] * 3, MOVES, "device_delta", "do not follow what it allocates, but"),
        ([{}] * 3, MOVES, "device_delta", "does not list the worker's process here, but"),
        ([None] * 3, MOVES, "device_delta", "NVML does not list processes here, but"),
        ([{}] * 3, [0, 0, 0], "unavailable", "changed by 0 MiB: NVML describes another GPU"),
        ([{}] * 3, [500, 756, 756], "unavailable", "changed by 256 MiB"),
        ([None] * 3, [None] * 3, "unavailable", "the whole device are unknown"),
        ([{WORKER: 500}] * 3, [0, 4000, 0], "unavailable", "changed by 4000 MiB"),
    ],
)
def test_what_moves_with_the_block_is_the_reading(
    shows: list[Shares | None], device: list[int | None], isolation: str, reason: str
) -> None:
    """Process if it can be told, else the device, else nothing; each with its sentence."""
    found, why = judge_isolation(block_test(shows, device), BLOCK, Owners(WORKER))
    assert isolation == found
    assert reason in why
    assert why.endswith(".")
    assert why.count(". ") == 0


def test_without_a_block_or_a_sample_nothing_is_claimed() -> None:
    """A run that ended early, or an NVML too slow."""
    assert "unavailable" == judge_isolation([None, None, None], None, Owners(WORKER))[0]
    assert (
        "unavailable" == judge_isolation([make_sample({}), None, make_sample({})], BLOCK, Owners(WORKER))[0]
    )


def test_a_worker_under_another_number_is_no_stranger_and_its_bytes_are_its_own() -> None:
    """Adopted by its bytes, or as the only one that came."""
    for test in (
        block_test([{HOST: 500}, {HOST: 756}, {HOST: 500}], MOVES),
        block_test([{HOST: None}] * 3, MOVES),
    ):
        owners = Owners(WORKER)
        _, held, _ = test
        assert held is not None
        owners.look(held)
        assert ({HOST}, 0) == (set(owners.strangers), owners.foreign_count)
        judge_isolation(test, BLOCK, owners)
        assert (set(), 0) == (set(owners.strangers), owners.foreign_count)
        assert [HOST] == list(owners.own(held))


def test_children_are_the_workers_and_what_was_there_before_is_nobodys_fault() -> None:
    """By session, as long as they live and after; strangers are counted with their most bytes."""
    code = "import os, sys; os.setsid(); print(os.fork() or '', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        child = next(int(line) for line in worker.stdout if line.strip())
        owners = Owners(worker.pid, background={11})
        there = make_sample({worker.pid: 5, child: 7, 11: 100, os.getpid(): 20, HOST: 1})
        owners.look(there)
        assert 12 == owners.own_bytes(there)
    owners.look(make_sample({worker.pid: 5, child: 7, HOST: 3, 3_999_999_999: None}))
    assert {os.getpid(): 20, HOST: 3, 3_999_999_999: 0} == owners.strangers
    assert 3 == owners.foreign_count


def test_bytes_that_are_not_told_are_none_and_an_absent_process_has_none() -> None:
    """None is not nought."""
    owners = Owners(WORKER)
    samples = [make_sample({WORKER: None}), make_sample(None), make_sample({HOST: 9})]
    assert [None, None, 0] == [owners.own_bytes(sample) for sample in samples]
