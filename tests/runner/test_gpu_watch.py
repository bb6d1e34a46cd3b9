"""The sampling thread with a GPU that does as told: waiting, growing memory, silence, and what is kept."""

import os
import threading
import time
from typing import Any

import pytest

from bench.probes.nvml import GpuSample
from bench.records.messages import Mark, PhaseStarted, ReadingMade
from bench.records.records import PhaseReading
from bench.runner import gpu_watch
from bench.runner.gpu_watch import GpuWatch
from gpu_factory import ScriptedGpu
from records_factory import MIB

INTERVAL_NS = 1_000_000
OWN = os.getpid()


class Device:
    """What the GPU shows at the moment."""

    def __init__(self) -> None:
        """Be idle, with a display's memory in use."""
        self.own_mib: int | None = None
        self.others_mib = 300
        self.busy_percent = 0

    def tell(self, _: int) -> dict[str, Any]:
        """Return the readings."""
        own = {} if self.own_mib is None else {OWN: self.own_mib * MIB}
        return {
            "processes": own,
            "device_used_bytes": (self.others_mib + (self.own_mib or 0)) * MIB,
            "utilisation_percent": self.busy_percent,
        }


def wait_for_samples(gpu: ScriptedGpu, count: int = 5) -> None:
    """Return when so many samples have begun and ended."""
    target = gpu.asked + count
    deadline_s = time.monotonic() + 30
    while gpu.asked < target:
        assert time.monotonic() < deadline_s
        time.sleep(INTERVAL_NS / 1e9)


def hold(watch: GpuWatch, gpu: ScriptedGpu, instant: str, **fields: int) -> None:
    """Stand still at an instant, as a worker does, and tell of it afterwards."""
    at_ns = time.monotonic_ns()
    wait_for_samples(gpu)
    holds_ns = time.monotonic_ns() - at_ns
    watch.message(Mark.model_validate({"instant": instant, "at_ns": at_ns, "holds_ns": holds_ns, **fields}))


def run_to_phase(watch: GpuWatch, gpu: ScriptedGpu, device: Device, phase: str = "steady") -> None:
    """Begin, pass the block test, and start a phase."""
    assert watch.wait_until_idle() is None
    watch.begin(OWN)
    for instant, own_mib in (("idle", 500), ("block_held", 756), ("block_freed", 500)):
        device.own_mib = own_mib
        hold(watch, gpu, instant, block_bytes=256 * MIB)
    watch.message(PhaseStarted.model_validate({"phase": phase, "at_ns": time.monotonic_ns()}))


@pytest.mark.parametrize(("samples", "spoilt"), [(12, True), (0, False)])
def test_unseen_growth_spoils_a_run_when_it_stays_for_several_samples(samples: int, spoilt: bool) -> None:  # noqa: FBT001 - a table
    """Memory that no listed process has; a process in another container, say."""
    device = Device()
    gpu = ScriptedGpu(device.tell)
    watch = GpuWatch(gpu, interval_ns=INTERVAL_NS)
    run_to_phase(watch, gpu, device)
    device.own_mib = 3000
    wait_for_samples(gpu)
    device.others_mib += 2048 if samples else 0
    wait_for_samples(gpu, samples)
    found = watch.finish()
    assert found.gpu is not None
    assert ("process", 2048 * MIB if spoilt else 0) == (
        found.gpu.isolation,
        found.gpu.unexplained_growth_bytes,
    )
    assert spoilt == ("The GPU held 2.0 GiB more" in (found.contamination or ""))
    (phase,) = found.gpu.phases
    assert ("steady", 3000 * MIB) == (phase.name, phase.process_peak_bytes)


def test_an_allocation_between_two_readings_of_one_sample_is_no_growth() -> None:
    """Device and process are read one after the other; one sample out of step proves nothing."""
    device = Device()

    def skewed(number: int) -> dict[str, Any]:
        told = device.tell(number)
        return told | {"device_used_bytes": told["device_used_bytes"] + (4096 * MIB if number % 2 else 0)}

    device.others_mib = 0
    gpu = ScriptedGpu(device.tell)
    watch = GpuWatch(gpu, interval_ns=INTERVAL_NS)
    run_to_phase(watch, gpu, device)
    gpu._tell = skewed
    wait_for_samples(gpu, 20)
    assert watch.finish().contamination is None


def test_a_run_begins_once_others_have_finished() -> None:
    """It waits, and takes what is in use then for idle."""
    device = Device()
    device.busy_percent, device.others_mib = 80, 20_000
    gpu = ScriptedGpu(device.tell)
    watch = GpuWatch(gpu, interval_ns=INTERVAL_NS, idle_patience_s=30)

    def leave() -> None:
        wait_for_samples(gpu, 10)
        device.busy_percent, device.others_mib = 0, 100

    threading.Thread(target=leave).start()
    assert watch.wait_until_idle() is None
    watch.begin(OWN)
    found = watch.finish().gpu
    assert found is not None
    assert 100 * MIB == found.idle_device_bytes


def test_a_gpu_that_stays_busy_is_said_to_be_and_no_thread_is_left() -> None:
    """One sentence with what to do."""
    device = Device()
    device.busy_percent = 97
    watch = GpuWatch(ScriptedGpu(device.tell), interval_ns=INTERVAL_NS, idle_patience_s=0.01)
    assert (
        "The GPU was not idle within 0.01 s (it was 97 % busy), and what is measured beside others says "
        "nothing; end what else runs on it, then run the same command again."
    ) == watch.wait_until_idle()
    assert "NVML" not in {thread.name for thread in threading.enumerate()}


def test_an_nvml_that_never_answers_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on unwatched, says so, and NVML is not to be asked again."""
    monkeypatch.setattr(gpu_watch, "ANSWER_S", 0.02)
    release = threading.Event()

    class Stuck(ScriptedGpu):
        def sample(self, *, complete: bool = True) -> GpuSample:
            release.wait(30)
            return super().sample(complete=complete)

    watch = GpuWatch(Stuck(lambda _: {}), interval_ns=INTERVAL_NS)
    assert watch.wait_until_idle() is None
    watch.begin(OWN)
    found = watch.finish()
    assert found.gpu is not None
    assert ("unavailable", ("NVML stopped answering",)) == (found.gpu.isolation, found.gpu.problems)
    assert watch.silent
    assert {"nvml-gaps", "nvml-unattributed"} == {caveat.code for caveat in found.caveats}
    release.set()


def test_more_than_memory_is_asked_for_every_fifth_time_and_as_a_phase_begins() -> None:
    """Before the worker each sample is complete; a phase's first comes at once, not at the next interval."""
    asked: list[bool] = []

    class Noting(ScriptedGpu):
        def sample(self, *, complete: bool = True) -> GpuSample:
            asked.append(complete)
            return super().sample(complete=complete)

    device = Device()
    gpu = Noting(device.tell)
    watch = GpuWatch(gpu, interval_ns=INTERVAL_NS)
    assert watch.wait_until_idle() is None
    assert all(asked)
    watch.begin(OWN)
    wait_for_samples(gpu, 30)
    later = asked[-25:]
    assert [index % 5 == later.index(True) for index in range(25)] == later
    watch._interval_ns = 3600 * 10**9
    wait_for_samples(gpu, 1)
    time.sleep(5 * INTERVAL_NS / 1e9)
    before = len(asked)
    watch.message(PhaseStarted(phase="steady", at_ns=time.monotonic_ns()))
    wait_for_samples(gpu, 1)
    found = watch.finish().gpu
    assert [True] == asked[before:]
    assert found is not None
    assert (5 * watch._interval_ns, 1) == (found.complete_interval_ns, found.phases[0].samples)


def test_the_record_says_what_watching_took() -> None:
    """Processor time of the sampling thread alone, from the worker's start to its end."""
    device = Device()
    gpu = ScriptedGpu(device.tell)
    watch = GpuWatch(gpu, interval_ns=INTERVAL_NS)
    assert watch.wait_until_idle() is None
    began_ns = time.monotonic_ns()
    watch.begin(OWN)
    wait_for_samples(gpu, 20)
    found = watch.finish().gpu
    took_ns = time.monotonic_ns() - began_ns
    assert found is not None
    assert 0 < (found.watching_cpu_ns or 0) < (found.watched_ns or 0) <= took_ns


def test_an_older_worker_without_times_costs_no_run() -> None:
    """Its phases are unknown, and the record says that nothing could be told."""
    device = Device()
    gpu = ScriptedGpu(device.tell)
    watch = GpuWatch(gpu, interval_ns=INTERVAL_NS)
    watch.wait_until_idle()
    watch.begin(OWN)
    watch.message(PhaseStarted(phase="load"))
    watch.message(ReadingMade(reading=PhaseReading(name="load", duration_ns=1, cuda_reserved_peak_bytes=1)))
    found = watch.finish()
    assert found.gpu is not None
    assert ((), "unavailable", None) == (found.gpu.phases, found.gpu.isolation, found.contamination)
