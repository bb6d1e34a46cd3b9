"""NVML as the parent reads it: the real pynvml over a library that tells what a test wants."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.probes.nvml import Gpu, GpuSample, code_of, open_nvml
from virtual_gpu import GIB, MIB, Box, VirtualCard, VirtualGpus, VirtualSlice

CARD = VirtualCard()
SLICE = VirtualSlice(used_bytes=3 * GIB, compute={7: 2 * GIB})
CUT = replace(CARD, mig_mode=True, slices=(SLICE, VirtualSlice(uuid="MIG-b")), event_reasons=0x20)
ASKED = {
    "device_used_bytes": ("device memory", "nvmlDeviceGetMemoryInfo_v2"),
    "processes": ("processes", "nvmlDeviceGetComputeRunningProcesses_v3"),
    "utilisation_percent": ("utilisation", "nvmlDeviceGetUtilizationRates"),
    "power_mw": ("power", "nvmlDeviceGetPowerUsage"),
    "energy_mj": ("energy", "nvmlDeviceGetTotalEnergyConsumption"),
    "sm_clock_mhz": ("SM clock", "nvmlDeviceGetClockInfo"),
    "temperature_c": ("temperature", "nvmlDeviceGetTemperature"),
    "event_reasons": ("clock event reasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
}

GRAPHICS = "nvmlDeviceGetGraphicsRunningProcesses_v3"


class Kept:
    """What stays open in the box from one call to the next."""

    stack = contextlib.ExitStack()
    gpu: Gpu


def keep_open(uuid: str = CARD.uuid) -> None:
    """Open NVML and keep one device of it."""
    Kept.stack.close()
    Kept.gpu = Kept.stack.enter_context(open_nvml()).gpu(uuid)


def sample_kept(*, complete: bool = True) -> tuple[GpuSample, tuple[str, ...]]:
    """Ask the device that is kept."""
    return Kept.gpu.sample(complete=complete), Kept.gpu.problems


def sample_once(uuid: str = CARD.uuid) -> tuple[GpuSample, tuple[str, ...]]:
    """Open NVML and ask one device once."""
    with open_nvml() as nvml:
        gpu = nvml.gpu(uuid)
        sample = gpu.sample()
        return sample, gpu.problems


def test_a_card_tells_everything(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """Every reading is what the driver said, each asked once, and there is no problem."""
    card = replace(CARD, used_bytes=5 * GIB, compute={7: GIB, 9: 2 * GIB}, graphics={3: 100, 7: GIB})
    gpus.write(card)
    box.call(keep_open)
    gpus.write(card, calls=tmp_path / "calls")
    sample, problems = box.call(sample_kept)
    assert () == problems
    assert (
        GpuSample(
            at_ns=sample.at_ns,
            device_used_bytes=5 * GIB,
            processes={3: 100, 7: GIB, 9: 2 * GIB},
            utilisation_percent=0,
            power_mw=70_000,
            energy_mj=1_000_000,
            sm_clock_mhz=1_980,
            temperature_c=35,
            event_reasons=1,
        )
        == sample
    )
    calls = (tmp_path / "calls").read_text().split()
    # Pynvml asks each list of processes for its length first.
    lists = [GRAPHICS, GRAPHICS, ASKED["processes"][1]]
    assert sorted([*lists, *(function for _, function in ASKED.values())]) == sorted(calls)


@pytest.mark.parametrize(
    ("compute", "more_calls", "listed"),
    [
        pytest.param({7: GIB}, [], {7: GIB}, id="told"),
        pytest.param({7: None}, [GRAPHICS, GRAPHICS], {3: 100, 7: GIB}, id="N/A, the other list may tell"),
    ],
)
def test_a_sample_of_memory_asks_for_nothing_else(
    gpus: VirtualGpus,
    box: Box,
    tmp_path: Path,
    *,
    compute: Mapping[int, int | None],
    more_calls: list[str],
    listed: Mapping[int, int],
) -> None:
    """Memory and compute processes, and the other list where that one leaves a process's memory open."""
    card = replace(CARD, used_bytes=GIB, compute=compute, graphics={3: 100, 7: GIB})
    gpus.write(card)
    box.call(keep_open)
    gpus.write(card, calls=tmp_path / "calls")
    sample, _ = box.call(sample_kept, complete=False)
    assert GpuSample(at_ns=sample.at_ns, device_used_bytes=GIB, processes=listed) == sample
    compute_list = "nvmlDeviceGetComputeRunningProcesses_v3"
    assert ["nvmlDeviceGetMemoryInfo_v2", compute_list, compute_list, *more_calls] == (
        tmp_path / "calls"
    ).read_text().split()


def test_readings_follow_the_card(gpus: VirtualGpus, box: Box) -> None:
    """A device that is kept is asked anew each time."""
    gpus.write(CARD)
    box.call(keep_open)
    gpus.write(replace(CARD, used_bytes=GIB, compute={7: GIB}, utilisation_percent=97, event_reasons=0x24))
    sample, _ = box.call(sample_kept)
    assert (GIB, {7: GIB}, 97, 0x24) == (
        sample.device_used_bytes,
        sample.processes,
        sample.utilisation_percent,
        sample.event_reasons,
    )


def test_a_driver_without_a_function_tells_the_rest(tmp_path: Path) -> None:
    """What an old driver lacks is None and said; a loaded library goes on though its file is gone."""
    lacking = "nvmlDeviceGetMemoryInfo_v2"
    gpus = VirtualGpus(tmp_path, without=[lacking])
    gpus.write(replace(CARD, used_bytes=GIB, compute={7: GIB, 8: 1}, graphics={9: 5}, event_reasons=0x08))
    with gpus.box() as box:
        sample, problems = box.call(sample_once)
        assert (None, {7: GIB, 8: 1, 9: 5}) == (sample.device_used_bytes, sample.processes)
        assert 0x08 == sample.event_reasons
        assert ("device memory: Function Not Found (NVML error 13)",) == problems
        gpus.library.unlink()
        again, _ = box.call(sample_once)
        assert replace(sample, at_ns=again.at_ns) == again


@pytest.mark.parametrize("reading", [name for name in ASKED if name != "processes"])
def test_a_reading_that_is_not_available_is_none(gpus: VirtualGpus, box: Box, reading: str) -> None:
    """N/A (all bits set) is no number; every other reading is unharmed."""
    absent: dict[str, Any] = {{"device_used_bytes": "used_bytes"}.get(reading, reading): None}
    gpus.write(CARD)
    whole, _ = box.call(sample_once)
    gpus.write(replace(CARD, **absent))
    sample, problems = box.call(sample_once)
    assert replace(whole, at_ns=sample.at_ns, **{reading: None}) == sample
    assert (f"{ASKED[reading][0]}: not available (N/A)",) == problems


@pytest.mark.parametrize("reading", list(ASKED))
@pytest.mark.parametrize(
    ("code", "words"), [(3, "Not Supported"), (4, "Insufficient"), (10, "Timeout"), (999, "Unknown")]
)
def test_a_reading_that_fails_is_none_and_said_once(
    gpus: VirtualGpus, box: Box, reading: str, code: int, words: str
) -> None:
    """However often it fails, one line says so; it is asked again unless the device can never tell."""
    what, function = ASKED[reading]
    gpus.write(CARD)
    box.call(keep_open)
    whole, _ = box.call(sample_kept)
    gpus.write(CARD, fail={function: code})
    box.call(sample_kept)
    sample, problems = box.call(sample_kept)
    assert replace(whole, at_ns=sample.at_ns, **{reading: None}) == sample
    assert 1 == len(problems)
    assert problems[0].startswith(f"{what}: {words}")
    assert problems[0].endswith(f"(NVML error {code})")
    gpus.write(CARD)
    after, _ = box.call(sample_kept)
    assert (code == 3) == (getattr(after, reading) is None)


@pytest.mark.parametrize(
    ("compute", "graphics", "expected"),
    [
        pytest.param({}, {}, {}, id="idle"),
        pytest.param({7: GIB, 4_000_000: GIB}, {}, {7: GIB, 4_000_000: GIB}, id="numbers of the host"),
        pytest.param({1: 0}, {}, {1: 0}, id="numbers translated, memory 0"),
        pytest.param({7: None}, {}, {7: None}, id="N/A in a container"),
        pytest.param({7: None, 8: GIB}, {}, {7: None, 8: GIB}, id="N/A of one"),
        pytest.param({7: None}, {7: GIB}, {7: GIB}, id="told on the other list"),
        pytest.param({7: GIB}, {7: GIB}, {7: GIB}, id="on both lists"),
        pytest.param({}, {7: None}, {7: None}, id="graphics only"),
        pytest.param([(7, GIB), (7, MIB)], {}, {7: GIB + MIB}, id="once for each slice"),
        pytest.param([(7, GIB), (7, None)], {}, {7: None}, id="N/A on one slice"),
        pytest.param({pid: pid for pid in range(1, 301)}, {}, {pid: pid for pid in range(1, 301)}, id="many"),
    ],
)
def test_processes_of_both_lists_are_told_once(
    gpus: VirtualGpus,
    box: Box,
    compute: Mapping[int, int | None],
    graphics: Mapping[int, int | None],
    expected: Mapping[int, int | None],
) -> None:
    """Compute and graphics processes are one list by number; unknown memory is None, never nought."""
    gpus.write(replace(CARD, compute=compute, graphics=graphics))
    sample, problems = box.call(sample_once)
    assert expected == sample.processes
    unknown = "memory of processes: the driver does not tell it of all of them (N/A)"
    assert ((unknown,) if None in expected.values() else ()) == problems


def test_compute_processes_are_told_although_graphics_are_not(gpus: VirtualGpus, box: Box) -> None:
    """A card that knows no graphics processes loses nothing else."""
    gpus.write(replace(CARD, compute={7: GIB}), fail={"nvmlDeviceGetGraphicsRunningProcesses_v3": 3})
    sample, problems = box.call(sample_once)
    assert {7: GIB} == sample.processes
    assert ("graphics processes: Not Supported (NVML error 3)",) == problems


@pytest.mark.parametrize(
    ("code", "words"),
    [(15, "GPU is lost"), (16, "GPU requires restart"), (1, "Uninitialized"), (9, "Driver Not Loaded")],
)
def test_a_gpu_that_is_gone_is_asked_one_thing_a_sample(
    gpus: VirtualGpus, box: Box, tmp_path: Path, code: int, words: str
) -> None:
    """Each further call could block; nothing is raised, and a card that comes back is read again."""
    gpus.write(CARD)
    box.call(keep_open)
    gpus.write(CARD, fail={"*": code}, calls=tmp_path / "calls")
    samples = [box.call(sample_kept) for _ in range(2)]
    for sample, problems in samples:
        assert GpuSample(at_ns=sample.at_ns) == sample
        assert (f"everything: {words} (NVML error {code})",) == problems
    assert 2 == len((tmp_path / "calls").read_text().split())
    gpus.write(CARD)
    sample, _ = box.call(sample_kept)
    assert 70_000 == sample.power_mw


def sample_timed() -> tuple[int, int, int]:
    """Return the clock before a sample, the sample's own, and the clock after it."""
    before_ns = time.monotonic_ns()
    sample = Kept.gpu.sample()
    return before_ns, sample.at_ns, time.monotonic_ns()


def test_a_sample_of_a_slow_driver_is_of_the_moment_before_it(gpus: VirtualGpus, box: Box) -> None:
    """The clock is read first, so that a slow answer is not put into a later phase."""
    gpus.write(CARD)
    box.call(keep_open)
    gpus.write(CARD, delay_us={"nvmlDeviceGetPowerUsage": 20_000})
    before_ns, at_ns, after_ns = box.call(sample_timed)
    assert before_ns <= at_ns <= after_ns - 20_000_000


def test_a_slice_tells_its_memory_and_shares_its_cards_clock(gpus: VirtualGpus, box: Box) -> None:
    """Power and energy are of all slices together and stay None; what comes from the card is said to."""
    gpus.write(CUT)
    sample, problems = box.call(sample_once, SLICE.uuid)
    assert (
        GpuSample(
            at_ns=sample.at_ns,
            device_used_bytes=3 * GIB,
            processes={7: 2 * GIB},
            sm_clock_mhz=1_980,
            temperature_c=35,
            event_reasons=0x20,
        )
        == sample
    )
    assert (
        "power and energy: the card's count all its MIG slices together, so none are stated",
        "clock, temperature and clock event reasons: the card's, which its MIG slices share",
        "utilisation: Not Supported (NVML error 3)",
    ) == problems


def test_a_library_that_does_not_match_is_a_missing_function() -> None:
    """Pynvml raises it outside its own family of errors."""
    pynvml = pytest.importorskip("pynvml")
    assert 13 == code_of(pynvml.NVMLLibraryMismatchError("does not match"))
    assert None is code_of(ValueError("no code"))
