"""What watching a GPU costs the training beside it: the same steps, the sampler on and stopped."""

import math
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from virtual_gpu import VirtualCard, VirtualGpus

ROUNDS = 24
BLOCK_S = 0.2  # several of the sampler's intervals
TOLERATED_SHARE = 0.005
# Of the rounds' median. Where the machine is noisier than this, half a per cent cannot be told from nothing.
DECIDABLE_ERROR = 0.002


def watch_for_ever(ready: Path) -> None:
    """Sample the virtual card as a sweep's parent does, in a box, until that is ended."""
    from bench.probes.nvml_library import open_nvml
    from bench.results.messages import PhaseStarted
    from bench.run.gpu_watch import GpuWatch

    os.setsid()  # as a worker and its parent, which Linux may give a share of the processor each
    with open_nvml() as nvml:
        watch = GpuWatch(nvml.gpu(VirtualCard().uuid))
        watch.wait_until_idle()
        watch.begin(os.getpid())
        watch.message(PhaseStarted(phase="steady", at_ns=time.monotonic_ns()))
        ready.write_text(str(os.getpid()))
        time.sleep(600)


def make_step() -> Callable[[], None]:
    """Return a step of some milliseconds: forward, backward, optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs = torch.randn(256, 512)

    def step() -> None:
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed_ns(step: Callable[[], None], steps: int) -> int:
    """Return the time of so many steps."""
    started_ns = time.perf_counter_ns()
    for _ in range(steps):
        step()
    return time.perf_counter_ns() - started_ns


@pytest.mark.alone
def test_sampling_costs_the_training_less_than_half_a_per_cent(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    """Stopped, sampling, sampling, stopped, over and over; the median of the rounds' ratios, if it tells."""
    gpus = VirtualGpus(tmp_path)
    gpus.write(VirtualCard())
    ready = tmp_path / "ready"
    step = make_step()
    log_ratios: list[float] = []
    with gpus.box() as box:
        box._pool.submit(watch_for_ever, ready)
        while not ready.exists() or not ready.read_text():
            time.sleep(0.01)
        sampler = int(ready.read_text())
        steps = max(1, round(BLOCK_S * 1e9 / (timed_ns(step, 50) / 50)))

        def block_ns(number: signal.Signals) -> int:
            os.kill(sampler, number)
            return timed_ns(step, steps)

        def abba() -> None:
            stopped, sampling, again, at_last = (
                block_ns(number)
                for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT, signal.SIGSTOP)
            )
            log_ratios.append(math.log((sampling + again) / (stopped + at_last)))

        try:
            benchmark.pedantic(abba, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
        finally:
            os.kill(sampler, signal.SIGKILL)
    share = math.expm1(statistics.median(log_ratios))
    # The standard error of a median is 1.25 times that of the mean (normal noise), here from quartiles.
    first, _, third = statistics.quantiles(log_ratios, n=4)
    error = 1.25 * (third - first) / 1.35 / math.sqrt(len(log_ratios))
    benchmark.extra_info |= {"sampling_over_stopped": 1 + share, "standard_error": error}
    if error > DECIDABLE_ERROR and share < TOLERATED_SHARE + 2 * error:
        pytest.skip(f"this machine is too noisy to tell: {share:+.2%} with a standard error of {error:.2%}")
    assert share < TOLERATED_SHARE
